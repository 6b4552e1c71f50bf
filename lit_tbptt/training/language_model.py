"""LitLanguageModel: `RecurrentLM` in the training loop of `LitTBPTT`, with its tokenizer."""

import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor

from lit_tbptt.cores import LSTM, RecurrentCore
from lit_tbptt.cores.checks import check_core
from lit_tbptt.cores.described import describe
from lit_tbptt.data.text.tokenizer_choice import BUILT_IN
from lit_tbptt.data.text.tokenizers import Tokenizer
from lit_tbptt.errors import InputError
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.files.schema import Checkpoint, new_run_state
from lit_tbptt.models.accuracy import TokenAccuracy
from lit_tbptt.models.adaptive_softmax import Adaptive
from lit_tbptt.models.language_model import RecurrentLM
from lit_tbptt.models.metrics import rates, token_nats
from lit_tbptt.tbptt import Window, WindowLoss
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.task import faster_form_of
from lit_tbptt.text_model import Prompts, TextModel
from lit_tbptt.text_model.described import check_same_network, describe_head, network_parts, tokenizer_of
from lit_tbptt.training.module import LitTBPTT
from lit_tbptt.training.overrides import loop_hooks


@loop_hooks
class LitLanguageModel(LitTBPTT):
    """Trains a recurrent language model by truncated backpropagation through time.

    The vocabulary comes from the datamodule's `tokenizer` or from a checkpoint; `model` is created when it is known.

    Args:
        core: The recurrent part: RNN, LSTM, GRU, or any RecurrentCore.
        embedding_dropout: Probability of dropping a feature of the embedded input, in training.
        output_dropout: Probability of dropping a feature of the core's output, in training.
        dropout_over_time: Whether these draw a mask for every token (free), or one for a window (shared). The window's
            context shares it, too.
        tie_weights: Whether the output layer uses the embedding's matrix. If the core's `input_size` and `output_size`
            differ, it is behind a linear projection.
        head: Another output layer than a linear one: Adaptive, for large vocabularies. Left out: linear.
        vocabulary_dropout: Probability of dropping a token of the vocabulary for a window, in training.
        activation_penalty: Factor of the mean square of the core's output after dropout, in training (AR).
        temporal_penalty: Factor of the mean square of the changes of the core's output, in training (TAR). They
            are taken before dropout, between consecutive time steps of a window.
        **training: The arguments of LitTBPTT, by name.

    Raises:
        InputError: A setting is out of range.
    """

    loss_name = "nats_per_token"
    network_settings = ("core", "tie_weights", "head")
    evaluation_metrics: TokenAccuracy

    def __init__(
        self,
        core: RecurrentCore | None = None,
        *,
        embedding_dropout: float = 0.0,
        output_dropout: float = 0.0,
        dropout_over_time: Literal["free", "shared"] = "free",
        tie_weights: bool = False,
        head: Adaptive | None = None,
        vocabulary_dropout: float = 0.0,
        activation_penalty: float = 0.0,
        temporal_penalty: float = 0.0,
        **training: Any,
    ) -> None:
        super().__init__(**training)
        # Strategies that shard are refused in any case.
        warnings.filterwarnings("ignore", "You're using the WeightAveraging callback with a model that overrides")
        core = LSTM() if core is None else core
        check_core(core)
        options: dict[str, Any] = {
            "embedding_dropout": embedding_dropout,
            "output_dropout": output_dropout,
            "dropout_over_time": dropout_over_time,
            "tie_weights": tie_weights,
            "vocabulary_dropout": vocabulary_dropout,
            "activation_penalty": activation_penalty,
            "temporal_penalty": temporal_penalty,
        }
        described = {"core": describe(core), "head": None if head is None else describe_head(head)}
        self.save_hyperparameters({**described, **self.loop_settings, **options})
        self._make_model: Callable[[int], RecurrentLM] = partial(RecurrentLM, core=core, head=head, **options)
        self.tokenizer: Tokenizer | None = None
        self.model: RecurrentLM | None = None
        self.evaluation_metrics = TokenAccuracy()
        self._random = torch.get_rng_state()

    def _build(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.model = self._make_model(tokenizer.vocabulary_size)

    @property
    def language_model(self) -> RecurrentLM:
        """The network.

        Raises:
            InputError: The vocabulary is not known yet.
        """
        if self.model is None:
            raise InputError("the vocabulary is not known yet: fit with a datamodule, or load a checkpoint")
        return self.model

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.configure_model()
        tokenizer = self._tokenizer_of_data()
        if tokenizer is not None:
            assert self.tokenizer is not None
            _check_tokenizers(self.tokenizer, tokenizer)

    def configure_model(self) -> None:
        """Creates the network, if there is none; called by `setup`, and earlier by callbacks that average weights."""
        if self.model is not None:
            return
        tokenizer = self._tokenizer_of_data()
        if tokenizer is None:
            raise InputError("the vocabulary is not known: the datamodule must have a `tokenizer`")
        if self.trainer.world_size > 1:
            # Lightning seeds again when it starts several processes; the weights must be the same as with one process.
            torch.set_rng_state(self._random)
        self._build(tokenizer)

    def _tokenizer_of_data(self) -> Tokenizer | None:
        return getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)

    # The task

    def initial_state(self, num_lanes: int) -> State:
        return self.language_model.initial_state(num_lanes)

    def begin_window(self, num_lanes: int) -> Any:
        self.language_model.penalties.check_loss(self)
        return self.language_model.begin_window(num_lanes)

    def enter_window(self, state: State) -> State:
        return self.language_model.enter_window(state)

    @property
    def noise(self) -> Any:
        """The network's."""
        return self.language_model.noise

    @noise.setter
    def noise(self, noise: Any) -> None:
        self.language_model.noise = noise

    def predict_window(self, window: Window, state: State) -> tuple[Tensor, State]:
        """Returns the logits of the token after each of the inputs, and the state after the last."""
        return self.language_model.predict_window(window, state)

    def outputs_loss(self, outputs: Tensor, window: Window) -> tuple[Tensor, Tensor | int]:
        """Returns the summed negative log-likelihood in nats, and the number of scored targets."""
        return self.language_model.outputs_loss(outputs, window)

    @faster_form_of("predict_window", "outputs_loss")
    def window_loss(self, window: Window, state: State) -> WindowLoss:
        return self.language_model.window_loss(window, state)

    @faster_form_of("predict_window", "outputs_loss", "window_loss", "advance")
    def run_window(self, window: Window, state: State, num_context: int, far_edge: int) -> tuple[WindowLoss, State]:
        return self.language_model.run_window(window, state, num_context, far_edge)

    def advance(self, window: Window, state: State) -> State:
        return self.language_model.advance(window, state)

    def evaluation_window(self, window: Window, state: State) -> WindowLoss:
        logits, state = self.predict_window(window, state)
        self.evaluation_metrics.update(logits, window.targets, window.mask)
        return WindowLoss(*self.outputs_loss(logits, window), state)

    def prediction_window(self, window: Window, state: State) -> tuple[dict[str, Tensor], State]:
        """Returns what `trainer.predict` gives for a window, and the state after it.

        Returns:
            Tensors `[lane, time]`: `log_probabilities`, the natural logarithm of the probability of each target, at
            least in float32, and 0 where nothing is scored; `targets`, the ids; `mask`, true where one is scored.
        """
        logits, state = self.predict_window(window, state)
        mask = window.mask_or_ones()
        log_probabilities = torch.where(mask, -token_nats(logits, window.targets), 0.0)
        return {"log_probabilities": log_probabilities, "targets": window.targets, "mask": mask}, state

    def describe_loss(self, mean_loss: float, source: Any) -> dict[str, float]:
        return rates(mean_loss, getattr(source, "bytes_per_token", None))

    # Text

    def generate(
        self,
        prompts: Prompts,
        num_tokens: int = 400,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        top_p: float | None = None,
        stop: str | None = None,
    ) -> Prompts:
        """Generates a continuation of each prompt, or of the one prompt; see `TextModel.generate`."""
        network, tokenizer = self.language_model, self.tokenizer
        assert tokenizer is not None
        return TextModel(network, tokenizer).generate(prompts, num_tokens, temperature, top_k, seed, top_p, stop)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        assert self.tokenizer is not None
        new_run_state(checkpoint)["tokenizer"] = self.tokenizer.describe()

    def check_same_network(self, checkpoint: Mapping[str, Any], resumes: bool = True) -> None:
        """Checks that the weights of a checkpoint fit this model, and the carried state if a run resumes.

        Raises:
            InputError: They do not.
        """
        check_same_network(checkpoint["hyper_parameters"], self.hparams, self.network_settings, resumes)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_same_network(checkpoint, self._trainer is not None and self._trainer.state.fn == "fit")
        tokenizer = tokenizer_of(checkpoint)
        if self.model is None:
            self._build(tokenizer)
        else:
            assert self.tokenizer is not None
            _check_tokenizers(tokenizer, self.tokenizer)  # built for the data, before the checkpoint was read
        super().on_load_checkpoint(checkpoint)

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | os.PathLike[str],
        map_location: Any = "cpu",
        core: RecurrentCore | type[RecurrentCore] | None = None,
        **settings: Any,
    ) -> Self:
        """Builds the model of a checkpoint file; nothing else is needed.

        Args:
            checkpoint_path: A file written by a fit of this module.
            map_location: The device of the tensors.
            core: For a core class of your own: the class, or a core built as it was in training. Those of this package
                are built from the file.
            **settings: Constructor arguments that replace those of the checkpoint.

        Raises:
            InputError: The file is not such a checkpoint, or the class of its core is required but not given.
        """
        return cls.from_checkpoint(read_checkpoint(checkpoint_path, map_location), core, **settings)

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, core: RecurrentCore | type[RecurrentCore] | None = None, **settings: Any
    ) -> Self:
        """Builds the model of a checkpoint that was already read; see `load_from_checkpoint`."""
        tokenizer_of(checkpoint)
        parts = network_parts(checkpoint["hyper_parameters"], core)
        return cls._from_checkpoint(checkpoint, {**checkpoint["hyper_parameters"], **parts, **settings})


def _check_tokenizers(of_model: Tokenizer, of_data: Tokenizer) -> None:
    """Raises InputError if the model was trained with other tokens than those of the data."""
    if _content(of_model) == _content(of_data):
        return
    raise InputError(
        f"data.tokenizer: the data have a {of_data.name} tokenizer with a vocabulary of {of_data.vocabulary_size:,}, "
        f"the model was trained with a {of_model.name} tokenizer with a vocabulary of {of_model.vocabulary_size:,}; "
        "their tokens are not the same: give the data the model's tokenizer (on the command line, leave data.tokenizer "
        "out)"
    )


def _content(tokenizer: Tokenizer) -> dict[str, Any]:
    """Describes a tokenizer, without its name if that is a path, since the file may have been moved."""
    description = tokenizer.describe()
    return description if tokenizer.name in BUILT_IN else description | {"name": None}
