"""The core interface, which every recurrent module implements."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_tbptt.cores.contract import check_built, checked_call
from lit_tbptt.errors import InputError
from lit_tbptt.random_state import shared_generator
from lit_tbptt.tbptt.state import State


class RecurrentCore(nn.Module, ABC):
    """A module that maps inputs and a state to outputs and the next state.

    The returned state has the same structure, shapes and dtypes as the given one. In eval mode, splitting the inputs
    anywhere along the time axis and passing the state on gives the same outputs and state as one call.

    The constructor's arguments are kept in `init_args`, so that a checkpoint can describe the core in plain values.

    Attributes:
        input_size: Features per time step that `forward` takes.
        output_size: Features per time step that `forward` returns.
        init_args: The arguments this core was built with, by name. They may include other cores.
        noise: The return value of `begin_window` for the current window; ignored in eval mode.
        time_first: Whether the core is faster on `[lane, time, feature]` inputs stored time-first in memory.
    """

    input_size: int
    output_size: int
    init_args: dict[str, Any]
    noise: Any = None
    time_first: bool = False

    def __new__(cls, *args: Any, **kwargs: Any) -> "RecurrentCore":
        core = super().__new__(cls)
        # Partial: copying and unpickling pass no arguments, and set init_args later.
        bound = inspect.signature(cls.__init__).bind_partial(core, *args, **kwargs)
        bound.apply_defaults()
        core.__dict__["init_args"] = dict(list(bound.arguments.items())[1:])
        return core

    @abstractmethod
    def forward(
        self, inputs: Float[Tensor, "lane time feature"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        """Runs over the time axis and returns the outputs and the state after the last time step."""

    def forward_through(
        self, inputs: Float[Tensor, "lane time feature"], state: State, far_edge: int
    ) -> tuple[Float[Tensor, "lane time output"], State, State]:
        """Returns the outputs, the state entering time step `far_edge`, and the state after the last.

        By default it calls the core twice. `far_edge` is from 0 to the number of time steps.
        """
        if far_edge == 0 or far_edge == inputs.shape[1]:
            outputs, after = checked_call(self, inputs, state)
            return outputs, after if far_edge else state, after
        before, far_edge_state = checked_call(self, inputs[:, :far_edge], state)
        rest, after = checked_call(self, inputs[:, far_edge:], far_edge_state)
        return join_in_time(before, rest), far_edge_state, after

    @abstractmethod
    def initial_state(self, num_lanes: int) -> State:
        """Returns the state of `num_lanes` lanes after a reset, with the lane axis first in every leaf."""

    def begin_window(self, num_lanes: int) -> Any:
        """Draws noise that stays the same over a window and its context, such as dropout masks of the inputs.

        It is called once per window in training and should draw nothing in eval mode; see `Task.begin_window`. None:
        no such noise.
        """
        return None

    def initialize_tokens(self, embedding: nn.Embedding, head: nn.Module) -> None:
        """Sets the first weights of a language model's embedding and output layer, for a core that has been trained.

        `RecurrentLM` calls it after it has drawn its own. By default it changes nothing.
        """


class OnePassCore(RecurrentCore):
    """A core that has the state inside a call at little cost: a subclass defines `_run` in place of `forward`."""

    @abstractmethod
    def _run(self, inputs: Tensor, state: State, far_edge: int) -> tuple[Tensor, State, State]:
        """Returns what `forward_through` does."""

    def forward(
        self, inputs: Float[Tensor, "lane time feature"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        outputs, _, after = self._run(inputs, state, inputs.shape[1])
        return outputs, after

    def forward_through(
        self, inputs: Float[Tensor, "lane time feature"], state: State, far_edge: int
    ) -> tuple[Float[Tensor, "lane time output"], State, State]:
        if type(self).forward is not OnePassCore.forward:  # overridden by a subclass: run that
            return super().forward_through(inputs, state, far_edge)
        return self._run(inputs, state, far_edge)


def join_in_time(before: Float[Tensor, "lane time output"], rest: Float[Tensor, "lane later output"]) -> Tensor:
    """Concatenates outputs in time, in the memory order they have, in which dropout masks are drawn."""
    return _join([before, rest], 1)


def join_features(parts: Sequence[Float[Tensor, "lane time _"]]) -> Float[Tensor, "lane time feature"]:
    """Concatenates features, in the memory order of the first part."""
    return _join(parts, 2)


def _join(parts: Sequence[Tensor], axis: int) -> Tensor:
    order = sorted(range(3), key=parts[0].stride, reverse=True)
    joined = torch.cat([part.permute(order) for part in parts], order.index(axis))
    return joined.permute([order.index(each) for each in range(3)])


def is_customized(module: nn.Module) -> bool:
    """Returns whether the user has customized the module: with hooks, a `forward` set on it, or by compiling it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module) or module._compiled_call_impl is not None


def check_sizes(**sizes: int | None) -> None:
    """Checks that the given sizes are at least 1.

    Raises:
        InputError: One is not.
    """
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: must be 1 or more")


def shared_mask(like: Tensor, probability: float) -> Tensor:
    """Returns a dropout mask of a tensor's shape, 0 or 1 / (1 - probability), which is the same on all ranks."""
    kept = torch.empty_like(like).bernoulli_(1 - probability, generator=shared_generator(like.device))
    return kept.div_(1 - probability)


def check_noise(noise: Any, setting: str) -> None:
    """Checks that the noise of a window was drawn.

    Args:
        noise: What `begin_window` returned.
        setting: The setting that needs it, for the message.

    Raises:
        InputError: There is none.
    """
    if noise is None:
        raise InputError(
            f"{setting}: the masks of a window are drawn by begin_window(num_lanes); set `noise` to what it returns, "
            "as Truncation does, or call eval()"
        )


def check_core(core: Any) -> None:
    """Checks that an argument is a core.

    Raises:
        InputError: It is not, or its constructor left out what every core needs.
    """
    if isinstance(core, RecurrentCore):
        check_built(core)
        return
    if isinstance(core, nn.RNNBase):
        sizes = f"hidden_size={core.hidden_size}, num_layers={core.num_layers}, input_size={core.input_size}"
        name = type(core).__name__
        raise InputError(
            f"core: a torch.nn.{name} has the lane axis of its state second; give lit_tbptt.{name}({sizes}), which "
            "wraps one"
        )
    if isinstance(core, type) and issubclass(core, RecurrentCore):
        raise InputError(f"core={core.__name__}: this is the class; give an object of it, {core.__name__}(...)")
    if isinstance(core, nn.Module):
        name = type(core).__name__
        raise InputError(
            f"core: a {name} is no RecurrentCore; lit_tbptt.TorchCore(module) makes one of a module that is called as "
            "module(inputs, state) and returns (outputs, state)"
        )
    raise InputError(f"core={core!r}: must be a RecurrentCore, such as lit_tbptt.LSTM(hidden_size=256)")
