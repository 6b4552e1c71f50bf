"""The state of all random number generators of a process, as tensors and plain values; and one that processes share.

Of the GPUs, only the process's own is included: querying another GPU would allocate memory on it.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_shared: torch.Generator | None = None


def shared_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a new generator, with the same seed in every process of a run, for noise without a lane axis.

    Such noise, as dropped weights, must be the same for all lanes. It is drawn in `begin_window`. The seed is the next
    number of the generator given to `sharing`: `LitTBPTT` has one, which it saves. Outside of it, the seed comes from
    torch's global generator, which is enough for one process; a loop of your own over several needs `sharing`.

    Args:
        device: The device to draw on. The seed is drawn on the CPU, so a GPU need not be waited for.
    """
    seed = torch.randint(2**63 - 1, (), generator=_shared, device="cpu")
    return torch.Generator(device).manual_seed(int(seed))


@contextmanager
def sharing(generator: torch.Generator) -> Iterator[None]:
    """Lets `shared_generator` take its seeds from a generator of the CPU that has the same state in every process."""
    global _shared
    before, _shared = _shared, generator
    try:
        yield
    finally:
        _shared = before


def random_state() -> dict[str, Any]:
    """Returns the states of Python's, NumPy's and torch's global generators; inside `sharing`, also that of its own."""
    state = host_random_state() | {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
    }
    return state if _shared is None else state | {"shared": _shared.get_state()}


def set_random_state(state: dict[str, Any]) -> None:
    """Restores the generators from the result of `random_state`."""
    set_host_random_state(state)
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0].cpu())
    if _shared is not None and "shared" in state:
        _shared.set_state(state["shared"])


def separate_generators(rank: int) -> None:
    """Seeds the generators of every process except the first differently, derived from their current common state.

    Lightning seeds all processes alike, so they would all draw the same dropout masks.
    """
    if rank:
        seed = int(torch.randint(2**31, ())) + rank
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - other people's code still draws from it


def host_random_state() -> dict[str, Any]:
    """Returns the states of Python's and NumPy's global generators."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()  # noqa: NPY002 - other people's code still draws from it
    kind, keys, place, has_gauss, cached = legacy
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), place, has_gauss, cached],
    }


def set_host_random_state(state: dict[str, Any]) -> None:
    """Restores the generators from the result of `host_random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, cached))  # noqa: NPY002
