"""The solver of probes: its parts against the objective written down, differentiated by torch, and
its stopping rules against scripted steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from interp.methods.probes import solver

pytestmark = pytest.mark.usefixtures("one_thread")


class Problems:
    """b sets of features × t labellings under weights, some of them 0; the last feature is one."""

    def __init__(self, n_classes, b=2, t=3, n=40, d=4, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        self.n_classes, self.b, self.t, self.C = n_classes, b, t, 0.7
        self.x = torch.randn(b, n, d, generator=generator, dtype=dtype)
        self.x[..., -1] = 1
        self.y = torch.randint(n_classes, (t, n), generator=generator)
        self.weights = torch.rand(b, t, n, generator=generator, dtype=dtype)
        self.weights[self.weights < 0.2] = 0
        self.penalty = torch.rand(b, t, 1, d, generator=generator, dtype=dtype) + 0.1
        self.penalty[..., -1] = 0
        k = 1 if n_classes == 2 else n_classes
        self.w = torch.randn(b, t, k, d, generator=generator, dtype=dtype)
        self.way = torch.randn(b, t, k, d, generator=generator, dtype=dtype)

    @property
    def task(self):
        return solver.task(self.y, self.weights, self.n_classes)

    @property
    def inverse(self):
        scale = self.C * float(self.weights.mean())
        penalty = self.penalty.mean((1, 2)).expand(self.b, -1)
        return solver.factor(self.x, penalty, scale, self.n_classes)

    @property
    def slopes(self):
        return solver._Slopes(self.x, self.task, self.penalty, self.C)

    def each(self):
        return itertools.product(range(self.b), range(self.t))

    def objective(self, b, t, w):
        """As the module's first line says it, of one problem: w [k d]."""
        z = self.x[b] @ w.T
        if self.n_classes == 2:
            wrong = torch.where(self.y[t] == 1, -z[:, 0], z[:, 0])
            losses = torch.logaddexp(wrong, torch.zeros_like(wrong))
        else:
            losses = z.logsumexp(1) - z.gather(1, self.y[t][:, None])[:, 0]
        weights, penalty = (each[b % len(each), t] for each in (self.weights, self.penalty))
        return self.C * (weights * losses).sum() + (penalty * w.square()).sum() / 2

    def gradient(self, b, t, w):
        return torch.func.grad(lambda v: self.objective(b, t, v))(w)

    def slope(self, b, t, step):
        """Along `way`."""
        there = self.w[b, t] + step * self.way[b, t]
        return float((self.gradient(b, t, there) * self.way[b, t]).sum())


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_probabilities_and_gradient_are_those_of_the_objective(n_classes):
    given = Problems(n_classes)
    z = solver._times(given.w, given.x.mT)
    p = given.slopes.probabilities(z)
    gradient = given.slopes.gradient(given.w, p)
    for b, t in given.each():
        logits = given.x[b] @ given.w[b, t].T
        expected = logits.sigmoid() if n_classes == 2 else logits.softmax(1)
        assert torch.allclose(p[b, t].T, expected)
        assert torch.allclose(gradient[b, t], given.gradient(b, t, given.w[b, t]))


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_the_factor_inverts_the_hessian_at_zero(n_classes):
    """Of one class: those of different classes are held to be unrelated."""
    given = Problems(n_classes, t=1)
    given.weights[:] = 0.6
    d = given.x.shape[2]
    for b in range(given.b):
        zero = torch.zeros_like(given.w[b, 0])
        hessian = torch.func.hessian(lambda w, b=b: given.objective(b, 0, w))(zero)
        assert torch.allclose(given.inverse[b] @ hessian[0, :, 0], torch.eye(d).double())


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e8])
def test_a_singular_gram_matrix_has_a_factor_and_one_of_nan_is_named(size):
    x = torch.full((2, 5, 3), 0.1 * size, dtype=torch.float64)
    x[1] = size * torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    inverse = solver.factor(x, torch.zeros(2, 3, dtype=torch.float64), 1.0, 2)
    assert torch.isfinite(inverse).all()
    hessian = x[1].T @ x[1] / 4
    assert torch.allclose(inverse[1] @ hessian, torch.eye(3).double(), atol=1e-6)
    with pytest.raises(ValueError, match="are they finite"):
        solver.factor(x * torch.nan, torch.ones(2, 3, dtype=torch.float64), 1.0, 2)


@pytest.mark.parametrize("d", [1, 3, 4, 11])
def test_the_gram_matrix_is_whole_below_its_diagonal(d):
    x = torch.randn(2, 30, d, dtype=torch.float64)
    assert torch.allclose(solver._gram(x).tril(), (x.mT @ x).tril())


# The line search -----------------------------------------------------------------------------


def searched(given, monkeypatch):
    """The search along `way`, and how many points it looked at."""
    looked, slopes = [], given.slopes
    z = solver._times(given.w, given.x.mT)
    along = solver._times(given.way, given.x.mT)
    p = slopes.probabilities(z)
    of = solver.probabilities
    monkeypatch.setattr(
        solver, "probabilities", lambda z, absent: looked.append(1) or of(z, absent)
    )
    step, p, to = slopes.search(z, p, along, given.w, given.way)
    assert torch.allclose(to, z + step * along)
    assert torch.allclose(p, of(to, given.task.absent))
    return step[..., 0, 0], len(looked)


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_line_search_ends_where_the_slope_has_all_but_vanished(n_classes, size, monkeypatch):
    given = Problems(n_classes)
    given.way *= size
    for b, t in given.each():  # downhill
        given.way[b, t] *= -np.sign(given.slope(b, t, 0.0))
    step, looked = searched(given, monkeypatch)
    assert looked <= 4
    for b, t in given.each():
        start = given.slope(b, t, 0.0)
        assert abs(given.slope(b, t, float(step[b, t]))) <= 0.1 * abs(start)
        assert step[b, t] > 0


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_line_search_finds_the_lowest_point(n_classes, monkeypatch):
    monkeypatch.setattr(solver, "SLOPE", 1e-10)
    given = Problems(n_classes)
    for b, t in given.each():
        given.way[b, t] *= -np.sign(given.slope(b, t, 0.0))
    step, looked = searched(given, monkeypatch)
    assert looked <= 6, "Newton's method doubles its digits"
    for b, t in given.each():
        lowest = brentq(lambda s, b=b, t=t: given.slope(b, t, s), 0, 100, xtol=1e-13)
        assert float(step[b, t]) == pytest.approx(lowest, rel=1e-8)


def on_a_line(monkeypatch, z, y, weight, penalty, dtype=torch.float64):
    """A search from given x·w, each of which grows by one per step: the step, its slope as a part
    of the first, and how many points it looked at."""
    z, y = torch.tensor(z, dtype=dtype)[None, None, None], torch.tensor(y)
    weights = torch.full((1, 1, len(y)), weight, dtype=dtype)
    way = torch.tensor([[[[1.0, 0.0]]]], dtype=dtype)
    given = solver.task(y[None], weights, 2)
    slopes = solver._Slopes(torch.zeros(1, len(y), 2), given, penalty * way, 1.0)
    looked, of = [], solver.probabilities
    monkeypatch.setattr(
        solver, "probabilities", lambda z, absent: looked.append(1) or of(z, absent)
    )
    step = slopes.search(z, z.sigmoid(), torch.ones_like(z), 0 * way, way)[0].squeeze().double()

    def slope(at):
        return weight * ((z.double() + at).sigmoid() - y).sum() + penalty * at

    return float(step), float(slope(step) / slope(0)), len(looked)


def test_a_line_search_stays_within_what_it_knows(monkeypatch):
    """Two steps far from each other, at 30 and at 60: from the plateaus, where the slope hardly
    bends, Newton's method leaps beyond both. Halving the bracket leads back."""
    step, left, looked = on_a_line(monkeypatch, [-30.0, -60.0], [1, 0], 0.01, 1e-4)
    assert 25 < step < 60 and abs(left) <= 0.1
    assert looked <= 7


def test_a_line_search_without_any_bend_doubles_its_steps(monkeypatch):
    """Where all is saturated and nothing penalised, Newton's step is infinite: 1, 3, 7, … it is,
    until something changes, here at 1000."""
    given = [-1000.0], [1], 1e9, 0.0
    step, left, looked = on_a_line(monkeypatch, *given, dtype=torch.float32)
    assert (step, looked) == (1023, 10)
    assert abs(left) <= 0.1


# L-BFGS --------------------------------------------------------------------------------------


def dense_direction(steps, inverse, gradient):
    """−H g, with H updated as a matrix (Nocedal & Wright, eq. 6.17), of one problem."""
    size = gradient.numel()
    estimate = torch.block_diag(*[inverse] * (size // len(inverse)))
    good = [(s.flatten(), y.flatten()) for s, y in steps if (s * y).sum() > 0]
    if good:
        s, y = good[-1]
        estimate = estimate * (s @ y) / (y @ estimate @ y)
    for s, y in good[-solver.MEMORY :]:
        left = torch.eye(size).double() - torch.outer(s, y) / (s @ y)
        estimate = left @ estimate @ left.T + torch.outer(s, s) / (s @ y)
    return -(estimate @ gradient.flatten()).view_as(gradient)


@pytest.mark.parametrize("n_steps", [0, 1, 2, solver.MEMORY, solver.MEMORY + 3])
def test_directions_are_those_of_the_dense_update(n_steps):
    given, generator = Problems(3, b=2, t=2), torch.Generator().manual_seed(1)
    inverse, memory, steps = given.inverse, solver._Memory(), []
    for _ in range(n_steps):
        step = torch.randn(given.w.shape, generator=generator, dtype=torch.float64)
        change = step + 0.3 * torch.randn(step.shape, generator=generator, dtype=torch.float64)
        memory.add(step, change, solver._times(change, inverse))
        steps.append((step, change))
    gradient = given.way
    direction = memory.direction(gradient, solver._times(gradient, inverse))
    for b, t in given.each():
        own = [(step[b, t], change[b, t]) for step, change in steps]
        assert torch.allclose(direction[b, t], dense_direction(own, inverse[b], gradient[b, t]))


@pytest.mark.parametrize("still", [[0], [1], [0, 1], [2], [0, 1, 2]])
def test_a_problem_that_stands_still_learns_nothing_from_it(still):
    """While others go on: a step of zeros is as if it had not been."""
    given, generator = Problems(2, b=1, t=2), torch.Generator().manual_seed(1)
    inverse, memory, steps = given.inverse, solver._Memory(), []
    for i in range(3):
        step = torch.randn(given.w.shape, generator=generator, dtype=torch.float64)
        change = step + 0.3 * torch.randn(step.shape, generator=generator, dtype=torch.float64)
        if i in still:
            step[0, 0], change[0, 0] = 0, 0
        memory.add(step, change, solver._times(change, inverse))
        steps.append((step, change))
    direction = memory.direction(given.way, solver._times(given.way, inverse))
    for t in range(2):
        own = [(step[0, t], change[0, t]) for step, change in steps]
        assert torch.allclose(direction[0, t], dense_direction(own, inverse[0], given.way[0, t]))


def test_a_change_too_small_to_be_squared_is_no_step():
    memory, step = solver._Memory(), torch.ones(1, 1, 1, 4)
    memory.add(step, step, step)
    memory.add(step, 1e-30 * step, 1e-30 * step)
    memory.add(0 * step, step, step)  # nor is a change without a step
    assert torch.allclose(memory.direction(step, step), -step)


# Where it ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("cached", [1, 2**20])
@pytest.mark.parametrize("shared", ["nothing", "weights", "penalty", "both"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_every_problem_ends_where_its_gradient_vanishes(n_classes, shared, cached, monkeypatch):
    monkeypatch.setattr(solver, "CACHED", cached)
    given = Problems(n_classes, b=3)
    if shared in ("weights", "both"):
        given.weights = given.weights[:1]
    if shared in ("penalty", "both"):
        given.penalty = given.penalty[:1]
    ended = solver.solve(given.x, given.task, given.penalty, given.C, given.inverse, tol=1e-9)
    assert bool(ended.converged.all())
    assert int(ended.iterations.max()) <= 14
    for b, t in given.each():
        assert given.gradient(b, t, ended.coef[b, t]).abs().max() < 1e-7


def test_a_class_that_a_problem_never_sees():
    """Its coefficients are 0, its probability too, and the others are those of a problem without
    it; problems beside it do see it."""
    given = Problems(3, b=2, t=2)
    given.weights[1, 0, given.y[0] == 2] = 0
    absent = given.task.absent
    assert absent is not None and absent.nonzero().tolist() == [[1, 0, 2, 0]]
    ended = solver.solve(given.x, given.task, given.penalty, given.C, given.inverse, tol=1e-9)
    assert bool(ended.converged.all())
    assert ended.coef[1, 0, 2].tolist() == [0, 0, 0, solver.NEVER]
    for b, t in given.each():
        assert given.gradient(b, t, ended.coef[b, t]).abs().max() < 1e-7
    assert (ended.coef[..., -1] == solver.NEVER).sum() == 1
    start = given.w.clone()
    ended = solver.solve(given.x, given.task, given.penalty, given.C, given.inverse, start=start,
                         max_iter=0)  # fmt: skip
    assert torch.equal(start, given.w), "it is not written to"
    assert ended.coef[1, 0, 2, -1] == solver.NEVER
    assert ended.iterations.tolist() == [[0, 0]] * 2 and ended.iterations.dtype == torch.long
    assert ended.converged.tolist() == [[False, False]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_what_is_to_be_learned(n_classes, dtype):
    """Of two classes where it is the second; of more a row for each, shown or not."""
    y, weights = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]]), torch.ones(1, 2, 4, dtype=dtype)
    given = solver.task(y, weights, n_classes)
    assert given.target.dtype == given.weights.dtype == dtype
    assert given.target.shape == (2, 1 if n_classes == 2 else n_classes, 4)
    if n_classes == 2:
        assert given.target[:, 0].tolist() == y.tolist() and given.absent is None
    else:
        assert given.target.argmax(1).tolist() == y.tolist() and given.target.sum(1).eq(1).all()
        assert given.absent[0, :, :, 0].tolist() == [[False] * 2 + [True] * (n_classes - 2)] * 2
    shown = solver.task(torch.arange(n_classes)[None], weights.new_ones(1, 1, n_classes), n_classes)
    assert shown.absent is None


@pytest.mark.parametrize(
    ("cached", "sizes"), [(1, [1] * 5), (2.5, [2, 2, 1]), (4, [4, 1]), (5, [5]), (99, [5])]
)
def test_as_many_sets_of_features_at_once_as_the_cache_holds(cached, sizes, monkeypatch):
    given = Problems(3, b=5)
    given.weights[3, 1, given.y[1] == 0] = 0
    options = {"tol": 1e-9, "start": given.w}
    arguments = given.x, given.task, given.penalty, given.C, given.inverse
    whole = solver.solve(*arguments, **options)
    seen, solve = [], solver._solve
    monkeypatch.setattr(solver, "CACHED", int(cached * given.x[0].numel()))
    monkeypatch.setattr(
        solver, "_solve", lambda x, *rest, **more: seen.append(len(x)) or solve(x, *rest, **more)
    )
    parts = solver.solve(*arguments, **options)
    assert seen == sizes
    assert torch.allclose(parts.coef, whole.coef, rtol=1e-6, atol=1e-7)
    assert parts.converged.shape == parts.iterations.shape == (5, 3)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_one_short_step_is_no_convergence(n_classes):
    """Begun so near the optimum that its first step is short, a descent takes that step all the
    same, and one more is short as well; it ends nearer than it began."""
    given = Problems(n_classes, b=1, t=1, n=60, d=5)
    arguments = given.x, given.task, given.penalty, given.C, given.inverse
    best = solver.solve(*arguments, tol=1e-12).coef
    away = best * (1 + 1e-4 * given.way)
    ended = solver.solve(*arguments, start=away, tol=1e-2)
    assert bool(ended.converged.all())
    assert int(ended.iterations.min()) == 1
    assert (ended.coef - best).norm() < 0.8 * (away - best).norm()


TOL = 2.0**-20


def scripted(monkeypatch, lengths, *, size=1.0, unit=TOL, tol=TOL, dtype=torch.float64, **options):
    """A descent whose quasi-Newton steps are so many units long for each of the problems, the last
    of them for ever, and whose line searches go nowhere: iterations and whether it converged."""
    n = len(lengths)
    given = Problems(2, b=1, t=n, dtype=dtype)
    start = torch.zeros(1, n, 1, 4, dtype=dtype)
    start[..., 0] = size
    start[..., -1] = 5  # of an intercept nothing is said
    taken = []

    def direction(self, gradient, solved):
        at = len(taken)
        way = torch.zeros_like(gradient)
        way[0, :, 0, 1] = torch.tensor([each[min(at, len(each) - 1)] * unit for each in lengths])
        way[..., -1] = 7
        return way

    def search(self, z, p, along, w, way):
        taken.append(way[0, :, 0, 1].clone())
        return torch.zeros_like(way[..., :1]), p, z

    monkeypatch.setattr(solver._Memory, "direction", direction)
    monkeypatch.setattr(solver._Slopes, "search", search)
    ended = solver.solve(
        given.x, given.task, given.penalty, given.C, given.inverse, start=start, tol=tol,
        **options,
    )  # fmt: skip
    for problem, n_taken in enumerate(ended.iterations[0].tolist()):
        moved = [bool(way[problem] != 0) for way in taken]
        assert moved == [i < n_taken for i in range(len(taken))], "what is done stands still"
    return list(zip(ended.iterations[0].tolist(), ended.converged[0].tolist(), strict=True))


ENDS = {
    "two short ones": ([9, 5, 1, 1], (3, True)),
    "one alone": ([9, 1, 5, 1, 0.5], (4, True)),
    "none at all": ([0], (0, True)),
    "none, later": ([40, 39, 0], (2, True)),
    "hardly too long": ([1.01], (solver.SOON, True)),
    "rounding": ([19], (solver.SOON, True)),
    "rounding at the edge": ([20], (solver.SOON, True)),
    "rounding, then shorter": ([19] * 8 + [18], (8 + solver.SOON, True)),
    "rounding, met before": ([30, 12, *[40] * 99], (1 + solver.SOON, True)),
    "just not near": ([20.01], (solver.PATIENCE, False)),
    "shorter at the last moment": ([30] * 30 + [29], (30 + solver.PATIENCE, False)),
    "as short as before is not shorter": ([30, 29, *[29, 31] * 99], (1 + solver.PATIENCE, False)),
}


@pytest.mark.parametrize("case", ENDS)
def test_when_a_problem_is_done(case, monkeypatch):
    lengths, expected = ENDS[case]
    assert scripted(monkeypatch, [lengths]) == [expected]


def test_problems_are_done_each_in_its_own_time(monkeypatch):
    ended = scripted(monkeypatch, [lengths for lengths, _ in ENDS.values()])
    assert ended == [expected for _, expected in ENDS.values()]


def test_a_descent_that_is_stopped_has_not_converged(monkeypatch):
    assert scripted(monkeypatch, [[30]], max_iter=3) == [(3, False)]
    assert scripted(monkeypatch, [[30], [1]], max_iter=3) == [(3, False), (1, True)]


def test_by_default_it_ends_near_the_optimum_and_after_500_steps(monkeypatch):
    given = Problems(3)
    arguments = given.x, given.task, given.penalty, given.C, given.inverse
    near, best = (solver.solve(*arguments, **options).coef for options in ({}, {"tol": 1e-12}))
    assert (near - best).norm() < 1e-4 * best.norm()
    assert scripted(monkeypatch, [[1000 - i for i in range(600)]]) == [(500, False)]


@pytest.mark.parametrize("size", [2.0**-4, 4.0])
def test_steps_are_measured_by_the_coefficients(size, monkeypatch):
    """Without the intercept."""
    assert scripted(monkeypatch, [[0.9 * size]], size=size) == [(1, True)]
    assert scripted(monkeypatch, [[1.1 * size]], size=size) == [(solver.SOON, True)]
    assert scripted(monkeypatch, [[19.9 * size]], size=size) == [(solver.SOON, True)]
    assert scripted(monkeypatch, [[20.1 * size]], size=size) == [(solver.PATIENCE, False)]


def test_coefficients_of_zero_are_measured_by_the_first_step(monkeypatch):
    """By a thousandth of what it would be without a memory."""
    given = Problems(2, b=1, t=1)
    zero = torch.zeros_like(given.w)
    zero[..., -1] = 5
    gradient = given.slopes.gradient(zero, given.slopes.probabilities(zero @ given.x[:, None].mT))
    first = float((gradient[0] @ given.inverse)[..., :-1].norm())
    options = {"size": 0.0, "unit": 1e-3 * first * TOL}
    assert scripted(monkeypatch, [[0.99]], **options) == [(1, True)]
    assert scripted(monkeypatch, [[1.01]], **options) == [(solver.SOON, True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_more_is_asked_than_twenty_roundings(dtype, monkeypatch):
    options = {"unit": torch.finfo(dtype).eps, "tol": 0.0, "dtype": dtype}
    assert scripted(monkeypatch, [[19.9]], **options) == [(1, True)]
    assert scripted(monkeypatch, [[20.2]], **options) == [(solver.SOON, True)]
