"""Checks of arguments and results in every test: of types by beartype, of shapes by jaxtyping."""

from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

with_shapes = jaxtyping.jaxtyped
with_types = beartype(conf=BeartypeConf(violation_type=TypeError))  # what a wrong argument raises anywhere in Python


def has_shapes(annotation: Any) -> bool:
    """Returns whether there is a shape in an annotation, or may be: strings are not looked into."""
    if isinstance(annotation, str) or (isinstance(annotation, type) and issubclass(annotation, AbstractArray)):
        return True
    parts = annotation if isinstance(annotation, list) else get_args(annotation)  # Callable has a list of arguments
    return any(has_shapes(part) for part in parts)


def checked(function: Any, typechecker: Callable[..., Any]) -> Any:
    """Returns the function with its checks. jaxtyping's take 0.1 ms a call, so only functions with shapes get them."""
    if isinstance(function, type) or any(has_shapes(each) for each in function.__annotations__.values()):
        return with_shapes(function, typechecker=typechecker)
    return typechecker(function)


def install(*names: str) -> None:
    """Checks what these modules and folders of the package define, from their import on."""
    jaxtyping.jaxtyped = lambda *, typechecker: lambda function: checked(function, typechecker)  # what the hook inserts
    install_import_hook([f"lit_tbptt.{name}" for name in names], "argument_checks.with_types")


def check_constructors(*classes: Any) -> None:
    """Checks the constructors of named tuples, which the hook passes over because typing makes them."""
    for each in classes:
        each.__new__ = with_shapes(each.__new__, typechecker=with_types)
