"""Windows of varying length, so that the same tokens do not stand at a window's edge in every epoch.

Merity, Keskar & Socher (2018), "Regularizing and optimizing LSTM language models" (arXiv:1708.02182), section 5.

    epoch 0    |----- 71 -----|---- 66 ----|-- 33 --|----- 74 -----| ...
    epoch 1    |---- 69 ----|----- 73 -----|---- 68 ----|-- 37 --| ...
"""

from abc import ABC, abstractmethod

import numpy as np

from lit_tbptt.errors import InputError

# Lengths are drawn in blocks, one generator each, since a generator takes as long to make as a thousand draws.
_BLOCK = 1024


class WindowLengths(ABC):
    """The lengths of the windows of training: those of an epoch, by number.

    A length follows from the epoch and the number of the window alone, so all ranks agree, and a run resumes anywhere.
    Lanes shorten windows above k1 to k1. An optimizer step is multiplied by the length of its window, divided by
    `mean`. Attributes are plain values: a resumed run compares them.

    Attributes:
        mean: The number of time steps of a window whose step is multiplied by 1.
    """

    mean: float

    @abstractmethod
    def __call__(self, epoch: int, first: int, num_windows: int) -> np.ndarray:
        """Draws lengths.

        Args:
            epoch: The number of the epoch.
            first: The number of the first window in the epoch.
            num_windows: How many windows.

        Returns:
            `[window]` whole numbers of time steps, each 1 or more.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"

    def check(self, k1: int, document_reset: bool, prefix: str = "") -> None:
        """Checks that lanes can have these windows.

        Args:
            k1: The greatest length of a window.
            document_reset: Whether each document begins at the start of a window.
            prefix: What stands before the names of the arguments in messages.

        Raises:
            InputError: They cannot.
        """
        if k1 < self.mean:
            raise InputError(
                f"{prefix}k1={k1} with {prefix}window_lengths={self}: k1 is the maximum, to which longer windows are "
                f"shortened; set it (on the command line model.k1) above the mean, such as {round(1.3 * self.mean)}"
            )
        if document_reset:
            raise InputError(
                f"{prefix}document_reset=True with {prefix}window_lengths={self}: documents that begin at a window's "
                "start are padded to a multiple of k1 tokens, so windows are all of k1; leave one of them out"
            )


class NormalLengths(WindowLengths):
    """Lengths as AWD-LSTM draws them: normal around `mean`, or sometimes around half of it.

    The length of a window is `max(least, int(normal(m, deviation)))`, where m is `mean / 2` with probability
    `half_probability`, and `mean` otherwise. `k1` of the lanes is the maximum: with a mean of 70, k1 = 90 shortens one
    window in 80,000.

    The step after a window is multiplied by its length / `mean`, also if it was drawn around half the mean, since short
    windows would otherwise weigh more per token. The gradient is clipped first, as without this; then the learning rate
    is multiplied for this one step. The rate that is logged and saved is the one before. The weight decay of AdamW, and
    of other optimizers that multiply it by the learning rate, is scaled with it. The last window of an epoch may be
    shorter than drawn; its factor is that of its own length.

    Args:
        mean: The mean of most lengths, in time steps.
        deviation: Their standard deviation, in time steps.
        least: The minimum length, in time steps.
        half_probability: Probability of a window around half the mean.
        seed: Determines the lengths, together with the epoch and the number of the window.

    Raises:
        InputError: A number is out of its range.
    """

    def __init__(
        self,
        mean: float = 70,
        deviation: float = 5,
        least: int = 5,
        half_probability: float = 0.05,
        seed: int = 1,
    ) -> None:
        if not 1 <= mean < float("inf"):
            raise InputError(f"mean={mean}: must be 1 time step or more")
        if not 1 <= least <= mean:
            raise InputError(f"least={least}: must be from 1 to mean={mean}")
        if not 0 <= deviation < float("inf"):
            raise InputError(f"deviation={deviation}: must be 0 or more")
        if not 0 <= half_probability <= 1:
            raise InputError(f"half_probability={half_probability}: must be from 0 to 1")
        if seed < 0:
            raise InputError(f"seed={seed}: must be 0 or more")
        self.mean = float(mean)
        self.deviation = float(deviation)
        self.least = least
        self.half_probability = float(half_probability)
        self.seed = seed

    def __call__(self, epoch: int, first: int, num_windows: int) -> np.ndarray:
        blocks = range(first // _BLOCK, -(-(first + num_windows) // _BLOCK))
        drawn = [self._block(epoch, block) for block in blocks]
        start = first % _BLOCK
        return np.concatenate([*drawn, np.empty(0, np.int64)])[start : start + num_windows]

    def _block(self, epoch: int, block: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, epoch, block])
        halved = generator.random(_BLOCK) < self.half_probability
        lengths = generator.normal(np.where(halved, self.mean / 2, self.mean), self.deviation)
        return np.maximum(self.least, lengths.astype(np.int64))
