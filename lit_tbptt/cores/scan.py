"""The recurrence h_t = (1 - z_t) h_{t-1} + b_t, element by element: over time, or over chunks of the time at once.

Both forms compute h_{t-1} + (b_t - z_t h_{t-1}). The factor 1 - z_t would be rounded by up to 3e-8 in float32. If the
rates are small and constant, this error is the same in every time step: 2e-4 after 4,096. In chunks, in which a number
is rounded only 2 sqrt(T) times on its way, errors stay below 1e-5.

Nothing is divided by a product of factors, so neither they nor the terms need logarithms: what has vanished is zero.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Measured on a CPU (benchmarks/min_rnn.py). Chunks read everything twice, and need fewer, larger operations.
_FEWEST_TIME_STEPS = 64
_MOST_ELEMENTS = 2048
# From here on chunks are for accuracy, whatever the number of elements.
_MANY_TIME_STEPS = 1024


def scan(
    rates: Float[Tensor, "time lane feature"],
    terms: Float[Tensor, "time lane feature"],
    start: Float[Tensor, "lane feature"],
    num_chunks: int | None = None,
) -> Float[Tensor, "time lane feature"]:
    """Returns all states h_t = (1 - rates_t) h_{t-1} + terms_t, with h_0 = start.

    It can be differentiated any number of times, forward and backward, and be mapped over by `torch.vmap`. The backward
    pass is the same recurrence from the last time step to the first: with g_t the gradient of h_t,
    dL/dterms_t = g_t + (1 - rates_{t+1}) dL/dterms_{t+1}.

    Args:
        rates: The share of the state that is forgotten, from 0 to 1.
        terms: What each time step adds.
        start: The state before the first time step; any numbers.
        num_chunks: Number of chunks of the time that are run at once, at most the number of time steps; 1 runs one time
            step after another. None: what is faster.
    """
    if num_chunks is None:
        num_chunks = _num_chunks(len(rates), start)
    return _scanned(rates, terms, start, num_chunks, False)


def _scanned(rates: Tensor, terms: Tensor, start: Tensor, num_chunks: int, reverse: bool) -> Tensor:
    # torch.compile refuses a function that has a `jvp`.
    form = _Scan if torch.compiler.is_compiling() else _ScanWithTangents
    states: Tensor = form.apply(rates, terms, start, num_chunks, reverse)
    return states


def _num_chunks(num_time_steps: int, start: Tensor) -> int:
    # A GPU takes as long to start an operation on few elements as on many.
    few = start.device.type != "cpu" or start.numel() <= _MOST_ELEMENTS
    least = _FEWEST_TIME_STEPS if few else _MANY_TIME_STEPS
    return 1 if num_time_steps < least else math.isqrt(num_time_steps)


class _Scan(torch.autograd.Function):
    """The recurrence, or with `reverse` the same from the last time step to the first."""

    @staticmethod
    def forward(rates: Tensor, terms: Tensor, start: Tensor, num_chunks: int, reverse: bool) -> Tensor:
        states = torch.empty_like(terms)
        num_left = len(rates) % num_chunks if 1 < num_chunks <= len(rates) else len(rates)
        chunks, left = [], []
        for tensor in (rates, terms, states):
            parts = tensor.tensor_split([num_left if reverse else len(rates) - num_left])
            whole, rest = reversed(parts) if reverse else parts
            chunks.append(whole)
            left.append(_in_order(rest, reverse))
        state = _run_chunks(chunks, start, num_chunks, reverse) if num_left < len(rates) else start
        _run(left, state)
        return states

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rates, _, start, *ctx.options = inputs
        ctx.save_for_backward(rates, start, output)
        ctx.save_for_forward(rates, start, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rates, start, states = ctx.saved_tensors
        num_chunks, reverse = ctx.options
        (slopes,) = gradients
        if not len(rates):
            return rates, slopes, torch.zeros_like(start), None, None
        before, after, first, last = slice(None, -1), slice(1, None), 0, -1
        if reverse:
            before, after, first, last = after, before, last, first
        of_others = _scanned(rates[after], slopes[before], slopes[last], num_chunks, not reverse)
        of_terms = _joined(of_others, slopes[last], reverse)
        of_rates = -of_terms * _joined(states[before], start, not reverse) if ctx.needs_input_grad[0] else None
        of_start = of_terms[first] - rates[first] * of_terms[first]
        return of_rates, of_terms, of_start, None, None

    @staticmethod
    def vmap(
        info: Any, axes: tuple[Any, ...], rates: Tensor, terms: Tensor, start: Tensor, num_chunks: int, reverse: bool
    ) -> tuple[Tensor, int]:
        """Runs what is mapped over as more lanes."""

        def folded(tensor: Tensor, mapped: int | None, lanes: int) -> Tensor:
            moved = tensor[None].expand(info.batch_size, *tensor.shape) if mapped is None else tensor.movedim(mapped, 0)
            return moved.movedim(0, lanes).flatten(lanes, lanes + 1)

        num_lanes = start.shape[1 if axes[2] == 0 else 0]
        tensors = (rates, terms, start)
        rates, terms, start = (folded(*each) for each in zip(tensors, axes[:3], (1, 1, 0), strict=True))
        states = _scanned(rates, terms, start, num_chunks, reverse)
        return states.unflatten(1, (info.batch_size, num_lanes)), 1


# `apply` asks for the signature in every call; without this it takes 35 microseconds to find.
vars(_Scan.forward)["__signature__"] = inspect.signature(_Scan.forward)


class _ScanWithTangents(_Scan):
    @staticmethod
    def jvp(ctx: Any, of_rates: Tensor, of_terms: Tensor, of_start: Tensor, *_: None) -> Tensor:
        """Runs the same recurrence over the derivative of h_t = (1 - z_t) h_{t-1} + b_t."""
        rates, start, states = ctx.saved_tensors
        num_chunks, reverse = ctx.options
        before = _joined(states[1:] if reverse else states[:-1], start, not reverse)
        return _scanned(rates, of_terms - of_rates * before, of_start, num_chunks, reverse)


def _joined(time_steps: Tensor, another: Tensor, in_front: bool) -> Tensor:
    return torch.cat([another[None], time_steps] if in_front else [time_steps, another[None]])


def _in_order(tensor: Tensor, reverse: bool) -> Sequence[Tensor]:
    views = tensor.unbind()
    return views[::-1] if reverse else views


def _run(steps: Sequence[Sequence[Tensor]], state: Tensor) -> Tensor:
    """Computes the states from rates and terms, one after the other; writes them into the third, returns the last."""
    for rate, term, after in zip(*steps, strict=True):
        torch.addcmul(term, rate, state, value=-1, out=after)
        after += state
        state = after
    return state


def _run_chunks(whole: Sequence[Tensor], start: Tensor, num_chunks: int, reverse: bool) -> Tensor:
    """Does the same for the time steps at the same place in all chunks at once.

    A chunk changes the state h that enters it into h + (reached - forgotten * h). Both numbers come from a first pass
    over the chunks. They give the states between chunks, from which a second pass starts.
    """
    places = [_in_order(each.unflatten(0, (num_chunks, -1)).transpose(0, 1), reverse) for each in whole]
    reached, forgotten = torch.zeros_like(places[1][0]), torch.zeros_like(places[0][0])
    one = torch.ones_like(forgotten)
    for rate, term in zip(*places[:2], strict=True):
        reached += torch.addcmul(term, rate, reached, value=-1)
        torch.lerp(forgotten, one, rate, out=forgotten)
    between = torch.empty_like(reached)
    state = _run([_in_order(each, reverse) for each in (forgotten, reached, between)], start)
    _run(places, _joined(between[1:] if reverse else between[:-1], start, not reverse))
    return state
