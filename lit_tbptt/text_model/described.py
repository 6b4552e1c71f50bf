"""Converts a language model and its tokenizer to the plain values in a checkpoint, and builds them from these."""

from collections.abc import Mapping
from typing import Any

from lit_tbptt import cores
from lit_tbptt.cores import RecurrentCore
from lit_tbptt.data.text.tokenizers import Tokenizer, from_description
from lit_tbptt.errors import InputError
from lit_tbptt.files.schema import run_state
from lit_tbptt.models.adaptive_softmax import Adaptive, AdaptiveSoftmax
from lit_tbptt.models.language_model import RecurrentLM

# Arguments of RecurrentLM that are plain values, by their names in a checkpoint's hyperparameters.
_OPTIONS = ("embedding_dropout", "output_dropout", "dropout_over_time", "vocabulary_dropout", "tie_weights")


def build_network(
    settings: Mapping[str, Any], tokenizer: Tokenizer, core: RecurrentCore | type[RecurrentCore] | None = None
) -> RecurrentLM:
    """Builds the network that the settings describe, with new weights.

    Args:
        settings: The result of `network_settings`, or a checkpoint's hyperparameters.
        tokenizer: The tokenizer of the network.
        core: As in `network_parts`.

    Raises:
        InputError: As in `network_parts`.
    """
    options = {name: settings[name] for name in _OPTIONS if name in settings}  # older files lack the latest
    return RecurrentLM(tokenizer.vocabulary_size, **network_parts(settings, core), **options)


def network_settings(network: RecurrentLM) -> dict[str, Any]:
    """Returns the settings for `build_network`: plain values, if the core's arguments are."""
    head = None
    if isinstance(network.head, AdaptiveSoftmax):
        head = description(Adaptive(network.head.cutoffs[:-1], network.head.div_value))
    return {
        "core": description(network.core),
        "head": head,
        **{name: getattr(network, name) for name in _OPTIONS if name != "tie_weights"},
        "tie_weights": getattr(network.head, "weight", None) is network.embedding.weight,
    }


def description(part: RecurrentCore | Adaptive) -> dict[str, Any]:
    """Returns the class of a core or output layer, by its name on the command line, and its arguments."""
    known = (Adaptive, *vars(cores).values())
    module = "lit_tbptt" if type(part) in known else type(part).__module__
    return {"class_path": f"{module}.{type(part).__qualname__}", "init_args": part.init_args}


def network_parts(
    settings: Mapping[str, Any], core: RecurrentCore | type[RecurrentCore] | None = None
) -> dict[str, Any]:
    """Builds the core and the output layer that the settings describe.

    Args:
        settings: The result of `network_settings`, or a checkpoint's hyperparameters.
        core: The core, or its class. Required if the class is not from this package.

    Raises:
        InputError: The class of the core is required but not given, or differs from the given one.
    """
    described, head = settings["core"], settings["head"]
    path, arguments = described["class_path"], described["init_args"]
    if core is None:
        core = getattr(cores, path.removeprefix("lit_tbptt."), None)
        if core is None:
            raise InputError(
                f"the checkpoint's core is a {path}, which is not imported just because the checkpoint names it; pass "
                f"the class, or an instance of it, as core (generate: --core {path})"
            )
    if isinstance(core, type):
        # Only the class name must match: the module of a running script is __main__.
        if core.__qualname__.rpartition(".")[2] != path.rpartition(".")[2]:
            raise InputError(
                f"core={core.__qualname__}: the checkpoint's core is a {path}; give that class, or leave core out if "
                "it is one of this package's"
            )
        try:
            core = core(**arguments)
        except TypeError as error:
            raise InputError(
                f"core={core.__qualname__}: not to be built with {arguments}, as in training ({error})"
            ) from error
    return {"core": core, "head": None if head is None else Adaptive(**head["init_args"])}


def tokenizer_of(checkpoint: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer of a checkpoint.

    Raises:
        InputError: The checkpoint has no tokenizer.
    """
    state = run_state(checkpoint)
    if "tokenizer" not in state:
        raise InputError("the checkpoint is not one of this package's language models: it has no tokenizer")
    return from_description(state["tokenizer"])
