"""The core interface, which every recurrent module implements."""

import inspect
from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from lit_tbptt.cores.contract import checked_call
from lit_tbptt.cores.customized import is_customized
from lit_tbptt.cores.joining import join_in_time
from lit_tbptt.tbptt.state import State


class RecurrentCore(nn.Module, ABC):
    """A module that maps inputs and a state to outputs and the next state.

    The returned state has the same structure, shapes and dtypes as the given one. In eval mode, splitting the inputs
    anywhere along the time axis and passing the state on gives the same outputs and state as one call.

    The constructor's arguments are kept in `init_args`, so that a checkpoint can describe the core in plain values.

    Attributes:
        input_size: Features per time step that `forward` takes.
        output_size: Features per time step that `forward` returns.
        init_args: The arguments this core was built with, by name, also those of `**options`. They may include other
            cores.
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
        signature = inspect.signature(cls.__init__)
        # Partial: copying and unpickling pass no arguments, and set init_args later.
        bound = signature.bind_partial(core, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(name)
            elif parameter.kind is parameter.VAR_POSITIONAL and (values := arguments.pop(name, ())):
                arguments[f"*{name}"] = values  # refused by `describe`
        core.__dict__["init_args"] = arguments
        return core

    def _describe_argument(self, given: Any, plain: Any) -> None:
        """Replaces an argument in `init_args`, wherever a constructor has it: that of a subclass may have others."""
        self.init_args = {name: plain if value is given else value for name, value in self.init_args.items()}

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
        if type(self).forward is not OnePassCore.forward or is_customized(self):  # run what the user has added
            return super().forward_through(inputs, state, far_edge)
        return self._run(inputs, state, far_edge)
