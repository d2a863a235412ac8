"""`interp doctor`: one card about one model, with every check that its own files allow.

Each line is a fact or a check; a check that cannot be made says why, and does not count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp.core.finite import NotFinite
from interp.core.memory import free_bytes
from interp.core.precision import HALF, dtype_name
from interp.core.tokens import Tokens
from interp.core.visible import one_line, visible_errors
from interp.model import HookedTransformer, num_params
from interp.model.identities import TOLERANCE

from . import DTYPES, CorruptFile, check_family, check_saved, load
from .beside import unread
from .check import check_tokenizer, probe
from .files import config_values, locate
from .info import ModelInfo, bytes_text, site_frame
from .reference import families
from .theirs import their_config

TEXT = "When Mary and John went to the store, John gave a drink to Mary."
N_TOKENS = 16
"""Tokens that are run where the model has no tokenizer; of a text, at most its context."""
N_NEW = 8
"""Tokens that are generated."""
MARKS = {True: "ok", False: "FAIL", None: "–"}
AUTO = {
    "none": "AutoModel",
    "mlm": "AutoModelForMaskedLM",
    "unembed": "AutoModelForCausalLM",
    "pair": "AutoModelForSeq2SeqLM",
}
"""The class of transformers that gives the same output, by `cfg.head`; of encoder–decoders."""


class Finding(NamedTuple):
    """One line of the card."""

    part: str
    """facts, identities, checks or sites."""
    what: str
    text: str
    holds: bool | None = None
    """Whether the check held; None: a fact, or a check that could not be made."""
    error: float | None = None
    """The relative error, where the check is one of numbers."""


@dataclass(frozen=True)
class Checkup:
    """What the doctor found. `str()` is the card."""

    name: str
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[Finding]:
        """The checks that did not hold."""
        return [one for one in self.findings if one.holds is False]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: name, ok, findings. JSON has no NaN: an error that is one is null."""
        findings = [one._asdict() for one in self.findings]
        for one in findings:
            if one["error"] is not None and not math.isfinite(one["error"]):
                one["error"] = None
        return {"name": self.name, "ok": self.ok, "findings": findings}

    def __str__(self) -> str:
        made = sum(one.holds is not None for one in self.findings)
        failed = len(self.failed)
        verdict = f"{failed} of {made} checks FAILED" if failed else f"{made} checks, all ok"
        lines = [f"{one_line(self.name)}: {verdict}"]
        width = max(len(one.what) for one in self.findings)
        part = ""
        for one in self.findings:
            if one.part != part:
                lines += ["", one.part.capitalize()]
                part = one.part
            mark = f"{MARKS[one.holds]:<5}" if part in ("identities", "checks") else ""
            lines.append(f"  {mark}{one.what:<{width}}  {one_line(one.text)}".rstrip())
        return "\n".join(lines)


@visible_errors()
def doctor(
    model: str | os.PathLike | HookedTransformer,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    text: str = TEXT,
) -> Checkup:
    """Examine a model on a short text: identities, parity with Hugging Face, rounding, what
    float32 changes of half-precision weights, cache.

    `model` is a name as `load` takes it, which also raises as `load` does, or a model; of the
    latter the files are not known, and what needs them is left out. Parity and rounding take
    another copy of the weights each, one after the other, and are left out where that does not fit.
    """
    folder = None
    if not isinstance(model, HookedTransformer):
        folder = locate(model).folder
        model = load(model, device, dtype, check=False)
    tokens = _tokens(model, text)
    findings = [
        *_facts(model, tokens, folder),
        _precision(model, tokens),
        *_identities(model, tokens),
        _family(model),
        *_saved(model, folder),
        _tokenizer(model),
        _huggingface(model, folder, tokens),
        _rounding(model, tokens),
        _generation(model, tokens),
        *_sites(model),
    ]
    return Checkup(model.name, findings)


def _tokens(model: HookedTransformer, text: str) -> Tokens:
    """The text (to an encoder–decoder, as its source), as far as it fits; otherwise a probe."""
    tokens = probe(model, N_TOKENS)
    if model.tokenizer is None or not _reads_words(model):
        return tokens
    ids = model.tokenizer.encode(text)[: model.cfg.n_ctx]
    if not ids or max(ids) >= model.cfg.d_vocab:
        return tokens
    given = Tokens.of([ids])
    if model.encoder is not None:
        given = dataclasses.replace(tokens, source=given)
    return model.accept(given)


def _reads_words(model: HookedTransformer) -> bool:
    return (model.cfg if model.encoder is None else model.cfg.encoder).inputs == "tokens"


def _facts(model: HookedTransformer, tokens: Tokens, folder: Path | None) -> Iterator[Finding]:
    cfg, source = model.cfg, model.source
    params = num_params(cfg, by="component")
    info = ModelInfo(model.name, source.get("family", "unknown"), cfg, params, site_frame(cfg))
    dtype = str(model.dtype).removeprefix("torch.")
    width = tokens.shape[1]
    files = sum(source.get("files", {}).values())
    where = f"{source['kind']}, {bytes_text(files)} of weights" if source else "made in memory"
    if source.get("revision"):
        where += f", revision {source['revision']}"
    vocabulary = f"{cfg.d_vocab:,} ids, {cfg.n_ctx:,} positions"
    reads = "a short text" if model.tokenizer is not None else "ids by formula (no tokenizer)"
    if not _reads_words(model):
        reads = "numbers by formula"
    facts = {
        "source": where,
        "family": info.family,
        "parameters": f"{info.n_params:,} in {cfg.n_layers} layers of {cfg.n_heads} heads",
        "vocabulary": f"{vocabulary}, head {cfg.head!r}",
        "dtype and device": f"{dtype} on {model.device}",
        "weights": bytes_text(info.weight_bytes(dtype)),
        f"activations, {width} tokens": f"{bytes_text(info.cache_bytes(width, dtype))} (all sites)",
        "examined on": f"{width} tokens: {reads}",
    }
    left = [] if folder is None else unread(folder)
    left += () if model.tokenizer is None else model.tokenizer.unread
    if left:
        facts["not read"] = ", ".join(left)
    return (Finding("facts", what, text) for what, text in facts.items())


def _identities(model: HookedTransformer, tokens: Tokens) -> Iterator[Finding]:
    """Each identity where it is worst."""
    try:
        frame = model.check_identities(tokens)
    except NotFinite as error:
        yield Finding("identities", "finite numbers", str(error), holds=False)
        return
    frame["badness"] = frame["error"].fillna(torch.inf)
    for identity, rows in frame.groupby("identity", sort=False):
        worst = rows.loc[rows["badness"].idxmax()]
        error, tolerance = float(worst["error"]), worst["tolerance"]
        text = f"worst {error:.1e} in layer {worst['layer']} (allowed {tolerance:.0e})"
        yield Finding("identities", str(identity), text, bool(rows["holds"].all()), error)


def _family(model: HookedTransformer) -> Finding:
    what, family = "family reference", model.source.get("family")
    if family not in families():
        named = f"family {family!r}" if family else "a model made in memory"
        return Finding("checks", what, f"no reference is recorded for {named}")
    found = check_family(family)
    return _compared(what, found.error, found.tolerance)


def _saved(model: HookedTransformer, folder: Path | None) -> Iterator[Finding]:
    """Of a folder in our own format, whether its files are as they were saved."""
    if folder is not None and model.source.get("family") == "interp":
        try:
            check_saved(folder)
        except CorruptFile as error:
            yield Finding("checks", "files as saved", str(error), holds=False)


def _tokenizer(model: HookedTransformer) -> Finding:
    what, tokenizer, rows = "tokenizer", model.tokenizer, model.cfg.d_vocab
    if tokenizer is None:
        return Finding("checks", what, "none: the model takes ids")
    try:
        check_tokenizer(tokenizer, model.cfg, model.name)
    except ValueError as error:
        return Finding("checks", what, str(error), holds=False)
    size, past = tokenizer.vocab_size, tokenizer.entries_past(rows)
    text = f"{size:,} entries, {rows:,} rows of embedding"
    if past:
        text += f"; past it, and refused when run: {', '.join(map(repr, past))}"
    elif size < rows:
        text += f": {rows - size:,} rows no text reaches"
    return Finding("checks", what, text, holds=True)


@torch.no_grad()
def _huggingface(model: HookedTransformer, folder: Path | None, tokens: Tokens) -> Finding:
    what = "Hugging Face forward"
    absent = _no_reference(model, folder)
    if absent:
        return Finding("checks", what, f"no reference: {absent}")
    import transformers  # takes seconds

    kind = model.cfg.head if model.encoder is None else "pair"
    try:
        config = their_config(config_values(locate(folder)), f"{folder / 'config.json'}")
        with _quiet():
            theirs = getattr(transformers, AUTO[kind]).from_pretrained(
                f"{folder}",
                config=config,
                attn_implementation="eager",
                trust_remote_code=False,
                use_safetensors=True,
                local_files_only=True,
                dtype=model.dtype,
            )
        theirs = theirs.to(model.device).eval()
        read = tokens if tokens.source is None else tokens.source
        given = {"input_ids": read.ids, "attention_mask": torch.ones_like(read.ids)}
        if tokens.source is not None:
            given["decoder_input_ids"] = tokens.ids
        result = theirs(**given)
    except Exception as error:  # noqa: BLE001  # the library raises of every kind
        reason = f"{type(error).__name__}: {error}"
        return Finding("checks", what, f"no reference: transformers could not run it ({reason})")
    expected = result.logits if "logits" in result else result.last_hidden_state
    error = relative_error(model(tokens), expected)
    return _compared(what, error, max(TOLERANCE[model.dtype], 1e-5))


def _no_reference(model: HookedTransformer, folder: Path | None) -> str | None:
    """Why there is nothing to compare with."""
    if folder is None:
        return "the model was made in memory"
    if not _reads_words(model):
        return "this compares models that read words"
    kind = config_values(locate(folder)).get("model_type")
    if kind == "interp":
        return "the folder is in interp's own format, which transformers does not read"
    import transformers

    if kind not in transformers.CONFIG_MAPPING:
        return f"transformers {transformers.__version__} has no family {kind!r}"
    return _too_large(model, model.dtype, copies=2)  # its own buffers while it loads


@torch.no_grad()
def _rounding(model: HookedTransformer, tokens: Tokens) -> Finding:
    """The output beside that of the same weights in float64."""
    what = "rounding, against float64"
    output = model(tokens)
    if not output.isfinite().all():
        text = "the output has numbers that are not finite; try dtype='float32'"
        return Finding("checks", what, text, holds=False)
    if model.dtype == torch.float64:
        return Finding("checks", what, "the model is in float64")
    absent = _too_large(model, torch.float64, copies=1)
    if absent:
        return Finding("checks", what, absent)
    error = relative_error(output, _in_dtype(model, torch.float64)(tokens))
    return _compared(what, error, TOLERANCE[model.dtype])


@torch.no_grad()
def _precision(model: HookedTransformer, tokens: Tokens) -> Finding:
    """What it changes to compute half-precision weights in float32, as analyses do on a CPU."""
    what, own = "float32 in its place", DTYPES.get(model.source.get("dtype"), model.dtype)
    half = model.dtype if model.dtype in HALF else own
    if half not in HALF:
        return Finding("facts", what, f"the model is in {dtype_name(own)} itself")
    absent = _too_large(model, torch.float32, copies=1)
    if absent:
        return Finding("facts", what, absent)
    outputs = [
        (model if model.dtype == dtype else _in_dtype(model, dtype))(tokens).double()
        for dtype in (half, torch.float32)
    ]
    if not all(bool(output.isfinite().all()) for output in outputs):
        return Finding("facts", what, "an output has numbers that are not finite")
    low, exact = outputs
    moved, size = float((low - exact).abs().max()), float(exact.abs().max())
    text = f"against {dtype_name(half)} the largest difference is {moved:.2g} of {size:.3g}"
    if model.cfg.head != "none":
        share = float((low.argmax(-1) != exact.argmax(-1)).double().mean())
        text += (
            f", and {share:.0%} of {exact.shape[:-1].numel()} positions have another first token"
        )
    return Finding("facts", what, text)


def _in_dtype(model: HookedTransformer, dtype: torch.dtype) -> HookedTransformer:
    """A copy of a model in another dtype."""
    with torch.device("meta"):
        other = type(model)(model.cfg, name=model.name)
    weights = {name: value.to(dtype) for name, value in model.state_dict().items()}
    other.load_state_dict(weights, assign=True)
    return other


@torch.no_grad()
def _generation(model: HookedTransformer, tokens: Tokens) -> Finding:
    """Logits on the key-value cache beside those of whole forwards over the same tokens."""
    what, cfg = "generation with cache", model.cfg
    if not cfg.causal or cfg.head != "unembed" or cfg.inputs != "tokens":
        return Finding("checks", what, "the model generates nothing")
    if cfg.n_ctx < 2:
        return Finding("checks", what, "the context has one position")
    n_new = min(N_NEW, cfg.n_ctx - 1)
    prompt = Tokens(tokens.ids[:, : cfg.n_ctx - n_new], source=tokens.source)
    options = {"stop_at_eos": False, "names_filter": "hook_logits"}
    try:
        done = model.generate(prompt, n_new, **options)
    except ValueError as error:  # the logits are NaN
        return Finding("checks", what, str(error), holds=False)
    cached = torch.cat([cache["hook_logits"][:, -1:] for cache in done.caches], dim=1)
    whole = model(Tokens(done.tokens.ids[:, :-1], source=tokens.source))[:, -n_new:]
    return _compared(what, relative_error(cached, whole), TOLERANCE[model.dtype])


def _sites(model: HookedTransformer) -> Iterator[Finding]:
    for site, layers, axes, _ in site_frame(model.cfg).to_numpy().tolist():
        yield Finding("sites", site, f"{layers or '–':<9} {' '.join(axes)}")
    yield Finding("sites", "in all", str(len(model.sites)))


def _compared(what: str, error: float, tolerance: float) -> Finding:
    text = f"relative error {error:.1e} (allowed {tolerance:.0e})"
    return Finding("checks", what, text, error <= tolerance, error)


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """max |ours − reference| / max |reference|, in float64; NaN where either has one."""
    ours, reference = ours.double().cpu(), reference.double().cpu()
    return float((ours - reference).abs().max() / reference.abs().max())


def _too_large(model: HookedTransformer, dtype: torch.dtype, copies: int) -> str | None:
    needed = copies * dtype.itemsize * sum(p.numel() for p in model.parameters())
    free = free_bytes(model.device)
    if free is None or needed < free:
        return None
    return f"left out: it needs {bytes_text(needed)} more memory, and {bytes_text(free)} are free"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and reports of transformers meanwhile."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
