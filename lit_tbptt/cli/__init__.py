"""The command line."""

from lit_tbptt.cli.app import LitCLI, main

__all__ = ["LitCLI", "main"]
