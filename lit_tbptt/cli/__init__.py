"""The command line: `main` for text, `LitCLI` for any task and data module."""

from lit_tbptt.cli.app import LitCLI
from lit_tbptt.cli.text import TextCLI, main

__all__ = ["LitCLI", "TextCLI", "main"]
