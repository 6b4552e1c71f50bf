"""How the next token is chosen from the logits: the likeliest one, or one drawn from all or from the likeliest."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_tbptt.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Chooses a token for each lane.

    Attributes:
        temperature: Divides the logits before sampling; 0 takes the likeliest token.
        top_k: Sample among the k likeliest tokens only. None: among all.
        top_p: Sample among the fewest likeliest tokens whose probabilities, at this temperature, sum to p or more
            (Holtzman et al. 2020). None: among all. After `top_k`, of what it has left.

    Raises:
        InputError: One of them is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        for name, ok, rule in (
            ("temperature", 0 <= self.temperature < float("inf"), "a finite number, 0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not ok:
                raise InputError(f"{name}={getattr(self, name)}: must be {rule}")

    def __call__(self, logits: Float[Tensor, "lane vocabulary"], draws: Float[Tensor, "lane 1"]) -> Int[Tensor, "lane"]:
        """Returns a token for each lane, or the size of the vocabulary where a logit is nan or inf.

        Args:
            logits: Of the token to be chosen.
            draws: A number for each lane, above 0 and up to 1; the same number chooses the same token.
        """
        if self.temperature == 0:
            return logits.argmax(1)
        if self.top_k is not None and self.top_k < logits.shape[1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[:, -1:], -torch.inf)
        probabilities = torch.softmax(logits.double() / self.temperature, 1)
        if self.top_p is not None:
            ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
            before = ordered.cumsum(1) - ordered  # what the likelier tokens have together
            probabilities = probabilities.scatter(1, order, ordered.masked_fill(before >= self.top_p, 0.0))
        cumulated = probabilities.cumsum(1)
        # The first token that reaches the draw: one of probability 0 never does.
        return torch.searchsorted(cumulated, draws * cumulated[:, -1:])[:, 0]
