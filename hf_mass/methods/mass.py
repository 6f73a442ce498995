"""MASS at test time (arXiv 2603.03524): the model writes samples for a task, weighs them and trains on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_mass.errors import ConfigError, DataError
from hf_mass.lm.encoding import TextEncoder
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Answer, Method, Progress
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import BY_DEMONSTRATIONS, MassConfig, ScorerConfig
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.methods.settings import build, flat, values_of
from hf_mass.methods.ttt import TTT
from hf_mass.tasks.checks import require_method, shown
from hf_mass.tasks.formats import FORMATS, PromptFormat
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.task import Task

LONGEST = 256
"""Longest sample or answer in tokens where neither settings nor demonstrations say."""
REAL: dict[str, Any] = {"samples": 24, "inner_learning_rate": 0.03}
"""Settings for a model that neither ships nor was meta-trained, chosen on one (examples/results/LOG.md). It is one step
of SGD: the first of AdamW hardly depends on a sample's weight, so that attributions through it would be noise."""
OFFERED = flat(MassConfig)
"""Settings by the names under which they may be changed."""


@dataclass(frozen=True)
class MassState:
    """How far MASS has come."""

    mass: MassModel  # the model with the settings for these tasks
    tasks: tuple[Task, ...]  # the tasks as the model reads them
    seed: int  # for sampling
    samples: tuple[list[AuxiliarySample], ...] | None = None  # of each task; None before they are written
    adaptations: tuple[Adaptation, ...] | None = None  # the records; None before there are any


class MASS(Method[MassState]):
    """Self-synthesis: no label is needed, and no training beforehand.

    On a model that was not meta-trained, samples are weighed by their attribution to the task's own demonstrations, or
    alike where it has none; and a task with demonstrations reads as test-time training has it, also for the generator,
    which continues the list of solved examples.

    Args:
        config: All settings; None for the model's own, with `changes`.
        weigh_by: "demonstrations", "matching", "scorer" or "uniform"; None for what suits model and task.
        prompt_format: Name of a format, one of `FORMATS`; None for the model's own.
        asks: How tasks with demonstrations are asked on a model that was not meta-trained; None for the default.
        changes: Settings that differ, by their flat names: `samples`, `inner_steps`, `inner_learning_rate`, ...
    """

    name = "mass"

    def __init__(
        self,
        config: MassConfig | None = None,
        weigh_by: str | None = None,
        prompt_format: str | None = None,
        asks: TTT | None = None,
        **changes: Any,
    ) -> None:
        if not isinstance(config, MassConfig | None):
            raise ConfigError(f"MASS: config is {shown(config)}; give MassConfig(...), or leave it out.")
        if unknown := sorted(set(changes) - set(OFFERED)):
            raise ConfigError(f"MASS has no setting {unknown[0]!r}; choose some of {sorted(OFFERED)}.")
        if prompt_format is not None and (not isinstance(prompt_format, str) or prompt_format not in FORMATS):
            raise ConfigError(f"prompt_format is {shown(prompt_format)}; choose one of {sorted(FORMATS)}.")
        self.config, self.prompt_format, self.changes = config, prompt_format, changes
        require_method("MASS.asks", asks, TTT)
        self.weigh_by, self.asks, self.scale = weigh_by, asks or TTT(), 1.0
        build(MassConfig, {"weigh_by": weigh_by, **changes})  # wrong settings are told at once

    @property
    def strength(self) -> str:
        return "the inner rate" if self.scale == 1 else f"{self.scale:g} × the inner rate"

    def strengths(self) -> list[Method[Any]]:
        """The inner rate that is set, and smaller ones."""
        return [self.scaled(scale) for scale in (1.0, 0.3, 0.1)]

    def scaled(self, scale: float) -> MASS:
        """The same at another inner rate."""
        other = copy(self)
        other.scale = self.scale * scale
        return other

    def on_half(self) -> MASS:
        """The same without a vote."""
        other = copy(self)
        other.asks = self.asks.on_half()
        return other

    def resolved(self, lm: LanguageModel, tasks: Sequence[Task]) -> MassModel:
        """The model with the settings for these tasks."""
        config = self.settings(lm, tasks)
        return lm if isinstance(lm, MassModel) and lm.config == config else MassModel.on(lm, config)

    def settings(self, lm: LanguageModel, tasks: Sequence[Task]) -> MassConfig:
        """The settings for these tasks. The model's modules are not touched: others may be using them meanwhile."""
        config = self.config
        if config is None:
            trained = lm.config if isinstance(lm, MassModel) else _untrained(lm, tasks, self.prompt_format, self.asks)
            config = with_changes(trained, self.changes)
        rate = config.inner.learning_rate * self.scale
        return config if self.scale == 1 else replace(config, inner=replace(config.inner, learning_rate=rate))

    def require(self, lm: LanguageModel, tasks: Sequence[Task]) -> None:
        if self.weigh_by in BY_DEMONSTRATIONS and not all(task.demonstrations for task in tasks):
            raise DataError("The problem has no solved examples to weigh samples by. Choose weigh_by 'uniform'.")
        config = self.settings(lm, tasks)
        if missing := {name for task in tasks for name in config.format.task_fields if name not in task.fields}:
            name = min(missing)
            raise DataError(
                f"{lm.name} is made for problems with a field {name!r}, which this one lacks. Give the problem as "
                f'JSON with "problem", "demonstrations" and "fields": {{"{name}": ...}}, or take another model.'
            )
        room = config.max_length - config.max_answer_tokens  # for the problem, which is shown whole
        encoder = TextEncoder(
            lm.tokenizer,
            config.format,
            config.max_length,
            few_shot=config.few_shot_format,
            chat_template_kwargs=lm.chat_template_kwargs,
        )
        for task in as_read(lm, tasks):
            length = len(encoder.full_solver_prompt_ids(task))
            if length > room:
                raise DataError(
                    f"Task {task.id!r} with its {len(task.demonstrations)} demonstrations has {length} tokens, and "
                    f"{lm.name} has room for {room}. Give fewer or shorter demonstrations."
                )

    def begin(self, lm: LanguageModel, tasks: Sequence[Task], seed: int) -> MassState:
        return MassState(self.resolved(lm, tasks), as_read(lm, tasks), seed)

    def begin_like(self, lm: LanguageModel, tasks: Sequence[Task], seed: int, other: MassState) -> MassState:
        """The samples do not depend on the inner rate: they are kept."""
        return replace(self.begin(lm, tasks, seed), samples=other.samples)

    def step(self, lm: LanguageModel, state: MassState) -> MassState:
        """First the samples are written, then they are weighed and trained on."""
        if state.samples is None:
            return replace(state, samples=tuple(state.mass.generate_auxiliary(state.tasks, seed=state.seed)))
        weigh_by = self.weigh_by or suitable_weighing(state.mass, state.tasks)
        adaptations = state.mass.adapt(state.tasks, weigh_by, state.samples, state.seed)
        return replace(state, adaptations=tuple(adaptations))

    def stop(self, state: MassState) -> bool:
        return state.adaptations is not None

    def progress(self, state: MassState) -> Progress:
        if state.samples is None:
            return Progress("Writing samples", writes=True)
        config = state.mass.config
        weigh_by = self.weigh_by or suitable_weighing(state.mass, state.tasks)
        loops = 1 + {"scorer": 1, "demonstrations": config.attribution.rounds}.get(weigh_by, 0)
        return Progress("Weighing the samples and training on them", 0, loops * config.inner.steps)

    def finish(self, lm: LanguageModel, state: MassState) -> list[Adaptation]:
        return list(state.adaptations or ())

    def answer(
        self, lm: LanguageModel, tasks: Sequence[Task], adaptations: Sequence[Adaptation] | None, seed: int
    ) -> list[Answer]:
        return self.resolved(lm, tasks).solve(as_read(lm, tasks), adaptations, seed=seed)


def with_changes(config: MassConfig, changes: Mapping[str, Any]) -> MassConfig:
    """Settings with changes by their flat names."""
    return build(MassConfig, {**values_of(config), **changes}) if changes else config


def without_scorer(config: MassConfig) -> dict[str, Any]:
    """A meta-trained model's settings that stay with what it is adapted to: all but those of its scorer, as JSON values
    that `LanguageModel.defaults` has under "mass"."""
    values = values_of(config)
    names = set(flat(MassConfig)) - set(flat(ScorerConfig)) - {"weigh_by"}
    return {**{name: values[name] for name in sorted(names)}, "format": asdict(config.format)}


def suitable_weighing(mass: MassModel, tasks: Sequence[Task]) -> str:
    """By attribution to demonstrations where there are some; else by the scorer where it needs none."""
    if all(task.demonstrations for task in tasks):
        return "demonstrations"
    needs_demonstrations = "attribution" in mass.config.scorer.features
    return "scorer" if mass.config.weigh_by == "scorer" and not needs_demonstrations else "uniform"


def as_read(lm: LanguageModel, tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Tasks as MASS reads them: through the chat template where the model has one, unless it is to be left out."""
    return tuple(replace(task, conversational=True) if lm.converses else task for task in tasks)


def _untrained(lm: LanguageModel, tasks: Sequence[Task], prompt_format: str | None, asks: TTT) -> MassConfig:
    """Settings for a model that was not meta-trained, with room that follows the demonstrations."""
    scorer = ScorerConfig(("log_prob",), width=0)
    if prompt_format is None and "mass" not in lm.defaults:
        few_shot = asks.resolved(lm, tasks) if kind_of(tasks) in lm.defaults.get("ttt", {}) else None
        config = MassConfig(weigh_by="uniform", scorer=scorer, few_shot=few_shot)
        return with_changes(config, {**REAL, **_room(lm, tasks, config.format)})
    suiting = dict(lm.defaults.get("mass", {}))
    name, written = suiting.pop("prompt_format", "default"), suiting.pop("format", None)
    fmt = FORMATS[prompt_format or name] if prompt_format or written is None else PromptFormat.from_dict(written)
    config = MassConfig(weigh_by="uniform", format=fmt, scorer=scorer)
    return with_changes(config, {**suiting, **_room(lm, tasks, config.format)})


def _room(lm: LanguageModel, tasks: Sequence[Task], fmt: PromptFormat) -> dict[str, int]:
    """Room for samples and answers half as long again as the longest demonstration."""
    pairs = [pair for task in tasks for pair in task.demonstrations]
    length = TextEncoder(lm.tokenizer, fmt, LONGEST).answer_ids
    question = max((len(length(pair.question)) for pair in pairs), default=LONGEST // 3)
    answer = max((len(length(pair.answer)) for pair in pairs), default=LONGEST // 3)
    most = min(lm.context or 2048, 4096)
    return {
        "max_sample_tokens": min(round(1.5 * (question + answer)) + 8, most // 2),
        "max_answer_tokens": min(round(1.5 * answer) + 8, most // 2),
        "max_length": most,
    }
