"""What training on several ranks needs in addition to Lightning: checks, and reproducible gradient sums."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.nn import Embedding, EmbeddingBag

from lit_tbptt.data.lanes.base import Lanes
from lit_tbptt.errors import InputError
from lit_tbptt.ranks import Rank


def rank_of(trainer: Trainer) -> Rank:
    """Returns the rank of this process."""
    return Rank(trainer.global_rank, trainer.world_size)


def check_strategy(trainer: Trainer) -> None:
    """Checks that every process has the whole model.

    Raises:
        InputError: The strategy splits the model.
    """
    if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        raise InputError(
            f"trainer.strategy={type(trainer.strategy).__name__}: it gives every process a part of the model, and a "
            "recurrent model is run whole; use a strategy that replicates it, such as ddp"
        )


def check_lanes(loaders: Any, trainer: Trainer, training: bool = False) -> None:
    """Checks that every process has its own share of the lanes.

    Args:
        loaders: A loader, or several.
        trainer: The trainer that uses them.
        training: Whether they are to train on, so that no share may be empty.

    Raises:
        InputError: The lanes were created for a different number of processes, such as one; or there are fewer to train
            on than processes.
    """
    rank = rank_of(trainer)
    for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
        if rank.num_ranks > 1 and isinstance(loader, Lanes) and loader.local_lanes != rank.share(loader.num_lanes):
            raise InputError(
                f"local_lanes={loader.local_lanes} of num_lanes={loader.num_lanes} in process {rank.number} of "
                f"{rank.num_ranks}: num_lanes are those of all processes; give each its share, "
                "local_lanes=Rank(trainer.global_rank, trainer.world_size).share(num_lanes) (for SequenceLanes "
                "rank=Rank(...)), as the data modules do"
            )
        if training and isinstance(loader, Lanes) and loader.num_lanes < rank.num_ranks:
            raise InputError(
                f"num_lanes={loader.num_lanes} with {rank.num_ranks} processes: each needs a lane to train on; use at "
                f"least {rank.num_ranks} lanes, or fewer devices"
            )


def fix_gradient_layout(module: LightningModule) -> None:
    """Runs a backward pass of zeros, so that DDP orders its gradient buckets in the same way in every process.

    DDP reorders its buckets after the first backward pass, and the order affects the rounding of sums over three or
    more ranks. A resumed run must round like one that was never stopped, so every run starts with this pass.
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
