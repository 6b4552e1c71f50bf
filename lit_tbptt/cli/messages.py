"""How the command line ends where something is wrong.

The exit status is 2, after `error:`, where something that the user gave cannot be used: a command, an option, a file.
It is 1, after `stopped:`, where a run fails: the data cannot be read on, the loss diverges, the disk is full. After
signal n it is 128 + n.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lit_tbptt.errors import DivergenceError, InputError, SourceError


def refuse(message: str) -> NoReturn:
    """Ends the process: what the user gave cannot be used."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


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
        refuse(str(error))
    except (DivergenceError, SourceError) as error:
        sys.exit(f"stopped: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as stopped:
        if not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        raise SystemExit(130) from None  # Lightning makes it 1
    except OSError as error:
        if error.errno is None:  # it is not the system's
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = "" if error.filename is None else f"{error.filename}: "
        sys.exit(f"stopped: {where}{'the disk is full' if full else error.strerror}")
    except Exception as error:
        title, *lines = str(error).splitlines() or [""]
        if _raised_by_lightning(error):
            refuse(" ".join(str(error).split()))
        if title.startswith("Error(s) in loading state_dict"):
            reasons = "; ".join(map(str.strip, lines))
            refuse(f"the weights of the checkpoint are not those of this model: {reasons}")
        raise


def _raised_by_lightning(error: Exception) -> bool:
    """Returns whether Lightning raised the error on purpose, about a setting or a callback's metric."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = "" if place is None else place.tb_frame.f_globals.get("__name__", "")
    of_a_kind = isinstance(error, ValueError | RuntimeError | ImportError)
    return type(error).__name__ == "MisconfigurationException" or (of_a_kind and module.startswith("lightning."))


def visible(text: str) -> str:
    """Returns text with its control characters as Unicode's pictures of them; a terminal would obey some of them."""
    return text.translate(_PICTURES)


_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
_PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)
