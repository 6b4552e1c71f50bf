"""The task interface: what a user trains. It defines the initial state, the next state, and the loss of a window."""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_map, tree_structure

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import State, check_next_state, shape_of, unchanged
from lit_tbptt.tbptt.state import num_lanes as state_lanes
from lit_tbptt.tbptt.window import Window


class WindowLoss(NamedTuple):
    """The result of `window_loss`: the loss of a window and the state after it. A plain tuple in this order also works.

    Attributes:
        loss: The loss summed over the scored targets.
        num_targets: The number of scored targets.
        state: The state after the window.
        penalty: A regularization term, as a sum in the unit of the loss. It is divided by the same number of targets
            and contributes to the gradient, but not to any reported loss. None: no penalty.
    """

    loss: Tensor | int
    num_targets: Tensor | int
    state: State
    penalty: Tensor | None = None

    @classmethod
    def of(cls, task: "Task", returned: Any) -> "WindowLoss":
        """Converts the return value of a task's `window_loss` to a `WindowLoss`.

        Raises:
            InputError: The value has another form.
        """
        return cls(*_checked(task, "window_loss", returned, ("loss", "num_targets", "state")))

    def followed_by(self, later: "WindowLoss") -> "WindowLoss":
        """Adds the loss of the part of the window that follows this one."""
        return WindowLoss(
            self.loss + later.loss,
            self.num_targets + later.num_targets,
            later.state,
            sum_penalties((self.penalty, later.penalty)),
        )


def outputs_and_state(task: Any, window: Window, state: State) -> tuple[Any, State]:
    """Returns what a task's `predict_window` returns.

    Raises:
        InputError: It returns something else than outputs and a state.
    """
    returned = task.predict_window(window, state)
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise InputError(
            f"{type(task).__name__}.predict_window returned {_form_of(returned)}: it must return (outputs, state)"
        )
    outputs, after = returned
    return outputs, after


def loss_of_outputs(task: Any, outputs: Any, window: Window) -> tuple[Any, ...]:
    """Returns what a task's `outputs_loss` returns.

    Raises:
        InputError: It returns something else than a loss, a number of targets, and perhaps a penalty.
    """
    return _checked(task, "outputs_loss", task.outputs_loss(outputs, window), ("loss", "num_targets"))


def _checked(task: Any, method: str, returned: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(returned, tuple | list) or len(returned) not in (len(names), len(names) + 1):
        raise InputError(
            f"{type(task).__name__}.{method} returned {_form_of(returned)}: it must return ({', '.join(names)}), or "
            "these and a penalty"
        )
    loss = returned[0]
    if not isinstance(loss, Tensor) or loss.ndim:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise InputError(
            f"{type(task).__name__}.{method} returned a loss of {shape}: it must be a tensor without axes, summed over "
            "the scored targets"
        )
    return tuple(returned)


def _form_of(returned: Any) -> str:
    number = f" of {len(returned)} values" if isinstance(returned, tuple | list) else ""
    return f"a {type(returned).__name__}{number}"


def at_least_1(num_targets: Tensor | int) -> Tensor | int:
    """Returns what a sum over targets is divided by, which may be none."""
    return num_targets.clamp(min=1) if isinstance(num_targets, Tensor) else max(1, num_targets)


def sum_penalties(penalties: Iterable[Tensor | None]) -> Tensor | None:
    """Returns the sum of the penalties that are not None, or None if there are none."""
    given = [penalty for penalty in penalties if penalty is not None]
    return sum(given[1:], given[0]) if given else None


def initial_state_for(task: Any, window: Window, initial: State) -> State:
    """Returns the state of the lanes of a window that are reset: of its sequences, or `initial`.

    Raises:
        InputError: The task computes a state of other shapes than `initial`, or from leaves that are not there.
    """
    if window.static is None:
        if getattr(task.initial_state_of, "__func__", None) is not Task.initial_state_of:
            raise InputError(
                f"{type(task).__name__} defines initial_state_of(static), and the windows have no static leaves: name "
                "them as static in the data"
            )
        return initial
    computed = task.initial_state_of(window.static)
    if computed is None:
        return initial
    shapes = [tree_map(shape_of, state) for state in (computed, initial)]
    if shapes[0] != shapes[1] or tree_structure(computed) != tree_structure(initial):
        raise InputError(
            f"{type(task).__name__}.initial_state_of returned tensors of the shapes {shapes[0]}, where initial_state "
            f"returned {shapes[1]}: both must return the same structure and shapes"
        )
    return computed


def check_initial_state(task: Any, initial: State, num_lanes: int) -> None:
    """Checks the result of a task's `initial_state`.

    Raises:
        InputError: A leaf is not a tensor with the lane axis first.
    """
    if state_lanes(initial) not in (None, num_lanes):
        raise InputError(
            f"{type(task).__name__}.initial_state({num_lanes}) returned tensors of the shapes "
            f"{tree_map(shape_of, initial)}: every one must have the lane axis first"
        )


def faster_form_of(*names: str) -> Callable[[Callable], Callable]:
    """Marks a `window_loss` or `run_window` as a faster equivalent of the named methods.

    If a subclass overrides one of the named methods but not the marked one, it gets the plain form from `Task`. The
    same holds for an instance on which one of them is set.
    """

    def mark(method: Callable) -> Callable:
        @wraps(method)
        def fast_or_plain(task: "Task", *args: Any) -> Any:
            chosen = method if vars(task).keys().isdisjoint(names) else getattr(Task, method.__name__)
            return chosen(task, *args)

        fast_or_plain.faster_form_of = names  # type: ignore[attr-defined]
        return fast_or_plain

    return mark


def plain_form_used(task: "Task", name: str) -> bool:
    """Returns whether a `window_loss` or `run_window` is `Task`'s own, also where a faster form is not to be used."""
    method = getattr(type(task), name)
    replaced = getattr(method, "faster_form_of", ())
    return method is getattr(Task, name) or not vars(task).keys().isdisjoint(replaced)


class Task:
    """What a user trains: an initial state and the loss of a window.

    A subclass defines `initial_state`, and either `predict_window` and `outputs_loss`, or `window_loss`. These methods
    may be called on any part of a window, down to a single time step, and several times on the same part, so they must
    not have side effects such as counters. The state they return has the structure, shapes and dtypes of the given one,
    which they leave as it is.

    Attributes:
        noise: The return value of `begin_window` for the current window.
    """

    noise: Any = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("window_loss", "run_window"):
            replaced = getattr(getattr(cls, name), "faster_form_of", ())
            defined = (vars(each).keys() & {name, *replaced} for each in cls.__mro__)
            if replaced and name not in next(filter(None, defined)):
                setattr(cls, name, getattr(Task, name))

    def initial_state(self, num_lanes: int) -> State:
        """Returns the state after a reset: any pytree of tensors with the lane axis first in every leaf."""
        raise NotImplementedError(f"{type(self).__name__} must define initial_state(num_lanes)")

    def initial_state_of(self, static: Any) -> State | None:
        """Returns the state of lanes that are reset, computed from what belongs to their sequences.

        It is called for every window that has `static`, and every part of a context, with today's weights, so that a
        gradient reaches what computes the state. `initial_state` is still needed: it gives the structure, and must
        have the same shapes. None: `initial_state` is it.

        Args:
            static: `Window.static`: of all lanes, whether they are reset or not.
        """
        return None

    def begin_window(self, num_lanes: int) -> Any:
        """Draws noise that stays the same over a window and its context, such as shared dropout masks.

        It is called once per window in training, before the window runs. Its return value is available in `noise`
        whenever a part of this window runs, also when it runs again. It should only draw masks, and nothing in eval
        mode. Each rank draws for its own lanes; noise without a lane axis, such as dropped weights, is drawn from
        `shared_generator()`, so that it is the same on all ranks. None: no such noise.
        """
        return None

    def enter_window(self, state: State) -> State:
        """Returns the state that a window and its context are run from, given the one carried from the window before.

        By default it is the same. Override it to forget what must not pass from window to window, such as an output
        that a penalty compares with the next one. It is called once per window in training, after `begin_window`.
        """
        return state

    def predict_window(self, window: Window, state: State) -> tuple[Any, State]:
        """Returns the outputs for the window's inputs and the state after the window; it must not use the targets."""
        raise NotImplementedError(
            f"{type(self).__name__} must define predict_window(window, state) and outputs_loss(outputs, window), or "
            "window_loss(window, state)"
        )

    def outputs_loss(self, outputs: Any, window: Window) -> tuple[Any, ...]:
        """Returns the loss summed over the scored targets, the number of scored targets, and optionally a penalty."""
        raise NotImplementedError(f"{type(self).__name__} must define outputs_loss(outputs, window)")

    def window_loss(self, window: Window, state: State) -> WindowLoss:
        """Returns the loss of the window and the state after it; by default from `predict_window`, `outputs_loss`."""
        outputs, state = outputs_and_state(self, window, state)
        loss, num_targets, *penalty = loss_of_outputs(self, outputs, window)
        return WindowLoss(loss, num_targets, state, *penalty)

    def advance(self, window: Window, state: State) -> State:
        """Returns the state after a window that is not scored; override it to skip what only the loss needs."""
        return WindowLoss.of(self, self.window_loss(window, state)).state

    def run_window(self, window: Window, state: State, num_context: int, far_edge: int) -> tuple[WindowLoss, State]:
        """Runs over context and window in one call; by default part by part, with `advance` and `window_loss`.

        Args:
            window: The context, followed by the window if it is in the same piece.
            state: The state before the first time step.
            num_context: The number of context time steps at the start, which are not scored.
            far_edge: The time step whose entering state is also returned, from 0 to the number of time steps.

        Returns:
            The loss of the scored time steps with the state after the last one, and the state entering `far_edge`.
        """
        far_edge_state, done = state, 0
        total: WindowLoss | None = None
        for part in window.cut((num_context, far_edge)):
            with unchanged(self, state):
                if done < num_context:
                    cost = WindowLoss(0, 0, self.advance(part, state))
                else:
                    cost = WindowLoss.of(self, self.window_loss(part, state))
            check_next_state(self, state, cost.state)
            total, state = cost if total is None else total.followed_by(cost), cost.state
            done += part.num_time_steps
            if done == far_edge:
                far_edge_state = state
        assert total is not None
        return total, far_edge_state
