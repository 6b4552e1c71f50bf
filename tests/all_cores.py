"""One small core of every kind, by name, for the tests of what all cores promise. Each takes 7 features."""

from tasks import Leaky

from lit_tbptt import GRU, LSTM, RNN, EchoState, HuggingFaceCore

CORES = {
    "rnn": lambda: RNN(5, input_size=7),
    "rnn relu": lambda: RNN(5, 2, "relu", input_size=7),
    "lstm": lambda: LSTM(5, 3, input_size=7),
    "lstm dropout learned": lambda: LSTM(5, 2, 0.4, True, input_size=7),
    "gru": lambda: GRU(5, 2, learned_initial_state=True, input_size=7),
    "echo state": lambda: EchoState(31, leak=0.4, num_connections=6, input_size=7),
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
