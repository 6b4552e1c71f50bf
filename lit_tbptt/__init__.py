"""Truncated backpropagation through time on PyTorch Lightning: carried state, contiguous lanes, any (k1, k2)."""

import lazy_loader

# A name is imported when it is first used: torch takes two seconds, Lightning as much again.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
