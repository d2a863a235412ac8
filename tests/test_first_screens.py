"""First screens of analyses that remove, patch and trace: a true sentence for every outcome, short
findings that lead somewhere."""

from __future__ import annotations

import dataclasses
import re

import pandas as pd
import pytest
import torch

from analyses import activation_patching, causal_tracing, head_ablation
from interp.data.tasks import Pairs
from interp.report import Report, figures
from tests.one_class import one_class_model, pairs_of_one_class
from tests.test_analyses_rounding import faint
from tests.vocabularies import model_of, whole_words

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = 25
ABLATION = {"top": 1, "random_sets": 1}
PATCHING = {"top": 2, "parts": ("stream", "heads")}


def examined(module, model, pairs: Pairs, **options) -> Report:
    report = Report("T", "Q?")
    module.examine(report, model, pairs, module.Config(**options))
    return report


def check(report: Report) -> str:
    """The answer, of a report whose first screen is short and whose sentences lead somewhere."""
    assert "<h1" in report.html()  # which raises where a sentence leads nowhere
    assert not re.search(r"\bnan\b", report.headline)
    screen = report.first_screen()
    assert screen.answer and screen.items
    for sentence in screen.findings:
        assert sentence.at is None or len(sentence.split()) <= WORDS, sentence
    return report.headline


@pytest.fixture
def unable():
    """The right answer is the wrong one."""
    pairs = pairs_of_one_class(mixed=True)
    return dataclasses.replace(pairs, answer=pairs.wrong, wrong=pairs.answer)


@pytest.mark.parametrize("kinds", [("mean",), ("zero", "mean"), ("mean", "zero", "resample")])
def test_head_ablation_names_the_head_that_is_needed(kinds):
    """In this model one head reads the class, and the others do nothing."""
    pairs = pairs_of_one_class(mixed=True)
    report = examined(head_ablation, one_class_model(), pairs, kinds=kinds, **ABLATION)
    text = check(report)
    assert (text.startswith("One head, L0 H") and text.endswith("logits.")) or "wrong" in text
    assert report.first_screen().items[0].name == f"heads-{kinds[0]}"
    assert len(report.first_screen().findings) == 3


def test_head_ablation_without_anything_to_name(unable):
    pairs = pairs_of_one_class(mixed=True)
    silent = check(examined(head_ablation, faint(1e-9), pairs, **ABLATION))
    assert silent.startswith("No head matters by itself: without any one of")
    wrong = check(examined(head_ablation, one_class_model(), unable, **ABLATION))
    assert wrong == "The model cannot do this task, so no head can be said to carry it."
    single = check(examined(head_ablation, one_class_model(), pairs[[0]], **ABLATION))
    assert single.startswith("On this one prompt L0 H")
    few = check(examined(head_ablation, one_class_model(), pairs[[0, 1]], least=0.99, **ABLATION))
    assert few.startswith(("No single head is surely needed; L0 H", "One head"))


def test_activation_patching_says_where_and_which(unable):
    pairs = pairs_of_one_class(mixed=True)
    text = check(examined(activation_patching, one_class_model(), pairs, **PATCHING))
    assert text.startswith("What decides the answer") and "; head L0 H" in text
    heads = check(examined(activation_patching, one_class_model(), pairs, top=2, parts=("heads",)))
    assert heads.startswith("Head L0 H") and heads.endswith("of the answer.")
    stream = check(examined(activation_patching, one_class_model(), pairs, parts=("stream",)))
    assert stream.startswith("What decides the answer") and "head" not in stream
    wrong = check(examined(activation_patching, one_class_model(), unable, **PATCHING))
    assert wrong == "No place can be named, since the model cannot do this task."
    silent = check(examined(activation_patching, faint(1e-9), pairs, **PATCHING))
    assert "no single one of" in silent or silent.startswith("No place can be named")
    single = check(examined(activation_patching, one_class_model(), pairs[[0]], **PATCHING))
    assert single.startswith("What decides the answer")
    outputs = examined(activation_patching, one_class_model(), pairs, parts=("outputs",))
    assert outputs.opening is None and check(outputs).startswith("Of single sublayer outputs")


def test_causal_tracing_of_an_untrained_model_has_nothing_to_trace():
    torch.manual_seed(0)
    report = causal_tracing.run(model_of(whole_words()), causal_tracing.Config(n=3, draws=1))
    text = check(report)
    assert text.startswith(("There is nothing to trace", "The answer comes back most"))
    assert report.findings[0].startswith("With noise on the subject's words the probability of")


def test_maps_side_by_side_share_their_rows_and_say_what_is_wrong():
    frame = pd.DataFrame(
        {"map": list("aab"), "layer": [0, 1, 0], "at": [0, 0, 2], "share": [0.5, -1.0, 0.1]}
    )
    options = {"panel": "map", "rows": "layer", "columns": "at", "value": "share", "axis": "x"}
    figure = figures.heatmaps(frame, **options, alt="y", names={"b": ["p", "q", "r"]}, noise=0.2)
    assert figure.svg.count(b"<svg") == 1 and figure.data is frame
    assert b"fill: " + figures.canvas.RULE.encode() in figure.svg
    with pytest.raises(ValueError, match="at 2 has no name"):
        figures.heatmaps(frame, **options, alt="y", names={"b": ["p"]})
    with pytest.raises(ValueError, match="more than once"):
        figures.heatmaps(pd.concat([frame, frame]), **options, alt="y")
    with pytest.raises(ValueError, match="no rows"):
        figures.heatmaps(frame[:0], **options, alt="y")
