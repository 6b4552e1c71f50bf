"""How the command line ends where something is wrong."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_tbptt.errors import DivergenceError, InputError, SourceError


@contextmanager
def one_message() -> Iterator[None]:
    """Makes one message and a non-zero exit status of what a user can correct."""
    try:
        yield
    except (InputError, MisconfigurationException) as error:
        sys.exit(f"error: {error}")
    except (DivergenceError, SourceError) as error:
        sys.exit(f"stopped: {error}")
    except RuntimeError as error:
        title, *lines = str(error).splitlines()
        if not title.startswith("Error(s) in loading state_dict"):
            raise
        sys.exit(
            f"error: the weights of the checkpoint are not those of this model: {'; '.join(map(str.strip, lines))}"
        )
