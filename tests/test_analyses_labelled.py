"""Labelled texts of the user's own: what is read, and how faults are named."""

from __future__ import annotations

import json
import os

import pytest

from analyses._labelled import read_labelled


def written(folder, content, name="own.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_columns_are_found_by_name_and_lines_are_counted(tmp_path):
    path = written(
        tmp_path,
        "\ufeffid,sentence, mood ,topic\r\n"
        '1,"One, ""two""\nlines",good,a\r\n\r\n2,null, bad ,b\r\n',
    )
    frame = read_labelled(path, text="sentence", label="mood", group="topic", more=("id",))
    assert frame.columns.tolist() == ["line", "text", "label", "group", "id"]
    assert frame["text"].tolist() == ['One, "two"\nlines', "null"]
    assert frame["label"].tolist() == ["good", "bad"]
    assert frame["line"].tolist() == [2, 5]
    assert read_labelled(path, text="sentence", label=None).columns.tolist() == ["line", "text"]


def test_json_lines_and_tabs_say_the_same_as_csv(tmp_path):
    rows = [("a\tb", "x"), ("c", "y")]
    lines = "\n".join(json.dumps({"text": t, "label": label, "n": [1]}) for t, label in rows)
    from_json = read_labelled(written(tmp_path, lines + "\n\n", "own.jsonl"))
    from_csv = read_labelled(written(tmp_path, "text,label\na\tb,x\nc,y\n"))
    assert from_json[["text", "label"]].equals(from_csv[["text", "label"]])
    tabs = read_labelled(written(tmp_path, "text\tlabel\na,b\tx\nc\ty\n", "own.tsv"))
    assert tabs["text"].tolist() == ["a,b", "c"]


def test_labels_of_json_become_text(tmp_path):
    lines = '{"text": "a", "label": true}\n{"text": "b", "label": 1}\n{"text": "c", "label": 1.5}'
    assert read_labelled(written(tmp_path, lines, "l.jsonl"))["label"].tolist() == [
        "true", "1", "1.5",
    ]  # fmt: skip


@pytest.mark.parametrize("label", ["null", "NaN", "None", "n/a", "True", "007", "-1.50"])
def test_no_word_is_missing_for_being_a_word(tmp_path, label):
    frame = read_labelled(written(tmp_path, f"text,label\n{label},{label}\nb,y\n"))
    assert frame.iloc[0].tolist() == [2, label, label]
    lines = f'{{"text": "{label}", "label": "{label}"}}\n{{"text": "b", "label": "y"}}'
    frame = read_labelled(written(tmp_path, lines, "own.jsonl"))
    assert frame.iloc[0].tolist() == [1, label, label]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,sense\na,b\n", "no column 'label'; there are: text, sense"),
        ("a.csv", "text,label\na,x\n ,y\n", "line 3: text is empty"),
        ("a.csv", "text,label\na,x\nb,\n", "line 3: label is empty"),
        ("a.csv", 'text,label\n"a\nb",x\nb\n', "line 4: 1 cells for 2 columns"),
        ("a.csv", "text,label\na,x\nb,x\n", "all 2 rows have the label 'x'"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "", "the file is empty; expected a header such as text,label"),
        ("a.jsonl", "\n", "no rows"),
        ("a.csv", "text,label\na,b,c\n", "line 2: 3 cells for 2 columns"),
        ("a.csv", 'text,label\n"a,x\n', "line 2: .*stands in quotes"),
        ("a.csv", "text,label,text\na,b,c\n", "the column 'text' stands there twice"),
        ("a.csv", "text,label,x,x\na,b,c,d\n", "the column 'x' stands there twice"),
        ("a.csv", b"text,label\n\xff,x\n", "not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n', "line 1: no column 'label'; there are: text"),
        ("a.jsonl", '{"text": "a", "label": null}\n', "line 1: label is null, which is no value"),
        ("a.jsonl", '{"text": NaN, "label": "x"}\n', "line 1: .*NaN is not a number of JSON"),
        ("a.jsonl", '{"text": "a", "label": "x", "label": "y"}', "'label' stands there twice"),
        ("a.jsonl", '\n{"text": ["a"], "label": "x"}\n', "line 2: text is a list"),
        ("a.jsonl", "[1]\n", "line 1: a list, expected an object"),
        ("a.jsonl", '{"text": "a"\n', "line 1: not valid JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: not valid JSON"),
    ],
)
def test_faults_are_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_labelled(written(tmp_path, content, name))


def test_size_is_bounded_and_an_absent_file_is_named(tmp_path):
    path = written(tmp_path, "text,label\na,x\nb,y\n")
    assert len(read_labelled(path)) == 2
    os.truncate(path, (64 << 20) + 1)
    with pytest.raises(ValueError, match="more than 67,108,864 bytes"):
        read_labelled(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        read_labelled(tmp_path / "absent.csv")
