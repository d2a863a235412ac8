"""The shape of a table of vectors: exact against all pairs, known shapes, and controls."""

from __future__ import annotations

from inspect import unwrap

import numpy as np
import pytest
from scipy.stats import norm, ortho_group

from interp.methods.geometry import Embedding, cosines
from interp.methods.geometry.spectrum import (
    components_for,
    entropy_rank,
    participation,
    principal_axes,
)

SEEDS = range(5)


def table_of(vectors) -> Embedding:
    return Embedding(np.asarray(vectors), [f"w{i}" for i in range(len(vectors))])


def gaussian(n: int, d: int, seed: int = 0, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + mean


def all_pairs(vectors: np.ndarray) -> np.ndarray:
    """The cosine of every two rows, one by one."""
    return np.array(
        [
            u @ v / np.linalg.norm(u) / np.linalg.norm(v)
            for i, u in enumerate(vectors)
            for j, v in enumerate(vectors)
            if i != j
        ]
    )


@pytest.mark.parametrize("shape", [(40, 7), (12, 30)])
def test_anisotropy_is_the_mean_over_all_pairs(shape):
    vectors = gaussian(*shape, mean=0.4)
    found = table_of(vectors).anisotropy(removed=(1, 2))
    assert found.columns.tolist() == [
        "treatment", "removed", "mean_cosine", "deviation", "control", "control_deviation",
    ]  # fmt: skip
    centred = vectors - vectors.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=False)[2]
    changed = [vectors, centred]
    changed += [centred - centred @ directions[:k].T @ directions[:k] for k in (1, 2)]
    for row, rows in zip(found.itertuples(), changed, strict=True):
        every = all_pairs(rows)
        assert row.mean_cosine == pytest.approx(every.mean(), abs=1e-12)
        assert row.deviation == pytest.approx(every.std(), abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_common_direction_is_found_and_goes_with_the_mean(seed):
    """Every row is a Gaussian vector and 2 along one axis: cos ≈ 4 / (4 + d)."""
    vectors = gaussian(2000, 12, seed)
    vectors[:, 0] += 2.0
    found = table_of(vectors).anisotropy(seed=seed).set_index("treatment").mean_cosine
    assert found["as they are"] == pytest.approx(4 / (4 + 12), abs=0.05)
    assert found["centred"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_large_component_goes_when_it_is_removed(seed):
    """Two groups on one axis have no common mean, and a wide deviation until that axis is gone."""
    vectors = gaussian(1500, 30, seed)
    vectors[:, 3] += 8 * np.sign(gaussian(1500, 1, seed + 100)[:, 0])
    found = table_of(vectors).anisotropy(removed=(1,), seed=seed)
    assert found.deviation[1] > 0.6
    assert found.deviation[2] == pytest.approx(1 / np.sqrt(29), rel=0.05)


@pytest.mark.parametrize("seed", SEEDS)
def test_gaussian_vectors_are_like_their_control(seed):
    table = table_of(gaussian(900, 40, seed))
    for row in table.anisotropy(seed=seed + 50).itertuples():
        assert row.mean_cosine == pytest.approx(row.control, abs=5e-3)
        assert row.deviation == pytest.approx(row.control_deviation, rel=0.03)
    for row in table.dimension(seed + 50).itertuples():
        few = row.measure == "standard deviation of norms"
        assert row.value == pytest.approx(row.control, rel=0.15 if few else 0.02)


def test_vectors_of_length_zero_have_the_cosine_zero():
    found = table_of([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).anisotropy(removed=())
    assert found.mean_cosine[0] == pytest.approx(1 / 3)


def test_effective_dimension_of_known_spectra():
    assert participation(np.ones(7)) == pytest.approx(7)
    assert entropy_rank(np.r_[np.ones(7), np.zeros(3)]) == pytest.approx(7)
    assert components_for(np.ones(10)) == 9
    assert components_for(np.array([9.0, 1.0])) == 1
    assert components_for(np.array([8.9, 1.1])) == 2
    assert participation(np.array([3.0, 1.0])) == pytest.approx(16 / 10)


@pytest.mark.parametrize("n", [20, 400])
def test_a_flat_table_in_a_turned_space_has_the_dimension_it_has(n):
    """Four equal variances, turned into 60 dimensions; more rows than dimensions, and fewer."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(n, 4)) - 0)[0]
    basis -= basis.mean(axis=0)
    flat = np.linalg.qr(basis)[0] @ ortho_group.rvs(60, random_state=0)[:4] + 5.0
    found = table_of(flat).dimension().set_index("measure").value
    assert found["participation ratio"] == pytest.approx(4, abs=1e-6)
    assert found["entropy rank"] == pytest.approx(4, abs=1e-4)
    assert found["components for 90% of variance"] == 4
    norms = np.linalg.norm(flat, axis=1)
    assert found["mean norm"] == pytest.approx(norms.mean())
    assert found["standard deviation of norms"] == pytest.approx(norms.std())


@pytest.mark.parametrize("shape", [(50, 9), (9, 50)])
def test_the_spectrum_is_that_of_the_covariance(shape):
    vectors = gaussian(*shape, mean=3.0) * np.linspace(1, 3, shape[1])
    found = table_of(vectors).spectrum()
    expected = np.linalg.eigvalsh(np.cov(vectors.T, ddof=0))[::-1][: len(found)]
    assert found.variance.to_numpy() == pytest.approx(expected, abs=1e-9)
    assert found.cumulative.iloc[-1] == pytest.approx(1)
    assert found["share"].sum() == pytest.approx(1)
    mean, variances, directions = principal_axes(vectors)
    along = (vectors - mean) @ directions.T
    assert (along**2).mean(axis=0) == pytest.approx(variances, abs=1e-9)


def test_the_control_has_the_shape_and_size_of_the_table():
    table = Embedding((gaussian(300, 20) * 7).astype(np.float32), [str(i) for i in range(300)])
    size = table.dimension().set_index("measure").loc["mean norm"]
    assert size.control == pytest.approx(size.value, rel=0.02)
    assert table.dimension(1).equals(table.dimension(1))
    assert not table.dimension(1).equals(table.dimension(2))


def test_the_histogram_of_random_vectors_is_what_theory_says():
    found = table_of(gaussian(3000, 64)).cosine_histogram(bins=30, pairs=50_000)
    assert found.columns.tolist() == ["low", "high", "share", "random", "normal"]
    for name in ("share", "random", "normal"):
        assert found[name].sum() == pytest.approx(1, abs=1e-3)
    assert np.abs(found["share"] - found["random"]).max() < 0.01
    assert np.abs(found["share"] - found["normal"]).max() < 0.01
    assert (found.high - found.low).std() < 1e-12


def test_the_histogram_shows_a_common_direction_and_centring_takes_it_away():
    table = table_of(gaussian(3000, 64, mean=0.5))
    shifted = table.cosine_histogram(pairs=20_000)
    assert shifted["share"][shifted.low >= 0].sum() > 0.9
    assert shifted["random"][shifted.low >= 0].sum() == pytest.approx(0.5, abs=0.03)
    centred = table.cosine_histogram(pairs=20_000, centre=True)
    assert centred["share"][centred.low >= 0].sum() == pytest.approx(0.5, abs=0.03)


def test_sampled_pairs_are_never_a_row_with_itself():
    found = table_of(np.eye(3)).cosine_quantiles(at=(0.0, 1.0), pairs=5000)
    assert found.cosine.tolist() == [0.0, 0.0]
    assert table_of(np.eye(2) * [1, -1]).orthogonality(pairs=1000).share.tolist() == [1] * 5


@pytest.mark.parametrize("d", [2, 10, 300])
def test_random_cosines_are_those_of_random_vectors(d):
    rng = np.random.default_rng(0)
    own = cosines.random_cosines(d, 10_000, rng)
    u, v = rng.normal(size=(2, 10_000, d))
    direct = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    at = np.linspace(0.02, 0.98, 9)
    assert np.abs(np.quantile(own, at) - np.quantile(direct, at)).max() < 0.06
    assert own.var() == pytest.approx(1 / d, rel=0.08)


def test_near_orthogonality_of_random_vectors_and_of_copies():
    found = table_of(gaussian(2000, 100)).orthogonality(within=(0.1, 0.2), pairs=50_000)
    theory = norm.cdf([0.1, 0.2], scale=0.1) - norm.cdf([-0.1, -0.2], scale=0.1)
    for name in ("share", "random", "normal"):
        assert found[name].to_numpy() == pytest.approx(theory, abs=0.01)
    copies = table_of(np.tile(gaussian(1, 100), (50, 1)))
    assert copies.orthogonality(pairs=1000).share.tolist() == [0] * 5


def test_as_many_directions_as_are_promised_do_fit():
    """The bound is meant to be safe: so many random directions, nearly never one pair too near."""
    n = int(cosines.could_hold(0.5, 100))
    assert n == 518
    unit = table_of(gaussian(n, 100)).unit(False)
    assert np.abs(unit @ unit.T - np.eye(n)).max() <= 0.5
    assert cosines.could_hold(0.01, 100) == 100
    assert np.isfinite(cosines.could_hold(0.9, 10**6))


def grouped(seed: int, apart: float) -> tuple[Embedding, list[str], list[str]]:
    """Three groups of ten words around centres, among 100 other words."""
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(3, 40)), 10, axis=0)
    rows = apart * centres + rng.normal(size=(30, 40))
    words = [f"w{i}" for i in range(30)]
    names = [*words, *(f"n{i}" for i in range(100))]
    return (
        Embedding(np.concatenate([rows, rng.normal(size=(100, 40))]), names),
        words,
        [f"g{i // 10}" for i in range(30)],
    )


@pytest.mark.parametrize("method", ["kmeans", "agglomerative"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_groups_are_found_and_absent_ones_are_not(seed, method):
    table, words, labels = grouped(seed, apart=2.0)
    found = table.clusters(words, labels=labels, method=method, seed=seed, draws=10)
    assert found.columns.tolist() == ["word", "label", "cluster", "silhouette"]
    own = found.attrs
    assert own["rand"] == 1.0 > own["rand_control"][1] + 0.5
    assert own["silhouette"] > own["control"][1] + 0.2
    assert found.cluster.tolist() == [i // 10 for i in range(30)]
    table, words, labels = grouped(seed, apart=0.0)
    nothing = table.clusters(words, labels=labels, method=method, seed=seed, draws=10).attrs
    assert abs(nothing["rand"]) < 0.25
    assert nothing["silhouette"] < nothing["control"][1] + 0.03


def test_the_silhouette_is_that_of_its_definition():
    table, words, labels = grouped(0, apart=1.0)
    found = table.clusters(words, labels=labels, draws=1)
    unit = table.unit(True)[:30]
    distance = np.linalg.norm(unit[:, None] - unit, axis=2)
    i, own = 4, found.cluster[4]
    inside = [distance[i, j] for j in range(30) if j != i and found.cluster[j] == own]
    others = [
        np.mean([distance[i, j] for j in range(30) if found.cluster[j] == c])
        for c in set(found.cluster) - {own}
    ]
    a, b = np.mean(inside), min(others)
    assert found.silhouette[i] == pytest.approx((b - a) / max(a, b))
    assert found.attrs["silhouette"] == pytest.approx(found.silhouette.mean())
    assert "label" not in table.clusters(words, k=2, draws=1)
    assert table.clusters(words, 2, draws=1).equals(table.clusters(words, 2, draws=1))


SMALL = table_of(np.eye(4))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: table_of(np.ones((5, 3))).spectrum(), "the 5 vectors do not differ"),
        (lambda: SMALL.anisotropy(removed=(3,)), r"removed=\(3,\): 4 vectors in 4 dimensions"),
        (lambda: SMALL.anisotropy(removed=(0,)), r"removed=\(0,\)"),
        (lambda: table_of(np.eye(1)).anisotropy(()), "two rows or more, got 1"),
        (lambda: SMALL.cosine_histogram(pairs=0), "pairs=0"),
        (lambda: SMALL.clusters(["w0", "w1", "w2"]), "needs k=, or labels="),
        (lambda: SMALL.clusters(["w0", "w1", "w2"], k=3), "k=3: 3 words with 3 different"),
        (lambda: SMALL.clusters(["w0", "w1"], labels=["a"]), "k=1"),
        (lambda: SMALL.clusters(["w0", "w1", "w0"], k=2), "each word once"),
        (
            lambda: unwrap(Embedding.clusters)(SMALL, ["w0", "w1", "w2"], k=2, method="dbscan"),
            "method='dbscan': expected one of kmeans, agglomerative",
        ),
        (lambda: SMALL.clusters(["w0", "w1", "w2"], 2, ["a", "b"]), "2 labels for 3 words"),
        (lambda: table_of(np.ones((4, 2))).clusters(["w0", "w1", "w2"], 2), "1 different vectors"),
    ],
)
def test_refusals(act, message):
    with pytest.raises(ValueError, match=message):
        act()
