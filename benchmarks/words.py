"""How the code reads, in numbers: names that could be anything, types that say nothing, long calls.

    python benchmarks/words.py [FOLDER …]        # by default interp and analyses of this checkout

Prints a Markdown table, one row per folder. "vague" is the share of assigned names (variables, loop
variables, parameters, attributes of self) that could name any thing (`VAGUE`); "over 10" counts the
functions of more than ten parameters, `self` apart.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VAGUE = {
    *("own", "one", "ones", "found", "told", "some", "made", "rest", "best", "part", "parts"),
    *("thing", "things", "stuff", "it", "this", "that", "given", "kept", "whole", "other"),
    *("others", "more", "every", "same", "data", "tmp", "temp", "obj"),
}
COLUMNS = ("folder", "lines", "names", "vague", "Any", "model: Any", "over 10", "fmt: skip")
MOST = 10


def assigned(tree: ast.AST) -> Iterator[str]:
    """Every name that is bound: assigned, looped over, taken as a parameter, or set on self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def parameters(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every function and how many parameters it takes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [
                a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            ]
            yield node.name, len([name for name in names if name not in ("self", "cls")])


def row(folder: Path) -> list[str]:
    """The counts of one folder."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    names = [name for tree in trees.values() for name in assigned(tree)]
    vague = [name for name in names if name.strip("_") in VAGUE]
    anything = sum(
        isinstance(node, ast.Name) and node.id == "Any"
        for tree in trees.values()
        for node in ast.walk(tree)
    )
    models = sum(len(re.findall(r"\bmodel: Any\b", text)) for text in texts.values())
    long = [name for tree in trees.values() for name, n in parameters(tree) if n > MOST]
    skips = sum(text.count("# fmt: skip") for text in texts.values())
    lines = sum(text.count("\n") for text in texts.values())
    return [
        *(folder.name, f"{lines:,}", f"{len(names):,}", f"{len(vague) / len(names):.1%}"),
        *(str(anything), str(models), f"{len(long)} ({', '.join(sorted(long)) or '–'})"),
        str(skips),
    ]


def main(folders: list[str]) -> None:
    """Print the table."""
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for folder in [Path(name) for name in folders] or [ROOT / "interp", ROOT / "analyses"]:
        print(f"| {' | '.join(row(folder))} |")


if __name__ == "__main__":
    main(sys.argv[1:])
