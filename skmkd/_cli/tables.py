"""Tables as CSV or JSON lines, and the streams that they are written to."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO, TextIOWrapper
from math import isnan
from pathlib import Path
from typing import Any, TextIO

from skmkd._files.archive import write_whole

FORMATS = ("csv", "jsonl")
SURROGATES = "surrogateescape"  # writes file names that are not valid text byte for byte
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")  # starts of cells that spreadsheets may compute


class Table:
    """Rows that reach a stream as they come, several at once as a whole.

    Parameters
    ----------
    stream : text file
        File to write to.
    form : {"csv", "jsonl"}
        CSV with a header, or one JSON object a line.
    columns : sequence of str
        Names of the values in a row.
    """

    def __init__(self, stream: TextIO, form: str, columns: Sequence[str]) -> None:
        self._stream = stream
        self._form = form
        self._columns = columns
        if form == "csv":
            self.write([columns])

    def write(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows."""
        text = StringIO()
        if self._form == "csv":
            text.writelines(map(csv_line, rows))
        else:
            named = (dict(zip(self._columns, row, strict=True)) for row in rows)
            text.writelines(to_json(row) + "\n" for row in named)
        self._stream.write(text.getvalue())
        self._stream.flush()


def csv_line(row: Iterable[Any]) -> str:
    """Return a row of CSV, in which no text is a formula and every line break is quoted.

    A path that begins as a formula does is relative, and "./" before it changes nothing for
    programs that open the file.
    """
    line = StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(map(plain_text, row))  # it quotes both
    return line.getvalue().removesuffix("\r\n") + "\n"


def plain_text(cell: Any) -> Any:
    """Return a cell; a path that a spreadsheet would take for a formula begins with "./"."""
    return f"./{cell}" if isinstance(cell, str) and cell.startswith(FORMULAS) else cell


def to_json(facts: dict[str, Any], indent: int | None = None) -> str:
    """Return JSON, which has neither NaN nor infinity: they are null and the largest number."""
    return json.dumps(json_value(facts), indent=indent, default=repr, allow_nan=False)


def json_value(value: Any) -> Any:
    """Return a value, and those in it, as JSON can hold them."""
    if isinstance(value, dict):
        return {name: json_value(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(each) for each in value]
    if isinstance(value, float):
        return None if isnan(value) else min(max(value, -sys.float_info.max), sys.float_info.max)
    return value


@contextmanager
def output_stream(path: Path | None, *, keep: bool = False) -> Iterator[TextIO]:
    """Yield standard output, or a buffer that is written to the file at the end.

    With `keep`, what was written before an error is kept, too.
    """
    if path is None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors=SURROGATES)
        yield sys.stdout
        return
    buffer = StringIO()
    try:
        yield buffer
    except Exception:
        if keep:
            write_whole(path, buffer.getvalue().encode(errors=SURROGATES))
        raise
    write_whole(path, buffer.getvalue().encode(errors=SURROGATES))
