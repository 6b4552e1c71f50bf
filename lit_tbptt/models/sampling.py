"""Sampling of the next token from the logits: greedy, or at random with temperature, top-k and top-p."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_tbptt.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Chooses a token for each lane.

    Attributes:
        temperature: Divides the logits before sampling; 0 takes the most likely token.
        top_k: Sample only from the k most likely tokens. None: from all.
        top_p: Sample only from the smallest set of most likely tokens whose probabilities, at this temperature, sum to
            p or more (Holtzman et al. 2020). Applied after `top_k`, to the tokens it keeps. None: from all.

    Raises:
        InputError: A value is out of range.
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
            logits: The logits of the next token.
            draws: One random number per lane, above 0 and at most 1; the same number selects the same token.
        """
        if self.temperature == 0:
            diverged = (logits.isnan() | logits.isposinf()).any(1)
            return logits.argmax(1).masked_fill(diverged, logits.shape[1])
        if self.top_k is not None and self.top_k < logits.shape[1]:
            values, kept = logits.topk(self.top_k)
            logits = torch.full_like(logits, -torch.inf).scatter(1, kept, values)
        probabilities = torch.softmax(logits.double() / self.temperature, 1)
        if self.top_p is not None:
            ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
            before = ordered.cumsum(1) - ordered  # total probability of the more likely tokens
            probabilities = probabilities.scatter(1, order, ordered.masked_fill(before >= self.top_p, 0.0))
        cumulated = probabilities.cumsum(1)
        # The first token that reaches the draw; tokens with probability 0 never do.
        return torch.searchsorted(cumulated, draws * cumulated[:, -1:])[:, 0]
