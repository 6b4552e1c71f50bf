"""Adaptive softmax (Grave et al. 2017): an output layer that spends little time on rare words.

    words by frequency   |- frequent -|------ rarer ------|------------- rarest -------------|
    first softmax         one column each, plus one column for each cluster of rarer words
    cluster softmax                    on a narrow projection, run only for the cluster's own targets

The probability of a rarer word is the probability of its cluster times its probability within the cluster. The
probabilities sum to one over all words, so perplexities are comparable with those of a full softmax.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lit_tbptt.errors import InputError
from lit_tbptt.models.metrics import summed_nats
from lit_tbptt.models.output_layer import can_join, linear_nats


class Adaptive:
    """Replaces the output layer of a language model by an adaptive softmax.

    Token ids must be in order of frequency, most frequent first, as those of the word tokenizer are.

    Args:
        cutoffs: The first token id of each cluster of rarer words. With 2000 and 6000, words 0 to 1,999 are in the
            first softmax, 2,000 to 5,999 in one cluster, the others in another.
        narrowing: The factor by which the number of features decreases from one cluster to the next; the first softmax
            has all.

    Raises:
        InputError: `cutoffs` are not increasing and above 0, or `narrowing` is below 1.
    """

    def __init__(self, cutoffs: Sequence[int], narrowing: float = 4.0) -> None:
        cutoffs = list(cutoffs)
        if not cutoffs or cutoffs[0] < 1 or any(first >= second for first, second in pairwise(cutoffs)):
            raise InputError(f"head.cutoffs={cutoffs}: must be word numbers above 0, each larger than the one before")
        if narrowing < 1:
            raise InputError(f"head.narrowing={narrowing}: must be 1 or more")
        self.init_args: dict[str, Any] = {"cutoffs": cutoffs, "narrowing": narrowing}

    def make(self, num_features: int, num_words: int) -> "AdaptiveSoftmax":
        """Creates the layer.

        Raises:
            InputError: A cluster would have no words, or no features.
        """
        cutoffs, narrowing = self.init_args["cutoffs"], self.init_args["narrowing"]
        if cutoffs[-1] >= num_words:
            raise InputError(f"head.cutoffs={cutoffs} with a vocabulary of {num_words}: all must be below it")
        if num_features < narrowing ** len(cutoffs):
            raise InputError(
                f"head.narrowing={narrowing} with {len(cutoffs)} cutoffs and {num_features} features: the last cluster "
                "would have none; use fewer cutoffs, or a smaller narrowing"
            )
        return AdaptiveSoftmax(num_features, num_words, cutoffs, narrowing)


class AdaptiveSoftmax(nn.AdaptiveLogSoftmaxWithLoss):
    """torch's layer; `forward` returns the log-probabilities of all words, which serve as logits."""

    def forward(self, features: Float[Tensor, "*place feature"]) -> Float[Tensor, "*place word"]:  # type: ignore[override]
        log_probabilities = self.log_prob(features.flatten(0, -2).to(self.head.weight.dtype))
        return log_probabilities.unflatten(0, features.shape[:-1])

    def nats(
        self,
        features: Float[Tensor, "lane time feature"],
        targets: Int[Tensor, "lane time"],
        mask: Bool[Tensor, "lane time"] | None = None,
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""] | int]:
        """Returns `summed_nats(self(features), targets, mask)`, but runs each cluster only for its own targets.

        Unlike torch's loss, it also runs clusters without targets, so that every rank has a gradient for them and the
        optimizer updates their weights in every step.
        """
        first = targets
        loss: Tensor | float = 0.0
        for number, (low, high) in enumerate(pairwise(self.cutoffs)):
            inside = (targets >= low) & (targets < high)
            first = torch.where(inside, self.shortlist_size + number, first)
            inside = inside if mask is None else inside & mask
            logits = self.tail[number](features[inside])
            loss = loss + cross_entropy(logits, targets[inside] - low, reduction="sum")
        if can_join(self.head):
            of_first, num_targets = linear_nats(features, self.head, first, mask)
        else:
            of_first, num_targets = summed_nats(self.head(features), first, mask)
        return loss + of_first, num_targets
