"""A language model with its tokenizer: what writes and scores text. It knows no Lightning, so it starts sooner."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from lit_tbptt import cores
from lit_tbptt.cores import RecurrentCore
from lit_tbptt.data.text.tokenizers import Tokenizer, from_description
from lit_tbptt.errors import InputError
from lit_tbptt.files.schema import Checkpoint, run_state
from lit_tbptt.models.adaptive_softmax import Adaptive
from lit_tbptt.models.language_model import RecurrentLM

# Arguments of RecurrentLM that are plain values, by the names they have in a checkpoint's hyperparameters.
_OPTIONS = ("embedding_dropout", "output_dropout", "dropout_over_time", "tie_weights")
_PREFIX = "model."  # of the network's weights in a LitLanguageModel


class TextModel:
    """A language model with its tokenizer.

    Args:
        network: The language model.
        tokenizer: What its tokens mean.
    """

    def __init__(self, network: RecurrentLM, tokenizer: Tokenizer) -> None:
        self.network = network
        self.tokenizer = tokenizer

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, core: RecurrentCore | type[RecurrentCore] | None = None) -> Self:
        """Makes the language model of a checkpoint that was read, in eval mode.

        Args:
            checkpoint: What `read_checkpoint` returned for a file that a fit of a `LitLanguageModel` wrote.
            core: A core of your own class, built as it was in training, or the class.

        Raises:
            InputError: It is not such a checkpoint, or its core is of a class that must be given.
        """
        tokenizer, parts = tokenizer_of(checkpoint), network_parts(checkpoint, core)
        options = {name: checkpoint["hyper_parameters"][name] for name in _OPTIONS}
        network = RecurrentLM(tokenizer.vocabulary_size, **parts, **options)
        weights = checkpoint["state_dict"]
        network.load_state_dict(
            {name.removeprefix(_PREFIX): value for name, value in weights.items() if name.startswith(_PREFIX)}
        )
        return cls(network.eval(), tokenizer)

    def generate(
        self,
        prompts: Sequence[str],
        num_tokens: int = 400,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Returns what follows each prompt, which stands at a document's start; see `RecurrentLM.generate`."""
        given = [ids.tolist() for ids in self.tokenizer.encode(list(prompts))]
        starts = [[self.tokenizer.eos, *ids] for ids in given]
        added = self.network.generate(starts, num_tokens, temperature, top_k, seed)
        # Decoded together, so that what stands between the last word given and the first one added is not lost.
        return [
            self.tokenizer.decode(start + ids).removeprefix(self.tokenizer.decode(start))
            for start, ids in zip(given, added, strict=True)
        ]


def description(part: RecurrentCore | Adaptive) -> dict[str, Any]:
    """Returns the class of a core or an output layer by the name it has on the command line, and its arguments."""
    known = (Adaptive, *vars(cores).values())
    module = "lit_tbptt" if type(part) in known else type(part).__module__
    return {"class_path": f"{module}.{type(part).__qualname__}", "init_args": part.init_args}


def network_parts(
    checkpoint: Mapping[str, Any], core: RecurrentCore | type[RecurrentCore] | None = None
) -> dict[str, Any]:
    """Returns core and output layer that a checkpoint's hyperparameters describe, built again.

    Args:
        checkpoint: A checkpoint of a `LitLanguageModel`.
        core: The core, or its class where it is not one of this package's.

    Raises:
        InputError: The core is of a class that must be given.
    """
    described, head = checkpoint["hyper_parameters"]["core"], checkpoint["hyper_parameters"]["head"]
    if core is None:
        path = described["class_path"]
        core = getattr(cores, path.removeprefix("lit_tbptt."), None)
        if core is None:
            raise InputError(
                f"the checkpoint's core is a {path}, which is not imported because a file says so; pass the class, "
                f"or one that you have built, as core (generate: --core {path})"
            )
    if isinstance(core, type):
        core = core(**described["init_args"])
    return {"core": core, "head": None if head is None else Adaptive(**head["init_args"])}


def tokenizer_of(checkpoint: Mapping[str, Any]) -> Tokenizer:
    """Returns the tokenizer that a checkpoint holds.

    Raises:
        InputError: It holds none.
    """
    state = run_state(checkpoint)
    if "tokenizer" not in state:
        raise InputError("the checkpoint is not one of this package's language models: it has no tokenizer")
    return from_description(state["tokenizer"])
