"""A language model with its tokenizer: generates and scores text, saves to a folder or the Hugging Face Hub."""

from lit_tbptt.text_model.model import Prompts, TextModel

__all__ = ["Prompts", "TextModel"]
