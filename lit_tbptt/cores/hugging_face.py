"""The core HuggingFaceCore: recurrent models of the `transformers` library."""

import json
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.checks import check_sizes
from lit_tbptt.cores.hugging_face_blocks import BlockKind
from lit_tbptt.cores.hugging_face_mamba import Mamba2Blocks, MambaBlocks
from lit_tbptt.cores.hugging_face_rwkv import RWKVBlocks
from lit_tbptt.cores.hugging_face_xlstm import XLSTMBlocks
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import State, cast_like

VERSIONS = (5, 19), (5, 24)
"""The versions of `transformers` that were tested: from the first, below the second."""

BLOCK_KINDS: dict[str, BlockKind] = {
    "mamba": MambaBlocks(),
    "falcon_mamba": MambaBlocks(),
    "mamba2": Mamba2Blocks(),
    "rwkv": RWKVBlocks(),
    "xlstm": XLSTMBlocks(),
}

_HYBRIDS = ("bamba", "falcon_h1", "granitemoehybrid", "jamba", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_next")
REFUSED: dict[str, str] = {
    "recurrent_gemma": "transformers keeps its state in the modules and starts the convolution again in every call of "
    "more than one time step, as of 5.23",
    **dict.fromkeys(
        (*_HYBRIDS, "zamba", "zamba2"),
        "its attention layers keep keys and values of all time steps: the state would grow without bound",
    ),
}
"""Model types that cannot be carried, and why."""

_ARGUMENTS = ("hidden_size", "num_hidden_layers")
# Settings that say nothing about the blocks.
_NOT_OURS = {
    *("architectures", "dtype", "model_type", "transformers_version", "use_cache", "vocab_size"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"),
}


class HuggingFaceCore(RecurrentCore):
    """A recurrent model of `transformers`, without its embedding and its output layer.

    Mamba (Gu & Dao 2023), Mamba2 (Dao & Gu 2024), FalconMamba (Zuo et al. 2024), RWKV-4 (Peng et al. 2023) and xLSTM
    (Beck et al. 2025). `transformers` drops, refuses or overwrites their state when a window is trained; here it is
    carried, with gradient. Needs `pip install 'lit_tbptt[huggingface]'`.

    The norms of these models compute in float32, whatever the dtype of the weights.

    Args:
        model_type: mamba, mamba2, falcon_mamba, rwkv or xlstm.
        hidden_size: Output features per time step, and features between the blocks.
        num_layers: Number of blocks.
        config: Other settings of the model type, by their names in its configuration, such as `state_size`. Mamba2 has
            heads of at most 64 features, in up to 8 groups, unless `num_heads` or `head_dim` is given.
        pretrained: A folder that `save_pretrained` of `transformers` wrote, or a model's name on the Hugging Face Hub:
            the blocks are read from there, and the settings above come from there too. A language model with the
            same tokenizer also starts with its embedding and output layer. A checkpoint does not need the folder:
            `init_args` has the model's settings instead. A subclass with a constructor of its own has that one's
            arguments there, so its checkpoints need the folder.
        input_size: Input features per time step. If it is given, a linear layer maps these to `hidden_size` features.

    Raises:
        InputError: `transformers` is missing or of a version that was not tested, the model type cannot be carried, or
            the library refuses a setting.
    """

    tokens: tuple[str, Tensor, Tensor] | None = None

    def __init__(
        self,
        model_type: str = "mamba",
        hidden_size: int = 256,
        num_layers: int = 2,
        config: dict[str, Any] | None = None,
        pretrained: str | None = None,
        input_size: int | None = None,
    ) -> None:
        check_sizes(hidden_size=hidden_size, num_layers=num_layers, input_size=input_size)
        _check_version()
        super().__init__()
        if pretrained is None:
            for argument, setting in zip(("hidden_size", "num_layers"), _ARGUMENTS, strict=True):
                if setting in (config or {}):
                    raise InputError(f"config.{setting}: this is the argument {argument}; set it there")
            settings = {**(config or {}), "hidden_size": hidden_size, "num_hidden_layers": num_layers}
            model = _random_model(model_type, settings)
        else:
            model, model_type, settings = _pretrained_model(pretrained)
            # Not in the state of the module: the language model takes them over.
            self.__dict__["tokens"] = pretrained, *_token_weights(model)
            model = model.base_model
            others = {name: value for name, value in settings.items() if name not in _ARGUMENTS}
            if type(self).__init__ is HuggingFaceCore.__init__:  # otherwise the arguments are those of a subclass
                self.init_args = {
                    "model_type": model_type,
                    "hidden_size": settings["hidden_size"],
                    "num_layers": settings["num_hidden_layers"],
                    "config": others,
                    "pretrained": None,
                    "input_size": input_size,
                }
        self.kind = BLOCK_KINDS[model_type]
        self.output_size = settings["hidden_size"]
        self.input_size = self.output_size if input_size is None else input_size
        self.projection = nn.Identity() if input_size is None else nn.Linear(input_size, self.output_size)
        self.blocks = nn.ModuleList(map(self.kind.prepared, getattr(model, self.kind.blocks)))
        self.norm = getattr(model, self.kind.norm)

    def initialize_tokens(self, embedding: nn.Embedding, head: nn.Module) -> None:
        """Copies the pretrained embedding and output layer, if the vocabulary is that of the pretrained tokenizer."""
        if self.tokens is None:
            return
        (name, rows, columns), self.__dict__["tokens"] = self.tokens, None
        size = _vocabulary_size(name)
        if embedding.num_embeddings != size or embedding.embedding_dim != rows.shape[1]:
            warnings.warn(
                f"pretrained={name!r}: the embedding and the output layer start from random weights, since the "
                f"vocabulary has {embedding.num_embeddings:,} tokens and that of the pretrained tokenizer "
                f"{'cannot be read' if size is None else f'has {size:,}'}; to use them, give "
                f"data.tokenizer={name} and leave input_size out",
                stacklevel=3,
            )
            return
        with torch.no_grad():
            embedding.weight.copy_(rows[:size])
            if isinstance(head, nn.Linear):
                if head.weight is not embedding.weight:
                    head.weight.copy_(columns[:size])
                head.bias.zero_()

    def initial_state(self, num_lanes: int) -> State:
        """Returns tensors `[lane, layer, ...]` by name. Sums over time are in float32 or more."""
        return _stacked([self.kind.initial_state(block, num_lanes) for block in self.blocks])

    def forward(
        self, inputs: Float[Tensor, "lane time feature"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        features = self.projection(inputs)
        dtype = features.dtype
        if not inputs.shape[0]:  # reshaping in the library is ambiguous for tensors without elements
            return features, state
        layers = zip(*(leaf.unbind(1) for leaf in state.values()), strict=True)
        after = []
        for block, leaves in zip(self.blocks, layers, strict=True):
            features, block_state = self.kind.run(block, features, dict(zip(state, leaves, strict=True)))
            after.append(block_state)
        return self.norm(features).to(dtype), cast_like(_stacked(after), state)


def _stacked(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states], 1) for name in states[0]}


def _check_version() -> None:
    bounds = ",".join(f"{sign}{'.'.join(map(str, bound))}" for sign, bound in zip((">=", "<"), VERSIONS, strict=True))
    install = f"pip install 'transformers{bounds}'"
    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError as error:
        raise InputError(f"core: HuggingFaceCore needs the package transformers: {install}") from error
    if not VERSIONS[0] <= tuple(int(part) for part in version.split(".")[:2]) < VERSIONS[1]:
        raise InputError(
            f"core: HuggingFaceCore was tested with transformers{bounds}, and {version} is installed; its blocks may "
            f"treat their state differently: {install}"
        )


def _check_model_type(model_type: str) -> None:
    if model_type not in BLOCK_KINDS:
        reason = f" ({REFUSED[model_type]})" if model_type in REFUSED else ""
        raise InputError(f"model_type={model_type!r}: must be one of {', '.join(BLOCK_KINDS)}{reason}")


def _check_settings(model_type: str, settings: dict[str, Any]) -> None:
    refusal = BLOCK_KINDS[model_type].refusal(settings)
    if refusal:
        raise InputError(refusal)


def _random_model(model_type: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel

    _check_model_type(model_type)
    _check_settings(model_type, settings)
    settings = BLOCK_KINDS[model_type].completed(settings)
    # Token ids are not used here, and must be below the size of the vocabulary.
    tokens = {"vocab_size": 1, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    try:
        configuration = AutoConfig.for_model(model_type, **{**settings, **tokens})
        unknown = sorted(set(settings) - set(AutoConfig.for_model(model_type).to_dict()))
        if not unknown:
            return AutoModel.from_config(configuration, dtype=torch.get_default_dtype())
    except Exception as error:  # of many types
        raise InputError(f"config={settings}: refused by transformers ({error})") from error
    raise InputError(f"config.{unknown[0]}: not a setting of transformers' {model_type}")


def _pretrained_model(name: str) -> tuple[Any, str, dict[str, Any]]:
    """Returns the language model, its type, and its settings: plain values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        configuration = AutoConfig.from_pretrained(name)
    except Exception as error:  # of many types
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"pretrained={name!r}: neither a folder that save_pretrained of transformers wrote, nor a model on the "
            f"Hugging Face Hub, or the Hub cannot be reached ({reason})"
        ) from error
    model_type = configuration.model_type
    _check_model_type(model_type)
    known = set(type(configuration)().to_dict()) - _NOT_OURS
    saved = json.loads(json.dumps(configuration.to_diff_dict()))
    settings = {key: value for key, value in saved.items() if key in known}
    settings |= {key: getattr(configuration, key) for key in _ARGUMENTS}
    _check_settings(model_type, settings)
    model = AutoModelForCausalLM.from_pretrained(name, config=configuration, dtype=torch.get_default_dtype())
    return model.train(), model_type, settings  # the library returns it in eval mode


def _token_weights(model: Any) -> tuple[Tensor, Tensor]:
    rows, columns = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return rows.detach(), columns.detach()


def _vocabulary_size(name: str) -> int | None:
    """Returns the vocabulary size of a model's tokenizer, which may be below that of its embedding; None: no such."""
    import tokenizers

    try:
        file = Path(name) / "tokenizer.json"
        tokenizer = (
            tokenizers.Tokenizer.from_file(str(file))
            if Path(name).is_dir()
            else tokenizers.Tokenizer.from_pretrained(name)
        )
    except Exception:  # the library raises plain Exception
        return None
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
