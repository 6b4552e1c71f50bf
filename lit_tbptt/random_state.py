"""The state of every random number generator of a process, as tensors and plain values.

Of the GPUs it is that of the process's own: to ask another one would take memory there.
"""

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Returns the states of Python's, NumPy's and torch's global generators."""
    return host_random_state() | {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts the generators back to what `random_state` returned."""
    set_host_random_state(state)
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0].cpu())


def separate_generators(rank: int) -> None:
    """Gives each process but the first generators of its own, which follow from where they all stand.

    Lightning seeds all processes alike, so that every one would draw the dropout masks of the first.
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
    """Puts the generators back to what `host_random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, cached))  # noqa: NPY002
