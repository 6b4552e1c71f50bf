"""Penalties on the outputs of a core: activation regularization (AR), and its temporal form (TAR).

Merity, McCann & Socher (2017), "Revisiting activation regularization for language RNNs" (arXiv:1708.01009), as used by
Merity, Keskar & Socher (2018), "Regularizing and optimizing LSTM language models" (arXiv:1708.02182), section 4.

    AR     activation * sum of |m h_t|^2 / H             over the scored time steps t
    TAR    temporal   * sum of |h_t - h_{t-1}|^2 / H     over those that have a time step before them in the window

h_t is the core's output of H features, m the dropout mask of the output layer's input. Like the loss, both sums are
divided by the number of targets. So AR is the mean over targets and features, as in the authors' code. Their TAR is a
mean over the k1 - 1 pairs of a window; here the sum over pairs is divided by the k1 targets: (k1 - 1) / k1 of it.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt import Task
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.task import plain_form_used


class OutputPenalties:
    """The two penalties. The temporal one keeps the last output of a window in the state, so that no cut loses a pair.

    The state is then a dictionary: `core`, the core's state; `output`, `[lane, output]`; `follows`, `[lane]`, whether
    `output` is of the window that is being run. Without a temporal penalty it is the core's.

    Args:
        activation: The factor of AR.
        temporal: The factor of TAR.

    Raises:
        InputError: A factor is below 0 or infinite.
    """

    def __init__(self, activation: float, temporal: float) -> None:
        for name, value in (("activation_penalty", activation), ("temporal_penalty", temporal)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name}={value}: must be 0 or more; 0 for no penalty")
        self.activation, self.temporal = activation, temporal

    def __bool__(self) -> bool:
        return bool(self.activation or self.temporal)

    def check_loss(self, task: Task, is_customized: bool = False) -> None:
        """Checks that a task computes its loss where the core's outputs are known.

        Args:
            task: The task.
            is_customized: Whether its loss must be computed from what `forward` returns.

        Raises:
            InputError: It does not, and there is a penalty.
        """
        if self and (is_customized or plain_form_used(task, "window_loss")):
            raise InputError(
                f"activation_penalty={self.activation} and temporal_penalty={self.temporal} with a "
                f"{type(task).__name__} that has hooks, is compiled, or overrides a part of its loss: they are of the "
                "core's outputs, which predict_window does not return; leave them out, or override window_loss and "
                "return a penalty"
            )

    def initial_state(self, core: State, output: Float[Tensor, "lane output"]) -> State:
        """Returns the state after a reset.

        Args:
            core: The core's state after a reset.
            output: Zeros of the shape of an output.
        """
        if not self.temporal:
            return core
        return {"core": core, "output": output, "follows": torch.zeros_like(output[:, 0], dtype=torch.bool)}

    def enter_window(self, state: State) -> State:
        """Returns the state without the output of the window before, with which there is no pair."""
        if not self.temporal:
            return state
        return state | {name: torch.zeros_like(state[name]) for name in ("output", "follows")}

    def core_state(self, state: State) -> State:
        """Returns the core's part of a state."""
        return state["core"] if self.temporal else state

    def with_core(self, state: State, core: State) -> State:
        """Returns a state with another one of the core."""
        return state | {"core": core} if self.temporal else core

    def __call__(
        self,
        outputs: Float[Tensor, "lane time output"],
        dropped: Float[Tensor, "lane time output"],
        mask: Bool[Tensor, "lane time"] | None,
        state: State,
    ) -> tuple[Float[Tensor, ""], State]:
        """Returns the penalty of a part of a window, as a sum, and the state with the last output.

        Args:
            outputs: The outputs of the core.
            dropped: The same after dropout.
            mask: False where a time step is not scored.
            state: The state after the part, with what was kept before it.
        """
        penalty = self.activation * _mean_squares(dropped, mask) if self.activation else outputs.new_zeros(())
        if self.temporal:
            follows = state["follows"][:, None]
            first = outputs[:, :1] - state["output"][:, None]
            penalty = penalty + self.temporal * (
                _mean_squares(first, follows if mask is None else follows & mask[:, :1])
                + _mean_squares(outputs.diff(dim=1), None if mask is None else mask[:, 1:])
            )
            last = outputs[:, -1].to(state["output"].dtype)
            state = state | {"output": last, "follows": torch.ones_like(state["follows"])}
        return penalty, state


def _mean_squares(
    features: Float[Tensor, "lane time output"], mask: Bool[Tensor, "lane time"] | None
) -> Float[Tensor, ""]:
    """Returns the mean square over features, summed over the time steps of the mask, at least in float32."""
    exact = features.to(torch.promote_types(features.dtype, torch.float32))
    means = exact.square().mean(-1)
    return means.sum() if mask is None else torch.where(mask, means, 0.0).sum()
