"""The loss as a sum over scored targets, and its conversion to common units."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy


def summed_nats(
    logits: Float[Tensor, "lane time vocabulary"],
    targets: Int[Tensor, "lane time"],
    mask: Bool[Tensor, "lane time"] | None = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""] | int]:
    """Returns the summed negative log-likelihood in nats, and the number of scored targets.

    `cross_entropy` takes the logarithm internally, so an unlikely target costs many nats but never infinity.
    """
    if mask is None:
        return cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"), targets.numel()
    nats = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(mask)
    return torch.where(mask, nats, 0.0).sum(), mask.sum()


def token_nats(logits: Float[Tensor, "*place vocabulary"], targets: Int[Tensor, "*place"]) -> Float[Tensor, "*place"]:
    """Returns the negative log-likelihood of each target in nats, at least in float32; finite, as `summed_nats` is."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return cross_entropy(exact.flatten(0, -2), targets.flatten(), reduction="none").view(targets.shape)


def rates(nats_per_token: float, bytes_per_token: float | None = None) -> dict[str, float]:
    """Converts a mean loss to nats per token, perplexity and bits per byte.

    Args:
        nats_per_token: The mean loss.
        bytes_per_token: Source bytes per target of the scored text. None: without bits per byte.
    """
    values = {"nats_per_token": nats_per_token, "perplexity": math.exp(min(nats_per_token, 700.0))}
    if bytes_per_token is not None:
        values["bits_per_byte"] = nats_per_token / math.log(2) / bytes_per_token
    return values
