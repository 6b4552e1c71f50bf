from .app import LitCLI
from .commands import main
from .text import TextCLI

__all__ = ["LitCLI", "TextCLI", "main"]
