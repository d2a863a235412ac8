"""What analyses of a task share: its prompts, its baseline, and texts of the user's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from analyses._task import TaskConfig, position_names, task_pairs, task_section
from analyses._text import read_windows
from interp.methods.baseline import Baseline, measure_baseline
from interp.methods.trace_averages import Trace
from interp.report import Report
from interp.report.spine import head_name, listed, number, plus_minus, signed
from tests.vocabularies import masked, model_of, models_by_kind


@pytest.fixture(scope="module")
def tinyworld():
    return interp.load("tinyworld", device="cpu")


def told(model, config):
    pairs = task_pairs(model, config)
    report = Report("T", "Q?")
    task_section(report, model, pairs, measure_baseline(model, pairs), config)
    return report


def test_a_model_that_can_do_the_task_is_not_warned_of(tinyworld):
    report = told(tinyworld, TaskConfig(n=20))
    assert not report.warnings
    assert "100\u00a0% of 20" in report.certainty[0]


def test_a_model_at_chance_is_named_first_and_in_red():
    model = models_by_kind()["whole words"]
    report = told(model, TaskConfig(n=40))
    assert "cannot do the task indirect-object" in report.warnings[0]
    page = report.html()
    assert page.index('class="warning"') < page.index("How sure")
    assert "cannot do the task" in report.to_markdown().split("## How sure")[0]
    assert report.manifest()["warnings"] == report.warnings


def test_the_baseline_is_the_logit_difference(tinyworld):
    pairs = task_pairs(tinyworld, TaskConfig(n=8))
    found = measure_baseline(tinyworld, pairs)
    rows, end = torch.arange(8), pairs.clean.roles["end"]
    logits = tinyworld(pairs.clean)[rows, end]
    expected = logits[rows, pairs.answer] - logits[rows, pairs.wrong]
    assert np.allclose(found.clean, expected.detach().numpy(), atol=1e-4)
    assert found.able and found.normal
    assert found.table["run"].tolist() == ["clean", "corrupted"]
    assert (found.gap > 0).all()


def test_positions_are_named_by_role_or_word(tinyworld):
    names = position_names(task_pairs(tinyworld, TaskConfig(n=8)))
    assert names[0] == "0 <s>" and names[-1].endswith("end")


def test_one_prompt_is_said_to_have_no_interval(tinyworld, tmp_path):
    (tmp_path / "mine.csv").write_text(
        "clean,corrupted,answer,wrong\n"
        "The capital of France is,The capital of Italy is,Paris,Rome\n"
    )
    config = TaskConfig(prompts=tmp_path / "mine.csv")
    report = told(tinyworld, config)
    assert any("one prompt only" in text for text in report.certainty)
    assert not any("nan" in text for text in report.certainty)


def test_a_model_without_logits_is_refused(tinyworld):
    model = model_of(masked(), causal=False, head="none", tied=False)
    with pytest.raises(ValueError, match="gives no logits"):
        task_pairs(model, TaskConfig())


def test_windows_are_whole_and_begin_alike(tinyworld, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The capital of France is Paris.\n\nThe king said that he was tired.\n")
    tokens, left = read_windows(tinyworld, path, width=6, windows=10)
    assert left is None
    assert tokens.shape == (4, 6) and bool(tokens.bos)
    words = [one for row in tokens.strings for one in row if one not in ("", "<s>")]
    assert "".join(words).replace(" ", "") == "".join(path.read_text().split())
    few, left = read_windows(tinyworld, path, width=6, windows=2)
    assert len(few) == 2 and "the first 2 windows" in left


def test_windows_keep_what_a_tokenizer_puts_around_a_text(tmp_path):
    model = models_by_kind()["masked"]
    (tmp_path / "t.txt").write_text("the king gave the book to the queen")
    tokens, _ = read_windows(model, tmp_path / "t.txt", width=6, windows=9)
    first, last = model.tokenizer.encode("", bos=None)
    for row, real in zip(tokens.ids, tokens.real, strict=True):
        assert row[0] == first and row[real][-1] == last


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "no line"), (b"\xff\xfe\x00", "not UTF-8"), (b"\n \n", "no line")],
)
def test_texts_that_cannot_be_read_are_named(tinyworld, tmp_path, data, message):
    (tmp_path / "t.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_windows(tinyworld, tmp_path / "t.txt", width=8, windows=4)


def test_phrases():
    assert listed([]) == "none" and listed(["a"]) == "a" and listed("abc") == "a, b and c"
    assert listed(range(10), most=3) == "0, 1, 2 and 7 more"
    assert head_name(3, 1) == "L3 H1"
    assert plus_minus(1.234, 0.1) == "1.23 ± 0.10" and plus_minus(1.0, float("nan")) == "1.00"
    assert plus_minus(-1.234, 0.1, "+z.1f") == "−1.2 ± 0.1"
    assert number(-0.001) == "0.00" and number(-1.5, "g") == "−1.5"
    assert signed(-0.001) == "+0.00" and signed(-2.5, 1) == "−2.5"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("errors", "is_normal"), [(0.0, False), (1.5, False), (1.99, False),
                                                   (2.01, True), (30.0, True)])  # fmt: skip
def test_shares_of_a_gap_are_stated_from_two_standard_errors_on(errors, is_normal, sign):
    """A gap whose mean lies so many standard errors from zero, by hand: −1, 0 and 1 have the
    standard error 1 / √3."""
    gap = sign * errors / 3**0.5 + np.array([-1.0, 0.0, 1.0])
    assert Baseline(gap, np.zeros(3), pd.DataFrame()).normal is is_normal


@pytest.mark.parametrize(("errors", "is_traceable"), [(1.0, False), (1.99, False), (2.01, True),
                                                      (-5.0, False)])  # fmt: skip
def test_a_trace_begins_where_noise_costs_two_standard_errors(errors, is_traceable):
    none = pd.DataFrame()
    lost = pd.DataFrame({"metric": ["prob"], "effect": [errors * 0.1], "stderr": [0.1]})
    assert Trace(none, lost, none, none).traceable is is_traceable
