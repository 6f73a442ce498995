"""Tasks from data: a dataset on the Hub, a local folder, a file of rows, or grid puzzles.

Every row becomes a `Task` by `task_from_row`. Bad data is refused, naming row and column; nothing is skipped silently.
"""

from __future__ import annotations

import math
import random
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.arc import holds_puzzles, load_grid_tasks
from hf_mass.tasks.checks import as_path, require_whole, shown
from hf_mass.tasks.conversations import MESSAGES, Message, as_messages, row_messages
from hf_mass.tasks.formats import FORMATS, PromptFormat
from hf_mass.tasks.hub_datasets import load_dataset_rows
from hf_mass.tasks.rows import PLAIN, pair_columns, read_rows
from hf_mass.tasks.tables import TableForm
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.unread import tell_unread
from hf_mass.tasks.verifiers import get_verifier


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a row holds what; None where the data has no such thing, or it is to be left out.

    A column left at its default, other than `problem`, may be missing from the data; any other must be there.

    Args:
        problem: The problem, as a string or as a list of {"role", "content"} messages, whose last one is the user's; a
            reply behind it is the solution. A row that lacks this default is read by its "messages".
        solution: The gold solution with its derivation; may be the same column as `answer`.
        answer: The gold final answer; where it is missing, it is read from the solution.
        demonstrations: A list of {"input", "output"} objects (or others of `ALIASES`), or of pairs of strings.
        domain: A label for per-domain results.
        id: A name for logs; the row's number if None.
    """

    problem: str = "problem"
    solution: str | None = "solution"
    answer: str | None = "answer"
    demonstrations: str | None = "demonstrations"
    domain: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if not self.problem:
            raise ConfigError(f"Columns.problem must name a column, got {shown(self.problem)}.")


_DEFAULT_COLUMNS = Columns()
_LOOKED_AT = 100  # rows, for columns that are not read


def load_tasks(
    name_or_path: str | Path,
    *,
    split: str = "train",
    config_name: str | None = None,
    columns: Columns = _DEFAULT_COLUMNS,
    verifier: str = "exact_match",
    limit: int | None = None,
    seed: int = 0,
    fmt: PromptFormat = FORMATS["default"],
    form: TableForm = PLAIN,
) -> list[Task]:
    """The tasks of a dataset, in its order.

    Args:
        name_or_path: An id on the Hub, a folder that `datasets.load_dataset` reads, a file of rows (.json with a list
            of objects, .jsonl, .csv, .tsv or .xlsx), or a file or folder of grid puzzles, which `load_grid_tasks`
            reads.
        split: The split to load. A single file is one split, whatever its name. The splits of a folder of puzzles are
            its sub-folders; one that has none of this name is read as a whole for "train".
        config_name: The configuration, for a dataset on the Hub that has several.
        columns: Which column holds what; grid puzzles need none.
        verifier: Name of the verifier that judges answers to these tasks.
        limit: Take this many rows, chosen at random by `seed`; None, or more than there are, takes all.
        seed: Seed of that choice.
        fmt: Splits solutions into derivation and answer, and says which further columns prompts refer to.
        form: How files of rows are written, where they do not say so themselves; its columns are not used.

    Raises:
        ConfigError: If `limit` is not positive.
        VerifierError: If the verifier is unknown.
        DataError: If the data cannot be read, or a row lacks what the columns promise.
    """
    get_verifier(verifier)
    if limit is not None:
        require_whole("load_tasks: limit", limit, 1)
    path = as_path("load_tasks: name_or_path", name_or_path)
    if path.exists() and holds_puzzles(path / split if (path / split).is_dir() else path):
        puzzles = _load_puzzles(path, split, verifier, fmt)
        return [puzzles[number] for number in _choice(len(puzzles), limit, seed)]
    rows = _load_rows(path, str(name_or_path), split, config_name, form)
    if len(rows) == 0:
        raise DataError(f"The dataset {str(name_or_path)!r} (split {split!r}) has no rows. Give a dataset with data.")
    numbers = _choice(len(rows), limit, seed)
    if columns == _DEFAULT_COLUMNS:  # nobody named them
        first = [rows[number] for number in numbers[:_LOOKED_AT]]
        problem = columns.problem if columns.problem in first[0] else next((m for m in MESSAGES if m in first[0]), "")
        gold = [name for name in (columns.solution, columns.answer, columns.demonstrations) if name is not None]
        beside = ["system", "tools"] if isinstance(first[0].get(problem), list) else []
        tell_unread(first, [problem, *gold, *beside, *fmt.task_fields], repr(str(name_or_path)))
    return [task_from_row(rows[number], columns, verifier, fmt, number=number) for number in numbers]


def _choice(total: int, limit: int | None, seed: int) -> Sequence[int]:
    if limit is None or limit >= total:
        return range(total)
    return sorted(random.Random(seed).sample(range(total), limit))


def task_from_row(
    row: Mapping[str, Any],
    columns: Columns = _DEFAULT_COLUMNS,
    verifier: str = "exact_match",
    fmt: PromptFormat = FORMATS["default"],
    *,
    number: int = 0,
) -> Task:
    """One row as a `Task`.

    A null in a gold column means that the gold is not known; an empty string is an error, since it cannot be meant.
    `fmt` splits the solution where there is no answer, and the columns that its prompts name become `Task.fields`.
    `number` is the row's, from 0: its default id, and what errors call it.

    Raises:
        DataError: If a column is missing, or a value is empty or of the wrong kind.
    """
    reader = _Row(row, number)
    problem, history, conversational, reply = reader.problem(columns.problem)
    solution = reader.optional("solution", columns.solution)
    if reply is not None and solution is not None:
        raise reader.error(
            columns.problem,
            "a reply follows the problem, and there is a solution as well. Set Columns.solution to None.",
        )
    solution = solution if reply is None else reply
    # One column for both: a solution whose last part is the answer.
    answer = None if columns.answer == columns.solution else reader.optional("answer", columns.answer)
    if answer is None and solution is not None and (parts := fmt.split_solution(solution)) is not None:
        answer = parts.answer
    for name in fmt.task_fields:
        reader.require(name, f"the placeholder {{{name}}} of the prompt format names it; add it or change the template")
    return Task(
        problem=problem,
        demonstrations=reader.demonstrations(columns.demonstrations),
        solution=solution,
        answer=answer,
        verifier=verifier,
        history=history,
        conversational=conversational,
        domain=reader.optional("domain", columns.domain) or "",
        id=reader.optional("id", columns.id) or str(number),
        fields={name: reader.text(row[name], name) or "" for name in fmt.task_fields},
    )


def validate_tasks(tasks: Sequence[Task], *, need_gold: bool, need_demonstrations: bool) -> None:
    """Checks that tasks have what a mode needs: known verifiers, and gold answers or demonstrations where needed.

    Raises:
        DataError: If there are no tasks, or naming the first one that lacks something.
        VerifierError: If a verifier is unknown.
    """
    if not tasks:
        raise DataError("There are no tasks. Give at least one.")
    for number, task in enumerate(tasks):
        get_verifier(task.verifier)
        if need_gold and task.solution is None and task.answer is None:
            raise DataError(
                f"Task {number} (id {task.id!r}) has neither solution nor answer, which this mode needs. Set "
                "Columns.solution or Columns.answer to the column of gold solutions, or choose a mode without gold."
            )
        if need_demonstrations and not task.demonstrations:
            raise DataError(
                f"Task {number} (id {task.id!r}) has no demonstrations, which this mode needs. Set "
                "Columns.demonstrations to their column, or choose a mode without demonstrations."
            )


@dataclass(frozen=True, slots=True)
class _Row:
    """Reads values from a row and says which row and column are to blame."""

    row: Mapping[str, Any]
    number: int

    def error(self, column: str, what: str) -> DataError:
        return DataError(f"{self.place(column)} {what}")

    def place(self, column: str) -> str:
        """Where a value is, for an error."""
        return f"Row {self.number} (counted from 0), column {column!r}:"

    def require(self, column: str, cure: str) -> None:
        if column not in self.row:
            columns = ", ".join(map(repr, self.row)) or "none"
            raise DataError(f"Missing column {column!r} (row {self.number}). Columns found: {columns}. Cure: {cure}.")

    def text(self, value: Any, column: str) -> str | None:
        """The value as text, None for null."""
        if value is None or value != value:  # NaN, which is how some writers spell null
            return None
        if isinstance(value, float) and value.is_integer():
            return str(int(value))  # whole numbers become floats where a column mixes both
        if isinstance(value, datetime | time | timedelta):
            raise self.error(
                column,
                f"found {type(value).__name__} {str(value)!r:.40}, which was made of a text that is lost. Give "
                "load_tasks the file itself, or make texts of the column as they are meant (datasets.Dataset.map).",
            )
        if isinstance(value, str | int | float | Decimal | date) and value not in (math.inf, -math.inf):
            return str(value)
        raise self.error(column, f"expected text or a number, found {type(value).__name__} {shown(value, 80)}.")

    def value(self, option: str, column: str | None) -> Any:
        """The value of a column, None if it is null or if it is missing under its default name."""
        if column is None or (column not in self.row and column == getattr(_DEFAULT_COLUMNS, option)):
            return None
        self.require(column, f"set Columns.{option} to one of these, or to None")
        return self.row[column]

    def optional(self, option: str, column: str | None) -> str | None:
        """The text of a column, None as for `value`."""
        value = self.value(option, column)
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):  # one message, as TRL has them
            value = as_messages(value, self.place(column or ""))[0][1]
        text = self.text(value, column or "")
        if text is not None and not text.strip():
            raise self.error(
                column or "", f"the value is empty. Fill it, drop the row, or set Columns.{option} to None."
            )
        return text

    def problem(self, column: str) -> tuple[str, tuple[tuple[str, str], ...], bool, str | None]:
        """The problem, the history before it, whether it is a conversation, and the reply that follows it, if any."""
        if column == _DEFAULT_COLUMNS.problem and column not in self.row:
            column = next((name for name in MESSAGES if name in self.row), column)
        self.require(column, "set Columns.problem to one of these")
        value, history, reply = self.row[column], list[Message](), None
        if conversational := isinstance(value, list):
            history = row_messages(self.row, column, self.place(column))
            if len(history) > 1 and history[-1][0] == "assistant":
                reply = history.pop()[1]
            if not history or history[-1][0] != "user":
                last = history[-1][0] if history else "no message"
                raise self.error(
                    column, f"a conversation must end with the user's message (the problem) or a reply, found {last!r}."
                )
            value = history.pop()[1]
        text = self.text(value, column)
        if text is None or not text.strip():
            raise self.error(column, "the problem is empty. Fill it or drop the row.")
        if reply is not None and not reply.strip():
            raise self.error(column, "the reply is empty. Fill it or drop it.")
        return text, tuple(history), conversational, reply

    def demonstrations(self, column: str | None) -> tuple[Demonstration, ...]:
        value = self.value("demonstrations", column)
        columns = list(value.values()) if isinstance(value, dict) else []
        if columns and all(isinstance(each, list) and len(each) == len(columns[0]) for each in columns):
            value = [dict(zip(value, entry, strict=True)) for entry in zip(*columns, strict=True)]
        if not isinstance(value, list | None):
            raise self.error(column or "", f"expected a list of demonstrations, found {type(value).__name__}.")
        return tuple(self._demonstration(entry, column or "") for entry in value or ())

    def _demonstration(self, entry: Any, column: str) -> Demonstration:
        pair: Sequence[Any] = entry if isinstance(entry, list | tuple) else ()
        if isinstance(entry, dict):
            filled = [key for key, text in entry.items() if text is not None]
            pair = [entry.get(key) for key in pair_columns(filled) or ()]
        texts = [self.text(value, column) for value in pair]
        if len(texts) != 2 or not all(text is not None and text.strip() for text in texts):
            expected = "{'question', 'answer'}, {'input', 'output'} or a pair, both texts not empty"
            raise self.error(column, f"a demonstration must be {expected}; found {str(entry)[:80]!r}.")
        return Demonstration(str(texts[0]), str(texts[1]))


def _load_rows(
    path: Path, name: str, split: str, config_name: str | None, form: TableForm
) -> Sequence[Mapping[str, Any]]:
    if not path.is_file():
        return load_dataset_rows(path if path.exists() else name, split, config_name, form)
    rows = read_rows(path, form)
    nulls = dict.fromkeys(column for row in rows for column in row)
    return [ChainMap(row, nulls) for row in rows]  # what a row leaves out is null


def _load_puzzles(path: Path, split: str, verifier: str, fmt: PromptFormat) -> list[Task]:
    whole = path.is_file() or (split == "train" and not (path / split).is_dir())
    tasks = load_grid_tasks(path, None if whole else split, answers=False)
    for name in fmt.task_fields:
        if name not in tasks[0].fields:
            raise DataError(
                f"The grid puzzles of {str(path)!r} have no value {name!r}, which the placeholder {{{name}}} of the "
                f"prompt format names. Known: {', '.join(tasks[0].fields)}. Change the template."
            )
    return [replace(task, verifier=verifier) for task in tasks]
