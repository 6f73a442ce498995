"""The models of an app, loaded once and shared by its visitors, and the problems to pick from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from threading import Event as StopSign
from typing import Any

from hf_mass.errors import ConfigError
from hf_mass.live.events import METHODS, Event, LiveConfig, Outcome
from hf_mass.live.models import ASSETS, SHIPPED, LiveModel, load_model
from hf_mass.live.solver import run
from hf_mass.tasks.problems import Problem, read_problem_file

MODEL_VARIABLE = "HF_MASS_MODEL"
"""Environment variable: a folder or Hub id of the one model that the app offers, instead of those that ship."""
GPU_SECONDS = 120

EXAMPLES: dict[str, Path] = {
    path.stem.replace("-", " "): path for path in sorted((ASSETS / "examples").glob("*")) if path.suffix != ".md"
}
"""Name → file of a problem that ships."""


def on_zero_gpu() -> bool:
    """Whether this runs on a ZeroGPU Space, where a GPU is there inside of decorated calls only."""
    return bool(os.environ.get("SPACES_ZERO_GPU"))


def with_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """On a ZeroGPU Space, the function with a GPU for its duration; elsewhere the function itself."""
    if not on_zero_gpu():
        return function
    return import_module("spaces").GPU(duration=GPU_SECONDS)(function)


class Workshop:
    """Models by name.

    Args:
        models: At least one.

    The whole of an adaptation, answers included, is one call of `adapt`: one lease of a GPU where those are leased.
    """

    def __init__(self, models: Sequence[LiveModel]) -> None:
        self.models = {model.name: model for model in models}
        self.adapt: Callable[..., Iterator[Event | Outcome]] = with_gpu(self._adapt)

    @classmethod
    def load(cls, name: str | None = None, **settings: Any) -> Workshop:
        """The model called `name`, or that of the environment, or all that ship; `settings` as for `load_model`."""
        name = name or os.environ.get(MODEL_VARIABLE) or None
        if on_zero_gpu():
            settings = {"device": "cuda", **settings}  # which is put off until a call has one
        return cls([load_model(each, **settings) for each in ([name] if name else SHIPPED)])

    def choose(self, problem: Problem, name: str | None = None) -> LiveModel:
        """The model of this name, or without one the model that is made for the problem.

        Raises:
            ConfigError: If there is no model of this name.
        """
        if name is not None:
            if name not in self.models:
                raise ConfigError(f"model is {name!r}; choose one of {list(self.models)}.")
            return self.models[name]
        fitting = [model for model in self.models.values() if not model.kinds or problem.kind in model.kinds]
        needs = {model.name: set(model.mass.config.format.task_fields) for model in fitting}
        known = set(problem.tasks[0].fields)
        fitting.sort(key=lambda model: (not needs[model.name] <= known, -len(needs[model.name] & known)))
        return fitting[0] if fitting else next(iter(self.models.values()))

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
