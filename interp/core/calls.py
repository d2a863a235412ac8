"""Functions that a user wrote: how one takes its second argument, and whether it can be pickled."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
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


class Portable:
    """A frozen dataclass that can be pickled where the functions it holds can, and copied always.

    pickle knows a function by its name in its module: a lambda, or a function defined inside
    another, has none.
    """

    name: str

    def __getstate__(self) -> dict[str, Any]:
        for value in vars(self).values():
            lost = _without_name(value)
            if lost is not None:
                raise pickle.PicklingError(
                    f"{type(self).__name__.lower()} {self.name!r} cannot be pickled: it holds "
                    f"{getattr(lost, '__qualname__', lost)}, which is a lambda or was defined "
                    "inside a function; define it at the top of a module"
                )
        return self.__dict__

    def __copy__(self) -> Portable:
        return dataclasses.replace(self)  # type: ignore[type-var]

    def __deepcopy__(self, memo: dict[int, Any]) -> Portable:
        parts = {name: copy.deepcopy(value, memo) for name, value in vars(self).items()}
        return dataclasses.replace(self, **parts)  # type: ignore[type-var]


def _without_name(value: object) -> object | None:
    """The first function or class within a callable that pickle cannot find by its name."""
    if isinstance(value, partial):
        inner = (value.func, *value.args, *value.keywords.values())
        return next((lost for one in inner if (lost := _without_name(one)) is not None), None)
    if isinstance(value, MethodType):
        return _without_name(type(value.__self__))
    if not callable(value):
        return None
    named = value if isinstance(value, FunctionType | BuiltinFunctionType | type) else type(value)
    try:
        pickle.dumps(named)
    except (pickle.PicklingError, AttributeError, TypeError):
        return named
    return None
