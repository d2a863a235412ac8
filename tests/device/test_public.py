"""Every public function and method on the pretend accelerator: the numbers are those of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.device import public
from tests.device.bench import Bench, check_same
from tests.device.cases_methods import METHOD_CASES, METHOD_EXEMPT
from tests.device.cases_model import MODEL_CASES, MODEL_EXEMPT
from tests.device.cases_sweep import SWEEP_CASES, SWEEP_EXEMPT

CASES = {**MODEL_CASES, **SWEEP_CASES, **METHOD_CASES}
EXEMPT = {**MODEL_EXEMPT, **SWEEP_EXEMPT, **METHOD_EXEMPT}
NAMES = public.public()


@pytest.fixture(scope="module")
def benches() -> tuple[Bench, Bench]:
    return Bench("pretend"), Bench("cpu")


class Counted:
    """A function that knows whether it was called."""

    def __init__(self, act) -> None:
        self.act, self.calls = act, 0

    def __call__(self, *args, **options):
        self.calls += 1
        return self.act(*args, **options)


@pytest.mark.parametrize("name", CASES)
def test_it_gives_the_numbers_of_the_cpu(name, benches, tmp_path):
    act, before = Counted(NAMES[name]), torch.get_rng_state()
    device, cpu = benches
    theirs = done(name, act, cpu, tmp_path, "cpu")
    check_same(done(name, act, device, tmp_path, "cpu"), theirs)
    if device.gave:  # what a user brings may lie on the device already
        check_same(done(name, act, device, tmp_path, "pretend"), theirs)
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator was used"


def done(name: str, act: Counted, bench: Bench, folder: Path, given: str):
    bench.given, bench.gave, bench.folder = given, 0, folder / f"{bench.device}-{given}"
    bench.folder.mkdir()
    calls = act.calls
    result = CASES[name](act, bench)
    assert act.calls > calls, f"the case of {name} does not call it"
    return result


def test_every_public_name_has_a_case_or_a_reason():
    unknown = {name for name in NAMES if not _exempt(name)} - set(CASES)
    assert not unknown, f"no case on the pretend device, and no reason why not: {sorted(unknown)}"
    assert set(CASES) <= set(NAMES), set(CASES) - set(NAMES)
    needless = {name for name in CASES if _exempt(name)}
    assert not needless, f"both a case and a reason: {needless}"
    stale = {key for key in EXEMPT if not any(n == key or n.startswith(f"{key}.") for n in NAMES)}
    assert not stale, f"a reason for what is not there: {stale}"


def test_every_room_is_one_of_ours_or_has_a_reason():
    unknown = set(public.homes()) - {*public.ROOMS, *public.ELSEWHERE}
    assert not unknown, f"neither in ROOMS nor, with a reason, in ELSEWHERE: {sorted(unknown)}"


def _exempt(name: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in EXEMPT)
