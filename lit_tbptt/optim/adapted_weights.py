"""The update rule of dynamic evaluation: weights that learn from what they have just been scored on.

Krause, Kahembwe, Murray & Renals (2018), "Dynamic evaluation of neural sequence models". With the trained weights T,
the present ones W, the gradient G of the last window, and the root mean square R of every weight's gradients over the
training data:

    RMS    W <- W - lr G / (R + epsilon) + decay min(R / mean(R), 1 / decay) (T - W)
    SGD    W <- W - lr G + decay (T - W)

As in the authors' program, mean(R) is the mean over the weight tensors of the mean of each. Their epsilon is 2e-5, and
their R is over the whole training data. Where R is of a part, a token that is rare in it has an R near zero, and the
first window with this token changes its weights without limit; and what is small depends on the scale of the loss. So
the default is mean(R).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class AdaptedWeights:
    """The adapted values of some parameters; the parameters themselves keep the trained ones outside of `in_use`.

    Args:
        parameters: The parameters.
        lr: The learning rate.
        decay: The rate of return to the trained weights, from 0 to 1.
        gradient_rms: The root mean square of the gradients of each parameter, for the RMS rule. None: SGD.
        epsilon: Added to them. None: mean(R).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        decay: float,
        gradient_rms: Sequence[Tensor] | None = None,
        epsilon: float | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.lr, self.decay = lr, decay
        self._trained = [parameter.detach().clone() for parameter in self.parameters]
        self._present = [trained.clone() for trained in self._trained]
        self._divisors: list[Tensor] | None = None
        self._decays: Sequence[Tensor | float] = [decay] * len(self._trained)
        if gradient_rms is not None:
            mean = torch.stack([rms.mean() for rms in gradient_rms]).mean()
            self._divisors = [rms + (mean if epsilon is None else epsilon) for rms in gradient_rms]
            self._decays = [(decay * rms / mean).clamp(max=1) for rms in gradient_rms]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Gives the parameters their adapted values, and then the trained ones again, whatever happens."""
        try:
            self._assign(self._present)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._present, self.parameters)
            self._assign(self._trained)

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Changes the parameters, which are in use.

        Args:
            gradients: The gradient of each. None: it has none, and only decays.
        """
        with torch.no_grad():
            for number, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
                parameter.lerp_(self._trained[number], self._decays[number])
                if gradient is None:
                    continue
                gradient = gradient.to_dense()
                if self._divisors is None:
                    parameter.add_(gradient, alpha=-self.lr)
                else:
                    parameter.addcdiv_(gradient, self._divisors[number], value=-self.lr)

    def _assign(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, values)
