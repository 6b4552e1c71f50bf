from .cores import (
    AWDLSTM,
    GRU,
    LSTM,
    RNN,
    SRU,
    Cell,
    CoupledLSTM,
    EchoState,
    FlaCore,
    HuggingFaceCore,
    LayerNormLSTM,
    MinGRU,
    MinLSTM,
    RecurrentCore,
    Stack,
    TorchCore,
)
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
from .random_state import shared_generator
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
from .training.callbacks import (
    AdaptiveHorizon,
    GradientHorizon,
    NonMonotonicAveraging,
    RunCheckpoint,
    SignalHandling,
    TextSamples,
)
from .training.dynamic_evaluation import DynamicEvaluation
from .training.evaluation import Evaluation
from .training.language_model import LitLanguageModel
from .training.loggers import run_loggers
from .training.module import LitTBPTT
from .training.sequence_data import SequenceLanesDataModule
from .training.text_data import TextLanesDataModule

__all__ = [
    "AWDLSTM",
    "GRU",
    "LSTM",
    "RNN",
    "SRU",
    "Adaptive",
    "AdaptiveHorizon",
    "Batch",
    "Carry",
    "Cell",
    "CoupledLSTM",
    "DivergenceError",
    "DynamicEvaluation",
    "EchoState",
    "Evaluation",
    "FallingProbability",
    "FlaCore",
    "GradientHorizon",
    "HessianFree",
    "HuggingFaceCore",
    "InputError",
    "LayerNormLSTM",
    "LitLanguageModel",
    "LitTBPTT",
    "MinGRU",
    "MinLSTM",
    "NonMonotonicAveraging",
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
    "Stack",
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
    "TorchCore",
    "TruncatedLoss",
    "Truncation",
    "Update",
    "Updated",
    "WarmupCosineLR",
    "Window",
    "WindowLengths",
    "WindowLoss",
    "run_loggers",
    "shared_generator",
    "summed_nats",
]
