"""The output layer and its loss in one: with many words, most of a small model's time goes there.

For N targets and V words the plain form writes four arrays of N x V: logits, log-probabilities, the gradient of what
was picked from these (zeros but for one column a row), and that of the logits. Here is one: the logits become
probabilities, and these, less one at the targets, the gradient, all in the same place. What the gradient is multiplied
by (the mask, and one over the number of targets) goes to the narrow factors of the matrix products that use it.
"""

from typing import Any, TypeGuard

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_tbptt.models.metrics import summed_nats

FEWEST_WORDS = 128


def can_join(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Tells whether `linear_nats` does all that calling `head`, and `summed_nats` after it, would do, in less time.

    It does for a plain linear layer, in training, but for few words, where its calls from Python take longer. It was
    measured on CPUs, and is not used on other devices, nor under autocast, which multiplies in another dtype.
    """
    return (
        type(head) is nn.Linear
        and head.out_features >= FEWEST_WORDS
        and head.weight.is_cpu
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_customized(head)
    )


def is_customized(module: nn.Module) -> bool:
    """Tells whether calling the module does something of the user's: hooks, a `forward` set on it, a compiled one."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module) or module._compiled_call_impl is not None


def linear_nats(
    features: Float[Tensor, "lane time feature"],
    head: nn.Linear,
    targets: Int[Tensor, "lane time"],
    mask: Bool[Tensor, "lane time"] | None = None,
) -> tuple[Float[Tensor, ""], Int[Tensor, ""] | int]:
    """Returns `summed_nats(head(features), targets, mask)`."""
    if features.stride(0) < features.stride(1):  # time comes first in memory: a row after the other, without a copy
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
        # As exact as log_softmax, but for what a probability cannot express.
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
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted: in the plain form it has one
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
