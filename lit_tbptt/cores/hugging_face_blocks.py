"""The blocks of `transformers`' recurrent models, run as functions `(inputs, state) -> (outputs, state)`.

The library's own cached calls are not used, because in 5.23 most of them are wrong or not differentiable for a window:
Mamba and FalconMamba drop the state-space state when a call has more than one time step, RWKV, xLSTM and Mamba2 change
the cache in place, and RWKV mixes lanes in calls of one time step. So each block is called with its state as an
argument, or, where a block reads its state from the cache only, its formula is written here over the block's layers.
"""

import sys
from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

BlockState = dict[str, Tensor]
"""The state of a block by name, `[lane, ...]`."""


class BlockKind(ABC):
    """How the blocks of a model type are run.

    Attributes:
        blocks: The attribute of the model that holds its blocks.
        norm: The attribute of the model that holds the last normalization.
    """

    blocks: str = "layers"
    norm: str = "norm_f"

    def refusal(self, settings: dict[str, Any]) -> str | None:
        """Returns what is wrong with settings that the library accepts, as an error message."""
        return None

    def completed(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Returns settings with those added whose defaults in the library fit only its own sizes."""
        return settings

    def prepared(self, block: nn.Module) -> nn.Module:
        """Returns a new block, changed where `run` needs it."""
        return block

    @abstractmethod
    def initial_state(self, block: Any, num_lanes: int) -> BlockState:
        """Returns the state of a block after a reset."""

    @abstractmethod
    def run(
        self, block: Any, inputs: Float[Tensor, "lane time feature"], state: BlockState
    ) -> tuple[Float[Tensor, "lane time feature"], BlockState]:
        """Runs a block over a window."""


def module_of(block: nn.Module) -> Any:
    """Returns the module of `transformers` in which the class of a block is defined."""
    return sys.modules[type(block).__module__]
