"""From a Hugging Face dataset to windows: documents, tokens, lanes."""

from lit_tbptt.data.lanes.streamed import StreamedLanes
from lit_tbptt.data.lanes.strided import StridedLanes
from lit_tbptt.data.text.documents import load_documents
from lit_tbptt.data.text.stream import document_stream
from lit_tbptt.data.text.tokenizers import Tokenizer, make_tokenizer

__all__ = ["StreamedLanes", "StridedLanes", "Tokenizer", "document_stream", "load_documents", "make_tokenizer"]
