"""Timing and memory: medians of interleaved runs, and the peak of what one call takes."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Run = Callable[[], object]
FEWEST_ROUNDS = 5


class Ratio(NamedTuple):
    """How long one contestant takes in units of the base, and the middle half of its rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def interleaved(
    contestants: dict[str, Run], *, runs: int, seconds: float
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; every round runs all of them in a new order.

    Stops after `runs` rounds, or past `seconds` once there are a few. The clock stops when the
    result is in hand; freeing it is not counted.
    """
    for run in contestants.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    shuffle = random.Random(0).shuffle
    started = time.perf_counter()
    for done in range(1, runs + 1):
        order = list(contestants)
        shuffle(order)
        for name in order:
            times[name].append(_timed(contestants[name]))
        if done >= FEWEST_ROUNDS and time.perf_counter() - started > seconds:
            break
    return times


def _timed(run: Run) -> float:
    synchronize()
    started = time.perf_counter()
    result = run()
    synchronize()
    elapsed = time.perf_counter() - started
    del result
    return elapsed


def synchronize() -> None:
    """Waits for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(times: list[float], base: list[float]) -> Ratio:
    """The quartiles of the rounds' own ratios: a machine that slows down slows both."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(times, base, strict=True)], n=4)
    return Ratio(median, low, high)


def stored_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class HostPeak:
    """The most resident memory that a `with` block adds to this process (Linux)."""

    def __enter__(self) -> HostPeak:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = _status("VmHWM") - self._before


class DevicePeak:
    """The most memory that a `with` block takes from the CUDA allocator."""

    def __enter__(self) -> DevicePeak:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = torch.cuda.max_memory_allocated() - self._before


PEAK = {"cpu": HostPeak, "cuda": DevicePeak}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def machine() -> str:
    """What the numbers were measured on, in one line."""
    cpu = "unknown CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = torch.get_num_threads()
    return f"{cpu}, {os.cpu_count()} cores, {threads} threads{gpu}; torch {torch.__version__}"
