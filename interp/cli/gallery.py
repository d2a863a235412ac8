"""The gallery of reports: which analyses it holds, with which options, and the run of them all.

    python -m interp.cli.gallery --into reports/gallery       # what `make gallery` does
    python -m interp.cli.gallery --into /tmp/after --small    # seconds per analysis
    python -m interp.cli.gallery --into /tmp/after --small --only head-ablation neurons

Every report is made by the command that its manifest states, on one thread, so that the same code
gives the same bytes wherever it runs. `benchmarks/same_csvs.py` compares two such folders.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from interp.core.console import guarded
from interp.core.files.writing import write_file
from interp.report import write_index
from interp.report.folder import MANIFEST

from .main import main as command_line

GALLERY: dict[str, tuple[str, ...]] = {
    "activation-patching": (),
    "attention-heads": (),
    "attention-patterns": (),
    "causal-tracing": (),
    "concept-direction": (),
    "embedding-arithmetic": (),
    "embedding-geometry": (),
    "head-ablation": (),
    "logit-lens": (),
    "neurons": (),
    "probe-layers": (),
    "steering": (),
}
"""The reports of the gallery: the analysis and its options. The folder bears the analysis' name."""
SMALL: dict[str, tuple[str, ...]] = {
    "activation-patching": (*("--task", "agreement", "--n", "4", "--top", "2", "--neurons", "1"),),
    "attention-heads": ("--task", "induction", "--n", "6", "--null", "10", "--shown", "1"),
    "causal-tracing": ("--n", "4", "--draws", "1"),
    "concept-direction": (
        *(
            "--task",
            "agreement",
            "--n",
            "6",
            "--n-random",
            "2",
            "--factors",
            "1.0",
            "--layers",
            "0",
        ),
    ),
    "embedding-geometry": ("--pairs", "2000", "--draws", "20"),
    "head-ablation": (
        *("--task", "agreement", "--n", "4", "--kinds", "mean", "--top", "1", "--random-sets", "1"),
    ),
    "logit-lens": ("--task", "capitals", "--n", "6", "--steps", "2", "--top", "3"),
    "neurons": ("--n", "4", "--layers", "1", "--top", "2"),
    "probe-layers": (
        *("--n", "30", "--C", "0.1", "--shuffles", "19", "--sites", "resid_post", "mlp_out"),
        "--allow-unknown",
    ),
    "steering": (
        *("--task", "agreement", "--n", "4", "--n-random", "2", "--factors", "-2.0", "2.0"),
        *("--samples", "2", "--new-tokens", "3"),
    ),
}
"""Options with which an analysis takes seconds, also on a model of random weights. One that is not
named here is fast as it is. Every branch that writes a table should be walked."""

HEAD = """# Gallery

A report of every analysis, made by `make gallery` on the bundled models. Each is a folder: its \
page `index.html` opens from disk, without a network; beside it lie the numbers (CSV), the figures \
(SVG, PNG) and `manifest.json` with what made them. [index.html](index.html) lists them all."""
PICTURE = re.compile(r"figures/[a-z0-9-]+\.png")


def arguments(name: str, into: Path, small: bool = False) -> list[str]:
    """The words behind `interp` of the command that makes one report of the gallery."""
    options = SMALL.get(name, ()) if small else GALLERY[name]
    return ["run", name, *options, "--out", (into / name).as_posix()]


def build(into: Path, names: Sequence[str], small: bool = False) -> int:
    """Make the reports, each in its folder, and the two pages that list them, README.md and
    index.html; the exit code."""
    unknown = sorted(set(names) - set(GALLERY))
    if unknown:
        raise ValueError(f"--only {unknown[0]!r}: the gallery has {', '.join(GALLERY)}")
    for name in names:
        started = time.perf_counter()
        print(f"== {name}", flush=True)
        with _typed(arguments(name, into, small)) as words:
            code = command_line(words)
        if code:
            return code
        print(f"== {name}: {time.perf_counter() - started:.1f} s", flush=True)
    write_file(into / "README.md", readme(into).encode())
    print(write_index(into))
    return 0


def readme(into: Path) -> str:
    """The gallery as a page of Markdown, for where it is read without being downloaded: of every
    report that is there the question, the answer and the first picture."""
    parts = [HEAD]
    for name in GALLERY:
        if not (into / name / MANIFEST).is_file():
            continue
        manifest = json.loads((into / name / MANIFEST).read_text(encoding="utf-8"))
        answer = manifest.get("answer") or next(iter(manifest["findings"]), "")
        parts.append(f"## [{manifest['title']}]({name}/index.html)")
        parts.append(f"*{manifest['question']}* {answer}")
        pictures = [file for file in manifest["files"] if PICTURE.fullmatch(file)]
        parts += [f"![The first figure of this report]({name}/{pictures[0]})"] if pictures else []
        parts.append(f"`{manifest['command'].partition(' --out ')[0]}`")
    return "\n\n".join(parts) + "\n"


@contextmanager
def _typed(words: list[str]) -> Iterator[list[str]]:
    """The words as if somebody had typed them behind `interp`: the manifest states the command."""
    before = sys.argv
    sys.argv = ["interp", *words]
    try:
        yield words
    finally:
        sys.argv = before


def main(words: Sequence[str] | None = None) -> int:
    """The command `python -m interp.cli.gallery`."""
    return guarded(_act, words)


def _act(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m interp.cli.gallery", description="Make the reports of the gallery."
    )
    parser.add_argument("--into", type=Path, required=True, metavar="DIR", help="their folder")
    parser.add_argument("--small", action="store_true", help="settings that take seconds each")
    parser.add_argument(
        "--only", nargs="+", default=list(GALLERY), metavar="NAME", help="these reports alone"
    )
    parsed = parser.parse_args(words)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        return build(parsed.into, parsed.only, parsed.small)


if __name__ == "__main__":
    sys.exit(main())
