"""Windows replayed from CUDA graphs: one launch in place of one for every small kernel of a loop.

    first run of a shape     capture: forward and backward pass are recorded on buffers
    later runs               inputs, state, noise -> buffers, replay, buffers -> loss, state
    its backward pass        gradients -> buffers, replay, buffers -> gradients

A window of a recurrent network written as a loop is thousands of kernels that take less time to run than to launch. The
capture is torch's (`torch.cuda.make_graphed_callables`), of a task's `run_window`: gradients of weights, state and
inputs come out as from any function of autograd, so that optimizers, clipping, scaling and DDP know nothing of it.
"""

import weakref
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from lit_tbptt.errors import InputError
from lit_tbptt.random_state import random_state, set_random_state
from lit_tbptt.tbptt.state import State
from lit_tbptt.tbptt.task import Task, WindowLoss
from lit_tbptt.tbptt.window import Window

Record = Callable[[Callable[..., Any], tuple[Tensor, ...]], Callable[..., Any]]
"""Records a function of tensors on copies of its arguments; the result replays it."""


class Recordings:
    """Runs a task's windows, each from the recording of the first one like it.

    A recording belongs to the shapes of inputs and state, to the weights' memory, and to which of them are trained. It
    is not used again while the graph of its last run is alive: windows whose graphs are joined, as context and window
    are where a reset lies between them, have a recording each.

    A recording repeats what the GPU did. So the task must compute the same for any values: no `.item()`, no shape or
    branch that depends on data, no numbers drawn on the CPU, no setting that changes during training. Dropout on the
    GPU draws new numbers from torch's generator in every run, the same as without a recording.

    Args:
        record: Makes a recording. None: captures a CUDA graph.
    """

    def __init__(self, record: Record | None = None) -> None:
        self._record = record or _capture
        self._made: dict[Any, list[_Recording]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Recordings, (self._record,)  # a copy makes its own

    def clear(self) -> None:
        """Forgets all recordings; their memory is free once no graph needs them."""
        self._made.clear()

    def run_window(
        self, task: Task, window: Window, state: State, num_context: int, far_edge: int
    ) -> tuple[WindowLoss, State]:
        """Does what `task.run_window(window, state, num_context, far_edge)` does.

        Raises:
            InputError: It cannot be recorded.
        """
        if not torch.is_grad_enabled():
            return task.run_window(window, state, num_context, far_edge)
        if window.reset is None:  # so that the windows with a reset have the same recording
            window = window.with_reset(torch.zeros(window.num_lanes, dtype=torch.bool, device=window.device))
        leaves, structure = tree_flatten((window, state, task.noise))
        module = _Part(task, num_context, far_edge)
        weights = dict(module.named_parameters())
        tensors = [*(leaf for leaf in leaves if isinstance(leaf, Tensor)), *weights.values()]
        constants = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        key = (
            id(task),
            tuple(part.training for part in module.modules()),
            tuple(leaf.data_ptr() for leaf in chain(weights.values(), module.buffers())),
            tuple((tuple(leaf.shape), leaf.dtype, leaf.device, leaf.requires_grad) for leaf in tensors),
            (*constants, str(structure), num_context, far_edge),
        )
        recordings = self._made.setdefault(key, [])
        recording = next((each for each in recordings if not each.in_use), None)
        if recording is None:

            def run(*tensors: Tensor) -> tuple[WindowLoss, State]:
                inputs = iter(tensors)
                filled = [next(inputs) if leaf is _TENSOR else leaf for leaf in constants]
                return functional_call(
                    module, dict(zip(weights, inputs, strict=True)), tree_unflatten(filled, structure)
                )

            # In the weights' memory, but leaves of their own: autograd binds a leaf to the stream of its first use,
            # which for the weights is not that of the capture.
            samples = [leaf.detach() for leaf in tensors]
            for place in range(len(tensors) - len(weights)):
                samples[place] = samples[place].clone()
            for sample, leaf in zip(samples, tensors, strict=True):
                sample.requires_grad_(leaf.requires_grad)
            recording = _Recording(run, self._record, samples)
            recordings.append(recording)
        return recording(tensors)


class _Part(nn.Module):
    """A task's `run_window` as a module, so that `functional_call` can give it other tensors as weights."""

    def __init__(self, task: Task, num_context: int, far_edge: int) -> None:
        super().__init__()
        self.task = task  # its weights are the module's, if it is a module
        self.num_context, self.far_edge = num_context, far_edge

    def forward(self, window: Window, state: State, noise: Any) -> tuple[WindowLoss, State]:
        outer, self.task.noise = self.task.noise, noise
        try:
            return self.task.run_window(window, state, self.num_context, self.far_edge)
        finally:
            self.task.noise = outer


_TENSOR = object()  # stands for a tensor among the leaves of a pytree


class _Recording:
    """One recording of a task's `run_window`, and whether the graph of its last run is alive."""

    def __init__(self, run: Callable[..., Any], record: Record, samples: list[Tensor]) -> None:
        self._made: tuple[Any, list[Any]] | None = None
        self._last_run: weakref.ref[_Lease] | None = None

        def run_on_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
            outputs, structure = tree_flatten(run(*tensors))
            self._made = structure, [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in outputs]
            return tuple(leaf for leaf in outputs if isinstance(leaf, Tensor))

        random = random_state()
        try:
            self._replay = record(run_on_tensors, tuple(samples))
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"cuda_graph=True: the window cannot be captured ({error}). Its computation must stay on the GPU: no "
                ".item(), no shape or branch that depends on data; or leave cuda_graph out"
            ) from error
        if not _drawn_alike(random, random_state()):
            raise InputError(
                "cuda_graph=True: the task draws random numbers on the CPU, and a CUDA graph would repeat them; draw "
                "them on the GPU or in begin_window, or leave cuda_graph out"
            )
        set_random_state(random)  # as if there had been no capture

    @property
    def in_use(self) -> bool:
        """Whether a later backward pass may need what the last run left in the buffers."""
        return self._last_run is not None and self._last_run() is not None

    def __call__(self, tensors: list[Tensor]) -> tuple[WindowLoss, State]:
        arguments = [leaf.view_as(leaf) if leaf.requires_grad else leaf for leaf in tensors]
        for leaf in arguments:
            if leaf.requires_grad:
                leaf.register_hook(_copy)  # a gradient that is a buffer would change with the next run
        outputs = self._replay(*arguments)
        lease = _Lease()
        node = next((leaf.grad_fn for leaf in outputs if leaf.grad_fn is not None), None)
        if node is not None:
            node.metadata["lease"] = lease
            self._last_run = weakref.ref(lease)
        assert self._made is not None
        structure, constants = self._made
        copies = iter([leaf.clone() for leaf in outputs])
        cost, inside = tree_unflatten([next(copies) if leaf is _TENSOR else leaf for leaf in constants], structure)
        return cost, inside


class _Lease:
    """Lives as long as the graph of a run."""


def _capture(function: Callable[..., Any], tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    if tensors[0].device.type != "cuda":
        raise InputError(
            f"cuda_graph=True on the device {tensors[0].device}: only NVIDIA GPUs have CUDA graphs; leave cuda_graph "
            "out, or train on one (trainer.accelerator=cuda)"
        )
    return torch.cuda.make_graphed_callables(function, tensors, allow_unused_input=True)


def _copy(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.clone()


def _drawn_alike(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Returns whether the generators of the CPU are in the same state."""
    pairs = [zip(tree_leaves(before[name]), tree_leaves(after[name]), strict=True) for name in before if name != "cuda"]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in chain(*pairs))
