"""Cell: the base of cores that are written one time step at a time."""

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.contract import check_outputs, pair_of
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import State, cast_like, check_next_state


class Cell(RecurrentCore):
    """A core that is defined by one time step.

    A subclass defines `initial_state` and `step`. What does not depend on the state is faster in `prepare`, where it is
    computed for all time steps of a window at once: the products of the inputs with a weight matrix, for example.

    The loop over time is run as it is. Compiled by `torch.compile` it was no faster on a CPU.
    """

    def prepare(self, inputs: Float[Tensor, "lane time feature"]) -> Any:
        """Computes what does not depend on the state.

        Returns:
            A pytree of tensors `[lane, time, ...]`; `step` gets it without the time axis. By default the inputs.
        """
        return inputs

    @abstractmethod
    def step(self, x: Any, state: State) -> tuple[Float[Tensor, "lane output"], State]:
        """Runs one time step.

        Args:
            x: What `prepare` returned, at this time step: by default the inputs, `[lane, feature]`.
            state: The state before this time step. It must not be changed in place.

        Returns:
            The outputs `[lane, feature]` and the state after this time step. Leaves of other dtypes than those of the
            initial state are cast to these after a window.
        """

    def forward(
        self, inputs: Float[Tensor, "lane time feature"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        leaves, structure = tree_flatten(self.prepare(inputs))
        given = state
        outputs: list[Tensor] = []
        try:
            for parts in zip(*(leaf.unbind(1) for leaf in leaves), strict=True):
                output, state = pair_of(self, "step", self.step(tree_unflatten(parts, structure), state))
                outputs.append(output)
            return torch.stack(outputs, 1), cast_like(state, given)
        except InputError:
            raise
        except Exception:  # which may come from what an earlier step returned
            for output in outputs[:1]:
                check_outputs(self, output, (len(inputs), self.output_size))
            check_next_state(self, given, state)
            raise
