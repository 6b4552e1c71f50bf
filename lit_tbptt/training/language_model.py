"""A language model for Lightning: `RecurrentLM` in the loop of `LitTBPTT`, with its tokenizer."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import AdamW

from lit_tbptt import cores
from lit_tbptt.cores import LSTM, RecurrentCore
from lit_tbptt.data.text.tokenizers import Tokenizer, from_description
from lit_tbptt.errors import InputError
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.models.language_model import RecurrentLM
from lit_tbptt.models.metrics import TokenMetrics, rates, summed_nats
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.window import Window
from lit_tbptt.training.module import LitTBPTT


class LitLanguageModel(LitTBPTT):
    """Trains a recurrent language model by truncated backpropagation through time.

    The vocabulary is that of the datamodule's `tokenizer`, or of a checkpoint; `model` is made when it is known.

    Args:
        core: The recurrent part: RNN, LSTM, GRU, or any RecurrentCore.
        k1: Tokens per lane between two optimizer steps.
        k2: The horizon: how many tokens back from a window's end a gradient may travel. Left out: the same as k1.
        checkpoint_every: Keep only every N-th state for the backward pass and compute the steps between again there: a
            long horizon in little memory. Left out: everything is kept.
        loss_reduction: Whether the gradient is that of the mean or of the sum over a window's scored targets.
        carry_state: Whether a window starts from the state that the one before it left. If not, every window starts
            from the initial state; in evaluation too, where windows are cut to k1 tokens for that.
        state_drop_probability: Probability that a lane starts afresh at a window, in training.
        clip_norm: Largest norm of the gradient of all parameters together. Left out: it is not clipped.
        embedding_dropout: Probability of dropping a feature of the embedded input, in training.
        output_dropout: Probability of dropping a feature of the core's output, in training.
        tie_weights: Whether the output layer uses the embedding's matrix.
        optimizer: Makes the optimizer from the parameters. On the command line: --optimizer.
        lr_scheduler: Makes the schedule from the optimizer. On the command line: --lr_scheduler.
        lr_interval: Whether the schedule counts optimizer steps or epochs. Left out: what the schedule says of
            itself, as WarmupCosineLR does, or epochs.

    Raises:
        InputError: A setting is out of its range.
    """

    def __init__(
        self,
        core: RecurrentCore | None = None,
        k1: int = 64,
        k2: int | None = None,
        *,
        checkpoint_every: int | None = None,
        loss_reduction: Literal["mean", "sum"] = "mean",
        carry_state: bool = True,
        state_drop_probability: float = 0.0,
        clip_norm: float | None = None,
        embedding_dropout: float = 0.0,
        output_dropout: float = 0.0,
        tie_weights: bool = False,
        optimizer: OptimizerCallable = AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["step", "epoch"] | None = None,
    ) -> None:
        training: dict[str, Any] = {
            "k1": k1,
            "k2": k2,
            "checkpoint_every": checkpoint_every,
            "loss_reduction": loss_reduction,
            "carry_state": carry_state,
            "state_drop_probability": state_drop_probability,
            "clip_norm": clip_norm,
        }
        super().__init__(**training)
        core = LSTM() if core is None else core
        options: dict[str, Any] = {
            "embedding_dropout": embedding_dropout,
            "output_dropout": output_dropout,
            "tie_weights": tie_weights,
        }
        self.save_hyperparameters(
            {
                "core": {"class_path": _class_name(type(core)), "init_args": core.init_args},
                **training,
                **options,
            }
        )
        self._make_model: Callable[[int], RecurrentLM] = partial(RecurrentLM, core=core, **options)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.tokenizer: Tokenizer | None = None
        self.model: RecurrentLM | None = None
        self.metrics = TokenMetrics()
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
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        if self.model is not None and tokenizer is not None:
            self._check_tokenizer(tokenizer)
        elif tokenizer is not None:
            if self.trainer.world_size > 1:
                # Lightning seeds anew where it starts several processes; the weights are to be those of one.
                torch.set_rng_state(self._random)
            self._build(tokenizer)
        elif self.model is None:
            raise InputError("the vocabulary is not known: the datamodule must have a `tokenizer`")

    # The task

    def initial_state(self, num_lanes: int) -> State:
        return self.language_model.initial_state(num_lanes)

    def window_loss(self, window: Window, state: State) -> tuple[Tensor, Tensor | int, State]:
        logits, state = self.language_model(window.inputs, state)
        return *summed_nats(logits, window.targets, window.mask), state

    def advance(self, window: Window, state: State) -> State:
        return self.language_model.run_core(window.inputs, state)[1]

    def describe_loss(self, mean_loss: float, source: Any) -> dict[str, float]:
        return rates(mean_loss, getattr(source, "bytes_per_token", None))

    def on_evaluation_start(self) -> None:
        super().on_evaluation_start()
        self.metrics.reset()

    def evaluation_window(self, window: Window, state: State) -> State:
        logits, state = self.language_model(window.inputs, state)
        self.metrics.update(logits, window.targets, window.mask)
        return state

    def evaluation_values(self) -> dict[str, float]:
        found = {name: value.item() for name, value in self.metrics.compute().items()}
        trainer = self.trainer
        source = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        return self.describe_loss(found.pop("nats_per_token"), source) | found

    # Optimizer and schedule

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return {"optimizer": optimizer}
        scheduler: Any = self.lr_scheduler(optimizer)
        if getattr(scheduler, "num_steps", 0) is None:
            if self.trainer.max_steps < 0:
                raise InputError("lr_scheduler.num_steps is not given, and neither is trainer.max_steps: give one")
            scheduler.num_steps = self.trainer.max_steps
        config = {
            "scheduler": scheduler,
            "interval": self.lr_interval or getattr(scheduler, "interval", "epoch"),
            "monitor": getattr(scheduler, "monitor", None),
        }
        return {"optimizer": optimizer, "lr_scheduler": config}

    # Text

    def generate(
        self,
        prompts: Sequence[str],
        num_tokens: int = 400,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> list[str]:
        """Returns what follows each prompt, which stands at a document's start; see `RecurrentLM.generate`."""
        model, tokenizer = self.language_model, self.tokenizer
        assert tokenizer is not None
        given = [ids.tolist() for ids in tokenizer.encode(list(prompts))]
        added = model.generate([[tokenizer.eos, *ids] for ids in given], num_tokens, temperature, top_k, seed)
        # Decoded together, so that what stands between the last word given and the first one added is not lost.
        return [
            tokenizer.decode(start + ids).removeprefix(tokenizer.decode(start))
            for start, ids in zip(given, added, strict=True)
        ]

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        assert self.tokenizer is not None
        checkpoint["tokenizer"] = self.tokenizer.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in ("core", "tie_weights"):
            saved, ours = checkpoint["hyper_parameters"][name], self.hparams[name]
            if saved != ours:
                raise InputError(f"model.{name}={ours} with a checkpoint that was trained with {saved}: use the same")
        tokenizer = from_description(checkpoint["tokenizer"])
        if self.model is None:
            self._build(tokenizer)
        else:
            self._check_tokenizer(tokenizer)
        super().on_load_checkpoint(checkpoint)

    def _check_tokenizer(self, other: Tokenizer) -> None:
        assert self.tokenizer is not None
        if self.tokenizer.describe() != other.describe():
            raise InputError(
                f"data.tokenizer: the model has a {self.tokenizer.name} tokenizer with a vocabulary of "
                f"{self.tokenizer.vocabulary_size}, and is to work with a {other.name} tokenizer with a vocabulary of "
                f"{other.vocabulary_size}; their tokens are not the same: use the tokenizer it was trained with"
            )

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | os.PathLike[str],
        map_location: Any = "cpu",
        core: RecurrentCore | None = None,
        **settings: Any,
    ) -> "LitLanguageModel":
        """Makes the model that a checkpoint holds; nothing else is needed.

        Args:
            checkpoint_path: A file that a fit of this module wrote.
            map_location: Where the tensors go.
            core: A core of your own class, built as it was in training. RNN, LSTM and GRU are built from the file.
            **settings: Constructor arguments that replace those of the checkpoint.

        Raises:
            InputError: The file is not such a checkpoint, or its core is of a class that must be given.
        """
        checkpoint = read_checkpoint(checkpoint_path, map_location)
        if "tokenizer" not in checkpoint:
            raise InputError(f"{checkpoint_path}: not a checkpoint of a language model")
        saved = dict(checkpoint["hyper_parameters"])
        described = saved.pop("core")
        if core is None:
            core_class = getattr(cores, described["class_path"], None)
            if core_class is None:
                raise InputError(
                    f"{checkpoint_path}: its core is a {described['class_path']}, which is not imported because a "
                    "file says so; build one and pass it as core="
                )
            core = core_class(**described["init_args"])
        return cast(LitLanguageModel, cls._from_checkpoint(checkpoint, {"core": core} | saved | settings))


def _class_name(core: type[RecurrentCore]) -> str:
    return core.__name__ if getattr(cores, core.__name__, None) is core else f"{core.__module__}.{core.__qualname__}"
