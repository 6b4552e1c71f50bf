from .lanes.sequences import SequenceLanes
from .lanes.streamed import StreamedLanes
from .lanes.strided import StridedLanes
from .lanes.window_lengths import NormalLengths, WindowLengths
from .sequences.normalization import Normalization
from .text.documents import load_documents
from .text.stream import document_stream
from .text.tokenizer_choice import make_tokenizer
from .text.tokenizers import Tokenizer

__all__ = [
    "NormalLengths",
    "Normalization",
    "SequenceLanes",
    "StreamedLanes",
    "StridedLanes",
    "Tokenizer",
    "WindowLengths",
    "document_stream",
    "load_documents",
    "make_tokenizer",
]
