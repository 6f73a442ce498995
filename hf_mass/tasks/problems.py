"""A problem as a user has it, as tasks: an ARC puzzle, a few-shot file, lines of "input -> output", or a text alone.

What is uploaded or pasted is read here within limits, and nothing of it is run. Whatever is
wrong with it raises DataError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_mass.errors import DataError
from hf_mass.tasks.arc import is_puzzle, puzzle_tasks
from hf_mass.tasks.checks import no_file, shown
from hf_mass.tasks.decoding import decoded
from hf_mass.tasks.grids import parse_grid
from hf_mass.tasks.rows import (
    ALIASES,
    PLAIN,
    ROW_KINDS,
    as_pairs,
    as_rows,
    pair_columns,
    parse_json,
    parse_rows,
    row_value,
    shared_instruction,
)
from hf_mass.tasks.sheets import SHEET, sheet_rows
from hf_mass.tasks.tables import MARKS, TableForm
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.verifiers import gold_answer, register_verifier

KINDS = (".json", ".jsonl", ".csv", ".tsv", ".xlsx", ".txt")
"""Endings of files that can be read."""

_ARROW = re.compile(
    r"<?-{1,9}>|<?={1,9}>|[→⇒⟶↦↔⇔]|\t+"
)  # with spaces around it, a line of spaces alone would take quadratic time
_SEP_LINE = re.compile('"?sep=."?', re.IGNORECASE)
_END = re.compile("\r\n|\r|\n")
"""The end of a line; other signs that Python splits lines at, such as U+2028, are text."""
_NO_TEXT = re.compile("[\0\ud800-\udfff]")


@register_verifier("identical")
def identical(task: Task, answer: str) -> float:
    """Returns 1 if the answer is the task's to the letter and case, which is what rules for texts need."""
    return float(answer.strip() == gold_answer(task, "identical").strip())


@dataclass(frozen=True)
class Limits:
    """How large a problem may be.

    Args:
        bytes: Of the file or text.
        demonstrations: Solved examples.
        queries: Questions.
        side: Rows or columns of a grid.
        strip: Columns of a grid of one row.
        characters: Of one input or output that is a text.
    """

    bytes: int = 500_000
    demonstrations: int = 50
    queries: int = 10
    side: int = 30
    strip: int = 100
    characters: int = 4_000


@dataclass(frozen=True)
class Problem:
    """One problem: its queries as tasks with the same demonstrations.

    Args:
        name: What it is called.
        kind: "grids" or "texts".
        tasks: One for each query. `Task.answer` is None where the file does not hold it.
    """

    name: str
    kind: str
    tasks: tuple[Task, ...]


def read_problem_file(path: str | Path, limits: Limits | None = None, form: TableForm = PLAIN) -> Problem:
    """The problem in a file of one of `KINDS`; `form` is what the file does not say itself."""
    file, limits = Path(path), limits or Limits()
    try:
        file = file.expanduser()
        exists = file.is_file()
    except (OSError, RuntimeError):  # a name too long for any file, or the home of nobody
        exists = False
    if not exists:
        raise no_file(file, repr(str(path)))
    if file.suffix.lower() not in KINDS:
        raise DataError(f"{file.name!r} is of unknown kind {file.suffix!r}. Convert it to {', '.join(KINDS)}.")
    size = file.stat().st_size
    if size > limits.bytes:
        raise DataError(f"{file.name!r} has {size:,} bytes; at most {limits.bytes:,} are read. Give a smaller problem.")
    try:
        content = file.read_bytes()
    except OSError as error:  # whose own text would name the folder that an upload is kept in
        raise DataError(f"{file.name!r} could not be read: {error.strerror}. Check that it may be read.") from error
    name, kind = file.stem.encode(errors="replace").decode(), file.suffix.lower()
    if kind == SHEET:
        tasks, is_grids = _row_tasks(sheet_rows(content, repr(file.name), form), name, form)
        return _checked(Problem(name, "grids" if is_grids else "texts", tasks), limits)
    return read_problem(decoded(content, repr(file.name), form.encoding), name, kind, limits, form)


def read_problem(
    text: str,
    name: str = "problem",
    kind: str | None = None,
    limits: Limits | None = None,
    form: TableForm = PLAIN,
) -> Problem:
    """The problem in a text.

    Read are: an ARC puzzle as JSON; rows of "input" and "output", or of "messages", as JSON, JSON lines, CSV or TSV;
    an object of "problem", "demonstrations" and what else a `Task` has; lines "input -> output" (or with "=>", "→" or a
    tab between); and any other text, which is a problem without demonstrations. Rows without an output are the queries;
    if all have one, the last row is the query, and its output the known answer. "?" as the output of the last rows is
    none.

    Args:
        text: The text.
        name: What to call it.
        kind: One of `KINDS`; None to tell from the text.
        limits: How large it may be.
        form: What rows do not say themselves, such as the names of their columns.
    """
    if not isinstance(text, str):
        raise DataError(f"{name!r} is {shown(text)}. Give a problem as text.")
    limits, text = limits or Limits(), text.removeprefix("\ufeff")
    if kind is not None and (kind not in KINDS or kind == SHEET):
        raise DataError(f"{name!r} is of unknown kind {kind!r}. Choose one of {list(KINDS)}.")
    if len(text.encode("utf-8", "surrogatepass")) > limits.bytes:
        raise DataError(f"{name!r} is longer than {limits.bytes:,} bytes. Give a smaller problem.")
    if not text.strip():
        raise DataError(f"{name!r} is empty. Give a problem: a puzzle as JSON, rows of input and output, or a text.")
    if "\0" in text:
        raise DataError(f"{name!r} is no text: it holds a zero byte. Give a file of one of {list(KINDS)}.")
    try:
        tasks, is_grids = _tasks(text, name, kind or _kind_of(text, form), form)
    except RecursionError as error:
        raise DataError(f"{name!r} is nested too deeply. Give a flat list of rows, or a puzzle.") from error
    except DataError as error:
        raise error if repr(name) in str(error) else DataError(f"{name!r}: {error}") from error
    return _checked(Problem(name, "grids" if is_grids else "texts", tasks), limits)


def read_object(content: Mapping[str, Any], name: str, limits: Limits | None = None) -> Problem:
    """The problem of texts that an object with "problem", "demonstrations" and what else a `Task` has describes."""
    return _checked(Problem(name, "texts", (_object_task(content, name),)), limits or Limits())


def _kind_of(text: str, form: TableForm) -> str:
    lines = [line for line in _END.split(text.strip()) if line.strip()]
    if text.lstrip().startswith(("{", "[")):
        if all(map(_ARROW.search, lines)):
            try:
                parse_json(text)
            except ValueError:
                return ".txt"
        return ".json"
    if form != replace(PLAIN, encoding=form.encoding):  # somebody told how a table is written
        return ".csv"
    header, *others = lines[1:] if _SEP_LINE.fullmatch(lines[0]) else lines
    return next((".tsv" if mark == "\t" else ".csv" for mark in MARKS if others and _is_header(header, mark)), ".txt")


def _is_header(line: str, mark: str) -> bool:
    """Returns True if a line names columns."""
    header = {cell.strip('" ').lower() for cell in line.split(mark)}
    return not line.startswith(mark) and any({*names} <= header for names in ALIASES)


def _tasks(text: str, name: str, kind: str, form: TableForm) -> tuple[tuple[Task, ...], bool]:
    """(tasks, whether they are of grids)."""
    if kind in ROW_KINDS:
        rows = parse_rows(text, kind, repr(name), form)
        if kind == ".jsonl" and rows and is_puzzle(rows[0]):
            return _only_puzzle(rows, name), True
        return _row_tasks(rows, name, form)
    if kind == ".txt":
        return _line_tasks(text, name), False
    try:
        content = parse_json(text)
    except ValueError as error:
        raise DataError(f"{name!r} could not be read as JSON: {error}. Correct it, or give it as .txt.") from error
    if isinstance(content, dict) and "train" not in content and isinstance(content.get("examples"), list):
        content = content["examples"]
    if isinstance(content, list):
        if content and is_puzzle(content[0]):
            return _only_puzzle(content, name), True
        return _row_tasks(as_rows(content, repr(name)), name, form)
    if isinstance(content, dict) and "problem" in content:
        return (_object_task(content, name),), False
    return tuple(puzzle_tasks(content, name)), True


def _only_puzzle(puzzles: Sequence[Any], name: str) -> tuple[Task, ...]:
    if len(puzzles) > 1:
        raise DataError(f"{name!r} holds {len(puzzles)} puzzles. Give one of them, or take all (--each).")
    return tuple(puzzle_tasks(puzzles[0], name))


def _row_tasks(rows: Sequence[dict[str, Any]], name: str, form: TableForm) -> tuple[tuple[Task, ...], bool]:
    where, rows = repr(name), as_pairs(rows, repr(name), form)
    for n, row in enumerate(rows):
        if "input" not in row:
            raise DataError(
                f"{where}, row {n} (counted from 0) has no column 'input', found {shown(sorted(row), 200)}. Call the "
                "columns 'input' and 'output', or name them (--input_column, --output_column); if the first row of a "
                "table is no header, say so (--no_header)."
            )
    solved = [_is_filled(row.get("output")) for row in rows]
    pairs = [
        Demonstration(row_value(row, "input", n, where), row_value(row, "output", n, where) if solved[n] else "")
        for n, row in enumerate(rows)
    ]
    values = [row[column] for row in rows for column in ("input", "output") if _is_filled(row.get(column))]
    is_grid = {isinstance(value, list) for value in values}
    if len(is_grid) > 1:
        raise DataError(f"{name!r} mixes grids and texts. Give inputs and outputs of one kind.")
    told = shared_instruction(rows, where)
    return tuple(replace(task, fields=dict(told)) for task in _split(pairs, name)), all(is_grid)


def _is_filled(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value is not None


def _line_tasks(text: str, name: str) -> tuple[Task, ...]:
    """Lines with an arrow each; a text without any is a problem alone."""
    parts = [[part.strip() for part in _ARROW.split(line.strip(), maxsplit=1)] for line in _END.split(text)]
    if not any(len(part) == 2 and all(part) for part in parts):
        return (Task(text.strip(), id=name, verifier="identical"),)
    pairs: list[Demonstration] = []
    for number, (question, *answer) in enumerate(parts, 1):
        if answer and not question:
            raise DataError(f"{name!r}, line {number}: nothing stands before the arrow. Write 'input -> output'.")
        if question and (pairs or [question.lower(), *map(str.lower, answer)] != ["input", "output"]):  # no header
            pairs.append(Demonstration(question, *answer or ("",)))
    return _split(pairs, name)


def _split(pairs: Sequence[Demonstration], name: str) -> tuple[Task, ...]:
    """Queries are those without an output, else the last."""
    pairs = _without_question_marks(pairs)
    solved = [bool(pair.answer) for pair in pairs]
    is_query = [not each for each in solved] if not all(solved) else [pair is pairs[-1] for pair in pairs]
    demonstrations = tuple(pair for pair, query in zip(pairs, is_query, strict=True) if not query)
    queries = [pair for pair, query in zip(pairs, is_query, strict=True) if query]
    if not demonstrations:
        raise DataError(f"{name!r} has no solved example beside its query. Give at least one row with an output.")
    ids = [name] if len(queries) == 1 else [f"{name}_{n}" for n in range(len(queries))]
    return tuple(
        Task(query.question, demonstrations, answer=query.answer or None, id=each, verifier="identical")
        for query, each in zip(queries, ids, strict=True)
    )


def _without_question_marks(pairs: Sequence[Demonstration]) -> Sequence[Demonstration]:
    """The pairs, where "?" at their end is no output: people write it for what they ask. Among signs it is one."""
    asked = [pair.answer != "" and not pair.answer.strip("?") for pair in pairs]
    first = next((n for n in range(len(asked), 0, -1) if not asked[n - 1]), 0)
    if first == len(pairs) or any(pair.answer and not re.search(r"\w", pair.answer) for pair in pairs[:first]):
        return pairs
    return [*pairs[:first], *(replace(pair, answer="") for pair in pairs[first:])]


def _object_task(content: Mapping[str, Any], name: str) -> Task:
    """The task that an object describes by the names of `Task`'s fields."""
    known = {"problem", "demonstrations", "answer", "solution", "fields", "id"}
    if unknown := sorted(set(content) - known):
        raise DataError(f"{name!r} has an unknown key {unknown[0]!r:.60}. Known: {sorted(known)}.")
    texts = {key: content[key] for key in ("problem", "answer", "solution", "id") if content.get(key) is not None}
    for key, value in texts.items():
        if type(value) is int:
            texts[key] = str(value)
        elif not isinstance(value, str):
            raise DataError(f"{name!r}: {key} is {shown(value)}. Give a text.")
        elif key in ("answer", "solution") and not value.strip():
            raise DataError(f"{name!r}: {key} is {value!r:.20}. Give a text, or null where it is not known.")
    if not texts.get("problem", "").strip():
        raise DataError(f"{name!r}: problem is {shown(content['problem'])}. Give a text.")
    fields, rows = content.get("fields") or {}, content.get("demonstrations") or []
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise DataError(f"{name!r}: fields is {shown(fields)}. Give an object of texts.")
    if not isinstance(rows, list):
        raise DataError(f"{name!r}: demonstrations is {shown(rows)}. Give a list of objects.")
    demonstrations = []
    for n, row in enumerate(as_rows(rows, repr(name))):
        pair = pair_columns(row) or ALIASES[0]
        if any(isinstance(row.get(column), list) for column in pair):
            raise DataError(f"{name!r}: demonstration {n} is a grid, and the problem a text. Give a puzzle, or texts.")
        demonstrations.append(Demonstration(*(row_value(row, column, n, repr(name)) for column in pair)))
    return Task(
        **{"id": name, **texts}, demonstrations=tuple(demonstrations), fields=dict(fields), verifier="identical"
    )


def _checked(problem: Problem, limits: Limits) -> Problem:
    """The problem; raises DataError where a limit is passed, or a text holds what no tokenizer takes."""
    name, demonstrations = problem.name, problem.tasks[0].demonstrations
    for what, found in (("demonstrations", demonstrations), ("queries", problem.tasks)):
        most = getattr(limits, what)
        if len(found) > most:
            raise DataError(f"{name!r} has {len(found)} {what}; at most {most} are taken. Leave some out.")
    texts = [text for pair in demonstrations for text in (pair.question, pair.answer)]
    for task in problem.tasks:
        texts += [text for text in (task.problem, task.answer, task.solution) if text is not None]
        texts += [text for item in task.fields.items() for text in item]
    for text in (*texts, *(task.id for task in problem.tasks)):
        if odd := _NO_TEXT.search(text):
            raise DataError(
                f"{name!r} has a text with {odd.group()!r}, which is no character: {text!r:.60}. Remove it."
            )
    for text in texts:
        if problem.kind == "texts" and len(text) > limits.characters:
            raise DataError(
                f"{name!r} has a text of {len(text):,} characters; at most {limits.characters:,} are taken. Shorten it."
            )
        grid = parse_grid(text) if problem.kind == "grids" else None
        longest = limits.side if grid is not None and len(grid) > 1 else limits.strip
        if grid is not None and max(len(grid), len(grid[0])) > longest:
            raise DataError(
                f"{name!r} has a grid of {len(grid)} × {len(grid[0])} cells; at most {limits.side} × {limits.side} "
                f"are taken, or one row of {limits.strip}. Give smaller grids."
            )
    return problem
