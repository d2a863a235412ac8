"""Causal tracing as a report: prompts of one's own, models of other kinds, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import interp
from analyses.causal_tracing import Config, run
from tests.vocabularies import model_of, models_by_kind, whole_words


def frame_of(report, name):
    items = [item for section in report.sections for item in section.items]
    return next(item.frame for item in items if getattr(item, "name", "") == name)


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "clean,corrupted,answer,wrong,role:subject\n"
        "I know the old king of Spain is,I know the old queen of France is,Paris,Rome,"
        "king of Spain\n"
        "I know the king is,I know the city is,Rome,Paris,king\n"
    )
    return path


def test_capitals_are_traced_in_tinyworld():
    report = run(interp.load("tinyworld", device="cpu"), Config(n=6, draws=1))
    assert not report.warnings
    totals, effects = frame_of(report, "total-effect"), frame_of(report, "effects")
    subject, other = totals[totals["metric"] == "prob"]["effect"]
    assert subject > 0.3 and subject > 2 * other
    prob = effects[effects["metric"] == "prob"].set_index(["site", "place", "layer"])["effect"]
    assert prob["hook_resid_post", "last token", 3] == pytest.approx(subject, abs=1e-4)
    assert (prob.loc[:, "before the subject"] == 0).all()
    best = prob.groupby(["site", "place"]).max()
    assert best["hook_mlp_out"].max() > subject / 2  # where, depends on how it was trained
    at_subject = best.xs("last subject token", level="place")
    (told,) = [text for text in report.findings if text.startswith("Noise on the subject")]
    for more, less, name in (
        ("hook_mlp_out", "hook_attn_out", "the MLP"),
        ("hook_attn_out", "hook_mlp_out", "attention"),
    ):
        if f"{name} brings back more" in told:
            assert at_subject[more] > at_subject[less]
        assert f"{at_subject[more]:.2f}" in told
    assert len(frame_of(report, "noised")) == 6


def test_ones_own_subjects_are_their_words(own):
    report = run(model_of(whole_words()), Config(prompts=own, draws=1))
    words = frame_of(report, "noised")
    assert words["subject"].tolist() == ["king of Spain", "king"]
    assert [len(one.split()) for one in words["other"]] == [3, 1]
    places = set(frame_of(report, "effects")["place"])
    assert {"first subject token", "middle subject tokens", "last subject token"} <= places
    by_difference = Config(prompts=own, draws=1, subject="verb")
    with pytest.raises(ValueError, match="subject='verb': own has the roles subject, end"):
        run(model_of(whole_words()), by_difference)


def test_one_prompt_has_no_interval(own):
    own.write_text("\n".join(own.read_text().splitlines()[:2]) + "\n")
    report = run(model_of(whole_words()), Config(prompts=own, draws=2))
    told = [*report.findings, *report.certainty, *report.warnings]
    assert not any("nan" in text for text in told)
    assert frame_of(report, "effects")["low"].isna().all()
    assert np.isfinite(frame_of(report, "effects")["effect"]).all()


def test_what_stands_behind_the_answer_and_what_is_not_there():
    masked = run(models_by_kind()["masked"], Config(n=3, draws=1, task="gendered-pronoun"))
    places = frame_of(masked, "effects")["place"]
    assert (places == "behind the last token").any()
    bare = run(model_of(whole_words(), d_mlp=0), Config(n=3, draws=1))
    assert any("no MLP to restore" in text for text in bare.skipped)
    assert "hook_mlp_out" not in set(frame_of(bare, "effects")["site"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0.0}, "noise=0.0"),
        ({"noise": float("inf")}, "noise=inf"),
        ({"draws": 0}, "draws=0"),
        ({"window": 0}, "window=0"),
        ({"n": 0}, "n=0"),
    ],
)
def test_bad_configs_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_a_window_wider_than_the_model_is_an_error():
    with pytest.raises(ValueError, match="window=9: expected 1 to 1 layers"):
        run(model_of(whole_words()), Config(n=2, window=9))
