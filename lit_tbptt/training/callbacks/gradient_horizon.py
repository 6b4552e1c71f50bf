"""GradientHorizon: measures and plots how far back gradients reach during training."""

import csv
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_tbptt.errors import InputError
from lit_tbptt.files.atomic import replacing
from lit_tbptt.random_state import random_state, set_random_state
from lit_tbptt.ranks import Rank
from lit_tbptt.tbptt.carry import Carry
from lit_tbptt.tbptt.gradient_norms import SMALLEST, Horizon, gradient_norms, measure
from lit_tbptt.tbptt.window import Window
from lit_tbptt.training.loggers import TokensTensorBoardLogger, run_folder


class GradientHorizon(Callback):
    """Plots the norm of d(loss at a window's last token) / d(state j tokens before it), on the training data.

    It shows what a choice of k2 cuts off. One extra backward pass runs token by token over the latest windows, with the
    current weights, from the state that was carried into them, without autocast. It does not change the training:
    random numbers, carried state, gradients and buffers stay the same. This pass keeps the activations of `tokens_back`
    tokens, even with `recompute_every`.

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
        self.every_n_steps = every_n_steps
        self.tokens_back = tokens_back
        # The recorded windows, and the state that was carried into the first of them.
        self._record: Carry | None = None
        self._record_window = 0
        self._due = every_n_steps
        self._rank = Rank()
        self._resume: dict[str, Any] | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(every_n_steps=self.every_n_steps, tokens_back=self.tokens_back)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the settings.

        Raises:
            InputError: A number is out of range, or matplotlib is missing.
        """
        k2 = pl_module.truncation.k2
        if self.every_n_steps < 1:
            raise InputError(f"GradientHorizon: every_n_steps={self.every_n_steps}: must be 1 or more")
        if self.tokens_back is not None and self.tokens_back < k2:
            raise InputError(
                f"GradientHorizon: tokens_back={self.tokens_back}: must be at least k2={k2}, to show what lies beyond"
            )
        if find_spec("matplotlib") is None:
            raise InputError("GradientHorizon draws with matplotlib, which is missing: pip install matplotlib")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saved, self._resume = self._resume, None
        self._record, self._due, self._rank = None, self.every_n_steps, pl_module.rank
        if saved is not None:
            self._record_window, self._due = saved["window"], saved["due"]
            if saved["record"] is not None:
                self._record = Carry.from_descriptions(
                    saved["record"], pl_module.rank.share, pl_module.initial_state, pl_module.device
                )

    def on_window_end(self, trainer: Trainer, pl_module: LightningModule, window: Window) -> None:
        """Records the windows for the next curve, and measures it when it is due."""
        step, number, truncation = trainer.global_step, pl_module.position.window, pl_module.truncation
        back = max(self.tokens_back or 2 * truncation.k2, truncation.k2)  # k2 may have been increased
        if self._record is not None and self._record_window == number - 1:
            self._record = Carry(self._record.state, (*self._record.context, window))
        else:
            self._record = None
        self._record_window = number
        if self._record is not None and step >= self._due and _num_tokens(self._record) > back:
            if self._draw(trainer, pl_module, self._record, back):
                self._due = (step // self.every_n_steps + 1) * self.every_n_steps
            self._record = None
        # One window more than needed, since the last one of an epoch may be short.
        num_windows = -(-(back + 1) // truncation.k1) + 1
        if self._record is None and self._due - step <= num_windows:
            self._record = pl_module.carry

    def state_dict(self) -> dict[str, Any]:
        record = None if self._record is None else self._rank.gather(self._record.describe())
        return {"record": record, "window": self._record_window, "due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume = state_dict

    def _draw(self, trainer: Trainer, pl_module: LightningModule, record: Carry, back: int) -> bool:
        pl_module.log_book.check(trainer)  # raises if the loss is not finite
        pl_module.log_book.pause_clock()
        before, buffers = random_state(), [buffer.clone() for buffer in pl_module.buffers()]
        with torch.autocast(pl_module.device.type, enabled=False):
            norms = gradient_norms(pl_module, record, back)
        # The mean over the scored lanes of all processes; each process has the mean over its own.
        num_scored = record.context[-1].mask_or_ones()[:, -1].sum().to(norms)[None]
        sums = trainer.strategy.reduce(torch.cat([norms * num_scored, num_scored]), reduce_op="sum").cpu()
        norms = sums[:-1] / sums[-1].clamp(min=1)
        set_random_state(before)
        for buffer, value in zip(pl_module.buffers(), buffers, strict=True):
            buffer.copy_(value)
        drawn = 0 < float(norms[0]) < math.inf  # false if no lane's last token is scored
        if drawn:
            found = measure(norms, pl_module.truncation.k2)
            names = ("ratio_per_token", "tokens_to_1_percent", "share_beyond_k2")
            values = {f"horizon/{name}": getattr(found, name) for name in names}
            pl_module.log_book.write(trainer, {name: value for name, value in values.items() if value is not None})
            if not trainer.fast_dev_run:
                _write(trainer, run_folder(trainer).gradient_horizon, norms.tolist(), found, pl_module.truncation.k2)
        pl_module.log_book.resume_clock()
        return drawn


def _num_tokens(record: Carry) -> int:
    return sum(window.num_time_steps for window in record.context)


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
