"""The card of a saved `MassModel`: its settings, prompts and load snippet, as plain parts."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter
from typing import Any

from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.settings import values_of
from hf_mass.store.card import CardParts, quoted
from hf_mass.tasks.task import Demonstration, Task

_SUMMARY = (
    "A generator, a scorer and an inner adapter for a frozen base model. For a problem the generator writes auxiliary "
    "question-answer pairs, the scorer weighs them, and an inner LoRA loop trains on them before the model answers "
    "(MASS, [arXiv 2603.03524](https://arxiv.org/abs/2603.03524)). Written by `hf_mass`."
)
_NOTE = (
    "The files are safetensors and JSON; loading runs no code from them. "
    '`peft.PeftModel.from_pretrained(base, path, subfolder="generator")` loads the generator without `hf_mass`.'
)
_PROMPTS = (
    "generator_template",
    "sample_pattern",
    "inner_template",
    "solver_template",
    "demonstration_template",
    "solution_pattern",
)


def mass_card(
    config: MassConfig,
    *,
    repo_id: str | None = None,
    example: Task | None = None,
    tags: Sequence[str] = (),
    **details: Any,
) -> CardParts:
    """What the card of a `MassModel` is made from.

    Args:
        config: Its settings.
        repo_id: Hub id that it has or will have.
        example: Task of the load snippet; default: a made-up one with the fields that the prompts need.
        tags: Tags beside the package's own.
        details: Other fields of `CardParts`.
    """
    return CardParts(
        kind="MASS adapters",
        summary=_SUMMARY,
        settings=[
            (name, value)
            for name, value in values_of(config).items()
            if name != "format" and (name, value) != ("few_shot", None)
        ],
        prompts=[(name, text) for name in _PROMPTS if (text := getattr(config.format, name))],
        snippet=_snippet(example or _made_up(config), repo_id),
        loading_note=_NOTE,
        repo_id=repo_id,
        tags=("mass", *tags),
        **details,
    )


def _snippet(task: Task, repo_id: str | None) -> list[str]:
    pairs = ", ".join(f"({quoted(d.question)}, {quoted(d.answer)})" for d in task.demonstrations)
    fields = ", ".join(f"{quoted(name)}: {quoted(value)}" for name, value in task.fields.items())
    arguments = [quoted(task.problem), *(["tuple(Demonstration(*pair) for pair in shown)"] if pairs else [])]
    return [
        f"from hf_mass import {'Demonstration, ' if pairs else ''}MassModel, Task",
        "",
        f"mass = MassModel.from_pretrained({quoted(repo_id or 'path/or/id')})",
        *([f"shown = [{pairs}]"] if pairs else []),
        f"task = Task({', '.join([*arguments, *([f'fields={{{fields}}}'] if fields else [])])})",
        'print(mass.solve(task).text, "->", mass.solve(task, mass.adapt(task)).text)',
    ]


def _made_up(config: MassConfig) -> Task:
    """A task with whatever the prompts and the scorer ask for, its texts left to the reader."""
    templates = config.format.generator_template + config.format.solver_template
    names = {name for _, name, _, _ in Formatter().parse(templates) if name}
    needs_demonstrations = "demonstrations" in names or "attribution" in config.scorer.features
    fields = dict.fromkeys(sorted(names - {"problem", "demonstrations"}), "...")
    return Task("...", (Demonstration("...", "..."),) if needs_demonstrations else (), fields=fields)
