"""Linear probes on all layers at once, beside a loop of scikit-learn's LogisticRegression.

    python benchmarks/probes.py [--quick] [--threads N] [--only residual,2,1]

Prints a Markdown table. Everybody solves the same problems (C = 1, features standardised before the
clock starts) down to the same distance from the optimum: the largest |w − w*| / |w*| over the
problems compared, at most 1e-3. w* is LogisticRegression(solver="newton-cholesky", tol=1e-12) in
float64; for 17 classes, whose Hessian would take gigabytes, interp in float64 at tol 1e-10.
scikit-learn is given the loosest of a row of tolerances, and float32 where that suffices, that get
there; where none does, the last one is timed and its distance says so. Its loop is timed on a
sample of the fits and scaled, as it comes (with all threads) and with one thread: its two pools of
threads, of BLAS and of OpenMP, wait for each other and can cost it fiftyfold on matrices of this
size. Both ratios are given. "newton" is its newton-cholesky, which few users know to ask for.

Isotropic: independent Gaussian features. Residual-like: Gaussian factors whose deviations fall as
1 / k, the first three of them ten times as large again, under a random rotation: strongly
correlated features, a decaying spectrum and a few huge directions. The label is a noisy linear
function of the first layer's features; the 20 control labellings are random.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import tyro
from measure import machine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from interp.methods.probes import fitting

TARGET = 1e-3
TOL = 5e-5
"""That of `probe_sweep`."""
LADDER = ((1e-4, "float32"), (1e-6, "float32"), (1e-6, "float64"), (1e-8, "float64"),
          (1e-10, "float64"))  # fmt: skip


class Case(NamedTuple):
    """Problems of one kind."""

    features: str
    classes: int
    labellings: int
    """Above one: in five folds, which share their features."""
    goal: float

    @property
    def name(self) -> str:
        return f"{self.features},{self.classes},{self.labellings}"


CASES = (
    Case("isotropic", 2, 1, 4),
    Case("residual", 2, 1, 20),
    Case("isotropic", 2, 21, 10),
    Case("residual", 2, 21, 30),
    Case("isotropic", 17, 1, 4),
    Case("residual", 17, 1, 4),
)


@dataclass(frozen=True)
class Config:
    """What to measure."""

    quick: bool = False
    """2 layers of 500 × 128 instead of 12 of 2,000 × 768."""
    threads: int | None = None
    """Threads of torch; by default what torch takes."""
    runs: int = 3
    """Runs of each contestant, of which the fastest counts."""
    sample: int = 4
    """So many of scikit-learn's fits are timed."""
    only: str | None = None
    """One case: features,classes,labellings."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, examples, features."""
        return (2, 500, 128) if self.quick else (12, 2000, 768)


class Problems:
    """The data of a case, and its optimum."""

    def __init__(self, case: Case, shape: tuple[int, int, int]) -> None:
        layers, n, d = shape
        rng = np.random.default_rng(0)
        self.case = case
        self.x = np.stack([features(case.features, n, d, rng) for _ in range(layers)])
        z = self.x[0] @ rng.normal(size=(d, case.classes))
        z = 2 * z / z.std(0) + rng.gumbel(size=z.shape)
        self.y = np.concatenate(
            [z.argmax(1)[None], rng.integers(case.classes, size=(case.labellings - 1, n))]
        )
        fold = rng.permutation(n) % 5
        many = case.labellings > 1
        self.train = np.stack([fold != i for i in range(5)]) if many else np.ones((1, n), bool)
        every = [(layer, f, label) for layer in range(layers) for f in range(len(self.train))
                 for label in range(case.labellings)]  # fmt: skip
        self.count, self.every = len(every), every

    def interp(self, tol: float = TOL, dtype: str = "float32") -> np.ndarray:
        """All coefficients: [layer fold labelling class d]."""
        x = torch.from_numpy(self.x.astype(dtype))
        prepared = fitting.prepare(x, torch.from_numpy(self.train), standardise=False)
        y = torch.from_numpy(self.y)
        found = fitting.fit(prepared, y, n_classes=self.case.classes, tol=tol)
        return prepared.original(found.coef)[0].numpy()

    def sklearn(self, some: list, dtype: str, **options) -> list[np.ndarray]:
        """The coefficients of some fits: [class d] each."""
        out = []
        for layer, fold, label in some:
            rows = self.train[fold]
            x, y = self.x[layer][rows].astype(dtype), self.y[label][rows]
            out.append(LogisticRegression(max_iter=20_000, **options).fit(x, y).coef_)
        return out

    def optimum(self, some: list) -> list[np.ndarray]:
        """As exactly as float64 has it."""
        if self.case.classes == 2:
            return self.sklearn(some, "float64", solver="newton-cholesky", tol=1e-12)
        found = self.interp(1e-10, "float64")
        return [found[one] for one in some]


def features(kind: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Standardised, [n d], float32."""
    x = rng.normal(size=(n, d))
    if kind == "residual":
        size = 1 / np.arange(1, d + 1)
        size[:3] *= 10
        x = (x * size) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    return ((x - x.mean(0)) / x.std(0)).astype("float32")


def distance(found: list[np.ndarray], best: list[np.ndarray]) -> float:
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, best, strict=True)
    )


def fastest(run: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


class Loop(NamedTuple):
    """Seconds of all fits, and how they were solved."""

    as_it_comes: float
    one_thread: float
    how: str

    def __str__(self) -> str:
        return f"{self.as_it_comes:.1f} s, one thread {self.one_thread:.1f} s ({self.how})"

    def over(self, ours: float) -> str:
        return f"{self.as_it_comes / ours:.1f} ×, one thread {self.one_thread / ours:.1f} ×"


def loop(problems: Problems, some: list, best: list, solver: str, runs: int) -> Loop:
    """All fits, one after the other."""
    chosen = None
    with threadpool_limits(1):
        for tol, dtype in LADDER:
            run = partial(problems.sklearn, some, dtype, solver=solver, tol=tol)
            off = distance(run(), best)
            chosen = run, f"{tol:.0e} {dtype}, off {off:.0e}"
            if off <= TARGET:
                break
        one = fastest(chosen[0], runs)
    every = fastest(chosen[0], runs)
    scale = problems.count / len(some)
    return Loop(every * scale, one * scale, chosen[1])


def row(case: Case, config: Config) -> list[str]:
    """One line of the table."""
    problems = Problems(case, config.shape)
    rng = np.random.default_rng(1)
    picked = rng.choice(problems.count, min(config.sample, problems.count), replace=False)
    some = [problems.every[i] for i in sorted(picked)]
    best = problems.optimum(some)
    found = problems.interp()
    off = distance([found[one] for one in some], best)
    ours = fastest(problems.interp, config.runs)
    cells = [f"{case.features}, {case.classes} classes", str(problems.count),
             f"{ours:.2f} s (off {off:.0e})"]  # fmt: skip
    ratios = []
    for solver in ("lbfgs", "newton-cholesky") if case.classes == 2 else ("lbfgs",):
        theirs = loop(problems, some, best, solver, config.runs)
        cells.append(str(theirs))
        ratios.append(theirs.over(ours))
    missing = ["–"] * (2 - len(ratios))
    return [*cells, *missing, *ratios, *missing, f"≥ {case.goal:.0f} ×"]


def main(config: Config) -> None:
    """Prints the table as it comes."""
    cases = [case for case in CASES if config.only in (None, case.name)]
    if not cases:
        raise SystemExit(f"--only {config.only}: expected one of {[c.name for c in CASES]}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.simplefilter("ignore", FutureWarning)
    layers, n, d = config.shape
    print(f"{machine()}; {layers} layers of {n} × {d}\n")
    head = ["features", "fits", "interp", "scikit-learn, lbfgs", "scikit-learn, newton",
            "lbfgs / interp", "newton / interp", "goal"]  # fmt: skip
    print("|", " | ".join(head), "|")
    print("|", " | ".join(["---"] * len(head)), "|")
    for case in cases:
        print("|", " | ".join(row(case, config)), "|", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
