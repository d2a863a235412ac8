"""Patterns in reports: the bytes are the weights, what is none is refused, and pages stay small."""

from __future__ import annotations

import base64
import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest

from interp.report import Report
from interp.report import pages as pages_module
from interp.report.attention import MEASURES, TILE, check_patterns, encode, heads_table
from tests.patterns import patterns, words
from tests.test_report import HOSTILE, Page


def written(tmp_path, arrays, tokens, **options):
    report = Report("t", "q")
    report.section("s").attention(arrays, tokens, "Attention", **options)
    return report.write(tmp_path / "r").parent


def data(page) -> dict:
    block = r'<script type="application/json">(.*?)</script>'
    return json.loads(re.search(block, page.read_text("utf-8"), re.S)[1])


def unpacked(piece: str, size: int, causal: bool) -> np.ndarray:
    """What viewer.js does, by another route: through index pairs."""
    codes = np.frombuffer(gzip.decompress(base64.b64decode(piece)), np.uint8)
    if not causal:
        return codes.reshape(size, size) / 255
    whole, codes = np.zeros((size, size)), list(codes)
    for q in range(size):
        for k in range(q + 1):
            whole[q, k] = codes.pop(0) / 255
    assert not codes
    return whole


@pytest.mark.parametrize("causal", [True, False])
def test_what_the_page_carries_is_the_pattern(tmp_path, causal):
    arrays = [patterns(2, 3, n, seed=n, causal=causal) for n in (5, 9)]
    folder = written(tmp_path, arrays, [words(5), words(9)])
    content = data(folder / "index.html")
    assert (content["layers"], content["heads"], content["name"]) == (
        [0, 1],
        [0, 1, 2],
        "attention",
    )
    for array, prompt in zip(arrays, content["prompts"], strict=True):
        assert prompt["causal"] is causal
        assert prompt["size"] == array.shape[-1] == len(prompt["tokens"])
        sizes = set()
        for layer in range(2):
            for head in range(3):
                piece = prompt["pieces"][layer][head]
                sizes.add(len(gzip.decompress(base64.b64decode(piece))))
                found = unpacked(piece, prompt["size"], causal)
                assert np.abs(found - array[layer, head]).max() <= 0.5 / 255 + 1e-6
        n = prompt["size"]
        assert sizes == {n * (n + 1) // 2 if causal else n * n}


def test_the_table_of_the_heads(tmp_path):
    n = 6
    array = np.zeros((1, 3, n, n))
    array[0, 0] = np.eye(n, k=-1)
    array[0, 0, 0, 0] = 1
    array[0, 1] = np.tri(n) / np.arange(1, n + 1)[:, None]
    array[0, 2, :, 0] = 1
    frame = heads_table([array])
    assert list(frame) == ["layer", "head", *MEASURES]
    previous, uniform, first = frame.to_dict("records")
    assert previous["previous_token"] == 1
    assert previous["entropy_bits"] == 0
    assert first["first_token"] == 1
    assert first["itself"] == 0
    # A head that looks everywhere alike, by hand.
    assert uniform["itself"] == pytest.approx(np.mean([1 / q for q in range(2, n + 1)]))
    assert uniform["entropy_bits"] == pytest.approx(np.mean(np.log2(np.arange(2, n + 1))))
    two = heads_table([array, array[..., :3, :3]])
    shorter = heads_table([array[..., :3, :3]])
    np.testing.assert_allclose(two[list(MEASURES)], (frame + shorter)[list(MEASURES)] / 2)
    folder = written(tmp_path, array, words(n))
    pd.testing.assert_frame_equal(pd.read_csv(folder / "attention.csv"), frame)


def test_scores_and_labels_join_the_table(tmp_path):
    scores = pd.DataFrame(
        {"head": [1, 0], "layer": [0, 0], "label": ["=b", "<a>"], "induction": [0.25, 0.5]}
    )
    folder = written(tmp_path, patterns(1, 2, 4), words(4), scores=scores)
    frame = pd.read_csv(folder / "attention.csv")
    assert list(frame) == ["layer", "head", "label", *MEASURES, "induction"]
    assert frame["label"].tolist() == ["<a>", "'=b"]
    assert frame["induction"].tolist() == [0.5, 0.25]
    content = data(folder / "index.html")
    assert content["labels"] == ["<a>", "=b"]
    assert content["scores"]["induction"] == [0.5, 0.25]
    assert set(content["scores"]) == {*(name.replace("_", " ") for name in MEASURES), "induction"}


def with_value(value, at=(1, 0, 2, 1)):
    array = patterns(2, 2, 4)
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "tokens", "message"),
    [
        ([], [], "0 arrays of patterns for 0 lists"),
        ([patterns(1, 1, 4)] * 2, [words(4)], "2 arrays of patterns for 1 lists"),
        (patterns(2, 2, 4)[0], [words(4)], "2 arrays|float"),
        ([patterns(2, 2, 4)[0]], [words(4)], r"prompt 0: .*\[layer head q_pos k_pos\].*\[2, 4"),
        ([patterns(1, 1, 4).astype(int)], [words(4)], "prompt 0: .*floats.*int64"),
        ([patterns(1, 1, 4)[:0]], [words(4)], r"\[0, 1, 4, 4\]"),
        (patterns(1, 1, 4)[..., :3], words(4), "4 queries and 3 keys"),
        (patterns(1, 1, 4), words(5), "5 tokens for patterns of 4 positions"),
        (np.ones((1, 1, 1, 1)), ["x"], "two or more"),
        ([patterns(2, 2, 4), patterns(1, 2, 4)], [words(4)] * 2, "prompt 1: 1 layers of 2 heads"),
        (with_value(np.nan), words(4), "1 weights .* layer 1, head 0, q_pos 2, k_pos 1; .*padding"),
        (with_value(np.inf), words(4), "no finite numbers"),
        (with_value(-2.5), words(4), r'layer 1, head 0, q_pos 2, k_pos 1 is -2.5.*"attn_scores"'),
        (with_value(0.0) * 0.5, words(4), "layer 0, head 0, q_pos 0 sum to 0.5, not to 1"),
    ],
)  # fmt: skip
def test_what_is_no_pattern_is_refused_and_leaves_no_trace(unchecked, arrays, tokens, message):
    section = Report("t", "q").section("s")
    with pytest.raises(ValueError, match=message):
        section.attention(arrays, tokens, "x")
    section.attention(patterns(1, 1, 4), words(4), "x")
    assert [item.name for item in section.items] == ["x"]


def test_rows_that_bfloat16_rounded_pass():
    array = patterns(2, 2, 64)
    coarse = (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert np.abs(coarse.sum(-1) - 1).max() > 1e-3
    checked, _ = check_patterns(coarse, words(64))
    assert encode(checked, [words(64)])[0].causal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop(columns="head"), "columns layer and head"),
        (lambda s: s.iloc[:3], "scores have 3 rows; expected one for each of the 4 heads"),
        (lambda s: pd.concat([s.iloc[:3], s.iloc[:1]]), "one for each of the 4"),
        (lambda s: s.assign(itself=1.0), "'itself' is measured already"),
        (lambda s: s.assign(kind="x"), "'kind' holds no numbers; text goes in a column 'label'"),
        (lambda s: s.assign(score=np.nan), "'score' holds values that are no finite numbers"),
    ],
)
def test_scores_that_do_not_fit_are_refused(change, message):
    scores = pd.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], "score": 0.5})
    with pytest.raises(ValueError, match=message):
        Report("t", "q").section("s").attention(
            patterns(2, 2, 4), words(4), "x", scores=change(scores)
        )


def test_hostile_tokens_are_data(tmp_path):
    tokens = [*HOSTILE, "", "  ", "x" * 1_000_000]
    scores = pd.DataFrame({"layer": 0, "head": range(2), "</script>\u2028": [0.0, 1.0]})
    scores["label"] = ["</script><script>alert(1)</script>", "\u202e"]
    folder = written(tmp_path, patterns(1, 2, len(tokens)), tokens, scores=scores)
    raw = (folder / "index.html").read_text("utf-8")
    assert Page(raw).all("script") == [{"type": "application/json"}, {}]
    assert not {"\u2028", "\u202e", "\x00"} & set(raw)
    shown = data(folder / "index.html")["prompts"][0]["tokens"]
    assert shown[0] == HOSTILE[0]
    assert shown[-3:] == ["∅", "␣␣", f"{'x' * 40}… (1,000,000 characters)"]
    assert "\\ud800" in shown
    assert len(raw) < 80_000


def test_sizes(tmp_path):
    assert len(Report("t", "q").html()) < 100_000
    folder = written(tmp_path, patterns(12, 12, 64), words(64))
    assert (folder / "index.html").stat().st_size < 1_500_000


def test_past_the_limit_every_layer_has_a_page_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(pages_module, "PAGE_BYTES", 10_000)
    report = Report("Title", "Question?")
    report.finding("Something.")
    section = report.section("s")
    section.note("before")
    arrays = [patterns(3, 4, 70), patterns(3, 4, 8)]
    section.attention(arrays, [words(70), words(8)], "Attention")
    section.tokens(["a"], [1.0], "after")
    folder = report.write(tmp_path / "r").parent
    names = [f"attention-layer-{layer:02}.html" for layer in range(3)]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {*names, "index.html", "attention.csv", "after.csv"}
    index = data(folder / "index.html")
    assert index["pages"] == {str(layer): name for layer, name in enumerate(names)}
    large, small = index["prompts"]
    assert (large["size"], small["size"], len(large["tokens"])) == (TILE, 8, 70)
    # A cell of the small picture is the largest weight of those that it stands for.
    edges = [70 * i // TILE for i in range(TILE + 1)]
    found = unpacked(large["pieces"][2][1], TILE, True)
    for q, k in [(31, 0), (20, 20), (7, 3)]:
        block = arrays[0][2, 1, edges[q] : edges[q + 1], edges[k] : edges[k + 1]]
        assert found[q, k] == pytest.approx(block.max(), abs=0.5 / 255 + 1e-6)
    for layer, name in enumerate(names):
        content = data(folder / name)
        assert content["layers"] == [layer]
        assert content["prompts"][0]["size"] == 70
        piece = content["prompts"][0]["pieces"][0][3]
        assert np.abs(unpacked(piece, 70, True) - arrays[0][layer, 3]).max() <= 0.5 / 255 + 1e-6
        page = Page((folder / name).read_text("utf-8"))
        policy = [a["content"] for a in page.all("meta") if "http-equiv" in a]
        whole = Page((folder / "index.html").read_text("utf-8"))
        assert policy == [a["content"] for a in whole.all("meta") if "http-equiv" in a]
        links = {a["href"] for a in page.all("a")}
        assert {"index.html", *names} - {name} <= links
        assert "Something." not in page.text
    assert report.sections[0].items[1].pages == {}  # the report itself is as it was


def test_tokens_with_values(tmp_path):
    report = Report("t", "q")
    section = report.section("s")
    rows = [["<s>", *HOSTILE], ["a", "b", "x" * 1_000_000]]
    values = [[None, *np.linspace(0, 4, len(HOSTILE))], [0.0, 2.0, 4.0]]
    section.tokens(rows, values, "Loss")
    section.tokens(["a", "b", "c"], [-1.0, 0.5, 0.0], "Difference", unit="logits", diverging=True)
    folder = report.write(tmp_path / "r").parent
    frame = pd.read_csv(folder / "loss.csv")
    assert list(frame) == ["row", "pos", "token", "value (nats)"]
    assert frame["value (nats)"].isna().sum() == 1
    assert len(frame) == len(HOSTILE) + 4
    raw = (folder / "index.html").read_text("utf-8")
    page = Page(raw)
    tokens = [a for a in page.all("span") if "data-value" in a]
    assert [a["class"] for a in tokens[-6:]] == [
        "token s0", "token s4", "token s8", "token m8", "token s4", "token s0",
    ]  # fmt: skip
    assert tokens[-3]["data-value"] == "−1.000 logits"
    assert tokens[0]["data-value"] == ""
    assert page.all("script") == [{}]
    assert not {"\u2028", "\u202e", "\x00"} & set(raw)
    assert len(raw) < 80_000


@pytest.mark.parametrize(
    ("tokens", "values", "message"),
    [
        ([], [], "0 rows of tokens"),
        ([["a"]], [[1.0], [2.0]], "1 rows of tokens and 2"),
        (["a", "b"], [1.0], "row 0: 2 tokens and 1 values; give None"),
        (["a", "b"], [1.0, float("nan")], "row 0: the value of token 1 is nan; give None"),
        ([["a"], ["b"]], [[0.0], [-1.5]], "row 1: the value of token 0 is -1.5, .*diverging=True"),
    ],
)
def test_values_that_do_not_fit_are_refused(tokens, values, message):
    with pytest.raises(ValueError, match=message):
        Report("t", "q").section("s").tokens(tokens, values, "x")
