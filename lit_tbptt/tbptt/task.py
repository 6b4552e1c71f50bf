"""The task: what is trained. Where a lane's state begins, how it moves on, and what a window costs."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.window import Window


class WindowLoss(NamedTuple):
    """What a window costs, as a task returns it; a plain tuple in this order will do.

    Attributes:
        loss: The loss summed over the scored targets.
        num_targets: Their number.
        state: The state after the window.
        penalty: A regularization term, as a sum in the loss's unit. It is divided by the same number of targets and
            added to the gradient, never to a reported loss. None: there is none.
    """

    loss: Tensor | int
    num_targets: Tensor | int
    state: State
    penalty: Tensor | None = None

    @classmethod
    def of(cls, task: "Task", returned: Any) -> "WindowLoss":
        """Returns what a task returned from `window_loss`, in this form.

        Raises:
            InputError: It is something else.
        """
        if not isinstance(returned, tuple | list) or len(returned) not in (3, 4):
            raise InputError(
                f"{type(task).__name__}.window_loss returned a {type(returned).__name__}"
                + (f" of {len(returned)} values" if isinstance(returned, tuple | list) else "")
                + ": it must return (loss, num_targets, state), or these and a penalty"
            )
        loss = returned[0]
        if not isinstance(loss, Tensor) or loss.ndim:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(
                f"{type(task).__name__}.window_loss returned a loss of {shape}: it must be a tensor without axes, "
                "summed over the scored targets"
            )
        return cls(*returned)

    def followed_by(self, later: "WindowLoss") -> "WindowLoss":
        """Returns what this part of a window and the part after it cost together."""
        return WindowLoss(
            self.loss + later.loss,
            self.num_targets + later.num_targets,
            later.state,
            sum_penalties((self.penalty, later.penalty)),
        )


def sum_penalties(penalties: Iterable[Tensor | None]) -> Tensor | None:
    """Returns the sum of those that are not None, or None."""
    given = [penalty for penalty in penalties if penalty is not None]
    return sum(given[1:], given[0]) if given else None


def joins_halves(window_loss: Callable[..., "WindowLoss"]) -> Callable[..., "WindowLoss"]:
    """Marks a `window_loss` that is a faster form of `predict_window` and `outputs_loss`.

    A subclass that redefines one of these, and no `window_loss`, gets the plain composition of the two.
    """
    window_loss.joins_halves = True  # type: ignore[attr-defined]
    return window_loss


class Task:
    """What is trained.

    A subclass defines `initial_state`, and either `predict_window` with `outputs_loss`, or `window_loss`. All of them
    may be called on any part of a window, down to a single time step, and again on the same one, so they must count
    nothing on the side.

    Attributes:
        noise: What `begin_window` returned for the window that is run.
    """

    noise: Any = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        defined = (vars(each).keys() & {"predict_window", "outputs_loss", "window_loss"} for each in cls.__mro__)
        if getattr(cls.window_loss, "joins_halves", False) and "window_loss" not in next(filter(None, defined)):
            cls.window_loss = Task.window_loss  # type: ignore[method-assign]

    def initial_state(self, num_lanes: int) -> State:
        """Returns the state of lanes that are reset: any pytree of tensors, lane axis first in every leaf."""
        raise NotImplementedError(f"{type(self).__name__} must define initial_state(num_lanes)")

    def begin_window(self, num_lanes: int) -> Any:
        """Draws the noise that stays the same over a window and its context, such as shared dropout masks.

        It is called once a window in training, before anything is run, and what it returns is found in `noise`
        whenever a part of this window is run, also when it is run again. It should draw masks only, and nothing in
        eval mode. Under several ranks each draws for its own lanes: noise without a lane axis, such as dropped weights,
        would differ from rank to rank. None: there is no such noise.
        """
        return None

    def predict_window(self, window: Window, state: State) -> tuple[Any, State]:
        """Returns the outputs for the window's inputs, and the state after it; targets are not looked at."""
        raise NotImplementedError(
            f"{type(self).__name__} must define predict_window(window, state) and outputs_loss(outputs, window), or "
            "window_loss(window, state)"
        )

    def outputs_loss(self, outputs: Any, window: Window) -> tuple[Any, ...]:
        """Returns the loss of outputs, summed over the scored targets, and the number of these; or also a penalty."""
        raise NotImplementedError(f"{type(self).__name__} must define outputs_loss(outputs, window)")

    def window_loss(self, window: Window, state: State) -> WindowLoss:
        """Returns what the window costs, and the state after it; left alone, from `predict_window`, `outputs_loss`."""
        outputs, state = self.predict_window(window, state)
        loss, num_targets, *penalty = self.outputs_loss(outputs, window)
        return WindowLoss(loss, num_targets, state, *penalty)

    def advance(self, window: Window, state: State) -> State:
        """Returns the state after a window that is not scored; a task may leave out here what only the loss needs."""
        return WindowLoss.of(self, self.window_loss(window, state)).state
