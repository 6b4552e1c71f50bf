"""Process-wide settings of the command line."""

import ctypes
import os
import platform
import sys
import warnings

import torch

# Of mallopt(3), and the largest value it takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def set_up_process() -> None:
    """Silences warnings that a user can do nothing about, sets what makes a CPU faster, and where modules are found."""
    # Lightning 2.6 calls a jsonargparse function by its old name.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*is deprecated")  # likewise, and a torch function
    # A gradient that has come far back vanishes into numbers below 1e-38, with which a CPU computes many times slower.
    torch.set_flush_denormal(True)
    keep_freed_memory()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a core or task of the user's may lie there; a console script does not look


def keep_freed_memory() -> None:
    """Makes the C library keep the memory it has freed, where that is glibc and the user has set nothing else.

    By default it gives the system back what is free at the heap's end, and the system clears every page of it before it
    is used again: in every window. Blocks above 32 MiB are given back as ever: kept ones would not fit aligned requests
    of their own size, and the heap would grow by one of them each time.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not chosen:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
