"""The models of an app, loaded once and shared by its visitors, and the problems to pick from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event as StopSign
from typing import Any

from hf_mass.engine.events import METHODS, Event, LiveConfig, Outcome
from hf_mass.engine.models import SHIPPED, LiveModel, default_model, load_model
from hf_mass.engine.session import run
from hf_mass.errors import ConfigError
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.problems import Problem, read_problem_file

MODEL_VARIABLE = "HF_MASS_MODEL"
"""Environment variable: a folder or Hub id of the one model that the app offers, instead of those that ship."""

EXAMPLES: dict[str, Path] = {
    path.stem.replace("-", " "): path for path in sorted((ASSETS / "examples").glob("*")) if path.suffix != ".md"
}
"""Name → file of a problem that ships."""


Lease = Callable[[Callable[..., Any]], Callable[..., Any]]
"""A decorator that has a GPU for the duration of a call, such as `spaces.GPU` of a ZeroGPU Space."""


class Workshop:
    """Models by name.

    The whole of an adaptation, answers included, is one call of `adapt`: one lease of a GPU where those are leased.

    Args:
        models: At least one.
        lease: Leases a GPU for each adaptation, which then goes on in a process of its own.
    """

    def __init__(self, models: Sequence[LiveModel], lease: Lease | None = None) -> None:
        self.models = {model.name: model for model in models}
        self.leases = lease is not None
        self.adapt: Callable[..., Iterator[Event | Outcome]] = lease(self._adapt) if lease else self._adapt

    @classmethod
    def load(cls, name: str | None = None, lease: Lease | None = None, **settings: Any) -> Workshop:
        """The model called `name`, or that of the environment, or all that ship; `settings` as for `load_model`."""
        name = name or os.environ.get(MODEL_VARIABLE) or None
        if lease is not None:
            settings = {"device": "cuda", **settings}  # where moving is put off until a call has a GPU
        return cls([load_model(each, **settings) for each in ([name] if name else SHIPPED)], lease)

    def choose(self, problem: Problem, name: str | None = None) -> LiveModel:
        """The model of this name, or without one the model that is made for the problem.

        Raises:
            ConfigError: If there is no model of this name.
        """
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        name = name or default_model(problem.kind, problem.tasks[0].fields)
        if name not in self.models:
            raise ConfigError(f"model is {name!r}; choose one of {list(self.models)}.")
        return self.models[name]

    def methods(self, problem: Problem, name: str | None = None) -> list[str]:
        """What the chosen model can do with the problem, as names of methods."""
        model = self.choose(problem, name)
        trains = problem.kind in model.presets and all(task.demonstrations for task in problem.tasks)
        return [method for method in METHODS[1:] if method == "mass" or trains]

    def _adapt(
        self, name: str, problem: Problem, config: LiveConfig, stop: StopSign | None = None
    ) -> Iterator[Event | Outcome]:
        yield from run(self.models[name], problem, config, stop)


def example(name: str) -> Problem:
    """A problem that ships."""
    return read_problem_file(EXAMPLES[name])
