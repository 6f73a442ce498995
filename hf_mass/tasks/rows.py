"""Rows of a user's own file (CSV, TSV, JSON, JSON lines), and few-shot tasks from them.

All that the package reads as rows is read here, and `ALIASES` is the one list of names for their two columns.
What cannot be read, or is of another form, raises DataError.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_mass.errors import DataError
from hf_mass.tasks.checks import require_whole
from hf_mass.tasks.grids import as_grid, grid_text
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.verifiers import get_verifier

ROW_KINDS = (".jsonl", ".csv", ".tsv")
"""Endings of files that hold rows and nothing else; a .json file may hold other things as well."""

ALIASES = (
    ("input", "output"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("source", "target"),
    ("text", "label"),
    ("x", "y"),
)
"""Names for the columns of inputs and outputs, the first ones preferred."""


def pair_columns(columns: Collection[str]) -> tuple[str, str] | None:
    """The pair of `ALIASES` that these columns hold; else the first whose input they hold, else None."""
    both = (pair for pair in ALIASES if set(pair) <= set(columns))
    return next(both, next((pair for pair in ALIASES if pair[0] in columns), None))


def load_few_shot_file(
    path: str | Path,
    input_column: str = "input",
    output_column: str = "output",
    *,
    demonstrations: int = 10,
    seed: int = 0,
    verifier: str = "exact_match",
) -> list[Task]:
    """Tasks from a file of solved examples of one and the same task.

    Args:
        path: A .json file (a list of objects, or JSON lines), a .jsonl file, or a .csv or .tsv file with a header. A
            value is text, a number, or a list of rows of colours, which is a grid.
        input_column: The column of inputs.
        output_column: The column of outputs.
        demonstrations: How many rows, drawn by `seed`, become the demonstrations of every task.
        seed: Seed of the draw.
        verifier: Name of the verifier for the tasks.

    Returns:
        One task for each row that was not drawn, in the file's order; `id` is the file's stem and the row's number,
        from 0; `domain` is the stem; `fields` hold "source" and "file", both the file's name.

    Raises:
        ConfigError: If `demonstrations` is not positive.
        VerifierError: If the verifier is unknown.
        DataError: If the file cannot be read, a row lacks a column or a value, or no row is left to be a query.
    """
    get_verifier(verifier)
    require_whole("load_few_shot_file: demonstrations", demonstrations, 1)
    file = Path(path).expanduser()
    pairs = [
        Demonstration(*(row_value(row, column, n, repr(str(file))) for column in (input_column, output_column)))
        for n, row in enumerate(read_rows(file))
    ]
    fields = {"source": file.name, "file": file.name}
    return few_shot_tasks(file, pairs, demonstrations, seed, verifier, fields, in_order=True)


def few_shot_tasks(
    file: Path,
    pairs: Sequence[Demonstration],
    demonstrations: int,
    seed: int,
    verifier: str,
    fields: Mapping[str, str],
    in_order: bool = False,
) -> list[Task]:
    """One task for each pair of a file that `draw_demonstrations` leaves, in the order of the draw or of the file."""
    if len(pairs) <= demonstrations:
        raise DataError(
            f"{str(file)!r} has {len(pairs)} examples, which leaves no query beside {demonstrations} demonstrations. "
            "Add examples, or set demonstrations to a smaller number."
        )
    first, rest = draw_demonstrations(len(pairs), demonstrations, seed)
    shared = tuple(pairs[number] for number in first)
    return [
        Task(
            problem=pairs[number].question,
            answer=pairs[number].answer,
            demonstrations=shared,
            verifier=verifier,
            domain=file.stem,
            id=f"{file.stem}_{number}",
            fields=dict(fields),
        )
        for number in (sorted(rest) if in_order else rest)
    ]


def draw_demonstrations(total: int, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Shuffles the numbers 0 to `total` - 1 by Python's generator at `seed`: (the first `count`, the rest)."""
    order = list(range(total))
    random.Random(seed).shuffle(order)
    return order[:count], order[count:]


def read_json(file: Path) -> Any:
    """The content of a JSON file; a list where it holds JSON lines."""
    try:
        return parse_json(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(file)!r} could not be read as JSON: {error}. Correct or replace the file.") from error


def parse_json(text: str) -> Any:
    """The content of a text in JSON, or the list of the objects of JSON lines; raises ValueError if it is neither."""
    try:
        return json.loads(text)
    except ValueError:
        with contextlib.suppress(ValueError):
            if lines := json_lines(text):
                return lines
        raise  # what is wrong with the text as a whole


def json_lines(text: str) -> list[Any]:
    """The values of JSON lines; raises ValueError if a line is no JSON."""
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a .json, .jsonl, .csv or .tsv file."""
    if not file.is_file():
        raise DataError(f"There is no file {str(file)!r}. Correct the path.")
    where, kind = repr(str(file)), file.suffix.lower()
    if kind == ".json":
        content = read_json(file)
        if not isinstance(content, list):
            raise DataError(f"{where} holds {describe(content)}. Expected a list of objects, one for each example.")
        return as_rows(content, where)
    if kind not in ROW_KINDS:
        raise DataError(f"{where} is of unknown kind {file.suffix!r}. Convert it to .json, .jsonl, .csv or .tsv.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{where} could not be read: {error}. Give a file in UTF-8.") from error
    return parse_rows(text, kind, where)


def parse_rows(text: str, kind: str, where: str) -> list[dict[str, Any]]:
    """The rows of a text in one of `ROW_KINDS`; `where` names it in errors."""
    header: Sequence[str] = ()
    try:
        if kind == ".jsonl":
            rows = json_lines(text)
        else:
            table = csv.DictReader(
                io.StringIO(text, newline=""), strict=True, delimiter="," if kind == ".csv" else "\t"
            )
            header, rows = table.fieldnames or (), list(table)
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(
            f"{where} could not be read: {error}. A .jsonl file must hold one object a line, a .csv or .tsv file a "
            "header and rows of as many values."
        ) from error
    if twice := [name for name in header if name.strip() and header.count(name) > 1]:
        # A reader would silently take the last.
        raise DataError(f"{where} has two columns called {twice[0]!r:.60}. Give every column a name of its own.")
    return as_rows(rows, where)


def as_rows(values: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """The values, each of which must be an object; `where` names them in errors."""
    for number, row in enumerate(values):
        if not isinstance(row, dict):
            raise DataError(
                f"{where}, row {number} (counted from 0) is {describe(row)}. Expected an object of values by column."
            )
        if None in row:  # where the reader of CSV puts what stands beyond the last column
            raise DataError(
                f"{where}, row {number} (counted from 0) has more values than the header has columns: "
                f"{row[None]!r:.60}. Quote values with commas."
            )
    return list(values)


def row_value(row: Mapping[str, Any], column: str, number: int, where: str) -> str:
    """The text of a row's value in a column; grids in canonical form."""
    where = f"{where}, row {number} (counted from 0)"
    if column not in row:
        raise DataError(
            f"{where} has no column {column!r}. Columns found: {sorted(row)!r:.200}. Set input_column and "
            "output_column to two of these."
        )
    value = row[column]
    if isinstance(value, list):
        return grid_text(as_grid(value, f"{where}, column {column!r}"))
    is_number = isinstance(value, int | float) and math.isfinite(value)  # NaN: a null
    if not is_number and not (isinstance(value, str) and value.strip()):
        raise DataError(f"{where}, column {column!r}: expected text, a number or a grid, found {value!r:.60}. Fill it.")
    return str(value)


def describe(content: Any) -> str:
    """What a JSON value is, in few words for an error."""
    if isinstance(content, dict):
        return f"an object with {len(content)} keys, {list(content)[:3]!r:.80}..." if content else "an empty object"
    return f"a list of {len(content)}" if isinstance(content, list) else f"{type(content).__name__} {content!r:.60}"
