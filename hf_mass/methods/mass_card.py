"""The card of a saved `MassModel`: its settings, prompts and load snippet, as plain parts."""

from __future__ import annotations

from collections.abc import Sequence
from string import Formatter
from typing import Any

from hf_mass.methods.mass_settings import MassConfig
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
        settings=_settings(config),
        prompts=[(name, text) for name in _PROMPTS if (text := getattr(config.format, name))],
        snippet=_snippet(example or _made_up(config), repo_id),
        loading_note=_NOTE,
        repo_id=repo_id,
        tags=("mass", *tags),
        **details,
    )


def _settings(config: MassConfig) -> list[tuple[str, Any]]:
    inner, scorer = config.inner, config.scorer
    optimizer = {
        "momentum": f"momentum {inner.momentum}",
        "adamw": f"AdamW, β {inner.betas}, decay {inner.weight_decay}",
    }
    return [
        ("auxiliary samples, m", config.samples),
        ("inner steps, K", inner.steps),
        ("inner learning rate, α", inner.learning_rate),
        ("inner optimizer", optimizer.get(inner.optimizer, inner.optimizer)),
        ("inner LoRA", f"rank {inner.lora_rank}, alpha {inner.lora_alpha}, on {_in_words(inner.target_modules)}"),
        ("inner dropout", inner.dropout),
        ("weighed by, default", config.weigh_by),
        ("scorer", f"{_in_words(scorer.features)}; width {scorer.width}; {scorer.normalization}"),
        ("attribution", f"τ = {config.attribution.temperature}, {config.attribution.rounds} rounds"),
        ("sampling", f"temperature {config.temperature}, top_p {config.top_p}, top_k {config.top_k}"),
        (
            "longest sample / answer / row, tokens",
            f"{config.max_sample_tokens} / {config.max_answer_tokens} / {config.max_length}",
        ),
    ]


def _in_words(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _snippet(task: Task, repo_id: str | None) -> list[str]:
    names = ["Demonstration"] * bool(task.demonstrations) + ["MassModel", "Task"]
    return [
        f"from hf_mass import {', '.join(names)}",
        "",
        f"mass = MassModel.from_pretrained({quoted(repo_id or 'path/or/id')})",
        *_task_source(task),
        'print(mass.solve(task).text, "->", mass.solve(task, mass.adapt(task)).text)',
    ]


def _made_up(config: MassConfig) -> Task:
    """A task with whatever the prompts and the scorer ask for, its texts left to the reader."""
    templates = config.format.generator_template + config.format.solver_template
    names = {name for _, name, _, _ in Formatter().parse(templates) if name}
    needs_demonstrations = "demonstrations" in names or "attribution" in config.scorer.features
    fields = dict.fromkeys(sorted(names - {"problem", "demonstrations"}), "...")
    return Task("...", (Demonstration("...", "..."),) if needs_demonstrations else (), fields=fields)


def _task_source(task: Task) -> list[str]:
    """The lines that make a task; its demonstrations come first if there are several."""
    pairs = [f"({quoted(d.question)}, {quoted(d.answer)})" for d in task.demonstrations]
    fields = ", ".join(f"{quoted(name)}: {quoted(value)}" for name, value in task.fields.items())
    arguments = [quoted(task.problem), *([f"fields={{{fields}}}"] if fields else [])]
    if len(pairs) == 1:
        arguments.insert(1, f"(Demonstration{pairs[0]},)")
    elif pairs:
        arguments.insert(1, "tuple(Demonstration(*pair) for pair in shown)")
    lines = [f"shown = [{', '.join(pairs)}]"] if len(pairs) > 1 else []
    return [*lines, f"task = Task({', '.join(arguments)})"]
