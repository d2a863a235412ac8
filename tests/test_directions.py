"""Directions: kept as they were found, refused where they do not belong, measured by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from interp import edits, geometry, metrics
from interp.core.tokens import Tokens
from interp.data.activations import vectors_at
from interp.methods.directions import (
    Direction,
    cosines,
    difference_of_means,
    pair_direction,
    promoted_tokens,
    word_direction,
)
from interp.methods.steering import causal_check, dormancy
from interp.sweeps import rerun
from interp.zoo import planted

from .strategies import random_model, small_config

SITE = "blocks.0.hook_resid_post"
IDS = torch.randint(29, (8, 5), generator=torch.Generator().manual_seed(0))
METRIC = metrics.logit_diff(torch.full((8,), 3), torch.full((8,), 4))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(n_layers=2, d_model=16))


def direction(width=16, seed=0, **facts):
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Direction(vector, **{"site": SITE, "origin": "drawn", **facts})


def test_difference_of_means_is_one():
    x = torch.randn(50, 6, dtype=torch.float64)
    y = torch.arange(50) % 2
    found = difference_of_means(x, y, site=SITE, model="m")
    assert torch.allclose(found.vector, x[1::2].mean(0) - x[::2].mean(0))
    assert torch.allclose(found.mean, x.mean(0))
    assert found.scale == pytest.approx(float((x @ found.unit).std()))
    assert found.along(x).mean().abs() < 1e-12
    assert torch.allclose(found.along(x), (x - x.mean(0)) @ found.vector / found.vector.norm())
    shuffled = torch.where(y == 1, 2, 0)
    with pytest.raises(ValueError, match=r"values \[0, 2\]"):
        difference_of_means(x, shuffled, site=SITE)
    with pytest.raises(ValueError, match="must not be zero"):
        difference_of_means(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]), site=SITE)


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_pairs_share_their_axis(method):
    generator = torch.Generator().manual_seed(0)
    axis = torch.nn.functional.normalize(torch.randn(20, generator=generator), dim=0).double()
    first = torch.randn(30, 20, generator=generator, dtype=torch.float64)
    noise = 0.05 * torch.randn(30, 20, generator=generator, dtype=torch.float64)
    found = pair_direction(first, first + axis + noise, site=SITE, method=method)
    assert found.unit @ axis > 0.99
    assert pair_direction(first + axis, first, site=SITE, method=method).unit @ axis < -0.99
    assert "30 pair" in found.origin


def test_words_of_a_planted_table_give_its_axis():
    known = planted.vocabulary()
    table = geometry.embedding(known.model)
    for method in ("mean", "pca"):
        pairs = planted.words.RELATIONS["gender"]
        found = word_direction(table, pairs, site="hook_embed", method=method)
        assert found.unit @ known.truth.directions["gender"][0] == pytest.approx(1, abs=1e-9)
        assert np.allclose(found.unit, table.direction(pairs, method), atol=1e-9)
    with pytest.raises(ValueError, match="at least one pair"):
        word_direction(table, [], site="hook_embed")


def test_a_file_gives_back_what_was_saved(tmp_path):
    found = direction(mean=torch.ones(16, dtype=torch.float64), scale=2.5, seed=7, model="m")
    again = Direction.load(found.save(tmp_path / "d.safetensors"))
    assert torch.equal(again.vector, found.vector) and torch.equal(again.mean, found.mean)
    for name in ("site", "origin", "model", "seed", "scale"):
        assert getattr(again, name) == getattr(found, name)
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]
    plain = Direction.load(direction().save(tmp_path / "e.safetensors"))
    assert plain.mean is None and plain.scale is None
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no direction"):
        Direction.load(tmp_path / "bad.safetensors")
    with pytest.raises(FileNotFoundError):
        Direction.load(tmp_path / "none.safetensors")


def test_another_width_is_refused_naming_both(model):
    with pytest.raises(
        ValueError, match=r"of 16 numbers was found at .* whose activations have 64"
    ):
        direction().check(model, ("mlp.hook_post", 1))
    narrow = random_model(small_config(d_model=8, n_heads=2, d_mlp=64))
    for act in (
        lambda: promoted_tokens(narrow, direction()),
        lambda: causal_check(narrow, IDS, direction(), METRIC, progress=False),
        lambda: dormancy(narrow, IDS, direction(), METRIC, progress=False),
    ):
        with pytest.raises(ValueError, match=r"of 16 numbers .* whose activations have 8"):
            act()
    assert direction().check(model) == SITE
    assert direction(64).check(model, ("mlp.hook_post", 1)) == "blocks.1.mlp.hook_post"
    with pytest.raises(ValueError, match="one vector per position"):
        direction().check(model, ("pattern", 0))


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_direction_is_refused():
    for vector, message in (
        (torch.zeros(3), "must not be zero"),
        (torch.ones(2, 2), r"one finite vector \[d\]"),
        (torch.tensor([1.0, float("nan")]), "finite: False"),
    ):
        with pytest.raises(ValueError, match=message):
            Direction(vector, SITE, "drawn")
    with pytest.raises(ValueError, match="mean has shape"):
        Direction(torch.ones(3), SITE, "drawn", mean=torch.ones(4))


def test_cosines_are_cosines():
    named = {str(seed): direction(seed=seed) for seed in range(3)}
    frame = cosines(named)
    assert frame[["a", "b"]].to_numpy().tolist() == [["0", "1"], ["0", "2"], ["1", "2"]]
    for row in frame.itertuples():
        expected = torch.cosine_similarity(named[row.a].vector, named[row.b].vector, dim=0)
        assert row.cosine == pytest.approx(float(expected))
    drawn = {str(seed): direction(400, seed) for seed in range(40)}
    wide = cosines(drawn)
    assert (wide["cosine"].abs() > wide["chance"]).mean() == pytest.approx(0.05, abs=0.03)
    with pytest.raises(ValueError, match="unequal width"):
        cosines({"a": direction(3), "b": direction(4)})


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "none"])
def test_promoted_tokens_are_those_whose_logits_rise(norm):
    """Second route: the logits of a model without blocks' outputs, moved by a long step."""
    model = random_model(small_config(n_layers=1, d_model=16, norm=norm, final_norm=True))
    own = direction()
    far = torch.nn.functional.normalize(own.vector, dim=0) * 1e6
    logits = (
        model.to_logits(far[None, None])[0, 0]
        - model.to_logits(torch.zeros(1, 1, 16).double())[0, 0]
    )
    frame = promoted_tokens(model, own, k=5)
    order = logits.argsort(descending=True)
    assert frame[frame.side == "promoted"]["id"].tolist() == order[:5].tolist()
    assert frame[frame.side == "suppressed"]["id"].tolist() == order.flip(0)[:5].tolist()
    z = (logits - logits.mean()) / logits.std()
    assert np.allclose(frame["z"], z[frame["id"].to_numpy().copy()], atol=1e-4)
    assert frame["token"].tolist() == [str(i) for i in frame["id"]]
    with pytest.raises(ValueError, match="k=30"):
        promoted_tokens(model, own, k=30)
    blind = random_model(small_config(n_layers=1, d_model=16, head="none"))
    with pytest.raises(ValueError, match="head='none'"):
        promoted_tokens(blind, own)


@pytest.mark.parametrize("pos", ["all", 2, None])
def test_every_row_is_the_edit_done_by_hand(model, pos):
    own = direction()
    frame = causal_check(
        model, IDS, own, METRIC, factors=(-1.0, 2.0), n_random=2, pos=pos,
        off_target=metrics.loss(), progress=False,
    )  # fmt: skip
    assert len(frame) == 5 * 3 and not frame.isna().any(axis=None)
    x = vectors_at(model, IDS, SITE, pos)
    assert len(x) == (40 if pos == "all" else 8)
    sd = float((x @ own.unit).std())
    at = slice(None) if pos == "all" else slice(4, 5) if pos is None else slice(pos, pos + 1)

    def logit(change):
        def hook(resid, hook):
            resid[:, at] = change(resid[:, at])

        logits = model.with_hooks([(SITE, hook)])(IDS)[:, -1]
        return logits[:, 3] - logits[:, 4]

    base, unit = logit(lambda x: x), own.unit
    found = frame[frame.arm == "found"].set_index("factor")
    for factor in (-1, 2):
        change = logit(lambda x, f=factor: x + f * sd * unit) - base
        assert found.loc[factor, "effect"] == pytest.approx(float(change.mean()), rel=1e-9)
        assert found.loc[factor, "size"] == pytest.approx(float(change.abs().mean()), rel=1e-9)
        assert found.loc[factor, "step"] == pytest.approx(factor * sd)
    change = logit(lambda x: x - (x @ unit)[..., None] * unit) - base
    assert found.loc[0, "effect"] == pytest.approx(float(change.mean()), rel=1e-9)
    again = causal_check(model, IDS, own, METRIC, factors=(-1.0, 2.0), n_random=2, pos=pos,
                         progress=False)  # fmt: skip
    pd.testing.assert_frame_equal(again, frame[again.columns])
    other = causal_check(model, IDS, own, METRIC, factors=(2.0,), n_random=2, pos=pos, seed=1,
                         progress=False)  # fmt: skip
    assert not set(other[other.arm != "found"]["effect"]) & set(frame["effect"])


def test_a_stopped_check_goes_on_from_its_journal(model, tmp_path, monkeypatch):
    options = {"factors": (1.0,), "n_random": 2, "off_target": metrics.loss(), "progress": False,
               "journal": tmp_path / "check.jsonl"}  # fmt: skip
    frame = causal_check(model, IDS, direction(), METRIC, **options)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(rerun.Rerun, "measure", None)  # nothing is measured again
    again = causal_check(model, IDS, direction(), METRIC, **options)
    pd.testing.assert_frame_equal(again, frame)


def test_p_is_a_rank_among_the_draws(model):
    frame = causal_check(
        model, IDS, direction(), METRIC, factors=(1.0,), n_random=6, progress=False
    )
    for _, some in frame.groupby("action"):
        for kind in ("random", "covariance"):
            draws = some[some.arm == kind]
            assert sorted(draws[f"p_{kind}"]) == pytest.approx([(i + 1) / 6 for i in range(6)])
            own = some[some.arm == "found"].iloc[0]
            above = int((draws["size"] >= own["size"]).sum())
            assert own[f"p_{kind}"] == pytest.approx((1 + above) / 7)


def test_a_random_direction_is_not_found_to_matter(model):
    """The null control: p is uniform, so of ten directions few are below .2."""
    low = 0
    for seed in range(10):
        frame = causal_check(model, IDS, direction(seed=100 + seed), METRIC, factors=(1.0,),
                             n_random=4, seed=seed, progress=False)  # fmt: skip
        low += int(frame.query("arm == 'found' and action == 'steer'")["p_random"].item() <= 0.2)
    assert low <= 5  # 2 expected; 6 or more in .6 %


def test_what_cannot_be_steered_is_an_error(model):
    metric = metrics.logit_diff(torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))
    constant = Tokens.of(torch.full((3, 1), 2))
    for step in (None, 0.5):
        with pytest.raises(ValueError, match="do not vary over these tokens, so that no control"):
            causal_check(model, constant, direction(), metric, step=step, progress=False)
    line = Tokens.of([[2], [3], [2]])  # two different vectors vary along one line
    x = vectors_at(model, line, SITE, "all").double()
    along = (x[1] - x[0]) / (x[1] - x[0]).norm()
    vector = direction().unit
    across = Direction(vector - (vector @ along) * along, SITE, "made")
    with pytest.raises(ValueError, match="do not vary along the direction"):
        causal_check(model, line, across, metric, progress=False)
    kept = causal_check(model, line, across, metric, step=0.5, factors=(1.0,), n_random=1,
                        progress=False)  # fmt: skip
    assert kept.query("action == 'steer'")["effect"].abs().min() > 0
    with pytest.raises(ValueError, match="factors other than 0"):
        causal_check(model, IDS, direction(), METRIC, factors=(0.0, 1.0), progress=False)
    with pytest.raises(ValueError, match="do not vary over these tokens"):
        dormancy(model, Tokens.of([[2]]), direction(), metric, progress=False)
    with pytest.raises(ValueError, match="explained=0"):
        dormancy(model, IDS, direction(), METRIC, explained=0.0, progress=False)


def test_parts_of_a_direction_add_up(model):
    own = direction()
    frame = dormancy(model, IDS, own, METRIC, explained=0.7, progress=False).set_index("part")
    assert frame.loc["varies", "share"] + frame.loc["dormant", "share"] == pytest.approx(1)
    x = vectors_at(model, IDS, SITE, "all")
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    shares = values.flip(0).cumsum(0) / values.sum()
    rank = int((shares < 0.7).sum()) + 1
    inside = vectors.flip(1)[:, :rank]
    assert frame.loc["varies", "share"] == pytest.approx(float((inside.T @ own.unit).norm() ** 2))
    assert frame.loc["varies", "expected"] == rank / 16
    everything = dormancy(model, IDS, own, METRIC, explained=1.0, progress=False)
    assert everything.attrs["dormant_effect"] == 0.0
    assert everything["share"].tolist() == pytest.approx([1, 1, 0])
    edit = edits.add(own.unit, everything.attrs["step"])
    assert edit.direction == "steer"


@pytest.mark.parametrize("given", [[1, 2, 0], np.array([1.0, 2, 0]), torch.tensor([1, 2, 0])])
def test_a_direction_of_any_numbers_is_that_vector(unchecked, given):
    found = Direction(given, SITE, "made", mean=given)
    assert found.vector.tolist() == [1, 2, 0] and found.unit.dtype == torch.float64
    assert float(found.along(torch.tensor([[1.0, 2, 5]]))) == 0
    for wrong in ([True, False], torch.tensor([True]), torch.tensor([1j]), "abc", [1.0, None]):
        with pytest.raises(ValueError, match=r"^vector"):
            Direction(wrong, SITE, "made")


@pytest.mark.parametrize("labels", [[0.5, 1.0], [0, 1.5], [0, 2], [0, -1]])
def test_labels_are_0_and_1_and_are_not_cut_to_them(unchecked, labels):
    with pytest.raises(ValueError, match="expected 0 and 1"):
        difference_of_means(torch.eye(2), torch.tensor(labels), site=SITE)
    for good in ([0, 1], [0.0, 1.0], [False, True]):
        found = difference_of_means(torch.eye(2), torch.tensor(good), site=SITE)
        assert found.vector.tolist() == [-1, 1]


def test_activations_that_do_not_vary_have_no_control(model):
    same = IDS[:1].repeat(8, 1)
    with pytest.raises(ValueError, match="do not vary over these tokens, so that no control"):
        causal_check(model, same, direction(), METRIC, pos=-1, step=1.0, progress=False)
