"""Few-shot task sets: puzzles on grids in the layouts of the ARC family, and a user's own file of inputs and outputs.

Every test input becomes one `Task`. Tasks that share their demonstrations, and so may share an adapter, have the same
`Task.fields["file"]`. Grids are written in their canonical text (see `hf_mass.tasks.grids`).
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.grids import as_grid, grid_text
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.verifiers import get_verifier

ROW_KINDS = (".jsonl", ".csv", ".tsv")
_CHALLENGES, _SOLUTIONS = "_challenges.json", "_solutions.json"


def load_grid_tasks(path: str | Path, split: str | None = None, *, answers: bool = True) -> list[Task]:
    """The tasks of a set of grid puzzles.

    Read are a puzzle's own JSON file, a folder of such files in all its depth (ARC-AGI 1 and 2, 1D-ARC, Mini-ARC,
    ConceptARC), and the form of the Kaggle competitions: "…_challenges.json" with "…_solutions.json" beside it, given
    as the file of challenges or as the folder of both. Files and folders whose names start with a dot are left out.

    Args:
        path: The file or folder.
        split: For a folder: the name of a sub-folder (of it, or of its folder "data", as in a clone of ARC-AGI), or of
            a Kaggle pair ("evaluation" for "arc-agi_evaluation_challenges.json"). None takes the whole folder, or its
            only pair.
        answers: Whether every test input must have its output. False: the answer of a task is None where it is not
            known, as for the test set of a competition.

    Returns:
        The tasks by file name, then by test input. `id` is the file's stem, or the puzzle's key in a Kaggle file, with
        "_0", "_1", ... where there are several test inputs; `domain` is the name of the file's folder, or of the pair's
        split; `fields` hold "source", the name of what was loaded, and "file", the file's path below it.

    Raises:
        ConfigError: If a split is given for a single file.
        DataError: If there is nothing to read, or a file or grid in it is not of the expected shape.
    """
    root = Path(path).expanduser()
    if root.is_file():
        if split is not None:
            raise ConfigError(f"load_grid_tasks: split {split!r} is for folders, and {str(root)!r} is a file. Omit it.")
        files = [root]
    elif root.is_dir():
        files = _kaggle_files(root, split) or _puzzle_files(root, split)
    else:
        raise DataError(f"There is no file or folder {str(root)!r}. Correct the path.")
    puzzles = [puzzle for file in files for puzzle in _puzzles(file, root)]
    return [task for puzzle in puzzles for task in puzzle.tasks(answers)]


def puzzle_tasks(content: Any, name: str) -> list[Task]:
    """The tasks of one grid puzzle that was read already; a test input without an output has no answer.

    Args:
        content: An object of the ARC format: {"train": [{"input", "output"}, ...], "test": [...]}.
        name: Its name: the tasks' `id`, and what errors call it.

    Raises:
        DataError: If it is of another shape.
    """
    if not _is_puzzle(content):
        many = isinstance(content, dict) and content and all(map(_is_puzzle, content.values()))
        expected = "one of these puzzles" if many else "{'train': [{'input', 'output'}], 'test': [...]}"
        raise DataError(f"{name!r} is no grid puzzle, found {_shape(content)}. Expected {expected}.")
    return _Puzzle(content, name, "", {}, repr(name)).tasks(answers=False)


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
        path: A .json file (a list of objects), a .jsonl file (one object a line), or a .csv or .tsv file with a header.
            A value is text, a number, or a list of rows of colours, which is a grid.
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
    if demonstrations < 1:
        raise ConfigError(f"load_few_shot_file: demonstrations must be at least 1, got {demonstrations!r}.")
    file = Path(path).expanduser()
    rows, where = _rows(file), repr(str(file))
    pairs = [
        Demonstration(row_value(row, input_column, number, where), row_value(row, output_column, number, where))
        for number, row in enumerate(rows)
    ]
    if len(pairs) <= demonstrations:
        raise DataError(
            f"{str(file)!r} has {len(pairs)} rows, which leaves no query beside {demonstrations} demonstrations. Add "
            "rows, or set demonstrations to a smaller number."
        )
    drawn, rest = draw_demonstrations(len(pairs), demonstrations, seed)
    shared = tuple(pairs[number] for number in drawn)
    return [
        Task(
            problem=pairs[number].question,
            answer=pairs[number].answer,
            demonstrations=shared,
            verifier=verifier,
            domain=file.stem,
            id=f"{file.stem}_{number}",
            fields={"source": file.name, "file": file.name},
        )
        for number in sorted(rest)
    ]


def draw_demonstrations(total: int, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Shuffles the numbers 0 to `total` - 1 by Python's generator at `seed`: (the first `count`, the rest)."""
    order = list(range(total))
    random.Random(seed).shuffle(order)
    return order[:count], order[count:]


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: If it cannot be read, or is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{str(file)!r} could not be read as JSON: {error}. Correct or replace the file.") from error


@dataclass(frozen=True, slots=True)
class _Puzzle:
    """A puzzle as it was found. `where` names it in errors; `solutions` are the outputs kept in another file."""

    content: dict[str, Any]
    id: str
    domain: str
    fields: dict[str, str]
    where: str
    solutions: list[Any] | None = None
    # What to do about an output that is in neither place.
    cure: str = "Add it"

    def tasks(self, answers: bool) -> list[Task]:
        """One task for each test input."""
        train, test = self._pairs("train"), self._pairs("test")
        if self.solutions is not None and len(self.solutions) != len(test):
            raise DataError(
                f"{self.where} has {len(test)} test inputs but {len(self.solutions)} solutions. Use the solutions that "
                "belong to these challenges."
            )
        demonstrations = tuple(
            Demonstration(self._grid(pair, "input", f"train[{n}]"), self._grid(pair, "output", f"train[{n}]"))
            for n, pair in enumerate(train)
        )
        return [
            Task(
                problem=self._grid(pair, "input", f"test[{n}]"),
                answer=self._answer(pair, n, answers),
                demonstrations=demonstrations,
                domain=self.domain,
                id=f"{self.id}_{n}" if len(test) > 1 else self.id,
                fields=dict(self.fields),
            )
            for n, pair in enumerate(test)
        ]

    def _pairs(self, part: str) -> list[Any]:
        pairs = self.content[part]
        if not pairs:
            raise DataError(f"{self.where}: {part!r} is empty. Give at least one pair of input and output.")
        return list(pairs)

    def _grid(self, pair: Any, key: str, place: str) -> str:
        if not isinstance(pair, dict) or key not in pair:
            found = sorted(pair) if isinstance(pair, dict) else pair
            raise DataError(
                f"{self.where}: {place} has no {key!r}, found {found!r:.80}. Give it an input and an output grid."
            )
        return grid_text(as_grid(pair[key], f"{self.where}: {place} {key}"))

    def _answer(self, pair: dict[str, Any], number: int, needed: bool) -> str | None:
        if self.solutions is not None:
            return grid_text(as_grid(self.solutions[number], f"{self.where}: solution {number}"))
        if pair.get("output") is not None:
            return self._grid(pair, "output", f"test[{number}]")
        if needed:
            raise DataError(
                f"{self.where}: test[{number}] has no output. {self.cure}, or set answers=False where none are needed."
            )
        return None


def _kaggle_files(folder: Path, split: str | None) -> list[Path]:
    """The file of challenges of a Kaggle folder; none if the folder is of another layout."""
    files = {_kaggle_split(file): file for file in sorted(folder.glob(f"*{_CHALLENGES}"))}
    if split is None and len(files) == 1:
        return list(files.values())
    if files and split not in files:
        raise DataError(
            f"The folder {str(folder)!r} has no challenges for the split {split!r}. Set split to one of "
            f"{sorted(files)}."
        )
    return [files[split]] if files and split is not None else []


def _kaggle_split(file: Path) -> str:
    return _kaggle_stem(file).rsplit("_", 1)[-1]


def _kaggle_stem(file: Path) -> str:
    return file.name.removesuffix(_CHALLENGES).removesuffix(".json")


def _puzzle_files(folder: Path, split: str | None) -> list[Path]:
    within = folder
    if split is not None:
        places = [folder / split, folder / "data" / split]
        if not any(place.is_dir() for place in places):
            names = sorted(place.name for place in folder.iterdir() if place.is_dir())
            raise DataError(
                f"The folder {str(folder)!r} has no sub-folder for the split {split!r}. Set split to one of {names}, "
                "or to None for the whole folder."
            )
        within = next(place for place in places if place.is_dir())
    files = sorted(within.rglob("*.json"))
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(within).parts)]
    if not files:
        raise DataError(
            f"The folder {str(within)!r} has no .json files. Give a folder of ARC tasks, or one that holds a Kaggle "
            f"pair (*{_CHALLENGES}, *{_SOLUTIONS})."
        )
    return files


def _is_puzzle(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(part), list) for part in ("train", "test"))


def _puzzles(file: Path, root: Path) -> list[_Puzzle]:
    """The puzzles of a file: one, or the many of a Kaggle file of challenges."""
    content = read_json(file)
    name = file.relative_to(root).as_posix() if root.is_dir() else file.name
    source = root.absolute().name
    if _is_puzzle(content):
        fields = {"source": source, "file": name}
        return [_Puzzle(content, file.stem, file.absolute().parent.name, fields, str(file))]
    if not isinstance(content, dict) or not content or not all(map(_is_puzzle, content.values())):
        raise DataError(
            f"{str(file)!r} is no grid puzzle, found {_shape(content)}. Expected {{'train': [{{'input', 'output'}}], "
            "'test': [...]}, or a Kaggle file that maps ids to such objects. Remove it, or set split to a sub-folder "
            "that holds puzzles only."
        )
    solutions = file.with_name(_kaggle_stem(file) + _SOLUTIONS)
    known = _solutions(solutions, list(content)) if solutions.is_file() else {}
    return [
        _Puzzle(
            content=content[key],
            id=key,
            domain=_kaggle_split(file),
            fields={"source": source, "file": f"{name}#{key}"},
            where=f"{file}: task {key!r}",
            solutions=known.get(key),
            cure=f"Put the file of solutions beside it as {solutions.name!r}",
        )
        for key in content
    ]


def _solutions(file: Path, keys: list[str]) -> dict[str, list[Any]]:
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(outputs, list) for outputs in content.values()):
        raise DataError(
            f"{str(file)!r} is no file of solutions, found {_shape(content)}. Expected an object that maps each "
            "challenge's id to a list with the output grid of each of its test inputs."
        )
    if missing := [key for key in keys if key not in content]:
        raise DataError(
            f"{str(file)!r} has no solution for {len(missing)} of {len(keys)} challenges, the first {missing[0]!r}. "
            "Use the solutions that belong to these challenges, or add them."
        )
    return content


def _shape(content: Any) -> str:
    """What a JSON value is, in few words."""
    if isinstance(content, dict):
        return f"an object with {len(content)} keys, {list(content)[:3]!r:.80}..." if content else "an empty object"
    return f"a list of {len(content)}" if isinstance(content, list) else f"{type(content).__name__} {content!r:.60}"


def _rows(file: Path) -> Sequence[Any]:
    """The rows of a user's file."""
    if not file.is_file():
        raise DataError(f"There is no file {str(file)!r}. Correct the path.")
    if file.suffix == ".json":
        rows = read_json(file)
        if not isinstance(rows, list):
            raise DataError(f"{str(file)!r} holds {_shape(rows)}. Expected a list of objects, one for each example.")
        return rows
    if file.suffix not in ROW_KINDS:
        raise DataError(f"{str(file)!r} is of unknown kind {file.suffix!r}. Convert it to .json, .jsonl, .csv or .tsv.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{str(file)!r} could not be read: {error}. Give a file in UTF-8.") from error
    return parse_rows(text, file.suffix, repr(str(file)))


def parse_rows(text: str, kind: str, where: str) -> list[Any]:
    """The rows of a text in one of `ROW_KINDS`; `where` names it in errors.

    Raises:
        DataError: If it is of another form.
    """
    try:
        if kind in (".csv", ".tsv"):
            table = csv.DictReader(
                io.StringIO(text, newline=""), strict=True, delimiter="," if kind == ".csv" else "\t"
            )
            _require_distinct(table.fieldnames or (), where)
            return list(table)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except DataError:
        raise
    except (ValueError, RecursionError, csv.Error) as error:
        raise DataError(
            f"{where} could not be read: {error}. A .jsonl file must hold one object a line, a .csv or .tsv file a "
            "header and rows of as many values."
        ) from error


def _require_distinct(names: Sequence[str], where: str) -> None:
    """Raises DataError where two columns have one name, of which a reader would silently take the last."""
    twice = [name for name in names if name.strip() and names.count(name) > 1]
    if twice:
        raise DataError(f"{where} has two columns called {twice[0]!r:.60}. Give every column a name of its own.")


def row_value(row: Any, column: str, number: int, where: str) -> str:
    """The text of a row's value in a column; grids in canonical form.

    Raises:
        DataError: If there is none, or it is neither text, a number nor a grid.
    """
    where = f"{where}, row {number} (counted from 0)"
    if not isinstance(row, dict):
        raise DataError(f"{where} is {_shape(row)}. Expected an object with the columns of input and output.")
    if None in row:  # where the reader of CSV puts what stands beyond the last column
        raise DataError(
            f"{where} has more values than the header has columns: {row[None]!r:.60}. Quote values with commas."
        )
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
