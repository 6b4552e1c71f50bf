"""AdaptiveHorizon: sets k2 during training to the least horizon of a tolerable bias."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_tbptt.errors import InputError
from lit_tbptt.tbptt import Truncation
from lit_tbptt.tbptt.relative_bias import RelativeBias, relative_bias
from lit_tbptt.training.callbacks.gradient_record import GradientRecord


class AdaptiveHorizon(GradientRecord):
    """Sets `truncation.k2` to the least horizon whose estimated relative bias is below a limit.

    After Aicher, Foti & Fox (2019); see `lit_tbptt.tbptt.relative_bias` for the formula. Every N optimizer steps,
    gradient norms are measured at several places in the latest windows, as by `GradientHorizon`, and averaged over
    places, lanes and processes. All processes choose the same k2. It takes effect with the next window; a longer
    horizon fills up as context accumulates. Norms are measured up to `tokens_back`, whatever k2 is, so k2 may rise from
    k1 to `max_k2` at once. If no horizon is good enough, because norms decay too slowly or grow, k2 becomes `max_k2`,
    with a message.

    k2 is logged as `horizon/k2`, its estimated relative bias as `horizon/relative_bias`; `curves.png` and `plot` draw
    both. A resumed run continues with the same k2 and makes the same choices.

    A run starts with the module's k2, but not outside of `min_k2` and `max_k2`.

    Args:
        max_relative_bias: The limit: the norm of the bias over the norm of the gradient; a mean over the losses of a
            window, of which the first reaches back k2 - k1 + 1 tokens and the last k2.
        min_k2: The least horizon; k2 is also never below k1.
        max_k2: The longest horizon.
        every_n_steps: k2 is chosen every N optimizer steps, or later, once enough tokens have passed since the last
            choice.
        num_places: At how many places norms are measured, `tokens_back / num_places` tokens apart. The time of a
            choice is proportional to it.
        tokens_back: How far back norms are measured; beyond, a geometric decay is fitted. Left out: `max_k2`. The
            measurement keeps the activations of that many tokens.
    """

    def __init__(
        self,
        max_relative_bias: float = 0.1,
        min_k2: int = 1,
        max_k2: int = 256,
        every_n_steps: int = 1000,
        num_places: int = 4,
        tokens_back: int | None = None,
    ) -> None:
        super().__init__(every_n_steps, num_places)
        self.max_relative_bias = max_relative_bias
        self.min_k2 = min_k2
        self.max_k2 = max_k2
        self.tokens_back = tokens_back
        self._next_k2: int | None = None  # chosen, and not yet set

    @property
    def state_key(self) -> str:
        names = ("max_relative_bias", "min_k2", "max_k2", "every_n_steps", "num_places", "tokens_back")
        return self._generate_state_key(**{name: getattr(self, name) for name in names})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the settings.

        Raises:
            InputError: A number is out of range, or the state is not carried, so that k2 cannot change.
        """
        super().setup(trainer, pl_module, stage)
        self._next_k2 = None
        least = max(self.min_k2, pl_module.truncation.k1)
        if not self.max_relative_bias > 0:
            raise InputError(f"AdaptiveHorizon: max_relative_bias={self.max_relative_bias}: must be above 0")
        if self.min_k2 < 1:
            raise InputError(f"AdaptiveHorizon: min_k2={self.min_k2}: must be 1 or more")
        if self.max_k2 < least:
            name = "min_k2" if least == self.min_k2 else "k1"
            raise InputError(f"AdaptiveHorizon: max_k2={self.max_k2}: must be at least {name}={least}")
        if self.tokens_back is not None and self.tokens_back < 2:
            raise InputError(f"AdaptiveHorizon: tokens_back={self.tokens_back}: must be 2 or more, to fit a decay to")
        if sum(isinstance(callback, AdaptiveHorizon) for callback in trainer.callbacks) > 1:
            raise InputError(
                "AdaptiveHorizon is in trainer.callbacks more than once: there is one k2; leave one of them"
            )
        if not pl_module.carry_state:
            raise InputError(
                "AdaptiveHorizon with carry_state=False: nothing lies before a window that a longer horizon could "
                "reach, so k2 stays k1; leave the callback out, or carry the state"
            )
        if not pl_module.update.takes_context:
            raise InputError(
                f"AdaptiveHorizon with {type(pl_module.update).__name__}, which needs k2 = k1: leave one of them out"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        truncation = pl_module.truncation
        truncation.k2 = min(max(truncation.k2, self.min_k2), self.max_k2)
        self._set_k2(pl_module)

    def on_step_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets k2, which may change between steps only."""
        self._set_k2(pl_module)

    def reach(self, truncation: Truncation) -> int:
        return max(2, self.tokens_back or self.max_k2)

    def on_norms(self, trainer: Trainer, pl_module: LightningModule, norms: Tensor) -> None:
        bias = relative_bias(norms, self.max_k2, pl_module.truncation.k1)
        if bias is None:
            return
        least = bias.least_horizon(self.max_relative_bias)
        if least is None:
            rank_zero_info(f"step {trainer.global_step}: {self._too_biased(bias)}: k2 = {self.max_k2}")
        k2 = self.max_k2 if least is None else max(least, self.min_k2)
        self._next_k2 = k2
        values: dict[str, float] = {"horizon/k2": k2}
        if math.isfinite(bias.by_horizon[k2 - 1]):
            values["horizon/relative_bias"] = bias.by_horizon[k2 - 1]
        pl_module.log_book.write(trainer, values)

    def _too_biased(self, bias: RelativeBias) -> str:
        if math.isinf(bias.by_horizon[-1]):
            return f"beyond the measured tokens gradients may still be large (x {bias.ratio_per_token:.3f} per token)"
        return f"the relative bias at max_k2 is {bias.by_horizon[-1]:.2g}, above {self.max_relative_bias:g}"

    def _set_k2(self, pl_module: LightningModule) -> None:
        if self._next_k2 is not None:
            pl_module.truncation.k2, self._next_k2 = self._next_k2, None

    def progress(self) -> dict[str, Any]:
        return super().progress() | {"next_k2": self._next_k2}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._next_k2 = state_dict["next_k2"]
