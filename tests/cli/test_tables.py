"""Tables read back as they were written, and reach their stream row by row."""

from __future__ import annotations

import csv
import json
import sys
from io import StringIO
from pathlib import Path

import pytest

from skmkd._cli.tables import Table, output_stream, to_json

COLUMNS = ("path", "score")
ROWS = [
    ('a,"b"\nc.png', -0.1), ("naïve\udcff.png", 1e-30), ("a\rb.png", 1.0), ("a\r\nb.png\r", 1.0),
    ("\u2028 ;\x0b'=1", float("inf")), ('"', 2.0), ("/=1.png", -3.0), ("a=1", 0.0),
]  # fmt: skip


def test_csv_reads_back():
    stream = StringIO()
    table = Table(stream, "csv", COLUMNS)
    assert stream.getvalue() == "path,score\n"
    table.write(ROWS[:1])
    table.write(ROWS[1:])
    table.write([])
    header, *rows = csv.reader(StringIO(stream.getvalue(), newline=""))
    assert tuple(header) == COLUMNS
    assert [(path, float(score)) for path, score in rows] == ROWS


@pytest.mark.parametrize("newline", ["", None, "\n"])
def test_a_file_reads_back_as_csv_however_it_is_opened(newline, tmp_path):
    path = tmp_path / "table.csv"
    with output_stream(path) as stream:
        Table(stream, "csv", COLUMNS).write(ROWS)
    with path.open(newline=newline, encoding="utf-8", errors="surrogateescape") as stream:
        found = [name for name, _ in csv.reader(stream)][1:]
    assert len(found) == len(ROWS)
    if newline == "":  # otherwise Python changes line ends before csv sees them
        assert found == [name for name, _ in ROWS]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_path_is_a_formula_and_each_leads_to_its_file(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f'{start}HYPERLINK("http")|cmd,1.png'.replace("/", "")
    Path(name).write_bytes(b"here")
    stream = StringIO()
    Table(stream, "csv", COLUMNS).write([(name, -1.5), (f"folder/{name}", -1.5)])
    _, (first, score), (second, _) = csv.reader(StringIO(stream.getvalue(), newline=""))
    assert first == f"./{name}"
    assert Path(first) == Path(name)
    assert Path(first).read_bytes() == b"here"
    assert second == f"folder/{name}"
    assert float(score) == -1.5  # numbers stay numbers
    lines = StringIO()
    Table(lines, "jsonl", COLUMNS).write([(name, -1.5)])
    assert json.loads(lines.getvalue())["path"] == name


def test_json_lines_read_back_with_null_for_nan():
    stream = StringIO()
    table = Table(stream, "jsonl", COLUMNS)
    assert stream.getvalue() == ""
    table.write([*ROWS, ("c", float("nan"))])
    found = [
        json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().split("\n")[:-1]
    ]
    finite = [(path, min(score, sys.float_info.max)) for path, score in ROWS]
    assert found == [dict(zip(COLUMNS, row, strict=True)) for row in [*finite, ("c", None)]]


def test_each_row_is_flushed():
    class Stream(StringIO):
        flushed = ""

        def flush(self):
            self.flushed = self.getvalue()

    stream = Stream()
    table = Table(stream, "csv", COLUMNS)
    for n in (1, 2):
        table.write([("a", 1)])
        assert stream.flushed.count("\n") == 1 + n


def test_json_of_values_that_it_does_not_know():
    assert json.loads(to_json({"a": {1}, "b": float("nan"), "c": (1, 2)})) == {
        "a": "{1}", "b": None, "c": [1, 2],
    }  # fmt: skip
    nested = to_json({"a": {"b": float("nan")}, "c": (float("-inf"), 1)})
    assert json.loads(nested, parse_constant=pytest.fail) == {
        "a": {"b": None}, "c": [-sys.float_info.max, 1],
    }  # fmt: skip


@pytest.mark.parametrize("keep", [True, False])
def test_what_was_written_before_an_error_is_kept_on_request(keep, tmp_path):
    path = tmp_path / "scores.csv"

    def fail():
        with output_stream(path, keep=keep) as stream:
            stream.write("a\udcff\n")
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    assert path.exists() == keep
    assert not keep or path.read_bytes() == b"a\xff\n"
