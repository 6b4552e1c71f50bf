"""Accuracy of the most likely token. A separate module, because torchmetrics takes a second to import."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric


class TokenAccuracy(Metric):
    """Counts how often the target was the most likely token, over windows and ranks; `compute` returns the share."""

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
