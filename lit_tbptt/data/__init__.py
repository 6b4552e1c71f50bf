"""From a Hugging Face dataset to windows: documents, tokens, lanes."""

from lit_tbptt.data.documents import load_documents
from lit_tbptt.data.stream import document_stream
from lit_tbptt.data.streamed_lanes import StreamedLanes
from lit_tbptt.data.strided_lanes import StridedLanes
from lit_tbptt.data.tokenizers import Tokenizer, make_tokenizer

__all__ = ["StreamedLanes", "StridedLanes", "Tokenizer", "document_stream", "load_documents", "make_tokenizer"]
