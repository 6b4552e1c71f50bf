"""What several ranks need beyond what Lightning does for them."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.nn import Embedding, EmbeddingBag

from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.errors import InputError
from lit_tbptt.ranks import Rank


def rank_of(trainer: Trainer) -> Rank:
    """Returns this process among those of a trainer."""
    return Rank(trainer.global_rank, trainer.world_size)


def check_strategy(trainer: Trainer) -> None:
    """Makes sure that every process has the whole model.

    Raises:
        InputError: Each would have a part of it only.
    """
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        raise InputError(
            f"trainer.strategy={type(trainer.strategy).__name__}: it gives every process a part of the model, and a "
            "recurrent model is run whole; use a strategy that replicates it, such as ddp"
        )


def check_lanes(loaders: Any, trainer: Trainer) -> None:
    """Makes sure that every process has its own share of the lanes.

    Args:
        loaders: A loader, or several.
        trainer: The trainer that they are for.

    Raises:
        InputError: Lanes have been made for another number of processes, such as one.
    """
    rank = rank_of(trainer)
    for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
        if rank.num_ranks > 1 and isinstance(loader, Lanes) and loader.local_lanes != rank.share(loader.num_lanes):
            raise InputError(
                f"local_lanes={loader.local_lanes} of num_lanes={loader.num_lanes} in process {rank.number} of "
                f"{rank.num_ranks}: num_lanes are those of all processes; give each its share, "
                "local_lanes=Rank(trainer.global_rank, trainer.world_size).share(num_lanes), as the datamodule does"
            )


def fix_gradient_layout(module: LightningModule) -> None:
    """Makes DDP order its gradient buckets as in the rest of the run.

    It reorders them after a process's first backward pass, and sums over three and more ranks are rounded in that
    order. A resumed run must round as one that was never stopped: so the first pass is made here, of zeros, in every
    run.
    """
    parts = [part for part in module.parameters() if part.requires_grad]
    embeddings = [each for each in module.modules() if isinstance(each, Embedding | EmbeddingBag)]
    if any(each.sparse for each in embeddings) or any(part.is_complex() for part in parts):
        return
    nothing = sum(0.0 * part.sum() for part in parts)
    module.trainer.strategy.pre_backward(nothing)
    nothing.backward()
    module.trainer.strategy.post_backward(nothing)
    module.zero_grad()
