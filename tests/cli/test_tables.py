"""Tables read back as they were written, and reach their stream row by row."""

from __future__ import annotations

import csv
import json
from io import StringIO

import pytest

from skmkd._cli.tables import Table, output_stream, to_json

COLUMNS = ("path", "score")
ROWS = [('a,"b"\nc.png', -0.1), ("naïve\udcff.png", 1e-30)]


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


def test_json_lines_read_back_with_null_for_nan():
    stream = StringIO()
    table = Table(stream, "jsonl", COLUMNS)
    assert stream.getvalue() == ""
    table.write([*ROWS, ("c", float("nan"))])
    found = [
        json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().split("\n")[:-1]
    ]
    assert found == [dict(zip(COLUMNS, row, strict=True)) for row in [*ROWS, ("c", None)]]


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
