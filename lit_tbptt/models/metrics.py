"""Losses and metrics of tokens, as sums over scored targets."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric


def summed_nats(
    logits: Float[Tensor, "lane time vocabulary"],
    targets: Int[Tensor, "lane time"],
    mask: Bool[Tensor, "lane time"] | None = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""] | int]:
    """Returns the summed negative log-likelihood in nats, and the number of scored targets.

    The logarithm is taken inside `cross_entropy`: an unlikely target costs many nats, never an infinity.
    """
    if mask is None:
        return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"), targets.numel()
    nats = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(mask)
    return torch.where(mask, nats, 0.0).sum(), mask.sum()


def rates(nats_per_token: float, bytes_per_token: float | None = None) -> dict[str, float]:
    """Says the same loss in the units people quote.

    Args:
        nats_per_token: The mean loss.
        bytes_per_token: Source bytes per target of the scored text. None: bits per byte are left out.
    """
    values = {"nats_per_token": nats_per_token, "perplexity": math.exp(min(nats_per_token, 700.0))}
    if bytes_per_token is not None:
        values["bits_per_byte"] = nats_per_token / math.log(2) / bytes_per_token
    return values


class TokenAccuracy(Metric):
    """Counts the targets that were the likeliest token, over windows and ranks; the share is taken in `compute`."""

    full_state_update = False
    num_targets: Tensor
    num_right: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_targets", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("num_right", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self,
        logits: Float[Tensor, "lane time vocabulary"],
        targets: Int[Tensor, "lane time"],
        mask: Bool[Tensor, "lane time"] | None = None,
    ) -> None:
        """Adds one window."""
        right = logits.argmax(-1) == targets
        self.num_right += (right if mask is None else right & mask).sum()
        self.num_targets += targets.numel() if mask is None else mask.sum()

    def compute(self) -> dict[str, Tensor]:
        """Returns `accuracy` and `num_targets`."""
        return {"accuracy": self.num_right / self.num_targets, "num_targets": self.num_targets}
