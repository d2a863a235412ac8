"""How much memory a device has left: for sweeps that say beforehand what they need."""

from __future__ import annotations

from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def free_bytes(device: torch.device | str) -> int | None:
    """Bytes that can still be allocated there; None where the system does not say.

    On the host: the smaller of what the machine and the control group have left, page cache
    included, which the kernel gives back.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    if device.type != "cpu":
        return None
    known = [left for left in (_machine(), _group()) if left is not None]
    return min(known, default=None)


def _machine() -> int | None:
    fields = _fields(MEMINFO)
    return fields["MemAvailable:"] * 1024 if "MemAvailable:" in fields else None


def _group() -> int | None:
    """Of the control group (v2, then v1) that limits a container."""
    for limit, used, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = int((CGROUP / limit).read_text())
            now = int((CGROUP / used).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        cache = _fields((CGROUP / used).with_name("memory.stat")).get(inactive, 0)
        return max(0, most - now + cache)
    return None


def _fields(file: Path) -> dict[str, int]:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
