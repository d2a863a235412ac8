"""The command `interp`: run an analysis, list them, describe a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import analyses
import interp

from .console import guarded

EXAMPLES = """examples:
  interp run embedding-arithmetic --model minilm
  interp run embedding-arithmetic --help
  interp info minilm
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code (see `console`)."""
    return guarded(_act, arguments)


def _act(arguments: list[str]) -> int:
    parsed = _parser().parse_args(arguments)
    return parsed.act(parsed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="interp",
        description="What goes on inside a transformer: analyses that write reports.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"interp {interp.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of any error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run an analysis and write its report",
        epilog=f"analyses: {', '.join(analyses.names())}",
    )
    run.add_argument("analysis", metavar="ANALYSIS")
    run.add_argument(
        "options", nargs=argparse.REMAINDER, help="its own: interp run ANALYSIS --help"
    )
    run.set_defaults(act=_run)

    every = commands.add_parser("list", help="list the analyses")
    every.set_defaults(act=_list)

    info = commands.add_parser("info", help="describe a model, or a config without weights")
    info.add_argument("model", help="bundled name, local folder, hub id, or a config.json")
    info.set_defaults(act=_info)
    return parser


def _run(parsed: argparse.Namespace) -> int:
    prog = f"interp run {parsed.analysis}"
    return analyses.perform(analyses.load(parsed.analysis), parsed.options, prog)


def _list(parsed: argparse.Namespace) -> int:
    width = max(map(len, analyses.names()))
    for name in analyses.names():
        print(f"{name:{width}}  {analyses.summary(name)}")
    return 0


def _info(parsed: argparse.Namespace) -> int:
    print(interp.info(parsed.model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
