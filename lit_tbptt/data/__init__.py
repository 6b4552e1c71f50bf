"""From a Hugging Face dataset to windows: documents, tokens, lanes."""

from lit_tbptt.data.documents import load_documents
from lit_tbptt.data.lanes import StridedLanes
from lit_tbptt.data.tokenizers import Tokenizer, make_tokenizer

__all__ = ["StridedLanes", "Tokenizer", "load_documents", "make_tokenizer"]
