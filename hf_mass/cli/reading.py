"""Problems and sets of tasks as the command line names them: files, folders, stdin, text, or a designed world."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_mass.errors import DataError
from hf_mass.lab.conventions import ConventionsWorld
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.bbh import BBH_TASKS, load_bbh
from hf_mass.tasks.few_shot_sets import load_few_shot_file, load_grid_tasks, parse_rows, read_json
from hf_mass.tasks.grids import grid_text, parse_grid
from hf_mass.tasks.problems import ALIASES, KINDS, Problem, read_problem, read_problem_file
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import get_verifier

WORLD, WORLD_MODEL = "conventions:", "conventions-mass"
WORLD_TASKS = 50
"""Tasks drawn from the designed world where no limit is given."""


# -- problems ----------------------------------------------------------------------------------------------------------


def read_one(words: Sequence[str]) -> Problem:
    """The problem that an argument names: a file, "-" for stdin, or the words as lines of a text.

    Raises:
        DataError: If there is none, or it cannot be read.
    """
    if list(words) == ["-"]:
        try:
            return read_problem(sys.stdin.read(), "stdin")
        except UnicodeDecodeError as error:
            raise DataError(f"stdin is no text in UTF-8 ({error}).") from error
    if len(words) == 1 and _is_path(words[0]):
        if Path(words[0]).expanduser().is_dir():
            raise DataError(f"{words[0]!r} is a folder. Name one of its files, or take all of them by --each.")
        return read_problem_file(words[0])
    if several := [word for word in words if _is_path(word)]:
        raise DataError(f"{several[0]!r} is a file among {len(words)} words. Give one file, or a folder with --each.")
    return read_problem("\n".join(words))


def _is_path(word: str) -> bool:
    """Whether a word names a file: there is one, or it looks like one that is missing."""
    if "\n" in word or len(word) > 1000:
        return False
    path = Path(word).expanduser()
    try:
        return path.exists() or (path.suffix.lower() in KINDS and " " not in word)
    except (OSError, ValueError):  # a name too long, or a zero byte
        return False


def read_many(name: str) -> list[Problem]:
    """The problems of a folder, of a Kaggle file of challenges, or of a file of one object a problem.

    Raises:
        DataError: If there are none, or one cannot be read.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise DataError(f"There is no file or folder {name!r}. Correct the path.")
    if path.is_dir() and not list(path.glob("*_challenges.json")):
        listed = sorted(file for file in path.rglob("*") if file.suffix.lower() in KINDS and _is_shown(file, path))
        if not listed:
            raise DataError(f"The folder {name!r} has no file of one of {', '.join(KINDS)}.")
        return [read_problem_file(file) for file in listed]
    if _holds_objects(path):
        return [_object_problem(text, f"{path.stem}_{n}") for n, text in enumerate(_objects(path))]
    if path.is_file() and path.suffix.lower() != ".json":
        return [read_problem_file(path)]
    if path.is_file() and isinstance(read_json(path), list):
        return [read_problem_file(path)]
    return list(_puzzles(load_grid_tasks(path, answers=False)))


def _is_shown(file: Path, folder: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _puzzles(tasks: Sequence[Task]) -> Iterator[Problem]:
    """Tasks of the same puzzle as one problem."""
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.fields["file"], []).append(task)
    for file, group in groups.items():
        name = file.rpartition("#")[2] if "#" in file else Path(file).stem
        yield Problem(name, "grids", tuple(group))


def _holds_objects(path: Path) -> bool:
    """Whether a file lists objects that hold a problem each."""
    if path.suffix.lower() not in (".json", ".jsonl") or not path.is_file():
        return False
    return any('"problem"' in text for text in _objects(path)[:1])


def _objects(path: Path) -> list[str]:
    """The JSON text of each object of a list, or of each line."""
    if path.suffix.lower() == ".json":
        content = read_json(path)
        return [json.dumps(item) for item in content] if isinstance(content, list) else []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} could not be read: {error}. Give a file in UTF-8.") from error
    return [json.dumps(row) for row in parse_rows(text, ".jsonl", repr(str(path)))]


def _object_problem(text: str, name: str, verifier: str | None = None) -> Problem:
    """The problem of an object that may also name the "verifier" and "domain" of its task."""
    content = json.loads(text)
    if not isinstance(content, dict) or "problem" not in content:
        raise DataError(f"{name!r} has no 'problem', found {text:.60}. Give every object one.")
    named = {key: content.pop(key) for key in ("verifier", "domain") if content.get(key) is not None}
    if verifier is not None:
        named.setdefault("verifier", verifier)
    for key, value in named.items():
        if not isinstance(value, str):
            raise DataError(f"{name!r}: {key} is {value!r:.60}. Give a text.")
    if "verifier" in named:
        get_verifier(named["verifier"])
    problem = read_problem(json.dumps(content), name, ".json")
    tasks = tuple(replace(task, **named) for task in problem.tasks)
    return Problem(problem.tasks[0].id or name, "grids" if _are_grids(tasks) else "texts", tasks)


# -- sets of tasks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TaskSet:
    """Tasks with known answers.

    Args:
        name: What the set is called.
        kind: "grids" or "texts".
        tasks: The tasks.
        model: The model that ships for them, where it is not that of their kind.
    """

    name: str
    kind: str
    tasks: tuple[Task, ...]
    model: str | None = None


def read_set(
    name: str,
    limit: int | None = None,
    demonstrations: int = 10,
    verifier: str = "exact_match",
) -> TaskSet:
    """The tasks that are to be evaluated.

    Args:
        name: A file, a folder, or "conventions:<split>".
        limit: Tasks at most.
        demonstrations: Rows of a few-shot file, or examples of BIG-Bench Hard, that are shown as solved.
        verifier: Judge of texts, where a task does not name its own.

    Raises:
        ConfigError: If the world has no such split.
        DataError: If there is nothing to read, or no task has a known answer.
        VerifierError: If the verifier is unknown.
    """
    get_verifier(verifier)
    path = Path(name).expanduser()
    if name.startswith(WORLD):
        tasks, title = _world().tasks(name.removeprefix(WORLD), limit or WORLD_TASKS), name
    elif not path.exists():
        raise DataError(
            f"There is no file or folder {name!r}. Correct the path, or name the designed world as {WORLD}<split>."
        )
    else:
        tasks, title = _file_tasks(path, demonstrations, verifier), path.absolute().stem
    known = [task for task in tasks if task.answer is not None or task.solution is not None][:limit]
    if not known:
        raise DataError(f"None of the {len(tasks)} tasks of {name!r} has a known answer. Add answers to evaluate by.")
    own = WORLD_MODEL if name.startswith(WORLD) else None
    return TaskSet(title, "grids" if _are_grids(known) else "texts", tuple(known), own)


def _world() -> ConventionsWorld:
    """The designed world of the base that ships."""
    return ConventionsWorld(**read_json(ASSETS / "conventions-base" / "world.json"))


def _file_tasks(path: Path, demonstrations: int, verifier: str) -> list[Task]:
    if path.is_dir():
        names = [task for task in BBH_TASKS if (path / f"{task}.json").is_file()]
        if names:
            return [task for found in load_bbh(path, names, demonstrations).values() for task in found]
        return load_grid_tasks(path, answers=False)
    if _holds_objects(path):
        listed = [_object_problem(text, f"{path.stem}_{n}", verifier) for n, text in enumerate(_objects(path))]
        return [task for problem in listed for task in problem.tasks]
    if path.suffix.lower() == ".json" and isinstance(read_json(path), dict):
        return load_grid_tasks(path, answers=False)
    return _few_shot_tasks(path, demonstrations, verifier)


def _few_shot_tasks(path: Path, demonstrations: int, verifier: str) -> list[Task]:
    """Tasks from rows with the columns "input" and "output", or others of `ALIASES`."""
    missing: DataError | None = None
    for question, answer in (("input", "output"), *ALIASES):
        try:
            return load_few_shot_file(path, question, answer, demonstrations=demonstrations, verifier=verifier)
        except DataError as error:
            if "has no column" not in str(error):
                raise
            missing = missing or error
    said = str(missing).split(" Set input_column")[0]
    raise DataError(f"{said} Call them input and output.") from missing


def _are_grids(tasks: Sequence[Task]) -> bool:
    """Whether all that the tasks show are grids in canonical form; numbers alone are not grids of one cell."""
    texts = [text for task in tasks for pair in task.demonstrations for text in (pair.question, pair.answer)]
    texts += [text for task in tasks for text in (task.problem, task.answer) if text is not None]
    grids = [parse_grid(text) for text in texts]
    canonical = all(g is not None and grid_text(g) == text for g, text in zip(grids, texts, strict=True))
    return canonical and any(len(g) > 1 or len(g[0]) > 1 for g in grids if g is not None)
