"""Every analysis on the pretend accelerator: its report says what it says on the CPU."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

import analyses
from interp.report import Report
from interp.report.table import Table
from tests.device.bench import ATOL, RTOL
from tests.device.pretend import DEVICE
from tests.test_contract import config_of, small_model


@pytest.fixture(autouse=True)
def _drawn_quickly(monkeypatch) -> None:
    """Pictures are drawn from frames, which are compared; to draw them takes most of the time."""

    def savefig(self: Figure, file: BytesIO, **_: object) -> None:
        file.write(b"<svg></svg>")

    monkeypatch.setattr(Figure, "savefig", savefig)


def run(name: str, device: str) -> Report:
    """Of the contract's small model, in float64, with the contract's small settings."""
    return analyses.load(name).run(small_model().double().to(device), config_of(name))


def frames(report: Report) -> dict[str, pd.DataFrame]:
    """Its tables by name, and those behind its pictures."""
    items = (item for section in report.sections for item in section.items)
    tables = (item if isinstance(item, Table) else getattr(item, "table", None) for item in items)
    return {table.name: table.frame for table in tables if table is not None}


@pytest.mark.parametrize("name", analyses.names())
def test_the_report_is_that_of_the_cpu(name: str, tmp_path: Path, unchecked):
    ours, theirs = run(name, "pretend"), run(name, "cpu")
    for words in ("warnings", "findings", "certainty", "doubts", "skipped"):
        assert getattr(ours, words) == getattr(theirs, words), words
    tables, expected = frames(ours), frames(theirs)
    assert list(tables) == list(expected) and tables
    for table, frame in expected.items():
        pd.testing.assert_frame_equal(tables[table], frame, rtol=RTOL, atol=ATOL, obj=table)
    folder = ours.write(tmp_path / name).parent
    manifest = json.loads((folder / "manifest.json").read_text(encoding="ascii"))
    assert manifest["device"] == str(DEVICE) and theirs.provenance["device"] == "cpu"
    assert manifest["model"]["weights_hash"] == theirs.provenance["model"]["weights_hash"]
