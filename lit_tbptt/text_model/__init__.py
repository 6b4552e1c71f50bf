"""A language model with its tokenizer: what writes and scores text, as a folder or a repository on the Hub too."""

from lit_tbptt.text_model.model import Prompts, TextModel

__all__ = ["Prompts", "TextModel"]
