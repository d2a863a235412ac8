"""A hash of what a run is made of: the same in every process, another where a number could differ.

What a function closes over is part of it: two lambdas of one line may hold different ids.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interp.core.tokens import Tokens
from interp.core.version import __version__

LIBRARY = Path(__file__).resolve().parents[1]
SIZE = 16
"""Characters of a hash."""
COMPUTED_WITH = ("ids", "vectors", "mask", "positions", "token_types", "roles")
"""What of Tokens a run reads."""


def digest(value: Any) -> str:
    """16 hex digits that stand for plain data, tensors, tokens, modules and functions.

    A function is its qualified name, byte code, constants, defaults and closure, and the data and
    functions of its own file that it reads. This is the limit: of all else that it calls only the
    name counts, so a change inside an imported library is not seen, nor one in a class. Raises
    ValueError on what cannot be compared.
    """
    return _digest(value, frozenset())


def machine_facts(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """All beside the model and the data on which the last bits of a number depend, as plain data:
    interp, code, torch, dtype, device, threads, precision."""
    return {
        "interp": __version__,
        "code": code_hash(),
        "torch": str(torch.__version__),
        "dtype": str(dtype).removeprefix("torch."),
        "device": device_kind(device),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
    }


@cache
def code_hash() -> str:
    """A hash of this library's source, as it was when first asked for."""
    source = hashlib.sha256()
    for file in sorted(LIBRARY.rglob("*.py")):
        source.update(f"{file.relative_to(LIBRARY).as_posix()}\n".encode() + file.read_bytes())
    return source.hexdigest()[:SIZE]


def device_kind(device: torch.device) -> str:
    """The kind of machine: others round differently."""
    if device.type == "cuda":
        return f"{device.type} {torch.cuda.get_device_name(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _digest(value: Any, seen: frozenset[int]) -> str:
    found = hashlib.sha256()
    for piece in _pieces(value, seen):
        found.update(piece)
    return found.hexdigest()[:SIZE]


def _pieces(value: Any, seen: frozenset[int]) -> Iterator[bytes | memoryview]:
    """The bytes that stand for a value; `seen`: the functions that are being read."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        yield f"{type(value).__name__} {value!r}\n".encode()
    elif isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}\n".encode()
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data
    elif isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        yield f"array {value.dtype} {value.shape}\n".encode() + value.tobytes()
    elif isinstance(value, Tokens):
        read = {name: getattr(value, name) for name in COMPUTED_WITH}
        yield from _pieces(read if value.source is None else read | {"source": value.source}, seen)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        yield from _pieces((_name(type(value)), held), seen)
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}\n".encode()
        for key in sorted(value, key=repr):
            yield from _pieces((key, value[key]), seen)
    elif isinstance(value, Set):
        yield from _pieces(sorted(_digest(one, seen) for one in value), seen)
    elif isinstance(value, Sequence):
        yield f"sequence {len(value)}\n".encode()
        for one in value:
            yield from _pieces(one, seen)
    elif isinstance(value, nn.Module):
        yield from _pieces((_name(type(value)), value.state_dict()), seen)
    else:
        yield from _code_pieces(value, seen)


def _code_pieces(value: Any, seen: frozenset[int]) -> Iterator[bytes | memoryview]:
    """What can be called, and what functions are made of."""
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
        yield f"{_name(value)}\n".encode()
    elif hasattr(value, "__wrapped__"):  # what a decorator keeps besides is its own affair
        yield from _pieces((_name(type(value)), value.__wrapped__), seen)
    elif isinstance(value, types.FunctionType):
        if id(value) in seen:  # it calls itself
            yield f"function {value.__qualname__}\n".encode()
        else:
            seen |= {id(value)}
            yield from _pieces(_function(value, seen), seen)
    elif isinstance(value, types.CodeType):
        yield from _pieces((value.co_code, value.co_consts, value.co_names), seen)
    elif isinstance(value, functools.partial):
        yield from _pieces((value.func, value.args, value.keywords), seen)
    elif isinstance(value, types.MethodType):
        yield from _pieces((value.__func__, value.__self__), seen)
    elif isinstance(value, (torch.dtype, torch.device, slice, types.EllipsisType)):
        yield f"{value!r}\n".encode()
    else:
        raise ValueError(
            f"a {_name(type(value))} cannot be compared with that of an earlier run; "
            "give plain data, tensors, or functions of them"
        )


def _function(fn: types.FunctionType, seen: frozenset[int]) -> tuple:
    cells = zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True)
    closure = {name: _content(cell) for name, cell in cells}
    defaults = (fn.__defaults__, fn.__kwdefaults__)
    used = {name: fn.__globals__[name] for name in _globals(fn.__code__) if name in fn.__globals__}
    read = {name: _from_file(value, fn.__module__, seen) for name, value in used.items()}
    return fn.__qualname__, fn.__code__, defaults, closure, read


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that was never set
        return None


def _globals(code: types.CodeType) -> set[str]:
    """The names that a function, or one inside it, looks up in its file."""
    names = {line.argval for line in dis.get_instructions(code) if line.opname == "LOAD_GLOBAL"}
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return names.union(*map(_globals, inner))


def _from_file(value: Any, module: str, seen: frozenset[int]) -> Any:
    """What a file holds under a name: its functions, a hash of its data, of all else the name."""
    if isinstance(value, types.FunctionType):
        return value if value.__module__ == module else _name(value)
    try:
        return _digest(value, seen)
    except ValueError:
        return _name(type(value))


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None)
    return f"{module}.{getattr(value, '__qualname__', getattr(value, '__name__', value))}"
