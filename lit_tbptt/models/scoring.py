"""The negative log-likelihood of each token of a document, window by window, with carried state."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_tbptt.models.language_model import RecurrentLM
from lit_tbptt.models.metrics import token_nats


@dataclass(frozen=True)
class Score:
    """The total loss of a text.

    Attributes:
        nats: The summed negative log-likelihood of its tokens.
        num_tokens: The number of tokens, including every `<eos>`.
        num_bytes: Bytes of the text in UTF-8.
        num_unknown: The number of tokens that stand for text outside the vocabulary.
    """

    nats: float = 0.0
    num_tokens: int = 0
    num_bytes: int = 0
    num_unknown: int = 0

    def __add__(self, other: "Score") -> "Score":
        """Returns the total of both texts."""
        return Score(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def bits_per_byte(self) -> float | None:
        """None if there are unknown tokens, from which the text could not be restored, or if there are no bytes."""
        return None if self.num_unknown or not self.num_bytes else self.nats / math.log(2) / self.num_bytes


class DocumentScore(NamedTuple):
    """The loss of a document, including its `<eos>`.

    Attributes:
        total: The total over all tokens.
        tokens: The token ids.
        nats: The negative log-likelihood of each token, given all previous ones.
    """

    total: Score
    tokens: Int[Tensor, "token"]
    nats: Float[Tensor, "token"]


@torch.inference_mode()
def window_nats(
    network: RecurrentLM, tokens: Int[Tensor, "token"], first_input: int, k1: int, carry_state: bool = True
) -> Iterator[Float[Tensor, "time"]]:
    """Yields the negative log-likelihood of every token in nats, given all previous ones, `k1` tokens at a time.

    Memory depends on `k1`, not on the number of tokens. The network is in eval mode until the iterator ends or is
    closed.

    Args:
        network: The language model.
        tokens: Token ids, as int64; each is a target once.
        first_input: The input before the first token: `<eos>` at the start of a document.
        k1: Tokens per call of the model.
        carry_state: Whether a window starts from the final state of the previous one, or else from the initial state.

    Yields:
        `[time]`, in float64, on the CPU.
    """
    device = network.embedding.weight.device
    was_training = network.training
    network.eval()
    try:
        state, before = network.initial_state(1), first_input
        for start in range(0, len(tokens), k1):
            targets = tokens[start : start + k1].to(device)
            inputs = torch.cat([targets.new_tensor([before]), targets[:-1]])
            if not carry_state:
                state = network.initial_state(1)
            logits, state = network(inputs[None], state)
            yield token_nats(logits[0], targets).cpu().double()
            before = int(targets[-1])
    finally:
        network.train(was_training)
