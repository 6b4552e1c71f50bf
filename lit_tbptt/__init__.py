"""Truncated backpropagation through time on PyTorch Lightning: carried state, contiguous lanes, any (k1, k2)."""

import lazy_loader

# Names are imported when they are first used: torch takes two seconds to import, Lightning as long again.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
