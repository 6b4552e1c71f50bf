"""How the command line ends where something is wrong."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_tbptt.errors import DivergenceError, InputError, SourceError


@contextmanager
def one_message() -> Iterator[None]:
    """Makes one message and a non-zero exit status of what a user can correct."""
    # Lightning 2.6 calls a jsonargparse function by its old name; a user can do nothing about it.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*is deprecated")  # likewise, and a torch function
    # A gradient that has come far back vanishes into numbers below 1e-38, with which a CPU computes many times slower.
    torch.set_flush_denormal(True)
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
