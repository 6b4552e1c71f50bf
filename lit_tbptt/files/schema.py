"""What a checkpoint holds: the names of its keys, and what stands under each.

A checkpoint is Lightning's dictionary; what this package adds lies under one key, `lit_tbptt`. Everything is a tensor
or a plain value. Type checkers compare every key in the package with the classes here.
"""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

from torch import Tensor

from lit_tbptt.errors import InputError

VERSION = 1
"""Of `RunState`: to be raised when a key changes its name or its meaning."""


class RankState(TypedDict):
    """What one rank knows alone.

    Attributes:
        carry: The carry of its lanes, as `Carry.describe` returns it. None: nothing was trained yet.
        random: The states of its random number generators, as `random_state` returns them.
    """

    carry: dict[str, Any] | None
    random: dict[str, Any]


class TruncationState(TypedDict):
    """How gradients are cut; the horizon may change while a run goes on.

    Attributes:
        k1: The length of a window.
        k2_setting: The horizon that the run was started with.
        k2: The horizon that it has now.
    """

    k1: int
    k2_setting: int
    k2: int


class RunState(TypedDict):
    """What a run is continued from, beside Lightning's weights, optimizer and loops.

    Attributes:
        version: `VERSION` of the package that wrote it.
        position: The fields of `Position`, those of all ranks united.
        ranks: What each rank knows alone, in order.
        truncation: How gradients are cut.
        optimizers: The names of the classes of the optimizer and its schedules.
        stopping: Whether a callback, such as EarlyStopping, has stopped the run, and it has not ended yet.
        log: What `TrainingLog.state_dict` returns.
        metrics: What the trainer's `callback_metrics` held.
        tokenizer: For a language model, what `Tokenizer.describe` returns.
        settings: For a run from the command line, its settings by section.
    """

    version: int
    position: dict[str, Any]
    ranks: list[RankState]
    truncation: TruncationState
    optimizers: list[str]
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
    epoch: int
    global_step: int
    lit_tbptt: RunState


def new_run_state(checkpoint: dict[str, Any]) -> RunState:
    """Returns this package's part of a checkpoint that is being put together, to be filled in."""
    return cast(RunState, checkpoint.setdefault("lit_tbptt", {"version": VERSION}))


def run_state(checkpoint: Mapping[str, Any]) -> RunState:
    """Returns this package's part of a checkpoint that was read.

    Raises:
        InputError: It has none, or one of another version.
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
