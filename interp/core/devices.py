"""The device that a user names: one that torch knows, and that is here."""

from __future__ import annotations

import logging

import torch

APPLE = (
    "device 'mps': PyTorch has given wrong results on Apple's GPU for models of this kind "
    "(TransformerLens issue 1178), and it has no float64, in which many methods compute; compare "
    "with device='cpu' before you believe a number"
)
"""Said, not refused: somebody asked for it by name. Nothing here ever chooses it."""


def as_device(device: str | torch.device | None) -> torch.device:
    """The device of that name ("cpu", "cuda", "cuda:1", "xpu", …); None: CUDA where there is one,
    else the CPU.

    Raises ValueError on a name that torch does not know and on a device that is not here, with
    those that are. A number alone is refused, since it may be another kind on another machine, and
    "meta", whose tensors hold no numbers.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(device, str | torch.device):
        raise ValueError(f"device {device!r}: expected a name; {_here()}")
    try:
        named = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {str(device)!r}: torch knows no such device; {_here()}") from None
    if named.type == "meta":
        raise ValueError(
            "device 'meta': its tensors hold no numbers, so nothing can be computed there; "
            f"`interp info` describes a model without its weights. {_here()}"
        )
    if named.type == "cpu":
        if named.index:
            raise ValueError(f"device {str(device)!r}: there is one CPU; {_here()}")
        return torch.device("cpu")
    try:
        torch.zeros((), device=named).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"device {str(device)!r} cannot be used ({reason}); {_here()}") from None
    if named.type == "mps":
        logging.getLogger(__name__).warning(APPLE)
    return named


def _here() -> str:
    return f"this machine has {', '.join(['cpu', *_accelerators()])}"


def _accelerators() -> list[str]:
    kinds = ("cuda", "xpu", "mps", "mtia", torch._C._get_privateuse1_backend_name())
    return [f"{kind}:{number}" for kind in kinds for number in range(_count(kind))]


def _count(kind: str) -> int:
    module = getattr(torch, kind, None)
    return module.device_count() if module is not None and module.is_available() else 0
