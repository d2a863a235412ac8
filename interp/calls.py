"""How a function that a user wrote takes its second argument: by its name, by its place, or not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal

from torch import nn

Second = Literal["named", "required", "optional", "absent", "unknown"]
VALUE = object()
"""Stands for any argument."""
FREE = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def second_argument(fn: Callable[..., Any], name: str) -> Second:
    """How fn(first, second) takes its second argument, which is called `name`.

    "named": it has a parameter of that name, so by name, wherever that stands. "required" and
    "optional": by place, without and with a default (or `*args`). "absent": one argument is all
    that it takes. "unknown": its signature cannot be read, as that of some builtins. Raises
    TypeError where none of these calls fits.
    """
    for follow in (True, False):  # what a decorator wraps says more than its *args, **kwargs
        try:
            signature = inspect.signature(_called(fn), follow_wrapped=follow)
        except (TypeError, ValueError):
            return "unknown"
        parameter = signature.parameters.get(name)
        if parameter is not None and parameter.kind in FREE:
            if _fits(signature, VALUE, **{name: VALUE}):
                return "named"
        elif _fits(signature, VALUE, VALUE):
            return "optional" if _fits(signature, VALUE) else "required"
        elif _fits(signature, VALUE, **{name: VALUE}):  # **kwargs
            return "named"
        if _fits(signature, VALUE):
            return "absent"
    raise TypeError(f"it takes {signature}")


def is_plain(fn: Callable[..., Any], name: str) -> bool:
    """Whether a function has two parameters and no more, the second of which may bear the name.

    It then takes both by their places, which is known without reading its whole signature.
    """
    if not isinstance(fn, FunctionType) or hasattr(fn, "__wrapped__"):
        return False
    code = fn.__code__
    many = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    return (
        code.co_argcount == 2
        and not (code.co_kwonlyargcount or many)
        and code.co_varnames[0] != name
    )


def _called(fn: Callable[..., Any]) -> Callable[..., Any]:
    """What bears the parameters: a module's own signature is (*args, **kwargs)."""
    return fn.forward if isinstance(fn, nn.Module) else fn


def _fits(signature: inspect.Signature, *args: object, **kwargs: object) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True
