"""One small core of every kind, by name, for the tests of what all cores promise. Each takes 7 features."""

from tasks import Leaky
from torch import nn

from lit_tbptt import (
    AWDLSTM,
    GRU,
    LSTM,
    RNN,
    SRU,
    CoupledLSTM,
    EchoState,
    HuggingFaceCore,
    LayerNormLSTM,
    MinGRU,
    MinLSTM,
    Stack,
    TorchCore,
)


class Wrapped(TorchCore):
    """A module of torch, with its axes as torch has them."""

    def __init__(self, hidden_size=5):
        super().__init__(nn.LSTM(7, hidden_size, 2), lane_axis=1, time_first=True)


CORES = {
    "rnn": lambda: RNN(5, input_size=7),
    "rnn relu": lambda: RNN(5, 2, "relu", input_size=7),
    "lstm": lambda: LSTM(5, 3, input_size=7),
    "lstm dropout learned": lambda: LSTM(5, 2, 0.4, True, input_size=7),
    "awd-lstm": lambda: AWDLSTM(5, 3, input_size=7),
    "awd-lstm, one size": lambda: AWDLSTM(6, 2, weight_drop=0.3, dropout=0.0, input_size=7, output_size=4),
    "gru": lambda: GRU(5, 2, learned_initial_state=True, input_size=7),
    "echo state": lambda: EchoState(31, leak=0.4, num_connections=6, input_size=7),
    "minGRU": lambda: MinGRU(5, learned_initial_state=True, input_size=7),
    "minLSTM": lambda: MinLSTM(9, 2, 0.3, input_size=7, output_size=4),
    "layer norm lstm": lambda: LayerNormLSTM(5, input_size=7),
    "coupled lstm": lambda: CoupledLSTM(5, input_size=7),
    "sru": lambda: SRU(5, input_size=7),
    "sru of equal sizes": lambda: SRU(7),
    "stack": lambda: Stack([LSTM(5, input_size=7), SRU(6, input_size=5), GRU(4, input_size=6)], norm="layer"),
    "stack residual": lambda: Stack(
        [LSTM(7), Stack([RNN(9, input_size=7), GRU(7, input_size=9)]), Leaky()], "residual", "rms", 0.3, "shared"
    ),
    "stack dense": lambda: Stack(
        [CoupledLSTM(5, input_size=7), GRU(4, 2, learned_initial_state=True, input_size=12), LSTM(3, input_size=11)],
        "dense",
        dropout=0.4,
    ),
    "a module": Wrapped,
    "a user's": Leaky,
    "mamba": lambda: HuggingFaceCore("mamba", 6, 2, {"state_size": 5}, input_size=7),
    "falcon mamba": lambda: HuggingFaceCore("falcon_mamba", 6, 2, {"state_size": 5}, input_size=7),
    "mamba2": lambda: HuggingFaceCore(
        "mamba2", 6, 2, {"state_size": 5, "num_heads": 4, "head_dim": 3, "n_groups": 2, "chunk_size": 4}, input_size=7
    ),
    "rwkv": lambda: HuggingFaceCore("rwkv", 6, 3, input_size=7),
    "xlstm": lambda: HuggingFaceCore(
        "xlstm", 8, 2, {"num_heads": 2, "chunk_size": 4, "ffn_round_up_to_multiple_of": 3}, input_size=7
    ),
}
# The largest difference in float64 between a core that is cut and one that is not, where it is not 1e-10.
# These compute in float32 in places.
TOLERANCES: dict[str, float] = {"mamba": 1e-6, "falcon mamba": 1e-6, "mamba2": 3e-5, "rwkv": 1e-6, "xlstm": 3e-5}
# The package that a core needs; without it, its tests are skipped.
PACKAGES: dict[str, str] = dict.fromkeys(["mamba", "falcon mamba", "mamba2", "rwkv", "xlstm"], "transformers")
# Those whose tests take seconds.
SLOW = ("falcon mamba", "rwkv", "xlstm")
