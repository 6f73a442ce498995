"""Rows of a user's own file (CSV, TSV, Excel, JSON, JSON lines), and few-shot tasks from them.

All that the package reads as rows is read here, and `ALIASES` is the one list of names for their two columns.
What cannot be read, or is of another form, raises DataError. Texts and numbers are kept to the letter.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_mass.errors import DataError
from hf_mass.tasks.checks import as_path, no_file, require_whole, shown
from hf_mass.tasks.conversations import MESSAGES, row_messages, solved_pair
from hf_mass.tasks.decoding import decoded
from hf_mass.tasks.grids import as_grid, grid_text
from hf_mass.tasks.sheets import SHEET, sheet_rows
from hf_mass.tasks.tables import TableForm, parse_table
from hf_mass.tasks.task import INSTRUCTION, Demonstration, Task
from hf_mass.tasks.unread import tell_unread
from hf_mass.tasks.verifiers import get_verifier

ROW_KINDS = (".jsonl", ".csv", ".tsv", SHEET)
"""Endings of files that hold rows and nothing else; a .json file may hold other things as well."""

ALIASES = (
    ("input", "output"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("source", "target"),
    ("text", "label"),
    ("x", "y"),
    ("input", "target"),
    ("input", "label"),
)
"""Names for the columns of inputs and outputs, the first ones preferred."""
KNOWN = frozenset({name for pair in ALIASES for name in pair} | {"problem", "solution", *MESSAGES})
"""Names by which a header is known to be one."""
PLAIN = TableForm()


def pair_columns(columns: Collection[str]) -> tuple[str, str] | None:
    """The pair of `ALIASES` that these columns hold; else the only one whose input they hold, else None."""
    if both := next((pair for pair in ALIASES if set(pair) <= set(columns)), None):
        return both
    halves = [pair for pair in ALIASES if pair[0] in columns]
    return halves[0] if len({pair[0] for pair in halves}) == 1 else None


def as_pairs(rows: Sequence[Mapping[str, Any]], where: str, form: TableForm = PLAIN) -> list[dict[str, Any]]:
    """The rows with "input" and "output" for the columns that the form names, else for those that are called so or
    alike (`ALIASES`), or hold conversations; names in lower case, without space around them. A warning names columns
    that are not read, unless the form names both that are.

    Raises:
        DataError: If a row has two columns of one name, or the columns that the form names are not there.
    """
    plain = [_lower(row, where) for row in rows]
    columns = {column: None for row in plain for column in row}
    if named := [name for name in (form.input_column, form.output_column) if name is not None]:
        if missing := [name for name in named if name.strip().lower() not in columns]:
            raise DataError(
                f"{where} has no column {missing[0]!r:.60}. Columns found: {shown(list(columns), 200)}. Set "
                "input_column and output_column to two of these."
            )
        pair = [
            _usual(columns, place) if name is None else name.strip().lower()
            for place, name in enumerate((form.input_column, form.output_column))
        ]
        if len(named) < 2:
            tell_unread(plain, pair, where)
        return [_renamed(row, pair) for row in plain]
    if (found := pair_columns(columns)) is None:
        chats = next((name for name in MESSAGES if name in columns), None)
        if chats is None:
            return plain
        tell_unread(plain, [chats, "system", "tools"], where)
        return [_from_chat(row, chats, n, where) for n, row in enumerate(plain)]
    tell_unread(plain, found, where)
    return [_renamed(row, found) for row in plain]


def _usual(columns: Collection[str], place: int) -> str:
    """The one column of inputs (place 0) or outputs (1) that there is beside one that was named."""
    names = {pair[place] for pair in ALIASES if pair[place] in columns}
    return names.pop() if len(names) == 1 else ALIASES[0][place]


def _lower(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in row.items():
        column = key.strip().lower()
        if column and column in plain:
            raise DataError(f"{where} has two columns called {column!r:.60}. Give every column a name of its own.")
        plain[column] = value
    return plain


def _renamed(row: Mapping[str, Any], pair: Sequence[str]) -> dict[str, Any]:
    """The row with "input" and "output" for the columns of a pair, in place of others of these names."""
    names = dict(zip(pair, ALIASES[0], strict=True))
    others = {column: value for column, value in row.items() if column not in {*names, *ALIASES[0]}}
    return {**others, **{new: row[old] for old, new in names.items() if old in row}}


def _from_chat(row: dict[str, Any], column: str, number: int, where: str) -> dict[str, Any]:
    if row.get(column) is None:
        return row
    where = f"{where}, row {number} (counted from 0), column {column!r}:"
    system, question, answer = solved_pair(row_messages(row, column, where), where)
    return {**row, "input": question, "output": answer, **({INSTRUCTION: system} if system else {})}


def load_few_shot_file(
    path: str | Path,
    input_column: str = "input",
    output_column: str = "output",
    *,
    demonstrations: int = 10,
    seed: int = 0,
    verifier: str = "exact_match",
    form: TableForm = PLAIN,
) -> list[Task]:
    """Tasks from a file of solved examples of one and the same task.

    Args:
        path: A .json file (a list of objects, or JSON lines), a .jsonl, .csv or .tsv file, or a workbook of Excel
            (.xlsx). A value is text, a number, or a list of rows of colours, which is a grid.
        input_column: The column of inputs; where the file has none of this name, a conversation of one question in a
            column "messages" is read.
        output_column: The column of outputs.
        demonstrations: How many rows, drawn by `seed`, become the demonstrations of every task.
        seed: Seed of the draw.
        verifier: Name of the verifier for the tasks.
        form: How the file is written, where it does not say so itself. Its columns give way to the two above.

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
    file, columns = as_path("load_few_shot_file: path", path), (input_column, output_column)
    rows = read_rows(file, replace(form, input_column=input_column, output_column=output_column))
    if not any(input_column in row for row in rows) and any(name in row for row in rows for name in MESSAGES):
        rows, columns = as_pairs(rows, repr(str(file))), ALIASES[0]
    elif columns == ALIASES[0]:  # nobody named them
        tell_unread(rows, columns, repr(str(file)))
    return few_shot_rows(file, rows, columns, demonstrations, seed, verifier)


def few_shot_rows(
    file: Path,
    rows: Sequence[Mapping[str, Any]],
    columns: tuple[str, str],
    demonstrations: int,
    seed: int = 0,
    verifier: str = "exact_match",
) -> list[Task]:
    """`load_few_shot_file` on rows that were read already; `columns` are those of inputs and outputs."""
    where = repr(str(file))
    pairs = [Demonstration(*(row_value(row, column, n, where) for column in columns)) for n, row in enumerate(rows)]
    told = {} if INSTRUCTION in columns else shared_instruction(rows, where)
    fields = {"source": file.name, "file": file.name, **told}
    return few_shot_tasks(file, pairs, demonstrations, seed, verifier, fields, in_order=True)


def shared_instruction(rows: Sequence[Mapping[str, Any]], where: str) -> dict[str, str]:
    """What the system is told in all conversations, or stands in a column "instruction", as a field of tasks.

    Raises:
        DataError: If it is not the same in all rows, or no text.
    """
    told = {str(value): value for row in rows for value in [row.get(INSTRUCTION)]}
    if len(told) > 1:
        raise DataError(
            f"{where} has rows with different instructions, or system messages: {shown(sorted(told), 120)}. Give "
            "examples of one task, with one instruction or none; or write each into its input."
        )
    instruction = next(iter(told.values()), None)
    if instruction is not None and not isinstance(instruction, str):
        raise DataError(f"{where}: instruction is {shown(instruction)}. Give a text.")
    return {INSTRUCTION: instruction} if instruction else {}


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


def read_json(file: Path, encoding: str | None = None) -> Any:
    """The content of a JSON file, as `parse_json` gives it; a list where it holds JSON lines."""
    where = repr(str(file))
    try:
        return parse_json(decoded(_content(file, where), where, encoding))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} could not be read as JSON: {error}. Correct or replace the file.") from error


def _content(file: Path, where: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{where} could not be read: {error}. Check that it may be read.") from error


def parse_json(text: str) -> Any:
    """The content of a text in JSON, or the list of the objects of JSON lines; raises ValueError if it is neither.

    Numbers that are not whole stay as they are written, and so do those that have no such form in Python (-0), or
    more digits than it prints, and the values true and false of objects: they are texts.
    """
    try:
        return _parse(text)
    except ValueError:
        first, _, rest = text.lstrip().partition("\n")
        if not rest.strip() or not first.startswith("{") or not _is_json(first):
            raise  # what is wrong with the text as a whole
    return json_lines(text)


def _parse(text: str) -> Any:
    return json.loads(text, parse_float=str, parse_int=_whole, object_pairs_hook=_object)


def _whole(text: str) -> int | str:
    return text if text == "-0" or len(text) > 4_000 else int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = {name: str(value).lower() if isinstance(value, bool) else value for name, value in pairs}
    if len(values) < len(pairs):  # of which a reader would silently take the last
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"an object has two values called {twice!r:.60}")
    return values


def _is_json(text: str) -> bool:
    try:
        _parse(text)
    except ValueError:
        return False
    return True


def json_lines(text: str) -> list[Any]:
    """The values of JSON lines; raises ValueError, which names the line, if one is no JSON."""
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values.append(_parse(line))
            except json.JSONDecodeError as error:
                what = f"line {number}, column {error.colno}: {error.msg}"
                raise ValueError(f"{what}, in {line.strip()!r:.60}") from error
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return values


def read_rows(file: Path, form: TableForm = PLAIN, ending: str | None = None) -> list[dict[str, Any]]:
    """The rows of a .json, .jsonl, .csv, .tsv or .xlsx file; `ending` is its kind where its own name does not say."""
    if not file.is_file():
        raise no_file(file)
    where, kind = repr(str(file)), (ending or file.suffix).lower()
    if kind == ".json":
        content = read_json(file, form.encoding)
        if not isinstance(content, list):
            raise DataError(f"{where} holds {describe(content)}. Expected a list of objects, one for each example.")
        return as_rows(content, where)
    if kind not in ROW_KINDS:
        raise DataError(
            f"{where} is of unknown kind {file.suffix!r}. Convert it to .json, .jsonl, .csv, .tsv or .xlsx."
        )
    content = _content(file, where)
    if kind == SHEET:
        return sheet_rows(content, where, form)
    return parse_rows(decoded(content, where, form.encoding), kind, where, form)


def parse_rows(text: str, kind: str, where: str, form: TableForm = PLAIN) -> list[dict[str, Any]]:
    """The rows of a text in JSON lines, CSV or TSV; `where` names it in errors."""
    if kind != ".jsonl":
        return parse_table(text, kind, where, form, KNOWN)
    try:
        return as_rows(json_lines(text), where)
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply. Give flat objects, one a line.") from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} could not be read: {error}. A .jsonl file must hold one object a line.") from error


def as_rows(values: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """The values, each of which must be an object; `where` names them in errors."""
    for number, row in enumerate(values):
        if not isinstance(row, dict):
            raise DataError(
                f"{where}, row {number} (counted from 0) is {describe(row)}. Expected an object of values by column."
            )
    return list(values)


def row_value(row: Mapping[str, Any], column: str, number: int, where: str) -> str:
    """The text of a row's value in a column; grids in canonical form."""
    where = f"{where}, row {number} (counted from 0)"
    if column not in row:
        raise DataError(
            f"{where} has no column {column!r}. Columns found: {shown(sorted(row), 200)}. Set input_column and "
            "output_column to two of these."
        )
    value = row[column]
    if isinstance(value, list):
        return grid_text(as_grid(value, f"{where}, column {column!r}"))
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))  # NaN: a null
    if not is_number and not (isinstance(value, str) and value.strip()):
        raise DataError(
            f"{where}, column {column!r}: expected text, a number or a grid, found {shown(value)}. Fill it."
        )
    return str(value)


def describe(content: Any) -> str:
    """What a JSON value is, in few words for an error."""
    if isinstance(content, dict):
        return f"an object with {len(content)} keys, {list(content)[:3]!r:.80}..." if content else "an empty object"
    return f"a list of {len(content)}" if isinstance(content, list) else f"{type(content).__name__} {shown(content)}"
