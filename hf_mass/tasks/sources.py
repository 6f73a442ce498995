"""Tasks from data: a dataset on the Hub, a local folder, a JSON or JSONL file, or a folder of ARC tasks.

Every row becomes a `Task` by `task_from_row`. Bad data is refused, naming row and column; nothing is skipped silently.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.formats import FORMATS, PromptFormat
from hf_mass.tasks.grids import as_grid, grid_text
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.verifiers import get_verifier

_DEFAULT_FORMAT = FORMATS["default"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a row holds what.

    A column left at its default, other than `problem`, may be missing from the data; one that is named otherwise must
    be there. None: the data has no such thing, or it is to be left out.

    Args:
        problem: The problem, as a string or as a list of {"role", "content"} messages.
        solution: The gold solution with its derivation; may be the same column as `answer`.
        answer: The gold final answer; where it is missing, it is read from the solution.
        demonstrations: A list of {"question", "answer"} or {"input", "output"} objects, or of pairs of strings.
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
            raise ConfigError(f"Columns.problem must name a column, got {self.problem!r}.")


_DEFAULT_COLUMNS = Columns()
_ARC_COLUMNS = Columns(domain="domain", id="id")


def load_rows(name_or_path: str | Path, *, split: str = "train", config_name: str | None = None) -> Dataset:
    """The rows of a dataset.

    Args:
        name_or_path: An id on the Hub, a folder that `datasets.load_dataset` reads, a .json (a list of objects) or
            .jsonl file, or a file or folder (searched in all its depth) of ARC tasks.
        split: The split to load. A single file is one split, whatever its name. The splits of an ARC folder are its
            sub-folders; one that has none of this name is read as a whole for "train".
        config_name: The configuration, for a dataset on the Hub that has several.

    Returns:
        The dataset. Rows of ARC tasks have the columns problem, answer, demonstrations, domain and id.

    Raises:
        DataError: If there is nothing of that name, or it cannot be read, or it has no rows.
    """
    return _load(name_or_path, split, config_name)[0]


def load_tasks(
    name_or_path: str | Path,
    *,
    split: str = "train",
    config_name: str | None = None,
    columns: Columns = _DEFAULT_COLUMNS,
    verifier: str = "exact_match",
    limit: int | None = None,
    seed: int = 0,
    fmt: PromptFormat = _DEFAULT_FORMAT,
) -> list[Task]:
    """The tasks of a dataset, in its order.

    Args:
        name_or_path: As for `load_rows`.
        split: As for `load_rows`.
        config_name: As for `load_rows`.
        columns: Which column holds what; ARC tasks bring their own.
        verifier: Name of the verifier that judges answers to these tasks.
        limit: Take this many rows, chosen at random by `seed`; None, or more than there are, takes all.
        seed: Seed of that choice.
        fmt: Splits solutions into derivation and answer, and says which further columns prompts refer to.

    Raises:
        ConfigError: If `limit` is not positive.
        VerifierError: If the verifier is unknown.
        DataError: If the data cannot be read, or a row lacks what the columns promise.
    """
    get_verifier(verifier)
    if limit is not None and limit < 1:
        raise ConfigError(f"load_tasks: limit must be at least 1 or None, got {limit!r}.")
    rows, is_arc = _load(name_or_path, split, config_name)
    if is_arc:
        columns = _ARC_COLUMNS
    numbers: Sequence[int] = range(len(rows))
    if limit is not None and limit < len(rows):
        numbers = sorted(random.Random(seed).sample(numbers, limit))
    return [task_from_row(rows[number], columns, verifier, fmt, number=number) for number in numbers]


def task_from_row(
    row: Mapping[str, Any],
    columns: Columns = _DEFAULT_COLUMNS,
    verifier: str = "exact_match",
    fmt: PromptFormat = _DEFAULT_FORMAT,
    *,
    number: int = 0,
) -> Task:
    """One row as a `Task`.

    A null in a gold column means that the gold is not known; an empty string is an error, since it cannot be meant.

    Args:
        row: The values by column.
        columns: Which column holds what.
        verifier: Name of the verifier for the task.
        fmt: Splits the solution where there is no answer; the columns that its prompts name become `Task.fields`.
        number: The row's number, from 0, for error messages and as the default id.

    Raises:
        DataError: If a column is missing, or a value is empty or of the wrong kind.
    """
    reader = _Row(row, number)
    problem, history, conversational = reader.problem(columns.problem)
    solution = reader.optional("solution", columns.solution)
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
    """Checks that tasks have what a mode needs, and that their verifiers exist.

    Args:
        tasks: The tasks.
        need_gold: Each must have a gold solution or a gold answer.
        need_demonstrations: Each must have a demonstration.

    Raises:
        DataError: Naming the first task that lacks something.
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
        return DataError(f"Row {self.number} (counted from 0), column {column!r}: {what}")

    def require(self, column: str, cure: str) -> None:
        if column not in self.row:
            found = ", ".join(map(repr, self.row)) or "none"
            raise DataError(f"Missing column {column!r} (row {self.number}). Columns found: {found}. Cure: {cure}.")

    def text(self, value: Any, column: str) -> str | None:
        """The value as text, None for null."""
        if value is None or value != value:  # NaN, which is how some writers spell null
            return None
        if isinstance(value, float) and value.is_integer():
            return str(int(value))  # whole numbers become floats where a column mixes both
        if isinstance(value, str | int | float):
            return str(value)
        raise self.error(column, f"expected text or a number, found {type(value).__name__} {str(value)[:80]!r}.")

    def optional(self, option: str, column: str | None) -> str | None:
        """The text of a column, None if it is null or if it is missing under its default name."""
        if column is None or (column not in self.row and column == getattr(_DEFAULT_COLUMNS, option)):
            return None
        self.require(column, f"set Columns.{option} to one of these, or to None")
        text = self.text(self.row[column], column)
        if text is not None and not text.strip():
            raise self.error(column, f"the value is empty. Fill it, drop the row, or set Columns.{option} to None.")
        return text

    def problem(self, column: str) -> tuple[str, tuple[tuple[str, str], ...], bool]:
        """The problem, the history before it, and whether it is a conversation."""
        self.require(column, "set Columns.problem to one of these")
        value = self.row[column]
        conversational = isinstance(value, list)
        value, history = self._conversation(value, column) if conversational else (value, ())
        text = self.text(value, column)
        if text is None or not text.strip():
            raise self.error(column, "the problem is empty. Fill it or drop the row.")
        return text, history, conversational

    def _conversation(self, messages: list[Any], column: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        pairs = []
        for message in messages:
            role, content = (message.get(key) for key in ("role", "content")) if isinstance(message, dict) else (0, 0)
            if not isinstance(role, str) or not isinstance(content, str):
                raise self.error(column, f"a message must have a text role and content, found {str(message)[:80]!r}.")
            pairs.append((role, content))
        if not pairs or pairs[-1][0] != "user":
            last = pairs[-1][0] if pairs else "no message"
            raise self.error(
                column,
                f"a conversation must end with the user's message (the problem), found {last!r}. Move a reply that "
                "follows it to the column that Columns.solution names.",
            )
        return pairs[-1][1], tuple(pairs[:-1])

    def demonstrations(self, column: str | None) -> tuple[Demonstration, ...]:
        """The demonstrations; none if the column is null, or missing under its default name."""
        if column is None or (column not in self.row and column == _DEFAULT_COLUMNS.demonstrations):
            return ()
        self.require(column, "set Columns.demonstrations to one of these, or to None")
        value = self.row[column]
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error(column, f"expected a list of demonstrations, found {type(value).__name__}.")
        return tuple(self._demonstration(entry, column) for entry in value)

    def _demonstration(self, entry: Any, column: str) -> Demonstration:
        pair: Any = ()
        if isinstance(entry, dict):
            keys = ("question", "answer") if "question" in entry else ("input", "output")
            pair = tuple(entry.get(key) for key in keys)
        elif isinstance(entry, list | tuple):
            pair = entry
        texts = [self.text(value, column) for value in pair]
        if len(texts) != 2 or not all(text is not None and text.strip() for text in texts):
            raise self.error(
                column,
                "a demonstration must be {'question', 'answer'}, {'input', 'output'} or a pair, both texts not empty; "
                f"found {str(entry)[:80]!r}.",
            )
        return Demonstration(str(texts[0]), str(texts[1]))


def _load(name_or_path: str | Path, split: str, config_name: str | None) -> tuple[Dataset, bool]:
    """The rows, and whether they are ARC tasks."""
    path = Path(name_or_path).expanduser()
    files = _arc_files(path, split) if path.exists() else []
    if files:
        rows = Dataset.from_list([row for file in files for row in _arc_rows(file)])
    elif path.is_file() and path.stat().st_size < 99 and path.read_text(errors="replace").strip() in ("", "[]"):
        rows = []  # `datasets` has no clear word for a file without rows
    else:
        rows = _load_local(path, split) if path.exists() else _load_hub(str(name_or_path), split, config_name)
    if len(rows) == 0:
        raise DataError(f"The dataset {str(name_or_path)!r} (split {split!r}) has no rows. Give a dataset with data.")
    return rows, bool(files)


def _load_local(path: Path, split: str) -> Dataset:
    try:
        if path.is_dir():
            return load_dataset(str(path), split=split)
        if path.suffix not in (".json", ".jsonl"):
            raise DataError(f"The file {str(path)!r} is neither .json nor .jsonl. Convert it, or give its folder.")
        return load_dataset("json", data_files={split: str(path)}, split=split)
    except DataError:
        raise
    except Exception as error:  # readers of many formats raise as many kinds of error
        raise DataError(
            f"{str(path)!r} (split {split!r}) could not be read: {_cause(error)} A .json file must hold a list of "
            "objects and a .jsonl file one object a line, with one type a column."
        ) from error


def _load_hub(name: str, split: str, config_name: str | None) -> Dataset:
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith((".json", ".jsonl")):
        raise DataError(
            f"There is no file or folder {name!r}. Correct the path, or give the id of a dataset on the Hub."
        )
    try:
        return load_dataset(name, config_name, split=split)
    except Exception as error:  # network, authorisation, format: all mean that it cannot be loaded
        raise DataError(
            f"{name!r} is no local file or folder, and could not be loaded from the Hub (configuration "
            f"{config_name!r}, split {split!r}): {_cause(error)} Correct the name, the split or the configuration."
        ) from error


def _cause(error: BaseException) -> str:
    """The first line of what is at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no message'}."


def _arc_files(path: Path, split: str) -> list[Path]:
    """The ARC task files at `path`, sorted; none if it holds something else. Its first JSON file decides."""
    if path.is_file():
        return [path] if path.suffix == ".json" and _read_arc(path) else []
    within = path / split if (path / split).is_dir() else path
    files = sorted(within.rglob("*.json"))
    if not files or not _read_arc(files[0]):
        return []
    if within == path and split != "train":
        raise DataError(
            f"The folder {str(path)!r} of ARC tasks has no sub-folder {split!r}. Give the name of a sub-folder as the "
            "split, or leave it at 'train' to read the whole folder."
        )
    return files


def _read_arc(file: Path) -> dict[str, Any] | None:
    """The content of an ARC task file, None if it is something else or no JSON at all."""
    try:
        with file.open(encoding="utf-8") as stream:
            if not stream.read(256).lstrip().startswith("{"):
                return None  # a large list of rows need not be parsed twice
            stream.seek(0)
            content = json.load(stream)
    except (OSError, ValueError):
        return None  # the reader of other formats says what is wrong with it
    if isinstance(content, dict) and isinstance(content.get("train"), list) and isinstance(content.get("test"), list):
        pairs = content["train"] + content["test"]
        return content if pairs and all(isinstance(pair, dict) and "input" in pair for pair in pairs) else None
    return None


def _arc_rows(file: Path) -> list[dict[str, Any]]:
    """One row for each test input of an ARC task; its answer is None where the output is kept back."""
    content = _read_arc(file)
    if content is None:
        raise DataError(
            f"{str(file)!r} lies among ARC tasks but is none: expected {{'train': [{{'input', 'output'}}], 'test': "
            "[...]}. Remove or correct it."
        )
    demonstrations = [
        {"question": _grid_text(pair["input"], file), "answer": _grid_text(pair.get("output"), file)}
        for pair in content["train"]
    ]
    several = len(content["test"]) > 1
    return [
        {
            "problem": _grid_text(pair["input"], file),
            "answer": None if pair.get("output") is None else _grid_text(pair["output"], file),
            "demonstrations": demonstrations,
            "domain": file.absolute().parent.name,
            "id": f"{file.stem}#{place}" if several else file.stem,
        }
        for place, pair in enumerate(content["test"])
    ]


def _grid_text(grid: Any, file: Path) -> str:
    """A grid as lines of digits with spaces between them."""
    try:
        return grid_text(as_grid(grid))
    except DataError as error:
        raise DataError(
            f"{str(file)!r} has a grid that is no rectangle of digits from 0 to 9: {str(grid)[:80]}. Correct it."
        ) from error
