"""Measures how far back gradients reach, and how much of them a horizon cuts off."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.state import cast_like, detach, reset_lanes
from lit_tbptt.tbptt.task import Task, WindowLoss, initial_state_for

SMALLEST = 1e-6
"""Norms below this fraction of the largest are too small to fit a decay rate to."""


class Horizon(NamedTuple):
    """Summary of a curve of gradient norms.

    Attributes:
        fitted: `[num_fitted]` norms on the least-squares line through the logarithms of the measured norms, up to where
            these first fall below `SMALLEST`, are cut by a reset, or overflow.
        ratio_per_token: The factor by which the fitted norm changes per token back: the gradient vanishes if it is
            below 1 and explodes if it is above 1. None: there is nothing to fit.
        tokens_to_1_percent: The first index at which the norm is at most 1 % of the first one. None: there is none.
        share_beyond_k2: The share of the curve's sum that belongs to states beyond the horizon, which the gradient of
            the last token does not reach. If the norm does not vanish, it depends on the length of the curve. None:
            the norm overflows.
    """

    fitted: list[float]
    ratio_per_token: float | None
    tokens_to_1_percent: int | None
    share_beyond_k2: float | None


def gradient_norms(task: Task, carry: Carry, tokens_back: int) -> Tensor:
    """Returns the norms of d(loss at the last token) / d(earlier states), computed with one backward pass.

    Entry j is the norm for the state entering the token j before the last; entry 0 is for the state entering the last
    token. The norm is taken over all leaves of a lane's state, then averaged over lanes. Stored gradients (`.grad`) do
    not change.

    Args:
        task: The task that is trained.
        carry: A state, and at least `tokens_back + 1` tokens after it.
        tokens_back: The index of the last entry.

    Returns:
        `[tokens_back + 1]`, zero before a reset; all zero if no lane's last token is scored.
    """
    tokens = [token for piece in carry.context for token in piece.pieces(1)]
    before = len(tokens) - tokens_back - 1
    initial = detach(task.initial_state(tokens[0].num_lanes))
    # What was computed under autocast has another dtype, which an initial state and modules without autocast have not.
    state, given = cast_like(carry.state, initial), []
    for number, token in enumerate(tokens):
        with torch.set_grad_enabled(number >= before):
            if number >= before:
                state = tree_map(_with_gradient, state)
                given.append([leaf for leaf in tree_leaves(state) if leaf.requires_grad])
            if token.reset is not None:
                state = reset_lanes(token.reset, detach(initial_state_for(task, token, initial)), state)
            if number < len(tokens) - 1:
                state = task.advance(token, state)
            else:
                loss = torch.as_tensor(WindowLoss(*task.window_loss(token, state)).loss)
    wanted = [leaf for leaves in given for leaf in leaves]
    if not wanted or not loss.requires_grad:
        return torch.zeros(tokens_back + 1, dtype=torch.float64, device=loss.device)
    gradients = iter(torch.autograd.grad(loss, wanted, materialize_grads=True))
    squares = [[next(gradients).abs().double().flatten(1).square().sum(1) for _ in leaves] for leaves in given]
    norms = torch.stack([torch.stack(leaves).sum(0) for leaves in squares]).sqrt()
    scored = tokens[-1].mask_or_ones()[:, 0]
    return torch.where(scored, norms, 0.0).sum(1).flip(0) / scored.sum().clamp(min=1)


def _with_gradient(leaf: Tensor) -> Tensor:
    differentiable = leaf.is_floating_point() or leaf.is_complex()
    return leaf.detach().requires_grad_() if differentiable and not leaf.requires_grad else leaf


def measure(norms: Tensor, k2: int) -> Horizon:
    """Summarizes a curve returned by `gradient_norms`, for a task trained with horizon `k2`."""
    curve = norms.double().cpu().numpy()
    finite = np.isfinite(curve)
    ends = np.flatnonzero(~finite | (curve <= SMALLEST * curve[finite].max(initial=0.0)))
    num_fitted = int(ends[0]) if len(ends) else len(curve)
    fitted, ratio = np.zeros(0), None
    if num_fitted > 1:
        tokens = np.arange(num_fitted)
        slope, start = np.polyfit(tokens, np.log(curve[:num_fitted]), 1)
        fitted, ratio = np.exp(start + slope * tokens), float(np.exp(slope))
    # Zeros come from resets, not from vanishing.
    fallen = np.flatnonzero((curve > 0) & (curve <= 0.01 * curve[0]))
    # The far edge is k2 tokens back from the end, including the last one: the state there gets no gradient.
    beyond = float(curve[k2 - 1 :].sum() / curve.sum()) if finite.all() else None
    return Horizon(fitted.tolist(), ratio, int(fallen[0]) if len(fallen) else None, beyond)
