"""Output layer and loss in one computation. With a large vocabulary, a small model spends most of its time here.

For N targets and V words, the plain form writes four arrays of size N x V: the logits, the log-probabilities, the
gradient with respect to the log-probabilities (zero except for one column per row), and the gradient with respect to
the logits. This form uses one buffer: the logits become probabilities in place, and the probabilities minus one at the
targets are the gradient. The factors of the gradient (the mask, and one over the number of targets) are applied to the
smaller operand of the matrix products that use it.
"""

from typing import Any, TypeGuard

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_tbptt.cores.customized import is_customized
from lit_tbptt.models.metrics import summed_nats

FEWEST_WORDS = 128


def can_join(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Returns whether `linear_nats` can replace `head` followed by `summed_nats`, and is faster.

    It can for a plain linear layer in training. With few words it would be slower, because of its Python calls. It was
    measured on CPUs and is not used on other devices, nor under autocast, which multiplies in another dtype.
    """
    return (
        type(head) is nn.Linear
        and head.out_features >= FEWEST_WORDS
        and head.weight.is_cpu
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_customized(head)
    )


def linear_nats(
    features: Float[Tensor, "lane time feature"],
    head: nn.Linear,
    targets: Int[Tensor, "lane time"],
    mask: Bool[Tensor, "lane time"] | None = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""] | int]:
    """Returns `summed_nats(head(features), targets, mask)`."""
    if features.stride(0) < features.stride(1):  # stored time-first: flattening then needs no copy
        features, targets, mask = features.transpose(0, 1), targets.t(), None if mask is None else mask.t()
    rows = None if mask is None else mask.flatten()
    loss = _LinearNats.apply(features.flatten(0, 1), head.weight, head.bias, targets.flatten(), rows)
    return loss, targets.numel() if mask is None else mask.sum()


class _LinearNats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, mask: Tensor | None
    ) -> Tensor:
        buffer = nn.functional.linear(features, weight, bias)
        index = targets[:, None]
        torch.softmax(buffer, 1, out=buffer)
        probabilities = buffer.gather(1, index)
        nats = -probabilities.log()
        # As exact as log_softmax, except for probabilities too small to represent.
        tiny = (probabilities[:, 0] < torch.finfo(buffer.dtype).tiny).nonzero()[:, 0]
        if len(tiny):
            logits = nn.functional.linear(features[tiny], weight, bias)
            nats[tiny] = nn.functional.cross_entropy(logits, targets[tiny], reduction="none")[:, None]
        buffer.scatter_add_(1, index, torch.full_like(nats, -1.0))
        ctx.save_for_backward(features, weight, bias, targets, mask, buffer)
        return nats.sum() if mask is None else torch.where(mask[:, None], nats, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, targets, mask, buffer = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # for second derivatives, use the plain form
            logits = nn.functional.linear(features, weight, bias)
            loss, _ = summed_nats(logits[None], targets[None], None if mask is None else mask[None])
            given = [each for each, wanted in zip((features, weight, bias), needed, strict=False) if wanted]
            gradients = iter(torch.autograd.grad(loss, given, gradient, create_graph=True))
            return *(next(gradients) if wanted else None for wanted in needed[:3]), None, None
        scale = gradient.expand(len(features), 1) if mask is None else gradient * mask[:, None]
        of_features = (buffer @ weight).mul_(scale) if needed[0] else None
        of_weight = buffer.t() @ (features * scale) if needed[1] else None
        of_bias = (buffer.t() @ scale)[:, 0] if needed[2] else None
        return of_features, of_weight, of_bias, None, None
