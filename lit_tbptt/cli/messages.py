"""How the command line ends where something is wrong."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lit_tbptt.errors import DivergenceError, InputError, SourceError


@contextmanager
def one_message() -> Iterator[None]:
    """Makes one message and a non-zero exit status of what a user can correct."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except (DivergenceError, SourceError) as error:
        sys.exit(f"stopped: {error}")
    except Exception as error:
        title, *lines = str(error).splitlines() or [""]
        if type(error).__name__ == "MisconfigurationException":  # of Lightning, which not every command imports
            sys.exit(f"error: {error}")
        if title.startswith("Error(s) in loading state_dict"):
            reasons = "; ".join(map(str.strip, lines))
            sys.exit(f"error: the weights of the checkpoint are not those of this model: {reasons}")
        raise
