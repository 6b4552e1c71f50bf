"""The root mean square of each weight's gradients over a training split, kept beside the checkpoint."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lit_tbptt.errors import InputError
from lit_tbptt.files.checkpoint import read_checkpoint, write_checkpoint
from lit_tbptt.tbptt import Window
from lit_tbptt.training.gradient_pass import GradientPass


def gradient_rms(run: GradientPass, windows: Iterable[Window], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Returns the root of the mean over windows of the squared gradients of the weights, one tensor for each.

    Args:
        run: Computes the gradients of `parameters`.
        windows: The windows; those without targets are left out of the mean.
        parameters: The weights.

    Raises:
        InputError: No window has a target.
    """
    sums, num_windows = [torch.zeros_like(parameter) for parameter in parameters], 0
    for window in windows:
        _, _, gradients = run(window)
        if gradients is None:
            continue
        num_windows += 1
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                gradient = gradient.to_dense()
                total.addcmul_(gradient, gradient)
    if not num_windows:
        raise InputError("gradient statistics: no window of the training split has a target")
    return [(total / num_windows).sqrt_() for total in sums]


class KeptStatistics:
    """The file of statistics beside a checkpoint: those of the same weights, settings and windows, or it is replaced.

    Args:
        checkpoint: The checkpoint's path. None: nothing is kept.
        parameters: The weights that the statistics are of.
        settings: What else determines them.
        windows: The windows that they are computed from.
    """

    def __init__(
        self,
        checkpoint: str | Path | None,
        parameters: Sequence[Tensor],
        settings: dict[str, Any],
        windows: Iterable[Window],
    ) -> None:
        self.path = None if checkpoint is None else Path(checkpoint).with_suffix(".gradients")
        self._key = ""
        if self.path is not None:
            digest = hashlib.sha256(repr(sorted(settings.items())).encode())
            for tensor in chain(parameters, chain.from_iterable(map(tree_leaves, windows))):
                if isinstance(tensor, Tensor):
                    content = tensor.detach().cpu().contiguous()
                    digest.update(f"{content.dtype}{tuple(content.shape)}".encode())
                    digest.update(content.flatten().view(torch.uint8).numpy().data)
            self._key = digest.hexdigest()

    def read(self, device: torch.device) -> list[Tensor] | None:
        """Returns the statistics, or None if there are none."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            kept: Any = read_checkpoint(self.path, device)
        except InputError as error:
            rank_zero_warn(f"the gradient statistics are computed again: {error}")
            return None
        if kept.get("key") != self._key:
            return None
        rank_zero_info(f"took the gradient statistics from {self.path}")
        return kept["gradient_rms"]

    def write(self, statistics: Sequence[Tensor]) -> None:
        """Keeps them, if there is a place."""
        if self.path is None:
            return
        try:
            write_checkpoint({"key": self._key, "gradient_rms": list(statistics)}, self.path)
            rank_zero_info(f"kept the gradient statistics in {self.path}")
        except OSError as error:
            rank_zero_warn(f"the gradient statistics are not kept: {error}")
