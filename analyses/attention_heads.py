"""Attention heads: what does every head do, what may it be called, and does it matter?

Scores every head by where it looks and what it writes, names those that no random head would
match, removes each one from the run, and gives each a page of its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from analyses import _task, main
from analyses._heads.pages import CHANCES, head_page, tokens_frame
from analyses._heads.words import Lead, answer, certainty, doubts, findings, first_findings
from analyses._reference import (
    MeanConfig,
    mean_in_words,
    reference_of,
    warn_of_one_class,
)
from analyses._task import task_pairs, task_section
from analyses._text import text_windows
from interp import heads, metrics
from interp.core.finite import finite_cache
from interp.core.indices import indices
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.loading.needs import Needs
from interp.methods.ablation import mean_edit
from interp.methods.baseline import measure_baseline, metric_of
from interp.methods.heads.outputs import unreadable
from interp.methods.heads.roles import COLUMNS as ROLE_COLUMNS
from interp.methods.heads.roles import MIXED
from interp.report import Report, figures
from interp.report.attention import MEASURES, Attention
from interp.report.provenance import provenance
from interp.report.spine import listed
from interp.sweeps.engine import sweep
from interp.sweeps.nodes import nodes as make_nodes

KEYS = ["layer", "head"]
LOOKS = ("previous_token", "duplicate_token", "induction", "induction_stderr", "same_distance")
ON_TEXT = ("first_token", "itself", "local", "offset", "offset_share", "entropy_bits")
WEIGHTS = ("copying", "qk_norm", "ov_norm")
NOWHERE = "–"
"""The role that "end" looks at, where there is no task."""
MOVING = ("answer_attention", "writes_answer", "mover_score")
EFFECTS = ("task_effect", "task_stderr", "loss_effect", "loss_stderr")
SHOWN_SCORES = ("duplicate_token", "induction", "same_distance", "local", "copying", "ov_norm",
                "task_effect", "loss_effect")  # fmt: skip
"""What the viewer sorts heads by, beside what it measures itself."""
TOKENS = ("layer", "head", "source", "share", "kind", "rank", "token", "logit")
COMPOSITION = ("kind", "from_layer", "from_head", "to_layer", "to_head", "value", "baseline",
               "times")  # fmt: skip
NEEDS = Needs(text=True, tokenizer=True, wordless=("task", "induction"), native=True)
TABLES = _task.TABLES | {
    "heads": ("layer", "head", "label", "roles", *LOOKS, *ON_TEXT, "copying?", "qk_norm", "ov_norm",
              "end_role", "end_share?",
              *(f"{name}?" for name in (*MOVING, *EFFECTS))),
    "head-roles": tuple("writes?" if name == "writes" else name for name in ROLE_COLUMNS),
    "head-tokens": TOKENS,
    "composition": COMPOSITION,
    "attention": ("layer", "head", "label", *MEASURES, ...),
    "effects": ("layer", "head", "task_effect"),
    "wall": ("layer", "head", "label"),
}  # fmt: skip


@dataclass(frozen=True)
class Config(MeanConfig):
    """What to read, how often to draw, and which heads to take away."""

    text: Path | None = None
    """A text file (UTF-8), a text per line, on which offsets, entropy, written tokens and the loss
    are measured; by default the task's clean prompts."""
    width: int = 64
    """Tokens of a window of --text."""
    windows: int = 8
    """Windows of --text that are read."""
    repeats: int = 16
    """Rows of random tokens, part of which is said twice."""
    length: int = 12
    """Half the tokens of such a row; the repeated part has half to all of them."""
    null: int = 200
    """Random rotations of each head's queries against its keys, the null of its attention."""
    layers: tuple[int, ...] | None = None
    """Layers whose heads are removed and get a page; by default all."""
    heads: tuple[int, ...] | None = None
    """Heads of these layers that are removed and get a page; by default all."""
    shown: int = 3
    """Prompts in the viewer, beside one row of random repeats."""
    out: Path = Path("reports/attention-heads")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"width": 2, "windows": 1, "repeats": 2, "length": 2, "null": 1, "shown": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {low}")


def run(model: Any, config: Config) -> Report:
    """The report. Of an encoder–decoder the heads are the encoder's.

    Raises ValueError where the model reads no text, or runs behind the bridge.
    """
    reader = model if getattr(model, "encoder", None) is None else model.encoder
    if reader.cfg.inputs != "tokens":
        raise ValueError(
            f"{model.name} reads {reader.cfg.inputs}, not text; interp.heads.attention_scores "
            "takes its own inputs"
        )
    report = Report(
        f"Attention heads of {model.name}",
        "What does every head do, what may it be called, and does it matter?",
        analysis="attention_heads",
        provenance=provenance(config, model),
    )
    if reader is not model:
        report.skip("The decoder's heads and cross-attention: these are the encoder's.")
    pairs = None if reader.cfg.head == "none" else task_pairs(reader, config)
    return examine(report, reader, pairs, config)


def examine(report: Report, model: Any, pairs: Pairs | None, config: Config) -> Report:
    """The report on a model and pairs of any origin; without pairs, what needs none."""
    if model.opaque:
        raise ValueError(
            f"{model.name}: {model.opaque}; heads are named by their queries and keys, which only "
            "a native model shows. attention-patterns takes any model"
        )
    chosen, lead = _chosen(model, config), None
    if pairs is None:
        report.skip("The task, and what removing a head does: this model gives no logits.")
    else:
        baseline = measure_baseline(model, pairs)
        lead = Lead(float(baseline.clean.mean()), baseline.noise)
        task_section(report, model, pairs, baseline, config)
        warn_of_one_class(report, pairs, config)
        report.sure(mean_in_words(pairs, config))
    texts = _texts(report, model, pairs, config)
    rows = heads.random_repeats(model, config.repeats, config.length, config.seed)
    roles = heads.head_roles(model, rows, pairs, draws=config.null, seed=config.seed)
    table = _table(model, rows, texts, roles, pairs)
    table = table.join(_effects(report, model, pairs, texts, config))
    fed = _composition(model)
    promoted = None if unreadable(model) else heads.promoted_tokens(model, texts)
    report.answer(answer(table)).figure(*_wall(table), name="wall")
    repetition = min(config.shown, len(texts)) + 1
    labels: dict = table.set_index(KEYS)["label"].to_dict()

    def link(layer: int, head: int) -> str:
        """To the page of a head, or to the viewer; of an induction head, at the repetition."""
        page = f"heads/L{layer}H{head}.html" if (layer, head) in chosen else ""
        anchor = f"#head-L{layer}H{head}-prompt{repetition}"
        return f"{page}{anchor if labels[layer, head] == 'induction' or not page else ''}"

    noise = 0.0 if lead is None else lead.noise
    counted = table.assign(n=0 if pairs is None else len(pairs))
    first_findings(report, counted, fed, lead, link)
    findings(report, table, roles, fed, noise, config.null, link)
    certainty(report, model, rows, texts, roles, config)
    doubts(report, model)
    _skips(report, model, roles, promoted)
    written = None if promoted is None else tokens_frame(model, promoted)
    shown = _show(report, model, table, roles, fed, written, texts, rows, noise, config)
    for layer, head in chosen:
        head_page(report, (layer, head), table, roles, fed, written, shown)
    return report


def _wall(table: pd.DataFrame) -> tuple[figures.Figure, str]:
    """The heads coloured by role, and the caption."""
    named = table[table["label"] != MIXED]
    counts = [f"{n} {role}" for role, n in named["label"].value_counts().items()]
    drawn = figures.wall(
        table[[*KEYS, "label"]],
        rows="layer",
        columns="head",
        group="label",
        order=heads.ROLES,
        quiet=MIXED,
        alt=f"Heads by layer, coloured by role: {listed(counts, 10)}; {len(table) - len(named)} "
        f"{MIXED}.",
    )
    return drawn, f"Every head by its role; {MIXED}: none that chance would not give it"


def _chosen(model: Any, config: Config) -> list[tuple[int, int]]:
    """The heads that are removed and get a page."""
    picked = []
    for name, given, size in (
        ("layers", config.layers, model.cfg.n_layers),
        ("heads", config.heads, model.cfg.n_heads),
    ):
        picked.append(range(size) if given is None else sorted(indices(given, size, name)))
    return [(layer, head) for layer in picked[0] for head in picked[1]]


def _texts(report: Report, model: Any, pairs: Pairs | None, config: Config) -> Tokens:
    """What offsets, entropies and outputs are measured on."""
    if config.text is not None:
        return text_windows(report, model, config)
    if pairs is not None:
        return model.accept(pairs.clean)
    report.skip("Text: without --text and without a task, random tokens stand in its place.")
    return heads.random_repeats(model, config.repeats, config.length, config.seed + 1)


def _table(
    model: Any, rows: Tokens, texts: Tokens, roles: pd.DataFrame, pairs: Pairs | None
) -> pd.DataFrame:
    """One row per head, in order of layers; no effects yet."""
    scores = heads.head_scores(model, rows)
    on_text = heads.attention_scores(model, texts).rename(
        columns={"bos": "first_token", "self": "itself", "entropy": "entropy_bits"}
    )
    table = heads.head_labels(roles)
    # Rows of one span have no fresh pair as far apart; then nothing is known of that control.
    scores["same_distance"] = scores["same_distance"].fillna(0.0)
    scores["induction_stderr"] = scores["induction_stderr"].fillna(0.0)
    table = table.join(scores[list(LOOKS)]).join(on_text[list(ON_TEXT)])
    table = table.join(scores[list(WEIGHTS)]).assign(end_role=NOWHERE, end_share=np.nan)
    if pairs is not None:
        looked = heads.role_attention(model, pairs.clean)
        best = looked.loc[looked.groupby(KEYS)["share"].idxmax()].reset_index(drop=True)
        table = table.assign(end_role=best["role"], end_share=best["share"])
    moves = roles[roles["role"] == "name mover"].reset_index(drop=True)
    table[list(MOVING)] = np.nan
    if len(moves):
        table["answer_attention"], table["writes_answer"] = moves["score"], moves["writes"]
        table["mover_score"] = moves["score"] * table["copying"]
    return table


def _effects(
    report: Report, model: Any, pairs: Pairs | None, texts: Tokens, config: Config
) -> pd.DataFrame:
    """What removing each head (its z set to its mean over the reference, of the loss over the texts
    themselves) changes, in order of layers; NaN where nothing was removed."""
    cfg = model.cfg
    index = pd.MultiIndex.from_product([range(cfg.n_layers), range(cfg.n_heads)], names=KEYS)
    found = pd.DataFrame(np.nan, index=index, columns=list(EFFECTS))
    sweeps = {}
    if pairs is not None:
        reference = reference_of(pairs, config.reference)
        sweeps["task"] = (pairs.clean, metric_of(pairs), reference)
    if cfg.head == "unembed" and cfg.causal:
        sweeps["loss"] = (texts, metrics.loss(), texts)
    else:
        report.skip("The effect on the loss: this model predicts no next token.")
    nodes = make_nodes(
        model, "attn.hook_z", ("layer", "head"), layers=config.layers, heads=config.heads
    )
    for name, (tokens, metric, reference) in sweeps.items():
        frame = sweep(
            model, tokens, nodes, edit=mean_edit(tokens, reference, config.per), metric=metric,
            journal=config.kept(name), allow_noop=True,
        )  # fmt: skip
        frame = frame.astype({"layer": int, "head": int}).set_index(KEYS)
        columns = [f"{name}_effect", f"{name}_stderr"]
        found.loc[frame.index, columns] = frame[["effect", "stderr"]].to_numpy()
    return found.reset_index(drop=True)


def _composition(model: Any) -> pd.DataFrame:
    """Pairs of heads, the closest first; `times` what a random direction would give."""
    cfg = model.cfg
    foldable = cfg.norm_position in ("pre", "both") and cfg.norm != "none"
    frame = heads.composition(model.folded() if foldable and not model.fwd_hooks else model)
    frame = frame.assign(times=frame["value"] / frame["baseline"])
    return frame.sort_values("times", ascending=False, kind="stable", ignore_index=True)


def _skips(report: Report, model: Any, roles: pd.DataFrame, told: pd.DataFrame | None) -> None:
    left = [role for role in heads.ROLES if role not in set(roles["role"])]
    why = {
        False: "this model attends both ways, and predicts nothing from what stood before",
        True: "neither the random repeats nor the prompts show it, or nothing is there to back up",
    }[model.cfg.causal]
    if left:
        report.skip(f"Not looked for: {', '.join(left)} ({why}).")
    if told is None:
        report.skip(f"The tokens that heads raise and lower ({unreadable(model)}).")


def _show(
    report: Report,
    model: Any,
    table: pd.DataFrame,
    roles: pd.DataFrame,
    fed: pd.DataFrame,
    written: pd.DataFrame | None,
    texts: Tokens,
    rows: Tokens,
    noise: float,
    config: Config,
) -> Attention:
    section = report.section(
        "Every head",
        "previous_token to same_distance are shares of attention on random tokens that are partly "
        "said twice, first_token to entropy_bits on the texts; end_role is the named place of the "
        "task's prompts that “end” puts most on, answer_attention what it puts on the answer, "
        "writes_answer what the head adds to answer − wrong, mover_score its attention × copying; "
        "task_effect and loss_effect are what changes when its z is replaced by its mean.",
    )
    holes = ("copying", "end_share", *MOVING, *EFFECTS)
    section.table(table, "The heads", name="heads", missing=holes, rows=40)
    if bool(table["task_effect"].notna().any()):
        frame = table[[*KEYS, "task_effect"]].dropna()
        drawn = figures.heatmap(
            frame, rows="layer", columns="head", value="task_effect",
            axis="change of the logit difference when the head is removed", noise=noise,
            alt="Heads by layer; the shade is what removing one changes in logit(answer) − "
            "logit(wrong), blue where it rises, orange where it falls.",
        )  # fmt: skip
        section.figure(drawn, "What removing each head does to the task", name="effects")
    named = roles.sort_values(["named", "p", "score"], ascending=[False, True, False])
    text = (
        "Each name with its score, that of a head that looks everywhere alike (chance), the head's "
        "own null (its queries rotated against its keys), and its p-value before and after "
        "correction (q)."
    )
    section = report.section("What they may be called", text)
    section.table(
        named, "Roles and their nulls", name="head-roles", missing=("writes",), rows=30,
        formats=CHANCES,
    )  # fmt: skip
    if len(fed):
        text = (
            "How much of what a later head reads as query, key or value lies where an earlier one "
            "writes, and how many times what a random direction would give."
        )
        report.section("Who feeds whom", text).table(
            fed, "Composition of heads", name="composition", rows=20
        )
    if written is not None:
        text = (
            "What each head writes on these texts, on the mean and of the tokens that it takes "
            "most from, through the unembedding: beyond the mean of the vocabulary, in logits."
        )
        report.section("What they write", text).table(
            written, "Tokens raised and lowered", name="head-tokens", rows=20
        )
    return _viewer(report, model, table, texts, rows, config)


@torch.no_grad()
def _viewer(
    report: Report, model: Any, table: pd.DataFrame, texts: Tokens, rows: Tokens, config: Config
) -> Attention:
    patterns, words = [], []
    for tokens, most in ((texts, config.shown), (rows, 1)):
        for row in range(min(most, len(tokens))):
            ids = tokens.ids[row][tokens.real[row]]
            one = Tokens(ids[None], bos=tokens.bos)
            cache = finite_cache(model, model.accept(one), "attn.hook_pattern")
            stacked = torch.stack([cache["attn.hook_pattern", at][0] for at in range(
                model.cfg.n_layers)])  # fmt: skip
            patterns.append(stacked.float().cpu().numpy())
            names = model.tokenizer.str_tokens if model.tokenizer else lambda x: list(map(str, x))
            words.append(names(ids.tolist()))
    scores = table[[*KEYS, "label", *SHOWN_SCORES]].dropna(axis=1)
    text = (
        "Queries downwards, keys to the right; the last prompt is a row of random tokens, partly "
        "said twice. Every head has a page of its own below."
    )
    return report.section("Where they look", text).attention(
        patterns, words, "Attention of every head", scores=scores, name="attention"
    )


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
