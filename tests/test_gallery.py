"""The gallery's table, and the comparison of two folders of reports."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import analyses
from benchmarks import same_csvs
from interp.cli import gallery

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "reports" / "gallery"


# --- what the gallery holds -------------------------------------------------------------------


def test_the_table_names_every_analysis_and_nothing_else():
    assert list(gallery.GALLERY) == analyses.names()
    assert set(gallery.SMALL) <= set(analyses.names())


@pytest.mark.parametrize("name", gallery.GALLERY)
def test_the_table_states_the_commands_of_the_committed_reports(name):
    manifest = json.loads((COMMITTED / name / "manifest.json").read_text(encoding="ascii"))
    words = gallery.arguments(name, Path("reports/gallery"))
    assert manifest["command"] == " ".join(["interp", *words])


def test_no_report_is_committed_that_the_table_does_not_make():
    assert sorted(path.parent.name for path in COMMITTED.glob("*/manifest.json")) == list(
        gallery.GALLERY
    )


def test_reports_are_made_by_the_commands_that_they_state(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = list(sys.argv)
    assert gallery.main(["--into", "here", "--small", "--only", "attention-patterns"]) == 0
    assert sys.argv == argv
    made = json.loads(Path("here/attention-patterns/manifest.json").read_text(encoding="ascii"))
    assert made["command"] == "interp run attention-patterns --out here/attention-patterns"
    assert made["threads"] == 1
    assert Path("here/index.html").is_file()
    listed = Path("here/README.md").read_text(encoding="utf-8")
    assert f"## [{made['title']}](attention-patterns/index.html)" in listed
    assert made["question"] in listed and (made["answer"] or made["findings"][0]) in listed
    assert "`interp run attention-patterns`" in listed


def test_the_page_of_the_gallery_leads_to_files_that_are_there():
    listed = gallery.readme(COMMITTED)
    links = re.findall(r"\]\(([^)]+)\)", listed)
    reports = [link for link in links if link.endswith("/index.html")]
    assert [link.partition("/")[0] for link in reports] == list(gallery.GALLERY)
    for link in set(links) - {"index.html"}:
        assert (COMMITTED / link).is_file(), link
    assert sum(link.endswith(".png") for link in links) >= 10


def test_make_gallery_is_the_command_of_the_gallery():
    rules = (ROOT / "Makefile").read_text()
    assert "interp.cli.gallery --into reports/gallery\n" in rules.partition("gallery: ")[2]


def test_a_name_that_the_gallery_has_not_is_refused_before_anything_runs(tmp_path, capsys):
    assert gallery.main(["--into", str(tmp_path), "--only", "neurons", "head-ablations"]) == 2
    assert "'head-ablations': the gallery has activation-patching" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_report_that_fails_ends_the_run_with_its_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gallery.GALLERY, "neurons", ("--model", "./absent"))
    assert gallery.main(["--into", str(tmp_path), "--only", "neurons", "steering"]) == 2
    assert not (tmp_path / "steering").exists()


# --- whether two folders hold the same numbers ------------------------------------------------

TABLE = "layer,token,effect\n0,king,0.5\n1,007,-1.25e-3\n2,,\n"


@pytest.fixture
def folders(tmp_path):
    """Two equal folders of two reports, one with a CSV of its own below."""
    before = tmp_path / "before"
    for name in ("a/heads.csv", "a/baseline.csv", "b/pages/x.csv"):
        (before / name).parent.mkdir(parents=True, exist_ok=True)
        (before / name).write_text(TABLE)
    (before / "a" / "index.html").write_text("words may change")
    shutil.copytree(before, tmp_path / "after")
    return before, tmp_path / "after"


def compared(folders, *options: str) -> int:
    return same_csvs.main([*map(str, folders), *options])


def test_equal_folders_are_equal(folders, capsys):
    (folders[1] / "a" / "index.html").write_text("other words")
    assert compared(folders) == 0
    assert capsys.readouterr().out == "3 CSV files compared, 0 faults, 0 new\n"


CHANGES = {
    "a number": (("0.5", "0.5000000001"), "column 'effect', row 1: '0.5' → '0.5000000001'"),
    "a sign": (("-1.25e-3", "1.25e-3"), "column 'effect', row 2: '-1.25e-3' → '1.25e-3'"),
    "text": (("king", "King"), "column 'token', row 1: 'king' → 'King'"),
    "a number that is text": (("007", "7"), "column 'token', row 2: '007' → '7'"),
    "a hole": (("0.5", ""), "column 'effect', row 1: '0.5' → ''"),
    "a filled hole": (("2,,", "2,,0"), "column 'effect', row 3: '' → '0'"),
    "a word for a number": (("0.5", "nan"), "column 'effect', row 1: '0.5' → 'nan'"),
    "a column's name": (("token", "word"), "column 'token' is gone"),
    "a lost column": ((TABLE, "layer,token\n0,king\n1,007\n2,\n"), "column 'effect' is gone"),
    "a lost row": (("2,,\n", ""), "3 rows → 2 rows"),
    "a row more": (("2,,\n", "2,,\n2,,\n"), "3 rows → 4 rows"),
    "reordered rows": (
        ("0,king,0.5\n1,007,-1.25e-3\n", "1,007,-1.25e-3\n0,king,0.5\n"),
        "column 'layer', row 1: '0' → '1'",
    ),
    "reordered columns": (
        (TABLE, "token,layer,effect\nking,0,0.5\n007,1,-1.25e-3\n,2,\n"),
        "columns in another order: ['layer', 'token', 'effect'] → ['token', 'layer', 'effect']",
    ),
    "an empty file": ((TABLE, ""), "column 'layer' is gone"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_named_with_its_place_and_both_values(folders, change, message, capsys):
    file = folders[1] / "b" / "pages" / "x.csv"
    file.write_text(TABLE.replace(*change))
    assert compared(folders) == 1
    assert f"DIFFERS: b/pages/x.csv: {message}" in capsys.readouterr().out
    assert compared(folders, "--only", "a") == 0


def test_a_lost_file_is_a_fault(folders, capsys):
    (folders[1] / "a" / "heads.csv").unlink()
    assert compared(folders) == 1
    assert "DIFFERS: a/heads.csv: the file is gone" in capsys.readouterr().out


def test_new_files_and_columns_are_listed_and_allowed(folders, capsys):
    (folders[1] / "a" / "more.csv").write_text(TABLE)
    (folders[1] / "a" / "heads.csv").write_text(
        "layer,why,token,effect\n0,x,king,0.5\n1,y,007,-1.25e-3\n2,z,,\n"
    )
    assert compared(folders) == 0
    out = capsys.readouterr().out
    assert "new: a/more.csv: the file is new" in out
    assert "new: a/heads.csv: column 'why' is new" in out


def test_numbers_are_equal_however_they_are_written(folders):
    (folders[1] / "a" / "heads.csv").write_text(
        "layer,token,effect\n0,king,0.50\n1,007,-0.00125\n2,,\n"
    )
    assert compared(folders) == 0


def test_dust_is_allowed_where_it_is_asked_for(folders, capsys):
    (folders[1] / "a" / "heads.csv").write_text(TABLE.replace("0.5", "0.5000001"))
    assert compared(folders) == 1
    assert "(apart 1e-07)" in capsys.readouterr().out
    assert compared(folders, "--rtol", "1e-6") == 0
    assert compared(folders, "--atol", "1e-6") == 0
    assert compared(folders, "--rtol", "1e-8") == 1


def test_columns_of_one_name_are_compared_each(folders, capsys):
    for folder in folders:
        (folder / "a" / "heads.csv").write_text("x,x\n1,2\n")
    assert compared(folders) == 0
    (folders[1] / "a" / "heads.csv").write_text("x,x\n1,3\n")
    assert compared(folders) == 1
    assert "column 'x (2)', row 1: '2' → '3'" in capsys.readouterr().out


def test_many_faults_of_a_column_are_counted(folders, capsys):
    for folder, value in zip(folders, "01", strict=True):
        (folder / "a" / "heads.csv").write_text("x\n" + f"{value}\n" * 20)
    assert compared(folders) == 1
    assert "column 'x': 15 more of 20 rows" in capsys.readouterr().out


def test_folders_that_cannot_be_compared_are_errors(folders, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert compared((tmp_path / "empty", folders[1])) == 2
    assert compared((folders[0], tmp_path / "absent")) == 2
    assert compared(folders, "--only", "c") == 2
    (folders[1] / "a" / "heads.csv").write_text("layer,token,effect\n0,king\n")
    assert compared(folders) == 2
    err = capsys.readouterr().err
    assert "nothing would be compared" in err
    assert "absent is no folder" in err
    assert "has no report 'c'" in err
    assert "row 1 has 2 cells, the header 3" in err


def test_large_whole_numbers_are_told_apart(folders):
    for folder, last in zip(folders, "23", strict=True):
        (folder / "a" / "heads.csv").write_text(f"x\n900719925474099{last}\n")
    assert float("9007199254740992") == float("9007199254740993")
    assert compared(folders) == 1


@given(st.lists(st.text(), min_size=1), st.data())
def test_any_cell_that_changes_is_seen(cells, data):
    index = data.draw(st.integers(0, len(cells) - 1))
    changed = [*cells]
    changed[index] += "x"
    assert not same_csvs.faults_of_column(cells, cells, same_csvs.EXACT)
    (fault,) = same_csvs.faults_of_column(cells, changed, same_csvs.EXACT)
    assert fault.startswith(f"row {index + 1}: ")
