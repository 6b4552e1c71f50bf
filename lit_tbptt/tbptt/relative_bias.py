"""Estimates the relative bias of truncated gradients, by horizon, from gradient norms.

After Aicher, Foti & Fox (2019, "Adaptively Truncating Backpropagation Through Time to Control Gradient Bias"), Theorem
1. With phi_k the expected norm of d loss_s / d h_{s-k}, a gradient that is cut after k = K differs from the full one by
at most E(K) = M * (phi_{K+1} + phi_{K+2} + ...) (B.5 of their supplement), so the full one has at least the norm
||g_K|| - E(K) (B.6), and the relative bias is at most E(K) / (||g_K|| - E(K)) (B.7). Beyond the last measured norm the
decay is taken as geometric (B.4).

What these bounds need is not measured here, nor in the authors' program, so the result is an estimate and not a bound:
||g_K|| is replaced by M * (phi_1 + ... + phi_K), the sum of the norms, and M cancels out. Inequality (B.6) holds for
every K; as in their program, the largest of its lower bounds is used for all horizons. With sums of norms, that is the
one of the longest K.

In a window, the first loss reaches back k2 - k1 + 1 tokens and the last one k2. The bias of the window's gradient is at
most the mean of theirs.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.gradient_norms import SMALLEST


class RelativeBias(NamedTuple):
    """The estimated relative bias of the gradient, by horizon.

    Attributes:
        by_horizon: The relative bias for k2 = 1, 2, ..., never increasing. Infinite: k2 is below k1, or the norms
            beyond the measured ones may outweigh these.
        ratio_per_token: The factor by which the norm changes per token back in the second half of the measured norms,
            and beyond.
    """

    by_horizon: list[float]
    ratio_per_token: float

    def least_horizon(self, max_relative_bias: float) -> int | None:
        """Returns the least k2 whose relative bias is below `max_relative_bias`. None: there is none."""
        return next((k2 for k2, bias in enumerate(self.by_horizon, 1) if bias < max_relative_bias), None)


def relative_bias(norms: Float[Tensor, "tokens"], max_k2: int, k1: int = 1) -> RelativeBias | None:
    """Estimates the relative bias for every horizon up to `max_k2`.

    A loss that reaches back K tokens, its own included, reaches the states that enter the last K - 1 of them, so the
    norms from entry K - 1 on are cut off.

    Args:
        norms: The result of `gradient_norms`, or a mean of several. They are used up to the first zero: there all lanes
            were reset, and what lies beyond is extrapolated. Once they have fallen below `SMALLEST` of the first one,
            nothing is extrapolated.
        max_k2: The longest horizon; it may be longer than the curve.
        k1: The number of losses in a window.

    Returns:
        None if all lanes were reset before their last token: nothing can be estimated.

    Raises:
        InputError: `max_k2` is below `k1`.
    """
    if max_k2 < k1:
        raise InputError(f"max_k2={max_k2} with k1={k1}: must be at least k1")
    curve = norms.double().cpu().numpy()
    if not np.isfinite(curve).all():
        return RelativeBias([np.inf] * max_k2, np.inf)
    curve = curve[: np.argmin(curve > 0)] if (curve == 0).any() else curve
    if len(curve) < 2:
        return None
    vanished = np.flatnonzero(curve <= SMALLEST * curve[0])
    fitted = np.arange(len(curve))[: vanished[0] + 1 if len(vanished) else None]
    fitted = fitted[min(len(fitted) // 2, len(fitted) - 2) :]
    slope, start = np.polyfit(fitted, np.log(curve[fitted]), 1)
    ratio = float(np.exp(slope))
    if len(vanished):
        beyond = 0.0
    elif ratio < 1:
        beyond = np.exp(start + slope * len(curve)) / (1 - ratio)
    else:
        return RelativeBias([np.inf] * max_k2, ratio)
    lower_bound = curve.sum() - beyond
    if lower_bound <= 0:
        return RelativeBias([np.inf] * max_k2, ratio)
    cut_off = np.concatenate([curve[::-1].cumsum()[::-1] + beyond, beyond * min(ratio, 1.0) ** np.arange(max_k2)])
    windows = np.convolve(cut_off[:max_k2] / lower_bound, np.full(k1, 1 / k1), "valid")
    return RelativeBias([np.inf] * (k1 - 1) + windows.tolist(), ratio)
