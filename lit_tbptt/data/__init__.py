"""Turns a Hugging Face dataset into windows: documents, tokens, lanes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # datasets takes a second
