"""Processes that die while they sweep, for tests/test_journal.py.

`python -m tests.journal_victim kill ENGINE KILLS SEED FOLDER` sweeps again and again, each time in
a fork that is killed at a random moment, and raises where a promise of the journal is broken.
`python -m tests.journal_victim wait FOLDER` sweeps slowly under the rules of the command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import pandas as pd
import torch

import interp
from interp import edits, metrics
from interp.core.console import guarded
from interp.loading.fingerprint import digest
from interp.sweeps import rerun
from interp.sweeps.journal import Journal

from .strategies import random_model, small_config

TOKENS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [3, 3, 1, 4, 2]])
ROWS_PER_PASS = 4


def margin(logits, examples):
    """A metric of the user's own, with a set of strings among its constants."""
    scale = 2.0 if "max" in {"min", "max", "mean", "median"} else 1.0
    return logits[:, -1, 1] - logits[:, -1].amax(-1) * scale


def run(journal: Path | None, engine: str = "rerun") -> pd.DataFrame:
    """The sweep that dies: 60 nodes, three examples."""
    model = random_model(small_config())
    nodes = interp.nodes(model, "z", ("layer", "head", "pos"), tokens=model.accept(TOKENS))
    return interp.sweep(model, TOKENS, nodes, edit=edits.mean(model.accept(TOKENS)),
                        metric=metrics.function(margin), engine=engine, reduce="none",
                        journal=journal, progress=False)  # fmt: skip


def in_bytes(frame: pd.DataFrame) -> str:
    """A hash of a frame's text and of its numbers as they are in memory."""
    numbers = b"".join(frame[name].to_numpy().tobytes() for name in ("value", "baseline", "effect"))
    return hashlib.sha256(frame.to_csv().encode() + numbers).hexdigest()


def small_passes() -> None:
    packed = rerun.passes

    def split(*arguments):
        return [some[i : i + ROWS_PER_PASS] for some in packed(*arguments)
                for i in range(0, len(some), ROWS_PER_PASS)]  # fmt: skip

    rerun.passes = split


def watch(say, seconds: float) -> None:
    """Say which pass is measured and which is acknowledged; a pass takes some time."""
    once = Journal.once

    def watched(self, number, measure):
        def slowly():
            say(f"measured {number}")
            time.sleep(seconds)
            return measure()

        fresh = number >= len(self.done)
        found = once(self, number, slowly)
        if fresh:
            say(f"acknowledged {number}")
        return found

    Journal.once = watched


def tear_writes() -> None:
    """A write that takes two steps and a while, as on a slow disk."""
    write = os.write

    def halves(file, data):
        done = write(file, data[: max(1, len(data) // 2)])
        time.sleep(0.0005)
        return done

    os.write = halves


class Supervisor:
    """Starts, kills and checks the sweeps of one journal after another."""

    def __init__(self, engine: str, seed: int, folder: Path) -> None:
        self.engine, self.random, self.folder = engine, random.Random(seed), folder
        self.expected = in_bytes(run(None, engine))
        self.journal = folder / "sweep.jsonl"
        self.acknowledged: set[int] = set()
        self.kills = self.torn = self.finished = 0

    def attempt(self, to_the_end: bool = False) -> None:
        """One sweep in a fork, killed after a random event and a random while."""
        source, sink = os.pipe()
        child = os.fork()
        if not child:
            os.close(source)
            self._child(sink)
        os.close(sink)
        with open(source, encoding="utf-8") as events:
            seen = []
            if not to_the_end:
                wanted = self.random.randrange(14)
                while len(seen) < wanted and (line := events.readline()):
                    seen.append(line)
                time.sleep(self.random.uniform(0, 0.01 if wanted else 0.05))
                os.kill(child, signal.SIGKILL)
            seen += events.readlines()
        status = os.waitpid(child, 0)[1]
        self._check([line.split() for line in seen if line.endswith("\n")], status)

    def _child(self, sink: int) -> None:
        write = os.write
        try:
            watch(lambda event: write(sink, f"{event}\n".encode()), 0.0005)
            tear_writes()
            write(sink, f"frame {in_bytes(run(self.journal, self.engine))}\n".encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001  # a fork must not go on into its parent's code
            traceback.print_exc()
            os._exit(1)

    def _check(self, events: list[list[str]], status: int) -> None:
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the sweep failed"
        measured = {int(what) for event, what in events if event == "measured"}
        assert not measured & self.acknowledged, "a pass was measured after its acknowledgement"
        self.acknowledged |= {int(what) for event, what in events if event == "acknowledged"}
        content = self.journal.read_bytes() if self.journal.exists() else b""
        *lines, rest = content.split(b"\n")
        kept = [json.loads(line)["pass"] for line in lines[1:]]
        assert self.acknowledged <= set(kept), "an acknowledged pass is lost"
        assert len(kept) == len(set(kept)), "a pass is there twice"
        frames = [what for event, what in events if event == "frame"]
        self.kills += os.WIFSIGNALED(status) and not frames
        self.torn += bool(rest)
        if frames:
            assert frames == [self.expected], "another frame"
            assert os.listdir(self.folder) == [self.journal.name], "something was left behind"
            self.finished += 1
            self.journal.unlink()
            self.acknowledged = set()


def main() -> int:
    mode, *arguments = sys.argv[1:]
    torch.set_num_threads(1)  # forks and thread pools do not mix
    small_passes()
    if mode == "kill":
        engine, kills, seed, folder = arguments
        supervisor = Supervisor(engine, int(seed), Path(folder))
        while supervisor.kills < int(kills):
            supervisor.attempt()
        supervisor.attempt(to_the_end=True)
        print(supervisor.kills, supervisor.torn, supervisor.finished)
        return 0
    print("digest", digest(margin), flush=True)
    watch(lambda event: print(event, flush=True), 0.5)
    return guarded(lambda rest: int(run(Path(rest[0]) / "sweep.jsonl").empty), arguments)


if __name__ == "__main__":
    sys.exit(main())
