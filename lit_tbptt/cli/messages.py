"""How the command line ends where something is wrong."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lit_tbptt.errors import DivergenceError, InputError, SourceError


@contextmanager
def one_message() -> Iterator[None]:
    """Makes one message and a non-zero exit status of what a user can correct.

    The process ends quietly, as others end, when the reader of its output has ended: `generate ... | head`.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        sys.exit(141)
    except InputError as error:
        sys.exit(f"error: {error}")
    except (DivergenceError, SourceError) as error:
        sys.exit(f"stopped: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno is None:  # it is not the system's
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = "" if error.filename is None else f"{error.filename}: "
        sys.exit(f"error: {where}{'the disk is full' if full else error.strerror}")
    except Exception as error:
        title, *lines = str(error).splitlines() or [""]
        if _raised_by_lightning(error):
            sys.exit(f"error: {' '.join(str(error).split())}")
        if title.startswith("Error(s) in loading state_dict"):
            reasons = "; ".join(map(str.strip, lines))
            sys.exit(f"error: the weights of the checkpoint are not those of this model: {reasons}")
        raise


def _raised_by_lightning(error: Exception) -> bool:
    """Returns whether Lightning raised the error on purpose, about a setting or a callback's metric."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = "" if place is None else place.tb_frame.f_globals.get("__name__", "")
    of_a_kind = isinstance(error, ValueError | RuntimeError | ImportError)
    return type(error).__name__ == "MisconfigurationException" or (of_a_kind and module.startswith("lightning."))
