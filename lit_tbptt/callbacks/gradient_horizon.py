"""How far back gradients reach in a running training, as numbers and pictures."""

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_tbptt.checkpoint import replacing
from lit_tbptt.errors import InputError
from lit_tbptt.horizon import Horizon, gradient_norms, measure
from lit_tbptt.lit_loggers import TokensTensorBoardLogger
from lit_tbptt.random_state import random_state, set_random_state
from lit_tbptt.tbptt import Carry
from lit_tbptt.window import Window


class GradientHorizon(Callback):
    """Draws the norm of d(loss at a window's last token) / d(state j tokens before it), on the data of the training.

    It shows what a choice of k2 cuts. One extra backward pass runs step by step over the windows just trained on, with
    today's weights, from the state that was carried into them; training goes on as if it had not been.

    Every curve is logged as `horizon/ratio_per_token`, `horizon/tokens_to_1_percent` and `horizon/share_beyond_k2` (see
    `lit_tbptt.horizon`), and written to `gradient_horizon/` in the run's folder as a table and a picture; TensorBoard
    has the picture too. Drawing needs matplotlib: `pip install 'lit_tbptt[plot]'`.

    Args:
        every_n_steps: Optimizer steps between two curves.
        tokens_back: How far back a curve goes. None: twice the horizon.

    Raises:
        InputError: A number is below 1, or matplotlib is missing.
    """

    def __init__(self, every_n_steps: int = 1000, tokens_back: int | None = None) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("tokens_back", tokens_back)):
            if value is not None and value < 1:
                raise InputError(f"GradientHorizon: {name}={value}: must be 1 or more")
        if find_spec("matplotlib") is None:
            raise InputError("GradientHorizon draws with matplotlib, which is missing: pip install 'lit_tbptt[plot]'")
        self.every_n_steps = every_n_steps
        self.tokens_back = tokens_back
        # The state that was carried into the windows since, and those windows.
        self._record: Carry | None = None
        self._record_step = 0
        self._resume: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saved, self._record, self._resume = self._resume, None, None
        if saved is not None:
            self._record = Carry.from_description(saved["record"], pl_module.initial_state, pl_module.device)
            self._record_step = saved["step"]

    def on_window_end(self, trainer: Trainer, pl_module: LightningModule, window: Window) -> None:
        """Keeps the windows that the next curve goes back over, and draws it where it is due."""
        step, truncation = trainer.global_step, pl_module.truncation
        back = self.tokens_back or 2 * truncation.k2
        if self._record is not None and self._record_step == step - 1:
            self._record = Carry(self._record.state, (*self._record.context, window))
        else:
            self._record = None
        self._record_step = step
        if self._record is not None and step % self.every_n_steps == 0 and _num_tokens(self._record) > back:
            self._draw(trainer, pl_module, self._record, back)
            self._record = None
        # One window more than it takes, for an epoch's last one may be short.
        num_windows = -(-(back + 1) // truncation.k1) + 1
        if self._record is None and self.every_n_steps - step % self.every_n_steps <= num_windows:
            self._record = pl_module.carry

    def state_dict(self) -> dict[str, Any]:
        return {} if self._record is None else {"record": self._record.describe(), "step": self._record_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume = state_dict

    def _draw(self, trainer: Trainer, pl_module: LightningModule, record: Carry, back: int) -> None:
        pl_module.log_book.pause_clock()
        before = random_state()
        with torch.autocast(pl_module.device.type, enabled=False):
            norms = trainer.strategy.reduce(gradient_norms(pl_module, record, back), reduce_op="mean").cpu()
        set_random_state(before)
        if norms.any():  # no lane's last token may be scored, at the end of an epoch
            k2 = pl_module.truncation.k2
            found = measure(norms, k2)
            values = {f"horizon/{name}": value for name, value in found._asdict().items() if value is not None}
            del values["horizon/norm_at_0"]
            pl_module.log_book.write(trainer, values)
            if not trainer.fast_dev_run:
                _write(trainer, norms.tolist(), found, k2)
        pl_module.log_book.resume_clock()


def _num_tokens(record: Carry) -> int:
    return sum(window.num_steps for window in record.context)


@rank_zero_only
def _write(trainer: Trainer, norms: list[float], found: Horizon, k2: int) -> None:
    step = trainer.global_step
    folder = Path(trainer.log_dir or trainer.default_root_dir) / "gradient_horizon"
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
    tokens = range(len(norms))
    axes.semilogy(tokens, norms, label="measured, mean over lanes")
    fitted = [found.norm_at_0 * found.ratio_per_token**back for back in tokens]
    axes.semilogy(tokens, fitted, "--", linewidth=1, label=f"fitted: x {found.ratio_per_token:.3f} per token")
    axes.axhline(0.01 * norms[0], color="grey", linewidth=0.8, linestyle=":")
    axes.axvline(k2 - 1, color="black", linewidth=0.8)
    axes.annotate(f" k2 = {k2}", (k2 - 1, 0.02), xycoords=("data", "axes fraction"))
    axes.set_ylim(bottom=max(min(norm for norm in norms if norm > 0), 1e-12 * max(norms)) / 2, top=2 * max(norms))
    axes.set(xlabel="tokens back from the window's last one", ylabel="norm of d loss / d state")
    fallen = found.tokens_to_1_percent
    where = f"1 % after {fallen} tokens" if fallen is not None else f"above 1 % for all {len(norms) - 1} tokens"
    axes.set_title(f"step {step}: {where}; {found.share_beyond_k2:.1%} beyond k2")
    axes.legend()
    return figure
