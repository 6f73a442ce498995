"""The models of an app, loaded once and shared by its visitors, and the problems to pick from."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event as StopSign
from typing import Any

from hf_mass.engine.events import Event
from hf_mass.engine.models import SHIPPED, default_model, load
from hf_mass.engine.session import Session, events
from hf_mass.engine.solution import Solution
from hf_mass.errors import CheckpointError, ConfigError, DataError
from hf_mass.lm.language_model import LanguageModel
from hf_mass.lm.suitability import beyond
from hf_mass.methods.guard import guarded
from hf_mass.methods.registry import make_method
from hf_mass.store.folders import writing
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.checks import shown
from hf_mass.tasks.problems import Problem, read_problem_file

logger = logging.getLogger(__name__)
MODEL_VARIABLE = "HF_MASS_MODEL"
"""Environment variable: a folder or Hub id of the one model that the app offers, instead of those that ship."""
METHOD_NAMES = {"mass": "MASS", "ttt": "TTT", "both": "both"}
"""Methods that the page offers, and what it calls them."""
TIME_LIMIT = 120.0
"""Seconds that one adaptation may take."""


def _problems(folder: str) -> dict[str, Path]:
    return {path.stem.replace("-", " "): path for path in sorted((ASSETS / folder).glob("*"))}


EXAMPLES = _problems("examples")
"""Name → file of a problem for the tiny models that ship."""
WORD_EXAMPLES = _problems("word-examples")
"""Name → file of a problem for a language model."""
FIRST_EXAMPLES = "grid mirrored tiles", "the word in the middle"
"""What is there when the page opens: for the tiny models, and for a language model."""

Lease = Callable[[Callable[..., Any]], Callable[..., Any]]
"""A decorator that has a GPU for the duration of a call, such as `spaces.GPU` of a ZeroGPU Space."""


@dataclass(frozen=True)
class Outcome:
    """What came of an adaptation, as plain data: a leased GPU is used in another process.

    Args:
        facts: As `Solution.to_dict`, with the model's name, size and precision, and a note if it is not made for that.
        archive: Zip file with the adapters; None if there are none, or nobody asked for them.
        lost: Why the adapters could not be written.
    """

    facts: dict[str, Any]
    archive: Path | None = None
    lost: str | None = None


class Workshop:
    """Models by name.

    The whole of an adaptation, answers and archive included, is one call of `adapt`: one lease of a GPU where those are
    leased.

    Args:
        models: At least one.
        lease: Leases a GPU for each adaptation, which then goes on in a process of its own.
    """

    def __init__(self, models: Sequence[LanguageModel], lease: Lease | None = None) -> None:
        self.models = {model.name: model for model in models}
        self.leases = lease is not None
        self.adapt: Callable[..., Iterator[Event | Outcome]] = lease(self._adapt) if lease else self._adapt

    @classmethod
    def load(cls, name: str | None = None, lease: Lease | None = None, **settings: Any) -> Workshop:
        """The model called `name`, or that of the environment, or all that ship; `settings` as for `hf_mass.load`."""
        name = name or os.environ.get(MODEL_VARIABLE) or None
        if lease is not None:
            settings = {"device": "cuda", **settings}  # where moving is put off until a call has a GPU
        return cls([load(each, **settings) for each in ([name] if name else SHIPPED)], lease)

    def choose(self, problem: Problem, name: str | None = None) -> LanguageModel:
        """The model of this name, or without one the model that is made for the problem.

        Raises:
            ConfigError: If there is no model of this name.
        """
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        name = default_model(problem.kind, problem.tasks[0].fields) if name in (None, "") else name
        if not isinstance(name, str) or name not in self.models:
            raise ConfigError(f"model is {shown(name)}; choose one of {list(self.models)}.")
        return self.models[name]

    def examples(self) -> tuple[list[str], str]:
        """(names of the problems to pick from, the one that is there at first)."""
        if all(model.kinds for model in self.models.values()):
            return list(EXAMPLES), FIRST_EXAMPLES[0]
        return list(WORD_EXAMPLES), FIRST_EXAMPLES[1]

    def methods(self, problem: Problem, name: str | None = None) -> list[str]:
        """Names of the methods that suit problem and model; MASS if none does, which then says why."""
        model = self.choose(problem, name)
        suiting = []
        for method in METHOD_NAMES:
            with suppress(DataError):
                make_method(method).require(model, problem.tasks)
                suiting.append(method)
        return suiting or ["mass"]

    def _adapt(
        self,
        name: str,
        problem: Problem,
        method: str,
        settings: Mapping[str, Any],
        stop: StopSign | None = None,
        folder: Path | None = None,
    ) -> Iterator[Event | Outcome]:
        """Events, then the result. `settings` are as `chosen_settings` gives them; `folder` gets the archive."""
        values = dict(settings)
        seed, guard, lm = values.pop("seed", 0), values.pop("guard", None), self.models[name]
        chosen = guarded(make_method(method, values), lm, problem.tasks, guard)
        session = Session(lm, chosen, seed, time_limit=TIME_LIMIT)
        for event in events(session, problem, stop):
            if isinstance(event, Solution):
                facts = {**lm.facts(), "note": beyond(lm, problem.tasks), **event.to_dict()}
                yield Outcome(facts, *_archive(event, folder))
            else:
                yield event


def _archive(solution: Solution, folder: Path | None) -> tuple[Path | None, str | None]:
    """(the adapters as one zip file, each in a folder that `PeftModel.from_pretrained` reads; why it is lost)."""
    if folder is None:
        return None, None
    adaptations, files = list(solution.distinct()), folder / "adapter"
    files.with_suffix(".zip").unlink(missing_ok=True)  # of an earlier problem, as what is in the folder
    shutil.rmtree(files, ignore_errors=True)
    if not adaptations:
        return None, None
    try:
        with writing(files):
            for number, adaptation in enumerate(adaptations):
                adaptation.save(files / f"query-{number}" if len(adaptations) > 1 else files)
            return Path(shutil.make_archive(str(files), "zip", files)), None
    except CheckpointError as error:  # the answers are there all the same
        logger.warning(str(error))
        why = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
        return None, f"The adapter could not be written ({why or 'no room or rights'}), so there is none to download"


def example(name: str) -> Problem:
    """A problem that ships.

    Raises:
        DataError: If none is called so.
    """
    known = EXAMPLES | WORD_EXAMPLES
    if not isinstance(name, str) or name not in known:
        raise DataError(f"There is no example {shown(name)}. Choose one of {list(known)}.")
    return read_problem_file(known[name])


def described(model: LanguageModel) -> str:
    """What answers: its name, size and precision."""
    name = Path(model.name).name if Path(model.name).is_dir() else model.name
    return f"{name}, {model.measure}"
