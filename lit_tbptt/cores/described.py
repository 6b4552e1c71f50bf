"""Describes cores in the plain values of a checkpoint, and builds them from these."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils._pytree import tree_leaves, tree_map

from lit_tbptt import cores
from lit_tbptt.cores.base import RecurrentCore
from lit_tbptt.cores.torch_core import TORCH_MODULES
from lit_tbptt.errors import InputError


def describe(core: RecurrentCore) -> dict[str, Any]:
    """Returns the class of a core, by its name on the command line, and its arguments; cores in these alike.

    Raises:
        InputError: An argument has no name.
    """
    for name, values in core.init_args.items():
        if name.startswith("*"):
            raise InputError(
                f"core={type(core).__qualname__}: its constructor took {values} as {name}, and a checkpoint keeps "
                "arguments by name; give each a name there"
            )
    module = "lit_tbptt" if type(core) in vars(cores).values() else type(core).__module__
    arguments = tree_map(lambda value: describe(value) if isinstance(value, RecurrentCore) else value, core.init_args)
    return {"class_path": f"{module}.{type(core).__qualname__}", "init_args": arguments}


def build(described: Mapping[str, Any], own: type[RecurrentCore] | None = None) -> RecurrentCore:
    """Builds the core of a description, with new weights.

    Args:
        described: The result of `describe`.
        own: The class of the core, or of a core in its arguments, if it is not from this package.

    Raises:
        InputError: A class is required but not given, or the given one is not in the description.
    """
    paths = list(_class_paths(described))
    if own is not None and not any(_is_named(own, path) for path in paths):
        raise InputError(
            f"core={own.__qualname__}: the checkpoint's core is a {' of '.join(paths)}; give that class, or leave core "
            "out if it is one of this package's"
        )
    return _built(described, own)


def _built(described: Mapping[str, Any], own: type[RecurrentCore] | None) -> Any:
    path = described["class_path"]
    if path in TORCH_MODULES:
        return TORCH_MODULES[path](**described["init_args"])
    # Only the class name must match: the module of a running script is __main__.
    known = own if own is not None and _is_named(own, path) else getattr(cores, path.removeprefix("lit_tbptt."), None)
    if known is None:
        more = "" if own is None else f" besides {own.__qualname__}; of several classes, pass the whole core instead"
        raise InputError(
            f"the checkpoint's core is a {path}, which is not imported just because the checkpoint names it; pass "
            f"the class, or an instance of it, as core (generate: --core {path}){more}"
        )
    arguments = tree_map(
        lambda value: _built(value, own) if _is_described(value) else value,
        described["init_args"],
        is_leaf=_is_described,
    )
    try:
        return known(**arguments)
    except TypeError as error:
        raise InputError(
            f"core={known.__qualname__}: not to be built with {arguments}, as in training ({error})"
        ) from error


def texts_of_modules(described: Mapping[str, Any]) -> list[str]:
    """Returns the texts of modules within a description, which cannot be built from it; see `TorchCore`."""
    arguments = described["init_args"]
    here = [arguments["module"]] if described["class_path"] == "lit_tbptt.TorchCore" else []
    inner = [value for value in tree_leaves(arguments, is_leaf=_is_described) if _is_described(value)]
    within = [text for value in inner for text in texts_of_modules(value)]
    return [text for text in here if isinstance(text, str)] + within


def _is_described(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"class_path", "init_args"}


def _class_paths(described: Mapping[str, Any]) -> Iterator[str]:
    yield described["class_path"]
    for value in tree_leaves(described["init_args"], is_leaf=_is_described):
        if _is_described(value):
            yield from _class_paths(value)


def _is_named(own: type[RecurrentCore], path: str) -> bool:
    return own.__qualname__.rpartition(".")[2] == path.rpartition(".")[2]
