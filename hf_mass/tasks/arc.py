"""Grid puzzles in the layouts of the ARC family: the one reader of ARC files.

Every test input becomes one `Task`. Tasks that share their demonstrations, and so may share an adapter, have the same
`Task.fields["file"]`. Grids are written in their canonical text (see `hf_mass.tasks.grids`).
"""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_mass.errors import ConfigError, DataError, DataWarning
from hf_mass.tasks.checks import as_path, no_file, shown
from hf_mass.tasks.grids import as_grid, grid_text
from hf_mass.tasks.rows import describe, read_json
from hf_mass.tasks.task import Demonstration, Task

_CHALLENGES, _SOLUTIONS = "_challenges.json", "_solutions.json"
_PUZZLE_KINDS = (".json", ".jsonl")
_LOOKED_AT = 10
"""Files of a folder, to tell whether it holds puzzles."""
_PUZZLE = "{'train': [{'input', 'output'}], 'test': [...]}"


def load_grid_tasks(path: str | Path, split: str | None = None, *, answers: bool = True) -> list[Task]:
    """The tasks of a set of grid puzzles.

    Read are a puzzle's own JSON file, a file of several (a list, or JSON lines), a folder of such files in all its
    depth (ARC-AGI 1 and 2, 1D-ARC, Mini-ARC, ConceptARC), and the form of the Kaggle competitions: "…_challenges.json"
    with "…_solutions.json" beside it, given as the file of challenges or as the folder of both. Files and folders whose
    names start with a dot are left out, and with a warning files of a folder that are about something else, such as
    metadata.json.

    Args:
        path: The file or folder.
        split: For a folder: the name of a sub-folder (of it, or of its folder "data", as in a clone of ARC-AGI), or of
            a Kaggle pair ("evaluation" for "arc-agi_evaluation_challenges.json"). None takes the whole folder, or its
            only pair.
        answers: Whether every test input must have its output. False: the answer of a task is None where it is not
            known, as for the test set of a competition.

    Returns:
        The tasks by file name, then by test input. `id` is the file's stem (with "-0", "-1", ... where a file lists
        several), or the puzzle's key in a Kaggle file, with "_0", "_1", ... where there are several test inputs;
        `domain` is the name of the file's folder, or of the pair's split; `fields` hold "source", the name of what was
        loaded, and "file", the file's path below it.

    Raises:
        ConfigError: If a split is given for a single file.
        DataError: If there is nothing to read, or a file or grid in it is not of the expected shape.
    """
    root = as_path("load_grid_tasks: path", path)
    if root.is_file():
        if split is not None:
            raise ConfigError(f"load_grid_tasks: split {split!r} is for folders, and {str(root)!r} is a file. Omit it.")
        files = [root]
    elif root.is_dir():
        files = _kaggle_files(root, split) or _puzzle_files(root, split)
    else:
        raise no_file(root, what="file or folder")
    contents = {file: read_json(file) for file in files}
    if root.is_dir():
        contents = _without_others(contents, root)
    puzzles = [puzzle for file, content in contents.items() for puzzle in _puzzles(file, root, content)]
    return [task for puzzle in puzzles for task in puzzle.tasks(answers)]


def puzzle_tasks(content: Any, name: str) -> list[Task]:
    """The tasks of one grid puzzle, {"train": [{"input", "output"}, ...], "test": [...]}, that was read already.

    `name` is the tasks' id, and what errors call it. A test input without an output has no answer.
    """
    if not is_puzzle(content):
        expected = "one of these puzzles; take all of them by --each" if _are_puzzles(content) else _PUZZLE
        raise DataError(f"{name!r} is no grid puzzle, found {describe(content)}. Expected {expected}.")
    return _Puzzle(content, name, "", {}, repr(name)).tasks(answers=False)


def holds_puzzles(path: Path) -> bool:
    """Returns True if a file holds grid puzzles, or one of the first JSON files of a folder does."""
    files = [path] if path.is_file() else visible_files(path)[:_LOOKED_AT]
    return any(map(_file_holds_puzzles, files))


def _file_holds_puzzles(file: Path) -> bool:
    if file.suffix.lower() not in _PUZZLE_KINDS:
        return False
    try:
        with file.open("rb") as stream:
            start = stream.read(4096)
            # A large list of rows need not be parsed here and by its reader as well.
            if not start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{") and b'"train"' not in start:
                return False
        return _hold_puzzles(read_json(file))
    except (OSError, DataError):
        return False  # the reader of other formats says what is wrong with it


def is_kaggle_folder(folder: Path) -> bool:
    """Returns True if a folder holds a file of challenges of a Kaggle competition."""
    return any(folder.glob(f"*{_CHALLENGES}"))


@dataclass(frozen=True, slots=True)
class _Puzzle:
    """A puzzle as its file has it. `where` names it in errors; `solutions` are the outputs that another file holds."""

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
        train, test = self.content["train"], self.content["test"]
        for part in ("train", "test"):
            if not self.content[part]:
                raise DataError(f"{self.where}: {part!r} is empty. Give at least one pair of input and output.")
        if self.solutions is not None and len(self.solutions) != len(test):
            raise DataError(
                f"{self.where} has {len(test)} test inputs but {len(self.solutions)} solutions. Use the solutions that "
                "belong to these challenges."
            )
        demonstrations = tuple(
            Demonstration(*(self._grid(pair, key, f"train[{n}]") for key in ("input", "output")))
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

    def _grid(self, pair: Any, key: str, place: str) -> str:
        if not isinstance(pair, dict) or key not in pair:
            content = sorted(pair) if isinstance(pair, dict) else pair
            raise DataError(
                f"{self.where}: {place} has no {key!r}, found {shown(content, 80)}. Give it an input and an output "
                "grid."
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
    if not files or (split is None and len(files) == 1):
        return list(files.values())
    if split not in files:
        raise DataError(
            f"The folder {str(folder)!r} has no challenges for the split {split!r}. Set split to one of "
            f"{sorted(files)}."
        )
    return [files[split]]


def _kaggle_stem(file: Path) -> str:
    return file.name.removesuffix(_CHALLENGES).removesuffix(".json")


def _kaggle_split(file: Path) -> str:
    return _kaggle_stem(file).rsplit("_", 1)[-1]


def _puzzle_files(folder: Path, split: str | None) -> list[Path]:
    if split is not None:
        places = [place for place in (folder / split, folder / "data" / split) if place.is_dir()]
        if not places:
            names = sorted(place.name for place in folder.iterdir() if place.is_dir())
            raise DataError(
                f"The folder {str(folder)!r} has no sub-folder for the split {split!r}. Set split to one of {names}, "
                "or to None for the whole folder."
            )
        folder = places[0]
    files = visible_files(folder) or visible_files(folder, (".jsonl",))
    if not files:
        raise DataError(
            f"The folder {str(folder)!r} has no .json files. Give a folder of ARC tasks, or one that holds a Kaggle "
            f"pair (*{_CHALLENGES}, *{_SOLUTIONS})."
        )
    return files


def visible_files(folder: Path, kinds: Sequence[str] = (".json",)) -> list[Path]:
    """The files of a folder with one of these endings, in all its depth but for names that start with a dot."""
    try:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in kinds and file.is_file())
    except OSError as error:  # such as of a folder that vanishes meanwhile
        raise DataError(
            f"The folder {str(folder)!r:.200} could not be read: {error.strerror}. Give another."
        ) from error
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def is_puzzle(content: Any) -> bool:
    """Returns True if a JSON value has the parts of a grid puzzle."""
    return isinstance(content, dict) and all(isinstance(content.get(part), list) for part in ("train", "test"))


def _are_puzzles(content: Any) -> bool:
    """Returns True if it maps names to puzzles, as a Kaggle file of challenges does."""
    return isinstance(content, dict) and bool(content) and all(map(is_puzzle, content.values()))


def _hold_puzzles(content: Any) -> bool:
    """Returns True if it is a puzzle, or several by name or in a list."""
    several = isinstance(content, list) and bool(content) and all(map(is_puzzle, content))
    return several or is_puzzle(content) or _are_puzzles(content)


def is_beside_puzzles(content: Any) -> bool:
    """Returns True if a JSON value is about something else than grids: no puzzle, and none gone wrong either."""
    parts = [
        content,
        *(content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()),
    ]
    return len(parts) > 1 and not any(map(_like_a_puzzle, parts))


def _like_a_puzzle(value: Any) -> bool:
    """Returns True if it has a part of a puzzle, or is a list of lists, as grids and solutions are."""
    if isinstance(value, dict):
        return any(isinstance(value.get(part), list) for part in ("train", "test", "input", "output"))
    return isinstance(value, list) and any(isinstance(part, list) for part in value)


def _without_others(contents: dict[Path, Any], root: Path) -> dict[Path, Any]:
    """The files but for those that are about something else, which a warning names."""
    others = [file for file, content in contents.items() if is_beside_puzzles(content)]
    if not others or len(others) == len(contents):
        return contents  # whose reader says what is wrong
    names = ", ".join(file.relative_to(root).as_posix() for file in others)
    warnings.warn(f"{str(root)!r}: files without grid puzzles are left out: {names:.300}", DataWarning, stacklevel=3)
    return {file: content for file, content in contents.items() if file not in set(others)}


def _puzzles(file: Path, root: Path, content: Any) -> list[_Puzzle]:
    """The puzzles of a file: one, the several of a list, or the many of a Kaggle file of challenges."""
    name = file.relative_to(root).as_posix() if root.is_dir() else file.name
    source, domain = root.absolute().name, file.absolute().parent.name
    if is_puzzle(content):
        return [_Puzzle(content, file.stem, domain, {"source": source, "file": name}, str(file))]
    if isinstance(content, list) and content and all(map(is_puzzle, content)):
        several = len(content) > 1
        return [
            _Puzzle(
                content=each,
                id=f"{file.stem}-{n}" if several else file.stem,
                domain=domain,
                fields={"source": source, "file": f"{name}#{file.stem}-{n}" if several else name},
                where=f"{file}: puzzle {n}" if several else str(file),
            )
            for n, each in enumerate(content)
        ]
    if not _are_puzzles(content):
        raise DataError(
            f"{str(file)!r} is no grid puzzle, found {describe(content)}. Expected {_PUZZLE}, or a Kaggle file that "
            "maps ids to such objects. Remove it, or set split to a sub-folder that holds puzzles only."
        )
    solutions = file.with_name(_kaggle_stem(file) + _SOLUTIONS)
    outputs = _solutions(solutions, list(content)) if solutions.is_file() else {}
    return [
        _Puzzle(
            content=content[key],
            id=key,
            domain=_kaggle_split(file),
            fields={"source": source, "file": f"{name}#{key}"},
            where=f"{file}: task {key!r}",
            solutions=outputs.get(key),
            cure=f"Put the file of solutions beside it as {solutions.name!r}",
        )
        for key in content
    ]


def _solutions(file: Path, keys: list[str]) -> dict[str, list[Any]]:
    content = read_json(file)
    if not isinstance(content, dict) or not all(isinstance(outputs, list) for outputs in content.values()):
        raise DataError(
            f"{str(file)!r} is no file of solutions, found {describe(content)}. Expected an object that maps each "
            "challenge's id to a list with the output grid of each of its test inputs."
        )
    if missing := [key for key in keys if key not in content]:
        raise DataError(
            f"{str(file)!r} has no solution for {len(missing)} of {len(keys)} challenges, the first {missing[0]!r}. "
            "Use the solutions that belong to these challenges, or add them."
        )
    return content
