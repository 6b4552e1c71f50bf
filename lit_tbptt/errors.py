"""The exceptions of this package, for problems that a user can correct."""


class InputError(ValueError):
    """A setting or a file cannot be used; the message names it, its value and the rule it breaks."""


class SourceError(RuntimeError):
    """Reading the corpus failed: a file is damaged or missing, or a server does not answer."""


class DivergenceError(RuntimeError):
    """The training loss is no longer a finite number."""
