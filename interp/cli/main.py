"""The command `interp`: run an analysis, list them, describe or examine a model."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import analyses
import interp
from interp import report
from interp.core.console import guarded, write_text
from interp.core.files.writing import write_file
from interp.core.options import check_text

EXAMPLES = """examples:
  interp run embedding-arithmetic --model minilm
  interp run embedding-arithmetic --help
  interp list --model minilm
  interp reports
  interp info minilm
  interp doctor minilm
  interp convert ckpt.pt mymodel/
  interp models tinyworld
  interp train --text input.txt --out my-model
  interp train --recipe tinyworld --out my-tinyworld
  interp generate my-model "Once upon"
"""
CONVERT_FLAGS: dict[str, tuple[type, str]] = {
    "normalization_type": (str, "LN, RMS, none; LNPre, RMSPre where norms are folded"),
    "act_fn": (str, "activation of the MLP: gelu, gelu_new, relu, silu …"),
    "eps": (float, "added to the variance in norms (1e-5)"),
    "attention_dir": (str, "causal or bidirectional"),
    "use_attn_scale": (bool, "whether scores are divided by attn_scale"),
    "attn_scale": (float, "what scores are divided by (√d_head)"),
    "scale_attn_by_inverse_layer_idx": (bool, "whether scores are divided by layer + 1"),
    "parallel_attn_mlp": (bool, "whether attention and MLP read the same residual stream"),
    "positional_embedding_type": (str, "standard, rotary or alibi"),
    "n_ctx": (int, "longest sequence, where no tensor shows it"),
    "rotary_dim": (int, "leading dimensions of a head that are turned"),
    "rotary_base": (float, "base of the rotary frequencies (10000)"),
    "rotary_adjacent_pairs": (bool, "whether neighbours are turned together, as in GPT-J"),
}
"""Fields of a TransformerLens config that its tensors do not show, by type."""
OURS = ("act", "debug")
"""What the parser holds beside the arguments of a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code (see `console`)."""
    return guarded(_act, arguments)


def _act(arguments: list[str]) -> int:
    if arguments[:1] == ["train"]:  # its options are a dataclass, which argparse does not know
        return _train(arguments[1:])
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
    every.add_argument(
        "--model", metavar="MODEL", help="mark those that can run on it; no weights are read"
    )
    every.set_defaults(act=_list)

    listed = commands.add_parser(
        "reports",
        help="write a page that lists all reports of a folder",
        description="Writes FOLDER/index.html: title, model, date, first finding and first figure "
        "of every report in the folder and below.",
    )
    listed.add_argument("folder", nargs="?", default="reports", metavar="FOLDER", help="(reports)")
    listed.set_defaults(act=_reports)

    info = commands.add_parser("info", help="describe a model, or a config without weights")
    info.add_argument("model", help="bundled name, local folder, hub id, or a config.json")
    info.set_defaults(act=_info)

    models = commands.add_parser("models", help="list the bundled models, or print the card of one")
    models.add_argument("model", nargs="?", help="a bundled name")
    models.add_argument("--measure", action="store_true", help="measure the card's numbers again")
    models.add_argument("--text", type=Path, metavar="FILE", help="its text, where it needs one")
    models.set_defaults(act=_models)

    check = commands.add_parser(
        "doctor",
        help="load a model and check it: identities, parity, rounding, tokenizer",
        description="Prints a card; the exit code is 1 where a check fails.",
    )
    check.add_argument("model", help="bundled name, local folder, or hub id")
    check.add_argument("--device", help="cpu, cuda, cuda:1, xpu, …; by default CUDA or the CPU")
    check.add_argument("--dtype", help="float16, bfloat16, float32 or float64; as stored")
    check.add_argument("--json", metavar="FILE", type=Path, help="write what was found there too")
    check.set_defaults(act=_doctor)

    commands.add_parser("train", help="train a small model, on a text file or by a recipe")

    _add_generate(commands)
    _add_convert(commands)
    return parser


def _add_generate(commands: Any) -> None:
    text = commands.add_parser("generate", help="continue a text")
    text.add_argument("model", help="bundled name, local folder, or hub id")
    text.add_argument("prompt", nargs="?", help="by default the beginning-of-sequence token")
    text.add_argument("--max-new-tokens", type=int, default=100, metavar="N")
    text.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest token (0.8)")
    text.add_argument("--top-k", type=int, metavar="K")
    text.add_argument("--top-p", type=float, metavar="P")
    text.add_argument("--seed", type=int, default=0)
    text.add_argument("--device", help="cpu, cuda, cuda:1, xpu, …; by default CUDA or the CPU")
    text.set_defaults(act=_generate)


def _add_convert(commands: Any) -> None:
    old = commands.add_parser(
        "convert",
        help="write an old checkpoint (TransformerLens 1–3, nanoGPT) as a folder that opens",
        description="The kind is seen in the contents; no code in the file is run. Fields go "
        "before those of --config; of nanoGPT only --act-fn is needed. A folder of interp whose "
        "config.json or tokenizer was edited is written as it is now, with new checksums.",
        argument_default=argparse.SUPPRESS,
    )
    old.add_argument("source", metavar="SOURCE", help=".pt, .safetensors, or a folder with one")
    old.add_argument("target", metavar="TARGET", help="folder to write")
    old.add_argument("--config", metavar="FILE", help="JSON of its HookedTransformerConfig")
    old.add_argument("--force", action="store_true", help="write into a folder that is not empty")
    for name, (kind, text) in CONVERT_FLAGS.items():
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            old.add_argument(option, action=argparse.BooleanOptionalAction, help=text)
        else:
            old.add_argument(option, type=kind, metavar=kind.__name__.upper(), help=text)
    old.set_defaults(act=_convert)


def _run(parsed: argparse.Namespace) -> int:
    prog = f"interp run {parsed.analysis}"
    return analyses.perform(analyses.load(parsed.analysis), parsed.options, prog)


def _list(parsed: argparse.Namespace) -> int:
    width = max(map(len, analyses.names()))
    marks = {} if parsed.model is None else _marks(parsed.model)
    for name in analyses.names():
        print(f"{name:{width}}  {marks.get(name, analyses.summary(name))}")
    return 0


def _marks(model: str) -> dict[str, str]:
    """For each analysis whether it can run on the model, and why not."""
    needs = importlib.import_module("interp.loading.needs")  # with torch
    known = needs.stored_abilities(model)
    lacking = {name: analyses.load(name).NEEDS.lacking(known) for name in analyses.names()}
    return {
        name: f"yes  {analyses.summary(name)}" if reason is None else f"no   {known.name} {reason}"
        for name, reason in lacking.items()
    }


def _reports(parsed: argparse.Namespace) -> int:
    print(report.write_index(parsed.folder))
    return 0


def _info(parsed: argparse.Namespace) -> int:
    print(interp.info(parsed.model))
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    found = interp.doctor(parsed.model, parsed.device, parsed.dtype)
    print(found)
    if parsed.json is not None:
        write_file(parsed.json, (json.dumps(found.to_dict(), indent=2) + "\n").encode())
    return 0 if found.ok else 1


def _train(options: Sequence[str]) -> int:
    by_recipe = any(one == "--recipe" or one.startswith("--recipe=") for one in options)
    home = "interp.zoo.recipes" if by_recipe else "interp.training.text"
    print(importlib.import_module(home).command(options))  # with torch, which few commands need
    return 0


def _models(parsed: argparse.Namespace) -> int:
    cards = importlib.import_module("interp.zoo.cards")  # with torch
    if parsed.measure and not parsed.model:
        raise ValueError("--measure: name a model, as in `interp models modadd --measure`")
    if parsed.measure:
        print(cards.measure(parsed.model, parsed.text).to_string(index=False))
    elif parsed.model:
        print(cards.card(parsed.model))
    else:
        print(cards.cards().to_string(index=False))
    return 0


def _generate(parsed: argparse.Namespace) -> int:
    check_text(parsed.prompt or "", "PROMPT")
    model = interp.load(parsed.model, parsed.device)
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    prompt = parsed.prompt
    if prompt is None:
        prompt = model.to_tokens("", bos=True)
    options = {name: getattr(parsed, name) for name in names}
    write_text(str(model.generate(prompt, **options)))
    return 0


def _convert(parsed: argparse.Namespace) -> int:
    print(interp.convert(**{name: v for name, v in vars(parsed).items() if name not in OURS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
