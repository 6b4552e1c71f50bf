"""How far back a gradient reaches, and what of it a truncation cuts."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lit_tbptt.state import reset_lanes
from lit_tbptt.tbptt import Carry, Task


class Horizon(NamedTuple):
    """What a curve of gradient norms says.

    Attributes:
        ratio_per_token: The factor that the norm changes by per token back: below 1 it vanishes, above 1 it explodes.
            A line through the logarithms by least squares, over the norms above a millionth of the largest.
        norm_at_0: The fitted norm at the last token.
        tokens_to_1_percent: The first place where the norm is at most 1 % of the first. None: it is nowhere.
        share_beyond_k2: The share of the sum of all norms that belongs to states which the gradient of the last token
            does not reach under the horizon.
    """

    ratio_per_token: float
    norm_at_0: float
    tokens_to_1_percent: int | None
    share_beyond_k2: float


def gradient_norms(task: Task, carry: Carry, tokens_back: int) -> Tensor:
    """Returns the norms of d(loss at the last token) / d(state before it), by one backward pass.

    Entry j is over the state that j whole tokens lie between and the last one: entry 0 is over the state that the last
    token's step starts from. All leaves of a lane's state count together; lanes are averaged. Gradients that are stored
    anywhere stay as they are.

    Args:
        task: What is trained.
        carry: A state, and at least `tokens_back + 1` tokens after it.
        tokens_back: The last entry.

    Returns:
        `[tokens_back + 1]`, zero where a reset cuts; all zero where no lane's last token is scored.
    """
    steps = [step for piece in carry.context for step in piece.pieces(1)]
    before = len(steps) - tokens_back - 1
    state, given = carry.state, []
    initial = tree_map(Tensor.detach, task.initial_state(steps[0].num_lanes))
    for number, step in enumerate(steps):
        with torch.set_grad_enabled(number >= before):
            if number >= before:
                state = tree_map(_with_gradient, state)
                given.append([leaf for leaf in tree_leaves(state) if leaf.requires_grad])
            state = state if step.reset is None else reset_lanes(step.reset, initial, state)
            if number < len(steps) - 1:
                state = task.advance(step, state)
            else:
                loss, _, _ = task.window_loss(step, state)
    wanted = [leaf for leaves in given for leaf in leaves]
    gradients = iter(torch.autograd.grad(loss, wanted, materialize_grads=True))
    squares = [[next(gradients).double().flatten(1).square().sum(1) for _ in leaves] for leaves in given]
    norms = torch.stack([torch.stack(leaves).sum(0) for leaves in squares]).sqrt()
    scored = steps[-1].mask_or_ones()[:, 0]
    return (norms * scored).sum(1).flip(0) / scored.sum().clamp(min=1)


def _with_gradient(leaf: Tensor) -> Tensor:
    return leaf if leaf.requires_grad or not leaf.is_floating_point() else leaf.detach().requires_grad_()


def measure(norms: Tensor, k2: int) -> Horizon:
    """Measures a curve that `gradient_norms` returned, of a task that is trained with the horizon `k2`."""
    curve = norms.double().cpu().numpy()
    tokens = np.arange(len(curve))
    seen = curve > 1e-6 * curve.max()
    slope, start = np.polyfit(tokens[seen], np.log(curve[seen]), 1) if seen.sum() > 1 else (0.0, np.log(curve[0]))
    fallen = np.flatnonzero(curve <= 0.01 * curve[0])
    # k2 tokens back from the end, the last one included, is the far edge: the state there has no gradient any more.
    beyond = curve[k2 - 1 :].sum() / curve.sum()
    return Horizon(float(np.exp(slope)), float(np.exp(start)), int(fallen[0]) if len(fallen) else None, float(beyond))
