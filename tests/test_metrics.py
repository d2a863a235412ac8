"""Metrics on outputs that are written by hand, at every kind of position, in every precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy
from torch.nn.functional import cross_entropy

from interp import metrics
from interp.core.finite import NotFinite
from interp.core.tokens import Tokens
from interp.sweeps.metrics import Bound

from .device.pretend import DEVICE
from .strategies import random_model, small_config

LOGITS = [[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [4.0, 3.0, 2.0, 1.0]]
"""By example; the vocabulary has four tokens."""

pytestmark = pytest.mark.usefixtures("one_thread")


def value(metric, logits: torch.Tensor, before: torch.Tensor | None = None) -> list[float]:
    """What a metric reads at the last of two positions of these logits [batch d_vocab]."""
    n, d_vocab = logits.shape
    model = random_model(small_config(d_vocab=d_vocab))
    tokens = Tokens.of(torch.zeros(n, 2, dtype=torch.long))
    out = torch.stack([logits.flip(-1), logits], 1)
    was = out if before is None else torch.stack([before.flip(-1), before], 1)
    bound = metric.bind(model, tokens, lambda reads: was)
    examples = torch.arange(n)
    return bound.measure(bound.pick(out, examples), examples).double().tolist()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [([0, 0, 0], [4, 4, 1]), ([1, 1, 1], [2, 4, 2]), ([2, 2, 2], [2, 4, 3]), ([3, 3, 3], [3, 4, 4]),
     ([[0, 3], [0, 1], [3, 2]], [3, 4, 3])],
)  # fmt: skip
def test_a_rank_counts_all_that_are_as_high(answer, expected):
    """Of tied tokens none is before the other; of several answers the best counts."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert (
            value(metrics.rank(torch.tensor(answer)), torch.tensor(LOGITS, dtype=dtype)) == expected
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["log_prob", "prob", "kl", "js", "rank"])
def test_a_softmax_is_never_taken_in_half_precision(name, dtype):
    """The value is that of the same rounded logits in float64, to float32's rounding."""
    generator = torch.Generator().manual_seed(0)
    rounded, before = (torch.randn(5, 700, generator=generator).mul(4).to(dtype) for _ in range(2))
    answer = torch.tensor([0, 600, 30, 41, 5])
    metric = getattr(metrics, name)(*([] if name in ("kl", "js") else [answer]))
    exact = value(metric, rounded.double(), before.double())
    near = value(metric, rounded, before)
    assert near == pytest.approx(exact, rel=2e-5, abs=1e-7)
    assert max(exact) - min(exact) > 1e-5


def test_ranks_past_what_half_precision_counts_are_exact():
    logits = torch.linspace(8, -8, 700, dtype=torch.bfloat16)[None]
    ids = torch.tensor([699])
    assert value(metrics.rank(ids), logits) == [700]


# Every metric by hand -----------------------------------------------------------------------------

D_VOCAB, D_MODEL = 11, 32
ROWS = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 1, 4, 2]]
EXAMPLES = torch.tensor([2, 0, 1, 2])
"""Which example each row is of, as an engine gives them: in any order, one of them twice."""
WHERE = [f"node {row}" for row in range(len(EXAMPLES))]
SETS = torch.tensor([[0, 3], [7, 1], [4, 10]]), torch.tensor([[1, 2, 5], [0, 9, 8], [3, 3, 6]])
"""Answers of two ids and wrong ones of three."""
PLACES = [
    ("right", None, [4, 2, 3]), ("right", 1, [1, 1, 1]), ("right", -3, [2, 2, 2]),
    ("right", [4, 0, -2], [4, 0, 3]), ("right", "role", [3, 1, 2]), ("left", None, [4, 4, 4]),
    ("left", -2, [3, 3, 3]), ("left", [0, 2, -4], [0, 2, 1]), ("left", "role", [2, 4, 1]),
]  # fmt: skip
"""The side of the pads, a position as it is written, and where that is in each example."""


def padded(side: str) -> Tokens:
    tokens = Tokens.from_rows(ROWS, side=side)
    role = torch.tensor([3, 1, 2] if side == "right" else [2, 4, 1])
    return Tokens(tokens.ids, mask=tokens.mask, roles={"role": role})


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


OUTPUTS = {"logits": normal(3, 5, D_VOCAB, seed=0) * 2, "residual": normal(3, 5, D_MODEL, seed=1)}
BASE = {"logits": normal(3, 5, D_VOCAB, seed=2), "residual": normal(3, 5, D_MODEL, seed=3)}
"""Of the edited run, and of the unedited one."""


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(d_vocab=D_VOCAB, d_model=D_MODEL))


def measure(metric, model, tokens: Tokens) -> np.ndarray:
    """The numbers of `EXAMPLES`, from `OUTPUTS`."""
    examples = EXAMPLES.to(model.device)
    bound = metric.bind(model, tokens, lambda reads: BASE[reads].to(model.device))
    read = bound.pick(OUTPUTS[bound.reads].to(model.device)[examples], examples)
    value = metrics.measured(bound, read, examples, WHERE)
    assert value.dtype == torch.float64
    return value.numpy()


def by_example(hand, side: str, at: list[int]) -> list[float]:
    """hand(logits, unedited logits, answer, wrong) at one position of the example of every row."""
    return [
        hand(OUTPUTS["logits"][i, at[i]].numpy(), BASE["logits"][i, at[i]].numpy(),
             SETS[0][i].numpy(), SETS[1][i].numpy())
        for i in EXAMPLES.tolist()
    ]  # fmt: skip


BY_HAND = {
    "logit_diff": lambda x, base, right, wrong: x[right].mean() - x[wrong].mean(),
    "log_prob": lambda x, base, right, wrong: np.log(softmax(x)[right].sum()),
    "prob": lambda x, base, right, wrong: softmax(x)[right].sum(),
    "rank": lambda x, base, right, wrong: sum(logit >= max(x[right]) for logit in x),
    "accuracy": lambda x, base, right, wrong: float(x.argmax() in right),
    "kl": lambda x, base, right, wrong: entropy(softmax(base), softmax(x)),
    "js": lambda x, base, right, wrong: jensenshannon(softmax(base), softmax(x)) ** 2,
}


def made(name: str, pos):
    given = {"kl": (), "js": (), "logit_diff": SETS}.get(name, SETS[:1])
    return getattr(metrics, name)(*given, pos=pos)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize(("side", "pos", "at"), PLACES)
def test_a_metric_at_a_position_is_what_a_hand_counts_there(model, name, side, pos, at):
    metric = made(name, pos)
    expected = by_example(BY_HAND[name], side, at)
    np.testing.assert_allclose(measure(metric, model, padded(side)), expected, rtol=1e-12)
    assert metric.name == name and metric.whole is None
    assert metric.answer is (None if name in ("kl", "js") else SETS[0])


def test_one_answer_per_example_is_a_set_of_one(model):
    tokens = padded("right")
    for name in ("log_prob", "prob", "rank", "accuracy"):
        one, of_one = (getattr(metrics, name)(ids) for ids in (SETS[0][:, 0], SETS[0][:, :1]))
        assert (measure(one, model, tokens) == measure(of_one, model, tokens)).all()
    one, of_one = metrics.logit_diff(*SETS), metrics.logit_diff(SETS[0], SETS[1][:, 0])
    assert (measure(one, model, tokens) != measure(of_one, model, tokens)).all()


def test_an_answer_is_right_where_it_is_the_top_and_only_there():
    logits = torch.tensor([[0.0, 1, 9, 2], [9.0, 1, 2, 3], [4.0, 3, 2, 1]])
    assert value(metrics.accuracy(torch.tensor([2, 0, 1])), logits) == [1, 1, 0]
    assert value(metrics.accuracy(torch.tensor([[0, 1], [3, 0], [1, 0]])), logits) == [0, 1, 1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["kl", "js"])
def test_a_divergence_everywhere_is_the_mean_over_real_tokens(model, side, name):
    tokens = padded(side)
    found = measure(getattr(metrics, name)("all"), model, tokens)
    for row, i in enumerate(EXAMPLES.tolist()):
        places = tokens.real[i].nonzero().flatten().tolist()
        assert len(places) == len(ROWS[i])
        each = [BY_HAND[name](OUTPUTS["logits"][i, p].numpy(), BASE["logits"][i, p].numpy(), 0, 0)
                for p in places]  # fmt: skip
        assert found[row] == pytest.approx(sum(each) / len(each), rel=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_loss_is_torchs_over_the_tokens_of_the_row(model, side):
    tokens = padded(side)
    metric = metrics.loss()
    assert metric.name == "loss"
    for found, i in zip(measure(metric, model, tokens), EXAMPLES.tolist(), strict=True):
        row, ids = OUTPUTS["logits"][i, tokens.real[i]], torch.tensor(ROWS[i])
        assert found == pytest.approx(float(cross_entropy(row[:-1], ids[1:])), rel=1e-12)


def test_a_loss_has_something_to_predict_in_every_row(unchecked, model):
    with pytest.raises(ValueError, match="two real tokens in every row"):
        metrics.loss().bind(model, Tokens.from_rows([[1, 2], [3]]), BASE.__getitem__)
    with pytest.raises(ValueError, match="these tokens are vectors"):
        metrics.loss().bind(model, Tokens.of(normal(2, 3, D_MODEL, seed=0)), BASE.__getitem__)


def cosine(a, b) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize(("side", "pos", "at"), PLACES)
def test_a_cosine_is_that_of_the_residual_stream_at_a_position(model, side, pos, at):
    direction = normal(D_MODEL, seed=5)
    metric = metrics.cosine(direction, pos)
    expected = [cosine(OUTPUTS["residual"][i, at[i]].numpy(), direction.numpy()) for i in EXAMPLES]
    np.testing.assert_allclose(measure(metric, model, padded(side)), expected, rtol=1e-12)
    assert metric.name == "cosine"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("own", [True, False])
def test_a_pooled_cosine_is_that_of_the_mean_of_the_real_tokens(model, side, own):
    tokens, target = padded(side), normal(3, D_MODEL, seed=6)
    metric = metrics.pooled_cosine(None if own else target)
    found = measure(metric, model, tokens)
    for row, i in enumerate(EXAMPLES.tolist()):
        moved, before = (run["residual"][i, tokens.real[i]].mean(0) for run in (OUTPUTS, BASE))
        expected = cosine(moved.numpy(), (before if own else target[i]).numpy())
        assert found[row] == pytest.approx(expected, rel=1e-12)
    assert metric.name == "pooled_cosine"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.cosine(torch.zeros(32)), "^direction is zero"),
        (lambda: metrics.pooled_cosine(torch.eye(3)[:, :2]), "^target holds a vector that is zero"),
        (lambda: metrics.pooled_cosine([[1.0, float("nan")]]), "^target is not finite"),
        (lambda: metrics.cosine(torch.ones(5)), "5 of 32 entries"),
        (lambda: metrics.pooled_cosine(torch.ones(2, 32)), r"shape \[2, 32\], .*one vector per"),
        (lambda: metrics.pooled_cosine(torch.ones(3, 5)), r"shape \[3, 5\], .*one vector per"),
    ],
)
def test_directions_that_do_not_fit_the_run_are_refused(unchecked, model, make, message):
    with pytest.raises(ValueError, match=message):
        make().bind(model, padded("right"), BASE.__getitem__)


@pytest.mark.parametrize("pos", [None, 1, "role", [0, 2, 1]], ids=str)
def test_a_metric_on_another_device_has_the_cpus_numbers(model, pos):
    """Ids, positions and vectors come from the CPU, the output lies on a device of its own."""
    tokens, direction, target = padded("right"), normal(D_MODEL, seed=5), normal(3, 32, seed=6)
    elsewhere = random_model(small_config(d_vocab=D_VOCAB, d_model=D_MODEL)).to(DEVICE)
    every = [made(name, pos) for name in BY_HAND] + [
        metrics.kl("all"), metrics.loss(), metrics.cosine(direction, pos),
        metrics.pooled_cosine(), metrics.pooled_cosine(target), metrics.function(scores),
    ]  # fmt: skip
    for metric in every:
        found = measure(metric, elsewhere, tokens.to(DEVICE))
        np.testing.assert_allclose(found, measure(metric, model, tokens), rtol=1e-12)
    assert metrics.single_answer(torch.tensor([2, 2]).to(DEVICE))


# What a metric reads ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [None, 1, 3])
@pytest.mark.parametrize("k", [None, 1, 4])
@pytest.mark.parametrize("log_probs", [False, True])
def test_what_is_read_are_the_places_and_ids_that_are_named(n, k, log_probs):
    generator = torch.Generator().manual_seed(0)
    out, width = OUTPUTS["logits"][EXAMPLES], 5 if n is None else n
    positions = None if n is None else torch.randint(5, (3, n), generator=generator)
    ids = None if k is None else torch.randint(D_VOCAB, (3, width, k), generator=generator)
    bound = Bound(lambda x, examples: x, positions=positions, ids=ids, log_probs=log_probs)
    read = bound.pick(out, EXAMPLES)
    assert read.shape == (4, width, D_VOCAB if k is None else k)
    for row, i in enumerate(EXAMPLES.tolist()):
        for j in range(width):
            logits = out[row, j if positions is None else int(positions[i, j])]
            if ids is not None:
                logits = (logits.log_softmax(-1) if log_probs else logits)[ids[i, j]]
            torch.testing.assert_close(read[row, j], logits)


def test_a_cache_is_read_whole():
    cache, examples = {"z": torch.ones(4, 2)}, torch.arange(4)
    bound = Bound(lambda read, rows: read["z"].sum(1) + rows, reads="cache")
    assert bound.pick(cache, examples) is cache
    assert metrics.measured(bound, cache, examples, WHERE).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 5, 3)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named_by_its_row(unchecked, shape, bad):
    x = torch.ones(shape, dtype=torch.float64)
    x.view(4, -1)[2, -1] = bad
    bound = Bound(lambda read, examples: torch.zeros(4))
    with pytest.raises(NotFinite, match=r"node 2$"):
        metrics.measured(bound, x, EXAMPLES, WHERE)
    if x.ndim == 1:
        with pytest.raises(NotFinite, match=r"node 2$"):
            metrics.checked(x, WHERE)


@pytest.mark.parametrize(
    ("given", "shown"),
    [(torch.ones(3), r"\[3\]"), (torch.ones(4, 1), r"\[4, 1\]"), (torch.tensor(1.0), r"\[\]"),
     ([1.0, 2.0, 3.0, 4.0], "list"), (None, "NoneType")],
)  # fmt: skip
def test_a_metric_gives_one_number_per_row(unchecked, given, shown):
    with pytest.raises(ValueError, match=f"gave {shown} at node 0: expected one number per"):
        metrics.checked(given, WHERE)
    whole = metrics.checked(torch.tensor([1, 2, 3, 4], dtype=torch.int32), WHERE)
    assert whole.dtype == torch.float64 and whole.tolist() == [1, 2, 3, 4]


# Functions of the user's --------------------------------------------------------------------------


def scores(output, examples):
    return output[:, 0, 0] + 100 * examples


def by_place(output, rows):
    return scores(output, rows)


def with_default(output, scale=1.0, examples=None):
    return scale * scores(output, examples)


class Scores:
    def __call__(self, output):
        return output[:, 0, 0]


@pytest.mark.parametrize("of", ["logits", "residual"])
def test_a_function_reads_what_it_is_of(model, of):
    expected = OUTPUTS[of][EXAMPLES, 0, 0] + 100 * EXAMPLES
    for fn in (scores, by_place, with_default):
        metric = metrics.function(fn, of=of)
        assert (measure(metric, model, padded("left")) == expected.numpy()).all()
        assert metric.whole is None
    assert (measure(metrics.function(Scores(), of=of), model, padded("left"))
            == OUTPUTS[of][EXAMPLES, 0, 0].numpy()).all()  # fmt: skip


def test_a_function_bears_the_name_it_is_given_or_has():
    named = metrics.function(scores), metrics.function(scores, "mine"), metrics.function(Scores())
    assert [metric.name for metric in named] == ["scores", "mine", "function"]
    caches = [metrics.cache_function(fn, "z", name)
              for fn, name in ((scores, None), (scores, "mine"), (Scores(), None))]  # fmt: skip
    assert [metric.name for metric in caches] == ["scores", "mine", "cache_function"]
    assert named[0].whole is None and all(metric.whole for metric in (named[2], *caches))


def test_a_function_of_a_cache_names_its_sites(model):
    metric = metrics.cache_function(scores, ["z", ("hook_resid_pre", 0)])
    bound = metric.bind(model, padded("right"), BASE.__getitem__)
    cache = torch.ones(4, 1, 1)  # stands for one
    assert bound.measure(bound.pick(cache, EXAMPLES), EXAMPLES).tolist() == [201, 1, 101, 201]
    assert bound.reads == "cache" and bound.sites == tuple(
        name for name in model.sites.names
        if name.endswith("attn.hook_z") or name == "blocks.0.hook_resid_pre"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "call"),
    [(lambda fn: metrics.function(fn), r"fn\(output\) or fn\(output, examples\)"),
     (lambda fn: metrics.cache_function(fn, "z"), r"fn\(cache\) or fn\(cache, examples\)")],
)  # fmt: skip
def test_a_function_that_cannot_be_called_is_told_how_it_should_be(unchecked, make, call):
    with pytest.raises(ValueError, match=call):
        make(lambda a, b, c: a)
    with pytest.raises(ValueError, match=r"^fn is 3, not a function"):
        make(3)
    with pytest.raises(ValueError, match="of='words': expected 'logits' or 'residual'"):
        metrics.function(scores, of="words")


# Answers and positions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "single"),
    [
        ([5, 5, 5], True), ([5, 5, 6], False), (torch.tensor([2]), True), ((6, 5, 5), False),
        (np.array([3, 3]), True), ([[1, 2], [2, 1], [1, 2]], True), ([[1, 2], [1, 3]], False),
        (torch.tensor([[1, 1], [1, 2]]), False), (np.array([[4], [4]]), True),
    ],
    ids=str,
)  # fmt: skip
def test_answers_are_single_where_all_examples_have_the_same_set(answer, single):
    assert metrics.single_answer(answer) is single


def test_ids_are_one_row_per_example(unchecked, model):
    tokens = padded("right")
    for given in ([3, 0, 10], np.array([3, 0, 10]), torch.tensor([[3], [0], [10]])):
        found = metrics.answer_ids(given, tokens, model)
        assert found.tolist() == [[3], [0], [10]] and found.dtype == torch.int64
    assert metrics.answer_ids(SETS[1], tokens, model).tolist() == SETS[1].tolist()
    for shape in ([2], [2, 3], [3, 1, 1], [3, 0], []):
        with pytest.raises(ValueError, match=r"one row per example \(3\)") as error:
            metrics.answer_ids(torch.zeros(shape, dtype=torch.long), tokens, model)
        assert len(shape) < 2 or str(shape) in str(error.value)
    with pytest.raises(ValueError, match="answer ids=11: expected 0 to 10"):
        metrics.answer_ids([3, 0, 11], tokens, model)


@pytest.mark.parametrize(("side", "pos", "at"), PLACES)
def test_a_position_is_one_of_every_row(side, pos, at):
    forms = [pos] if pos is None or isinstance(pos, str) else [pos, torch.tensor(pos)]
    for form in forms:
        found = metrics.one_position(form, padded(side))
        assert found.tolist() == [[p] for p in at] and found.dtype == torch.int64


def test_the_last_real_token_may_be_the_first():
    tokens = Tokens.from_rows([[5], [1, 2, 3]])
    assert metrics.one_position(None, tokens).tolist() == [[0], [2]]


@pytest.mark.parametrize(
    ("pos", "message"),
    [
        (3, "position 3 of row 1 is a pad"), ([4, 2, 4], "position 4 of row 2 is a pad"),
        (-1, "position 4 of row 1 is a pad"), ([1, 2], r"shape \[2\].*each of 3 rows"),
        ([[1], [1], [1]], r"shape \[3, 1\].*each of 3 rows"), (5, "pos=5: expected 0 to 4"),
        ("subject", "pos='subject': these tokens have the roles role, verb$"),
    ],
)  # fmt: skip
def test_a_position_that_is_none_of_a_real_token_is_refused(unchecked, pos, message):
    tokens = padded("right")
    tokens = Tokens(tokens.ids, mask=tokens.mask, roles={**tokens.roles, "verb": torch.ones(3)
                                                         .long()})  # fmt: skip
    with pytest.raises(ValueError, match=message):
        metrics.one_position(pos, tokens)


def test_tokens_without_roles_say_so(unchecked):
    with pytest.raises(ValueError, match=r"have the roles none$"):
        metrics.one_position("subject", Tokens.of([[1, 2]]))
