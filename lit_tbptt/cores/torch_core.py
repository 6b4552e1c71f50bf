"""The core TorchCore, which wraps any module `(inputs, state) -> (outputs, state)`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.errors import InputError
from lit_tbptt.random_state import random_state, set_random_state
from lit_tbptt.tbptt.state import State, cast_like, unchanged

_ERRORS_OF_MODULES = TypeError, AttributeError, ValueError, IndexError, RuntimeError

TORCH_MODULES: dict[str, type[nn.Module]] = {
    f"torch.nn.{module.__name__}": module for module in (nn.RNN, nn.LSTM, nn.GRU)
}
"""The modules that a checkpoint can build, by their names on the command line."""


def described_module(module: nn.Module) -> Any:
    """Returns the class of a module and its arguments, if it is of `TORCH_MODULES`; otherwise its text."""
    path = f"torch.nn.{type(module).__name__}"
    if type(module) is not TORCH_MODULES.get(path):
        return str(module)
    names = [*("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"), "bidirectional"]
    names += [name for name, cls in (("nonlinearity", nn.RNN), ("proj_size", nn.LSTM)) if type(module) is cls]
    return {"class_path": path, "init_args": {name: getattr(module, name) for name in names}}


class TorchCore(RecurrentCore):
    """Wraps a module that is called as `module(inputs, state)` and returns `(outputs, state)`.

    The module must be causal: an output depends on no later input. Its state may be any pytree of tensors.

    Its initial state is, in this order: `initial_state`; the module's own method `initial_state(num_lanes)` or
    `init_state(num_lanes)`; zeros, if the module takes None as the state and then computes what it computes from zeros,
    as `torch.nn.LSTM` does. To find the shapes of these, the module is called once with one time step of noise.

    A checkpoint can build `torch.nn.RNN`, `LSTM` and `GRU` alone. It describes another module by its text, as
    `print(module)` shows it, and cannot build it. To build such a model from a checkpoint alone, and to choose the
    module's arguments on the command line, write a subclass whose arguments are plain values:

        class ConvLSTM(TorchCore):
            def __init__(self, channels: int = 8) -> None:
                super().__init__(MyModule(channels), lane_axis=1)

    Args:
        module: The module. Its inputs and outputs are `[lane, time, feature]`.
        lane_axis: The axis of the lanes in the module's state: one number for all tensors, or a pytree of numbers with
            the state's structure. 1 for `torch.nn.LSTM`.
        time_first: Whether the module's inputs and outputs are `[time, lane, feature]`, as those of `torch.nn.LSTM`
            without `batch_first`.
        initial_state: Returns the module's state for a number of lanes, in the module's own layout.
        input_size: Features per time step. Default: the module's attribute `input_size`.
        output_size: Features per time step that the module returns. Default: the module's attribute `output_size`, or
            `hidden_size` (`proj_size` if it is above 0).

    Raises:
        InputError: A size is not known, the module reads later inputs or has its axes in another order, or its
            `initial_state` is a tensor and not a method.
    """

    def __init__(
        self,
        module: nn.Module,
        lane_axis: Any = 0,
        time_first: bool = False,
        initial_state: Callable[[int], State] | None = None,
        input_size: int | None = None,
        output_size: int | None = None,
    ) -> None:
        if isinstance(module, str):
            raise InputError(
                f"core: the checkpoint's is TorchCore of {module!r}, and holds only this text: pass core=TorchCore("
                "module, ...) built as in training"
            )
        _check_direction(module, time_first)
        super().__init__()
        own = getattr(module, "proj_size", 0) or getattr(module, "hidden_size", None)
        self.module = module
        self.lane_axis = lane_axis
        self.time_first = time_first
        self.input_size = _size(module, "input_size", input_size, getattr(module, "input_size", None))
        self.output_size = _size(module, "output_size", output_size, getattr(module, "output_size", own))
        self._make_initial = _initial_maker(module, initial_state)
        self._found: dict[tuple[torch.device, torch.dtype], State] = {}
        self._describe_argument(module, str(module) if initial_state else described_module(module))
        if initial_state is not None:
            self._describe_argument(initial_state, getattr(initial_state, "__qualname__", repr(initial_state)))

    def initial_state(self, num_lanes: int) -> State:
        """Returns the module's initial state, with the lane axis moved to the front.

        Raises:
            InputError: The module's initial state cannot be found, or `lane_axis` is not where its lanes are.
        """
        if self._make_initial is not None:
            return self._checked_lanes(self._make_initial(num_lanes), num_lanes)
        example = self._example()
        place = example.device, example.dtype
        if place not in self._found:
            self._found[place] = self._find_initial(example)
        # One lane of zeros is kept for each device and dtype.
        return tree_map(lambda leaf: leaf.new_zeros(num_lanes, *leaf.shape[1:]), self._found[place])

    def forward(
        self, inputs: Float[Tensor, "lane time feature"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        """Calls the module.

        Raises:
            InputError: The module changed its state in place, or returned something else than outputs of `output_size`
                features and a state like the given one.
        """
        with unchanged(self.module, state):
            try:
                outputs, after = self._call(inputs, self._in_layout_of_module(state))
            except _ERRORS_OF_MODULES as error:
                self._check_structure(state, error)
                raise
        expected = (*inputs.shape[:2], self.output_size)
        if not isinstance(outputs, Tensor) or outputs.shape != expected:
            raise InputError(
                f"{type(self.module).__name__} returned outputs of {_shape(outputs)} for inputs of "
                f"{tuple(inputs.shape)}: they must be {expected}; check time_first and output_size"
            )
        after = self._checked_lanes(after, len(inputs))
        if tree_structure(after) != tree_structure(state) or _shapes(after) != _shapes(state):
            raise InputError(
                f"{type(self.module).__name__} returned a state of {tree_map(_shape, after)}, lanes first, from one of "
                f"{tree_map(_shape, state)}: both must have the same structure and shapes"
            )
        return outputs, cast_like(after, state)  # under autocast, modules return another dtype

    def _call(self, inputs: Tensor, state: State) -> tuple[Any, State]:
        returned = self.module(inputs.transpose(0, 1) if self.time_first else inputs, state)
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise InputError(
                f"{type(self.module).__name__} returned a {type(returned).__name__}: it must return (outputs, state)"
            )
        outputs, state = returned
        swap = self.time_first and isinstance(outputs, Tensor) and outputs.ndim > 1
        return outputs.transpose(0, 1) if swap else outputs, state

    def _axes(self, state: State) -> Any:
        """Returns `lane_axis` for every leaf of a state."""
        if isinstance(self.lane_axis, int):
            return tree_map(lambda _: self.lane_axis, state)
        if tree_structure(self.lane_axis) != tree_structure(state):
            raise InputError(
                f"lane_axis={self.lane_axis!r}: must be a number, or have the structure of the state, "
                f"{tree_map(_shape, state)}"
            )
        return self.lane_axis

    def _in_layout_of_module(self, state: State) -> State:
        # cuDNN wants contiguous states.
        return tree_map(
            lambda leaf, axis: leaf.movedim(0, axis).contiguous() if axis else leaf, state, self._axes(state)
        )

    def _check_structure(self, state: State, error: Exception) -> None:
        """Raises InputError if an error of the module comes from an `initial_state` unlike the module's own."""
        if self._make_initial is None or isinstance(error, InputError):
            return
        try:
            own = self._find_initial(self._example())
        except InputError:  # it has none
            return
        ours, given = ([tree_structure(each), *(leaf.shape[1:] for leaf in tree_leaves(each))] for each in (own, state))
        if ours != given:
            raise InputError(
                f"initial_state: {type(self.module).__name__} was given a state of {tree_map(_shape, state)}, lanes "
                f"first, and makes one of {tree_map(_shape, own)} itself, here of 1 lane: both must have the same "
                "structure and shapes"
            ) from error

    def _checked_lanes(self, state: State, num_lanes: int) -> State:
        """Moves the lane axis of the module's state to the front, and checks that it has `num_lanes` lanes."""
        for leaf, axis in zip(tree_leaves(state), tree_leaves(self._axes(state)), strict=True):
            if not isinstance(leaf, Tensor):
                raise InputError(
                    f"{type(self.module).__name__}: its state has a {type(leaf).__name__} in it, and must be made of "
                    "tensors"
                )
            if axis not in range(-leaf.ndim, leaf.ndim) or leaf.shape[axis] != num_lanes:
                raise InputError(
                    f"lane_axis={self.lane_axis!r}: {type(self.module).__name__} has a state of "
                    f"{tree_map(_shape, state)} for {num_lanes} lanes; set lane_axis to where these are"
                )
        return tree_map(lambda leaf, axis: leaf.movedim(axis, 0), state, self._axes(state))

    def _example(self) -> Tensor:
        """Returns a tensor with the device and dtype of the module."""
        leaves = (leaf for leaf in (*self.parameters(), *self.buffers()) if leaf.is_floating_point())
        return next(leaves, torch.empty(0))

    @torch.no_grad()
    def _find_initial(self, example: Tensor) -> State:
        """Returns zeros for one lane, in the shapes of the state that the module makes from None."""
        for num_lanes in (3, 2):  # of a single number, lanes could be mistaken for another axis
            inputs = torch.randn(num_lanes, 1, self.input_size, generator=torch.Generator().manual_seed(1))
            inputs = inputs.to(example.device, example.dtype)
            with _quietly(self.module):
                try:
                    outputs, after = self._call(inputs, None)
                except _ERRORS_OF_MODULES as error:
                    raise InputError(
                        f"{type(self.module).__name__} does not take None as its state ({error}): give it a method "
                        "initial_state(num_lanes), or pass such a function as initial_state"
                    ) from error
                zeros = tree_map(torch.zeros_like, self._checked_lanes(after, num_lanes))
                again = self._call(inputs, self._in_layout_of_module(zeros))
            pairs = zip(tree_leaves((outputs, after)), tree_leaves(again), strict=True)
            if not all(torch.equal(one, other) for one, other in pairs):
                raise InputError(
                    f"{type(self.module).__name__} starts from something else than zeros if its state is None: give it "
                    "a method initial_state(num_lanes), or pass such a function as initial_state"
                )
        return tree_map(lambda leaf: leaf[:1].clone(), zeros)


@contextmanager
def _quietly(module: nn.Module) -> Iterator[None]:
    """Runs a module in eval mode, without autocast, and leaves modes and random number generators as they were."""
    modes = [(part, part.training) for part in module.modules()]
    random = random_state()
    module.eval()
    device = next((leaf.device.type for leaf in module.parameters()), "cpu")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        set_random_state(random)
        for part, training in modes:
            part.training = training


def _check_direction(module: nn.Module, time_first: bool) -> None:
    name = type(module).__name__
    if getattr(module, "bidirectional", False):
        raise InputError(f"module={name}(bidirectional=True): it reads later inputs, which a carried state cannot hold")
    batch_first = getattr(module, "batch_first", None)
    if batch_first is not None and bool(batch_first) == time_first:
        raise InputError(
            f"time_first={time_first} with {name}(batch_first={batch_first}): set time_first to {not time_first}"
        )


def _initial_maker(module: nn.Module, given: Callable[[int], State] | None) -> Callable[[int], State] | None:
    """Returns what makes the initial state; None: nothing does."""
    if given is not None:
        return given
    own = {name: getattr(module, name, None) for name in ("initial_state", "init_state")}
    for value in own.values():
        if callable(value):
            return value
    for name, value in own.items():
        # Not expanded here: an axis of size 1 may be that of the lanes, or of the layers.
        if value is not None:
            raise InputError(
                f"{type(module).__name__}.{name} is a {type(value).__name__} and not a method, so it is not known "
                "which axis has the lanes: pass initial_state=, a function of their number, such as "
                f"lambda num_lanes: module.{name}.expand(num_lanes, -1)"
            )
    return None


def _size(module: nn.Module, name: str, given: int | None, own: Any) -> int:
    if given is not None:
        return given
    if not isinstance(own, int):
        raise InputError(f"{name}: {type(module).__name__} has no attribute that says it; give {name}")
    return own


def _shape(leaf: Any) -> Any:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__


def _shapes(state: State) -> list[Any]:
    return [leaf.shape for leaf in tree_leaves(state)]
