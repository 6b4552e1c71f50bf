from .cores import GRU, LSTM, RNN, EchoState, HuggingFaceCore, RecurrentCore
from .data import (
    Normalization,
    NormalLengths,
    SequenceLanes,
    StreamedLanes,
    StridedLanes,
    Tokenizer,
    WindowLengths,
)
from .errors import DivergenceError, InputError, SourceError
from .files.run_folder import RunFolder
from .models.adaptive_softmax import Adaptive
from .models.language_model import RecurrentLM
from .models.metrics import summed_nats
from .optim import HessianFree, RidgeReadout, WarmupCosineLR
from .ranks import Rank
from .tbptt import (
    Batch,
    Carry,
    FallingProbability,
    Place,
    RandomTruncation,
    Run,
    StepPerWindow,
    StepPerWindows,
    StepWithClosure,
    Task,
    TruncatedLoss,
    Truncation,
    Update,
    Updated,
    Window,
    WindowLoss,
)
from .text_model import TextModel
from .training.callbacks import AdaptiveHorizon, GradientHorizon, RunCheckpoint, SignalHandling, TextSamples
from .training.evaluation import Evaluation
from .training.language_model import LitLanguageModel
from .training.loggers import run_loggers
from .training.module import LitTBPTT
from .training.sequence_data import SequenceLanesDataModule
from .training.text_data import TextLanesDataModule

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Adaptive",
    "AdaptiveHorizon",
    "Batch",
    "Carry",
    "DivergenceError",
    "EchoState",
    "Evaluation",
    "FallingProbability",
    "GradientHorizon",
    "HessianFree",
    "HuggingFaceCore",
    "InputError",
    "LitLanguageModel",
    "LitTBPTT",
    "NormalLengths",
    "Normalization",
    "Place",
    "RandomTruncation",
    "Rank",
    "RecurrentCore",
    "RecurrentLM",
    "RidgeReadout",
    "Run",
    "RunCheckpoint",
    "RunFolder",
    "SequenceLanes",
    "SequenceLanesDataModule",
    "SignalHandling",
    "SourceError",
    "StepPerWindow",
    "StepPerWindows",
    "StepWithClosure",
    "StreamedLanes",
    "StridedLanes",
    "Task",
    "TextLanesDataModule",
    "TextModel",
    "TextSamples",
    "Tokenizer",
    "TruncatedLoss",
    "Truncation",
    "Update",
    "Updated",
    "WarmupCosineLR",
    "Window",
    "WindowLengths",
    "WindowLoss",
    "run_loggers",
    "summed_nats",
]
