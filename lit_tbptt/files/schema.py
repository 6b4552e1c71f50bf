"""The schema of a checkpoint: its keys, and what each one contains.

A checkpoint is Lightning's dictionary; this package adds one key, `lit_tbptt`. Everything is a tensor or a plain value.
Type checkers compare every use of a key in the package with the classes here.
"""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

from torch import Tensor

from lit_tbptt.errors import InputError

VERSION = 2
"""Version of `RunState`; increase it when a key changes its name or meaning."""


class RankState(TypedDict):
    """The state that belongs to one rank.

    Attributes:
        carry: The carry of its lanes, from `Carry.describe`. None: before the first window.
        random: The states of its random number generators, from `random_state`.
    """

    carry: dict[str, Any] | None
    random: dict[str, Any]


class TruncationState(TypedDict):
    """The truncation settings; the horizon may change during a run.

    Attributes:
        k1: The window length.
        k2_setting: The horizon that the run was started with.
        k2: The current horizon.
    """

    k1: int
    k2_setting: int
    k2: int


class RunState(TypedDict):
    """What is needed to resume a run, in addition to Lightning's weights, optimizer and loops.

    Attributes:
        version: `VERSION` of the package that wrote it.
        position: The fields of `Position`, merged over all ranks.
        ranks: The state of each rank, in order.
        shared_random: The state of the generator that all ranks share. Checkpoints of older versions of the package
            have none.
        truncation: The truncation settings.
        optimizers: The class names of the optimizer and its schedules.
        trained: Whether gradients are computed for parameters (`requires_grad`), by name, where that has changed since
            the fit began.
        ends_done: How many batches of the run have ended, with the validation after them. The position can be before
            that while a gradient is pending.
        stopping: Whether a callback, such as EarlyStopping, has stopped the run but it has not ended yet.
        log: The result of `TrainingLog.state_dict`.
        metrics: The contents of the trainer's `callback_metrics`.
        tokenizer: For a language model, the result of `Tokenizer.describe`.
        settings: For a run from the command line, its settings by section.
    """

    version: int
    position: dict[str, Any]
    ranks: list[RankState]
    shared_random: NotRequired[Tensor]
    truncation: TruncationState
    optimizers: list[str]
    trained: NotRequired[dict[str, bool]]
    ends_done: int
    stopping: bool
    log: dict[str, Any]
    metrics: dict[str, Tensor]
    tokenizer: NotRequired[dict[str, Any]]
    settings: NotRequired[dict[str, Any]]


class Checkpoint(TypedDict, total=False):
    """The entries that this package reads or writes; all but the last are Lightning's."""

    state_dict: dict[str, Tensor]
    hyper_parameters: dict[str, Any]
    datamodule_hyper_parameters: dict[str, Any]
    optimizer_states: list[dict[str, Any]]
    loops: dict[str, Any]
    callbacks: dict[str, Any]
    epoch: int
    global_step: int
    lit_tbptt: RunState


def new_run_state(checkpoint: dict[str, Any]) -> RunState:
    """Returns this package's part of a checkpoint under construction, to be filled in."""
    return cast(RunState, checkpoint.setdefault("lit_tbptt", {"version": VERSION}))


def run_state(checkpoint: Mapping[str, Any]) -> RunState:
    """Returns this package's part of a checkpoint.

    Raises:
        InputError: It has none, or its version differs.
    """
    state = checkpoint.get("lit_tbptt") if isinstance(checkpoint, Mapping) else None
    if state is None:
        raise InputError("the checkpoint is not one of this package's: it has no entry lit_tbptt")
    if state.get("version") != VERSION:
        raise InputError(
            f"the checkpoint has version {state.get('version')} of the format, and this installation of lit_tbptt "
            f"reads version {VERSION}: use the release of lit_tbptt that wrote it"
        )
    return cast(RunState, state)
