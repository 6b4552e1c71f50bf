"""GradientHorizon: measures and plots how far back gradients reach during training."""

import csv
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.files.atomic import replacing
from lit_tbptt.tbptt import Truncation
from lit_tbptt.tbptt.gradient_norms import SMALLEST, Horizon, measure
from lit_tbptt.training.callbacks.gradient_record import GradientRecord
from lit_tbptt.training.loggers import TokensTensorBoardLogger, run_folder


class GradientHorizon(GradientRecord):
    """Plots the norm of d(loss at a window's last token) / d(state j tokens before it), on the training data.

    It shows what a choice of k2 cuts off, and does not change the training (see `GradientRecord`). The extra backward
    pass keeps the activations of `tokens_back` tokens, even with `recompute_every`.

    Every curve is logged as `horizon/ratio_per_token`, `horizon/tokens_to_1_percent` and `horizon/share_beyond_k2` (see
    `lit_tbptt.tbptt.gradient_norms`), and written to `gradient_horizon/` in the run's folder (without a logger, in
    `default_root_dir`) as a table and a picture. TensorBoard gets the picture too. Plotting needs matplotlib, the extra
    `plot`.

    Args:
        every_n_steps: A curve is measured every N optimizer steps, or later, once `tokens_back` tokens have passed
            since the last curve and the last token of some lane is scored.
        tokens_back: How far back a curve goes, at least k2. Left out: twice k2.
    """

    def __init__(self, every_n_steps: int = 1000, tokens_back: int | None = None) -> None:
        super().__init__(every_n_steps)
        self.tokens_back = tokens_back

    @property
    def state_key(self) -> str:
        return self._generate_state_key(every_n_steps=self.every_n_steps, tokens_back=self.tokens_back)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the settings.

        Raises:
            InputError: A number is out of range, or matplotlib is missing.
        """
        super().setup(trainer, pl_module, stage)
        k2 = pl_module.truncation.k2
        if self.tokens_back is not None and self.tokens_back < k2:
            raise InputError(
                f"GradientHorizon: tokens_back={self.tokens_back}: must be at least k2={k2}, to show what lies beyond"
            )
        if find_spec("matplotlib") is None:
            raise InputError("GradientHorizon draws with matplotlib, which is missing: pip install matplotlib")

    def reach(self, truncation: Truncation) -> int:
        return max(self.tokens_back or 2 * truncation.k2, truncation.k2)  # k2 may have been increased

    def on_norms(self, trainer: Trainer, pl_module: LightningModule, norms: Tensor) -> None:
        found = measure(norms, pl_module.truncation.k2)
        names = ("ratio_per_token", "tokens_to_1_percent", "share_beyond_k2")
        values = {f"horizon/{name}": getattr(found, name) for name in names}
        pl_module.log_book.write(trainer, {name: value for name, value in values.items() if value is not None})
        if not trainer.fast_dev_run:
            _write(trainer, run_folder(trainer).gradient_horizon, norms.tolist(), found, pl_module.truncation.k2)


@rank_zero_only
def _write(trainer: Trainer, folder: Path, norms: list[float], found: Horizon, k2: int) -> None:
    step = trainer.global_step
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"step_{step}.csv") as beside, open(beside, "w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["tokens_back", "norm"])
        table.writerows(enumerate(norms))
    figure = _figure(norms, found, k2, step)
    with replacing(folder / f"step_{step}.png") as beside:
        figure.savefig(beside, format="png", dpi=100)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and not isinstance(logger, TokensTensorBoardLogger):
            logger.experiment.add_figure("horizon/gradient", figure, step, close=False)


def _figure(norms: list[float], found: Horizon, k2: int, step: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    last, finite = len(norms) - 1, [norm for norm in norms if 0 < norm < math.inf]
    # The curve ends at a reset.
    axes.semilogy([norm if norm > 0 else math.nan for norm in norms], label="measured, mean over lanes")
    if found.ratio_per_token is not None:
        axes.semilogy(found.fitted, "--", linewidth=1, label=f"fitted: x {found.ratio_per_token:.3f} per token")
    axes.axhline(0.01 * norms[0], color="grey", linewidth=0.8, linestyle=":", label="1 %")
    axes.axvspan(k2 - 1, last, color="grey", alpha=0.15, linewidth=0, label=f"beyond k2 = {k2}")
    axes.set_xlim(-0.02 * last, last)
    axes.set_ylim(bottom=max(min(finite), SMALLEST * max(finite)) / 2, top=2 * max(finite))
    axes.set(xlabel="tokens back from the window's last one", ylabel="norm of d loss / d state")
    fallen, share = found.tokens_to_1_percent, found.share_beyond_k2
    where = f"falls to 1 % after {fallen} tokens" if fallen is not None else "nowhere below 1 %"
    beyond = "overflows" if share is None else f"{100 * share:.1f} %" if share >= 5e-4 else "less than 0.1 %"
    axes.set_title(f"step {step}: {where}; beyond k2: {beyond}")
    axes.legend()
    return figure
