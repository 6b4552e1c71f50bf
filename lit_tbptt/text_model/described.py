"""Converts a language model and its tokenizer to the plain values in a checkpoint, and builds them from these."""

from collections.abc import Iterable, Mapping
from typing import Any

from lit_tbptt.cores import RecurrentCore
from lit_tbptt.cores.described import build, describe
from lit_tbptt.data.text.tokenizer_choice import from_description
from lit_tbptt.data.text.tokenizers import Tokenizer
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
        head = describe_head(Adaptive(network.head.cutoffs[:-1], network.head.div_value))
    return {
        "core": describe(network.core),
        "head": head,
        **{name: getattr(network, name) for name in _OPTIONS if name != "tie_weights"},
        "tie_weights": getattr(network.head, "weight", None) is network.embedding.weight,
    }


def describe_head(head: Adaptive) -> dict[str, Any]:
    """Returns the class of an output layer, by its name on the command line, and its arguments."""
    return {"class_path": f"lit_tbptt.{type(head).__qualname__}", "init_args": head.init_args}


def network_parts(
    settings: Mapping[str, Any], core: RecurrentCore | type[RecurrentCore] | None = None
) -> dict[str, Any]:
    """Builds the core and the output layer that the settings describe.

    Args:
        settings: The result of `network_settings`, or a checkpoint's hyperparameters.
        core: The core, or its class. Required if the class is not from this package. The class may also be that of a
            core within the core.

    Raises:
        InputError: The class of the core is required but not given, or differs from the given one.
    """
    head = settings["head"]
    if core is None or isinstance(core, type):
        core = build(settings["core"], core)
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


def check_same_network(
    saved_settings: Mapping[str, Any], settings: Mapping[str, Any], names: Iterable[str], resumes: bool
) -> None:
    """Checks that weights that were saved with some settings fit others, and the carried state if a run resumes.

    Args:
        saved_settings: A checkpoint's hyperparameters.
        settings: Those of the model.
        names: Those that the weights depend on.
        resumes: Whether the carried state must fit, too.

    Raises:
        InputError: They do not.
    """
    for name in names:
        saved, ours = saved_settings[name], settings[name]
        if saved != ours:
            what, ours, saved = _difference(f"model.{name}", ours, saved)
            raise InputError(
                f"{what}={ours} with a checkpoint that was trained with {saved}: the network cannot change; leave "
                f"{what} out, or give the same"
            )
    # The state holds the last output if it is above 0.
    saved, ours = saved_settings.get("temporal_penalty", 0.0), settings["temporal_penalty"]
    if resumes and bool(saved) != bool(ours):
        raise InputError(
            f"model.temporal_penalty={ours}, where the run to be resumed has {saved}: a resumed run cannot switch "
            "it on or off, since the state would be another; start a new run from these weights instead"
        )


def _difference(name: str, ours: Any, saved: Any) -> tuple[str, Any, Any]:
    """Returns the innermost setting that differs: an argument of a class, or the class."""
    if isinstance(ours, dict) and isinstance(saved, dict):
        for key in ours:
            if ours[key] != saved.get(key):
                inner = name if key in ("class_path", "init_args") else f"{name}.{key}"
                return _difference(inner, ours[key], saved.get(key))
    return name, ours, saved
