"""Stack: cores on top of each other, with skip connections, normalization and dropout between them."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout as drop

from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.checks import check_core, check_probabilities
from lit_tbptt.cores.contract import checked_call
from lit_tbptt.cores.customized import is_customized
from lit_tbptt.cores.joining import join_features
from lit_tbptt.cores.masks import check_noise
from lit_tbptt.errors import InputError
from lit_tbptt.tbptt.state import State

_NORMS: dict[str | None, Callable[[int], nn.Module]] = {
    None: lambda size: nn.Identity(),
    "layer": nn.LayerNorm,
    "rms": partial(nn.RMSNorm, eps=1e-5),  # by default it would depend on the dtype
}
_Run = Callable[[RecurrentCore, Tensor, State], tuple[Any, ...]]


class Stack(RecurrentCore):
    """Runs cores on top of each other: the input of each is the output of the one below.

    With dense skips, every core but the first also takes the stack's input, concatenated to the output of the core
    below, and the stack's output is that of all cores, concatenated: the layout of lstm-compress, cmix and NNCP
    (Bellard 2019). With residual skips, each core's output is added to its input (He et al. 2016).

    The state is that of each core, by its number from 0.

    Args:
        cores: The cores, from the bottom to the top. Their sizes must fit: each `input_size` is the size of what the
            core takes.
        skip: Skip connections: none, residual or dense.
        norm: Normalizes the input of each core: layer (Ba et al. 2016) or rms (Zhang & Sennrich 2019). With residual
            skips only the core sees the normalized input, and the stack's output is normalized too. None: neither.
        dropout: Probability of dropping a feature of a core's output on its way to the next core, in training. What
            the stack returns of it is not dropped.
        dropout_over_time: Whether dropout draws a mask for every time step (free), or one for all time steps of a
            window and its context (shared).

    Raises:
        InputError: A setting is out of range, there is no core, one is given twice, or the sizes do not fit.
    """

    one: Tensor

    def __init__(
        self,
        cores: Iterable[RecurrentCore],
        skip: Literal["none", "residual", "dense"] = "none",
        norm: Literal["layer", "rms"] | None = None,
        dropout: float = 0.0,
        dropout_over_time: Literal["free", "shared"] = "free",
    ) -> None:
        for name, value, choices in (
            ("skip", skip, ("none", "residual", "dense")),
            ("norm", norm, tuple(_NORMS)),
            ("dropout_over_time", dropout_over_time, ("free", "shared")),
        ):
            if value not in choices:
                raise InputError(f"{name}={value!r}: must be {', '.join(map(str, choices[:-1]))} or {choices[-1]}")
        check_probabilities(dropout=dropout)
        given, cores = cores, list(cores)
        if not cores:
            raise InputError("cores=[]: at least one is needed")
        for core in cores:
            check_core(core)
        if len(set(map(id, cores))) < len(cores):
            raise InputError("cores: one of them is given twice, and a checkpoint cannot share weights; make one each")
        super().__init__()
        self._describe_argument(given, cores)
        self.cores = cast(Sequence[RecurrentCore], nn.ModuleList(cores))
        self.skip = skip
        self.dropout = dropout
        self.dropout_over_time = dropout_over_time
        self.input_size = cores[0].input_size
        self.output_size = sum(core.output_size for core in cores) if skip == "dense" else cores[-1].output_size
        self.time_first = cores[0].time_first
        self._check_fit()
        self.norms = nn.ModuleList(_NORMS[norm](core.input_size) for core in cores)
        self.last_norm = _NORMS[norm if skip == "residual" else None](self.output_size)
        self.register_buffer("one", torch.ones(()), persistent=False)  # where masks are drawn, and in which dtype

    def _check_fit(self) -> None:
        cores = list(self.cores)
        taken = [core.input_size for core in cores]
        below = [core.output_size for core in cores[:-1]]
        if self.skip == "residual":
            if {*taken, *below, self.output_size} != {self.input_size}:
                sizes = ", ".join(f"{core.input_size} and {core.output_size}" for core in cores)
                raise InputError(
                    f"cores: with skip='residual' the input_size and output_size of all must be equal, and are {sizes}"
                )
            return
        needed = [self.input_size, *(size + (self.skip == "dense") * self.input_size for size in below)]
        if taken != needed:
            raise InputError(
                f"cores: with skip={self.skip!r} their input_size must be {_listed(needed)}, and is {_listed(taken)}; "
                "give each the input_size that it needs"
            )

    def initial_state(self, num_lanes: int) -> State:
        """Returns the initial state of each core, by its number."""
        return {str(number): core.initial_state(num_lanes) for number, core in enumerate(self.cores)}

    def begin_window(self, num_lanes: int) -> dict[str, Any] | None:
        """Draws the noise of each core and the masks of shared dropout, `[lane, 1, feature]`, scaled by 1 / (1 - p)."""
        noises = [core.begin_window(num_lanes) for core in self.cores]
        if self.dropout and self.dropout_over_time == "shared" and self.training:
            sizes = [core.output_size for core in list(self.cores)[:-1]]
            return {"cores": noises, "masks": [drop(self.one.new_ones(num_lanes, 1, n), self.dropout) for n in sizes]}
        return None if all(noise is None for noise in noises) else {"cores": noises}

    def forward(
        self, inputs: Float[Tensor, "lane time feature"], state: State
    ) -> tuple[Float[Tensor, "lane time output"], State]:
        outputs, after = self._run(inputs, state, checked_call)
        return outputs, after

    def forward_through(
        self, inputs: Float[Tensor, "lane time feature"], state: State, far_edge: int
    ) -> tuple[Float[Tensor, "lane time output"], State, State]:
        """Runs layer by layer, so that a core which has the state inside at no cost is called once."""
        if type(self).forward is not Stack.forward or any(map(is_customized, self.cores)):
            return super().forward_through(inputs, state, far_edge)
        outputs, inside, after = self._run(
            inputs, state, lambda core, given, entering: core.forward_through(given, entering, far_edge)
        )
        return outputs, inside, after

    def _run(self, inputs: Tensor, state: State, run: _Run) -> tuple[Any, ...]:
        """Runs the cores one after another; returns the outputs and each state that `run` returns."""
        noises = [None] * len(self.cores) if self.noise is None else self.noise["cores"]
        below, all_outputs = inputs, []
        all_states: list[tuple[State, ...]] = []
        for number, (core, norm, noise) in enumerate(zip(self.cores, self.norms, noises, strict=True)):
            if core.noise is not noise:  # setting an attribute of a torch module is slow
                core.noise = noise
            given = join_features([below, inputs]) if number and self.skip == "dense" else below
            outputs, *states = run(core, norm(given), state[str(number)])
            all_outputs.append(outputs)
            all_states.append(tuple(states))
            dropped = outputs if number == len(self.cores) - 1 else self._drop(outputs, number)
            below = below + dropped if self.skip == "residual" else dropped
        joined = join_features(all_outputs) if self.skip == "dense" else self.last_norm(below)
        return joined, *({str(n): part for n, part in enumerate(parts)} for parts in zip(*all_states, strict=True))

    def _drop(self, outputs: Tensor, number: int) -> Tensor:
        if self.dropout_over_time == "free" or not (self.training and self.dropout):
            return drop(outputs, self.dropout, self.training)
        check_noise(self.noise, "dropout_over_time='shared'")
        return outputs * self.noise["masks"][number].to(outputs.dtype)


def _listed(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))
