"""Dynamic evaluation: every window is scored with the present weights, which then learn from it."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.optim.adapted_weights import AdaptedWeights
from lit_tbptt.tbptt import Batch, Truncation, Window
from lit_tbptt.tbptt.state import State
from lit_tbptt.training.evaluation import Evaluation
from lit_tbptt.training.gradient_pass import GradientPass, batches, gradients_allowed, with_own_tensors
from lit_tbptt.training.gradient_statistics import KeptStatistics, gradient_rms

_DEFAULT_LR = {"rms": 2e-3, "sgd": 0.1}
# The search multiplies the learning rate by these, and then tries these decays with the best.
_LR_FACTORS, _DECAYS = (1.0, 1 / 3, 3.0, 1 / 9, 9.0), (0.0, 0.0005, 0.005, 0.02)


class DynamicEvaluation(Evaluation):
    """Scores each window of a split with the present weights, then takes a step on it (Krause et al. 2018).

    No target is learned from before it is scored, so the loss may be compared with a compressor's, which adapts too.
    A step goes along the gradient of the window's loss, truncated as in training, and back towards the trained weights:
    see `optim/adapted_weights.py`. Between batches the module has its trained weights, so callbacks and checkpoints see
    no others, and an evaluation that was interrupted starts over.

    Validation and test use it, in one process, at full precision or with `bf16-mixed`. The validations within a fit,
    and predictions, are static. The published protocol is one lane (`eval_num_lanes`). With more, a step is of the mean
    over all of them, and there are fewer steps per target.

    Args:
        lr: Learning rate. Left out: .002 with the rule `rms`, .1 with `sgd`.
        decay: Rate of return to the trained weights, from 0 to 1.
        rule: Whether gradients and decay are scaled by the root mean square of each weight's gradients over the
            training split (`rms`), or not (`sgd`).
        k1: Time steps per window; each window ends with a step. Left out: that of training. A window is kept in memory
            whole, without `recompute_every`.
        k2: The horizon of its gradient. Left out: `k1` if that is given, or that of training.
        search: Whether to choose learning rate and decay on the validation split, from nine pairs around those given.
            They are printed.
        search_targets: Targets at the start of the validation split that are scored for each pair.
        statistics_windows: Windows at the start of the training split for the mean squares.
        keep_statistics: Whether to use mean squares that are kept beside the checkpoint. If not, they are computed
            again.
        epsilon: Added to their roots. Weights that hardly ever had a gradient, such as those of a rare token, take
            large steps if it is small. Left out: the mean of the roots. The paper has 2e-5.

    Attributes:
        chosen: Learning rate and decay of the last evaluation: those given, or those that the search found.

    Raises:
        InputError: A setting is out of range.
    """

    name = "dynamic"

    def __init__(
        self,
        lr: float | None = None,
        decay: float = 0.002,
        rule: Literal["rms", "sgd"] = "rms",
        k1: int | None = None,
        k2: int | None = None,
        search: bool = False,
        search_targets: int = 100_000,
        statistics_windows: int = 4096,
        keep_statistics: bool = True,
        epsilon: float | None = None,
    ) -> None:
        super().__init__()
        if rule not in _DEFAULT_LR:
            raise InputError(f"rule={rule!r}: must be rms or sgd")
        if lr is not None and not 0 <= lr < math.inf:
            raise InputError(f"lr={lr}: must be 0 or more, and finite")
        if not 0 <= decay <= 1:
            raise InputError(f"decay={decay}: must be from 0 to 1")
        if epsilon is not None and not epsilon > 0:
            raise InputError(f"epsilon={epsilon}: must be above 0")
        for name, value in (("search_targets", search_targets), ("statistics_windows", statistics_windows)):
            if value < 1:
                raise InputError(f"{name}={value}: must be 1 or more")
        if k1 is None and k2 is not None:
            raise InputError(f"k2={k2} without k1: give both")
        if k1 is not None:
            Truncation(k1, k2)  # which checks them
        self.lr = _DEFAULT_LR[rule] if lr is None else lr
        self.chosen = (self.lr, decay)
        self.decay, self.rule, self.k1, self.k2, self.epsilon = decay, rule, k1, k2, epsilon
        self.search, self.search_targets = search, search_targets
        self.statistics_windows, self.keep_statistics = statistics_windows, keep_statistics
        self._weights: AdaptedWeights | None = None

    def begin(self, module: Any) -> None:
        _check(module)
        self._module = module
        k1, k2 = (self.k1, self.k2) if self.k1 else (module.truncation.k1, module.truncation.k2)
        if self.reset_every not in (None, k1):
            raise InputError(
                f"evaluation.k1={k1} with model.carry_state=False, where every window of k1={self.reset_every} starts "
                "from the initial state: leave evaluation.k1 out"
            )
        self._truncation = Truncation(k1, k2)  # recomputation would update the metrics a second time
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not self._parameters:
            raise InputError("evaluation=DynamicEvaluation: all weights are frozen (requires_grad=False)")
        with gradients_allowed(module):
            super().begin(module)
            with module.trainer.precision_plugin.val_step_context():
                self._rms = self._statistics() if self.rule == "rms" else None
                self.chosen = self._search() if self.search else (self.lr, self.decay)
            self._weights = self._adapted(*self.chosen)
            self._run = self._pass(self._evaluation_window)

    def add(self, module: Any, batch: Batch) -> None:
        assert self._weights is not None
        with gradients_allowed(module), self._weights.in_use():
            super().add(module, with_own_tensors(batch))

    def score(self, module: Any, window: Window) -> tuple[Tensor | int, Tensor | int]:
        assert self._weights is not None
        self._window_rows, self._done = self._rows, 0
        loss, num_targets, gradients = self._run(window)
        if gradients is not None:
            self._weights.step(gradients)
        return loss, num_targets

    def end(self, module: Any) -> tuple[float, dict[str, float]]:
        self._weights = self._rms = None
        loss, values = super().end(module)
        if self.num_targets and not math.isfinite(loss):
            small = "" if self.epsilon is None else f", or evaluation.epsilon={self.epsilon:.3g} too small"
            rank_zero_warn(f"the dynamic loss is {loss}: evaluation.lr={self.chosen[0]:.3g} is too large{small}")
        return loss, values

    def _length(self, window: Window) -> int:
        return self._truncation.k1

    def _adapted(self, lr: float, decay: float) -> AdaptedWeights:
        return AdaptedWeights(self._parameters, lr, decay, self._rms, self.epsilon)

    def _pass(self, window_loss: Any = None) -> GradientPass:
        resets = self.reset_every is not None
        return GradientPass(self._module, self._truncation, self._parameters, window_loss, resets)

    def _evaluation_window(self, window: Window, state: State) -> Any:
        """Scores a part of a window, and updates the metrics with it."""
        start, self._done = self._done, self._done + window.num_time_steps
        self._rows = None if self._window_rows is None else self._window_rows[:, start : self._done]
        return self._module.evaluation_window(window, state)

    def _windows_of(self, split: str) -> Iterator[Window]:
        data = self._module.trainer.datamodule
        if not hasattr(data, "evaluation_dataloader"):
            raise InputError(
                f"evaluation: needs the {split} split, for "
                + ("evaluation.rule=rms; use sgd" if split == "train" else "evaluation.search; leave it out")
                + ", or give a datamodule with evaluation_dataloader(split), as TextLanesDataModule has"
            )
        for batch in batches(self._module, data.evaluation_dataloader(split)):
            yield from self._windows(batch)

    def _statistics(self) -> list[Tensor]:
        trainer = self._module.trainer
        settings = {
            "k1": self._truncation.k1,
            "k2": self._truncation.k2,
            "reset_every": self.reset_every,
            "loss_reduction": self._module.loss_reduction,
            "precision": trainer.precision,
        }
        kept = KeptStatistics(trainer.ckpt_path, self._parameters, settings, self._first_windows())
        statistics = kept.read(self._module.device) if self.keep_statistics else None
        if statistics is None:
            statistics = gradient_rms(self._pass(), self._first_windows(), self._parameters)
            kept.write(statistics)
        return statistics

    def _first_windows(self) -> Iterator[Window]:
        return islice(self._windows_of("train"), self.statistics_windows)

    def _search(self) -> tuple[float, float]:
        """Returns the learning rate and decay with the least loss on the validation split, and prints all.

        Raises:
            InputError: No loss is finite.
        """
        losses: dict[tuple[float, float], float] = {}
        for factor in _LR_FACTORS:
            pair = (self.lr * factor, self.decay)
            losses[pair] = self._loss_with(*pair)
        best = min(losses, key=losses.__getitem__)
        for decay in _DECAYS:
            losses[best[0], decay] = self._loss_with(best[0], decay)
        best = min(losses, key=losses.__getitem__)
        if losses[best] == math.inf:
            raise InputError(
                f"evaluation.lr={self.lr:.3g}: the search found no pair with a finite loss; give a lower learning rate"
                + (", a larger evaluation.epsilon or more evaluation.statistics_windows" if self._rms else "")
            )
        rank_zero_info(f"chosen: evaluation.lr={best[0]:.3g}, evaluation.decay={best[1]:.3g}")
        return best

    def _loss_with(self, lr: float, decay: float) -> float:
        weights, run = self._adapted(lr, decay), self._pass()
        loss, num_targets = 0.0, 0
        with weights.in_use():
            for window in self._windows_of("validation"):
                cost, targets, gradients = run(window)
                loss, num_targets = loss + float(cost), num_targets + int(targets)
                if gradients is not None:
                    weights.step(gradients)
                if num_targets >= self.search_targets:
                    break
        mean = loss / max(1, num_targets)
        found = f"{mean:.6g} per validation target" if math.isfinite(mean) else "the loss diverges"
        rank_zero_info(f"evaluation.lr={lr:.3g}, evaluation.decay={decay:.3g}: {found}")
        return mean if math.isfinite(mean) else math.inf


def _check(module: Any) -> None:
    precision, num_processes = module.trainer.precision, module.trainer.world_size
    if num_processes > 1:
        raise InputError(
            f"evaluation=DynamicEvaluation with {num_processes} processes: every step depends on the one before, so "
            "the lanes cannot be shared out; use trainer.devices=1"
        )
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if precision == "16-mixed" or dtypes & {torch.float16, torch.bfloat16}:
        raise InputError(
            f"evaluation=DynamicEvaluation with trainer.precision={precision}: its steps would be rounded away; use "
            "32-true or bf16-mixed"
        )
