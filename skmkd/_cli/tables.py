"""Tables as CSV or JSON lines, and the streams that they are written to."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from skmkd._files.archive import write_whole

FORMATS = ("csv", "jsonl")
SURROGATES = "surrogateescape"  # writes file names that are not valid text byte for byte


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
            csv.writer(text, lineterminator="\n").writerows(rows)
        else:
            named = (dict(zip(self._columns, row, strict=True)) for row in rows)
            text.writelines(to_json(row) + "\n" for row in named)
        self._stream.write(text.getvalue())
        self._stream.flush()


def to_json(facts: dict[str, Any], indent: int | None = None) -> str:
    """Return JSON, with NaN written as null."""
    plain = {name: None if value != value else value for name, value in facts.items()}
    return json.dumps(plain, indent=indent, default=repr, allow_nan=False)


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
