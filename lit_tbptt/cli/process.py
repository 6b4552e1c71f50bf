"""Process-wide settings of the command line."""

import ctypes
import gc
import logging
import os
import platform
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Of mallopt(3), and the largest value it takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20

# How messages of Lightning begin that say what is not there, what the user has just set, or what we say in one line.
_TELL_NOTHING = (
    "GPU available: False",
    "TPU available: False",
    "LOCAL_RANK:",
    "Seed set to",
    "`Trainer(limit_",
    "`Trainer.fit` stopped: `max_",
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
    "\N{ELECTRIC LIGHT BULB} Tip:",  # of products
)
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.accelerators.cuda",
    "lightning.fabric.utilities.seed",
)


def set_up_process() -> None:
    """Silences warnings that a user can do nothing about, sets what makes a CPU faster, and where modules are found.

    It imports neither torch nor Lightning: not every command needs them.
    """
    # Lightning 2.6 calls a jsonargparse function by its old name.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*is deprecated")  # likewise, and a torch function
    keep_freed_memory()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a core or task of the user's may lie there; a console script does not look


def set_up_torch() -> None:
    """Sets what makes torch faster on a CPU."""
    import torch

    # A gradient that has come far back vanishes into numbers below 1e-38, with which a CPU computes many times slower.
    torch.set_flush_denormal(True)


def quiet_lightning() -> None:
    """Leaves out messages of Lightning that tell nothing, such as which hardware is not there; no warning is hidden."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_tells_something)


def _tells_something(record: logging.LogRecord) -> bool:
    message = re.sub(r"^\[rank: \d+\] ", "", record.getMessage())
    return record.levelno > logging.INFO or not message.startswith(_TELL_NOTHING)


@contextmanager
def importing() -> Iterator[None]:
    """Imports a command without looking for garbage, if it is the first that the process runs.

    What Lightning imports are a million objects that live as long as the process. Looking through them again and again
    takes a quarter of the time, so the collector is off meanwhile, and leaves them out afterwards. Ctrl-C ends the
    process at once: a KeyboardInterrupt that is raised while torch is imported is lost in one case of seven.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    interrupts = handled and threading.current_thread() is threading.main_thread()  # only there it can be set
    gc.disable()
    if interrupts:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
        if interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)


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
