"""Tables: rows of cells with names above them, as spreadsheets and other programs write them.

Which character separates the cells is told from the first rows. What cannot be told is refused with the option that
says it. A cell is text, to the letter.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.checks import shown

MARKS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
"""What may separate cells → its name."""
_WRITTEN = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "pipe": "|"}
MOST_COLUMNS = 1_000
MOST_MISSING = 1_000_000
"""Cells that all rows together may lack: each becomes a null, whatever the file's size."""
_SAMPLE, _SAMPLE_ROWS = 65_536, 20
_SEP = re.compile(r"(\"?)sep=([^\s\"]|\t)\1(?:\r\n|\r|\n)", re.IGNORECASE)
"""The first line that Excel reads to know what separates cells."""
_RULE = re.compile(r"\s*:?-{2,}:?\s*")
"""A cell of the line below the header of a table in Markdown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableForm:
    """What a file of rows does not say itself.

    Args:
        input_column: The column of inputs; None for that of the usual names (see `hf_mass.tasks.rows.ALIASES`).
        output_column: The column of outputs.
        encoding: How its text is encoded; None to tell it from the bytes.
        delimiter: What separates the cells of a CSV file: a character, or "tab"; None to tell it from the first rows.
        header: Whether the first row names the columns. If not, two columns are "input" and "output"; more are called
            "1", "2" and so on.

    Raises:
        ConfigError: If the delimiter is no single character.
    """

    input_column: str | None = None
    output_column: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    header: bool = True

    def __post_init__(self) -> None:
        if self.delimiter is None:
            return
        mark = _WRITTEN.get(self.delimiter.lower(), self.delimiter)
        if len(mark) != 1 or mark in '\r\n"':
            raise ConfigError(f"delimiter is {shown(self.delimiter, 40)}; give one character, such as ';', or 'tab'.")
        object.__setattr__(self, "delimiter", mark)


def parse_table(text: str, kind: str, where: str, form: TableForm, known: Collection[str] = ()) -> list[dict[str, Any]]:
    """The rows of a text in CSV or TSV, by column.

    Args:
        text: The text.
        kind: ".csv" or ".tsv", which is what the cells are likely to be separated by.
        where: What errors call it.
        form: What else is known of it.
        known: Names that its columns may have, in lower case.

    Raises:
        DataError: If it is no table, or what separates its cells cannot be told.
    """
    if "\0" in text:
        raise DataError(f"{where} is no text: it holds a zero byte. Give a file of another kind, or its encoding.")
    own = _SEP.match(text)
    body = text[own.end() :] if own else text
    mark = form.delimiter or (own and own[2]) or _delimiter(body, kind, where, form, known)
    try:
        return table_rows(_lines(_records(body, mark), where), where, form.header)
    except csv.Error as error:
        raise DataError(
            f"{where} could not be read: {error}. A .csv or .tsv file must hold a header and rows of as many values."
        ) from error


def table_rows(records: Iterator[list[Any]], where: str, has_header: bool) -> list[dict[str, Any]]:
    """Rows by column of rows of cells, the first of which are the names. Rows without any value are left out at the
    end."""
    first = next(records, [])
    if len(first) > MOST_COLUMNS:
        raise DataError(
            f"{where} has {len(first):,} columns; at most {MOST_COLUMNS:,} are read. Leave out those "
            "that are not needed."
        )
    header = [str(name or "").strip() for name in first] if has_header else _numbered(len(first))
    if twice := [name for name, count in Counter(filter(None, header)).items() if count > 1]:
        # A reader would silently take the last.
        raise DataError(f"{where} has two columns called {twice[0]!r:.60}. Give every column a name of its own.")
    rows, missing = list[dict[str, Any]](), 0
    for cells in records if has_header else _again(first, records):
        if any(beyond := [cell for cell in cells[len(header) :] if cell not in (None, "")]):
            raise DataError(
                f"{where}, row {len(rows)} (counted from 0) has more values than the header {header!r:.60} names: "
                f"{beyond!r:.60}. Put the header into the first line, quote values with commas, or name what separates "
                "them (delimiter=..., --delimiter)."
            )
        missing += max(0, len(header) - len(cells))
        if missing > MOST_MISSING:
            raise DataError(f"{where} has rows of fewer values than its {len(header)} columns. Complete them.")
        values = [*cells, *[None] * (len(header) - len(cells))]
        rows.append({name: value for name, value in zip(header, values, strict=False) if name})
    while rows and all(value in (None, "") for value in rows[-1].values()):
        rows.pop()
    return rows


def _numbered(count: int) -> list[str]:
    return ["input", "output"] if count == 2 else [str(number + 1) for number in range(count)]


def _again(first: list[Any], rest: Iterable[list[Any]]) -> Iterator[list[Any]]:
    if first:
        yield first
    yield from rest


def _records(text: str, mark: str) -> Iterator[list[Any]]:
    """The cells of each line that has any."""

    def read(spaced: bool) -> Iterator[list[Any]]:
        return csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True, skipinitialspace=spaced)

    # "a", "b": there a quote behind a space is none of the cell's characters
    spaced = f'{mark} "' in text and any(cell.startswith(' "') for cells in read(False) for cell in cells)
    return (cells for cells in read(spaced) if cells)


def _lines(records: Iterator[list[Any]], where: str) -> Iterator[list[Any]]:
    """The rows, none of which is a comment or the like: a line of one value, with rows of several before and behind."""
    first, stray = next(records, []), None
    if first:
        yield first
    for number, cells in enumerate(records):
        if number == 0 and any(cells) and len(cells) > 1 and all(_RULE.fullmatch(cell) for cell in cells if cell):
            raise DataError(f"{where} is a table in Markdown. Write it as CSV, without the line {cells!r:.60}.")
        if len(cells) > 1 and stray is not None:
            raise DataError(
                f"{where}, row {stray[0]} (counted from 0) has one value, {stray[1]!r:.60}, among rows of several. "
                "Remove the line, or complete it: where its output is to be found, end it with what separates values."
            )
        if len(cells) == 1 < len(first) and stray is None:
            stray = number, cells[0]
        yield cells


def _delimiter(text: str, kind: str, where: str, form: TableForm, known: Collection[str]) -> str:
    """What separates the cells: what makes names of the header that are known, else rows of equally many cells."""
    usual = "," if kind == ".csv" else "\t"
    samples = {mark: _sample(text, mark) for mark in dict.fromkeys([usual, *MARKS])}
    names = {name.strip().lower() for name in (form.input_column, form.output_column) if name} | set(known)
    found = {mark: _known(rows, names) for mark, rows in samples.items()} if form.header else {}
    if best := max(found.values(), default=0):
        return next(mark for mark, count in found.items() if count == best)
    even = [mark for mark, rows in samples.items() if rows and len(rows[0]) > 1 and len({*map(len, rows)}) == 1]
    if len(even) > 1:
        several = " or ".join(MARKS[mark] for mark in even)
        raise DataError(
            f"{where}: {several} may separate its cells, as in {shown(text.splitlines()[0])}. Say which "
            "(delimiter=..., --delimiter)."
        )
    return even[0] if even else usual


def _known(rows: Sequence[Sequence[str]], names: Collection[str]) -> int:
    return sum(cell.strip().lower() in names for cell in rows[0]) if rows else 0


def _sample(text: str, mark: str) -> list[list[str]]:
    """The first rows; none where they are no table of this mark."""
    rows = list[list[str]]()
    cut = len(text) > _SAMPLE
    try:
        for row in islice(_records(text[:_SAMPLE], mark), _SAMPLE_ROWS):
            rows.append(row)
    except csv.Error:
        cut = cut or not rows
    return rows[:-1] if cut and len(rows) > 1 else rows
