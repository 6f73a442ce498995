"""Model cards: a README.md with YAML metadata, how to load, settings, what was measured, limits and risks.

A card is filled in from parts. Numbers of quality or cost come from `Measured` alone; without it the card says that
nothing was measured. `hf_mass.evaluation.cards` makes `Measured` from a result file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_mass.methods.mass_settings import MassConfig
from hf_mass.store.markdown import markdown_table
from hf_mass.store.shipped import ASSETS, shipped_name
from hf_mass.tasks.task import Demonstration, Task

TEMPLATE = ASSETS / "model_card.md"
CARD_NAME = "README.md"
NOT_MEASURED = "Not measured. This card claims nothing about how good the adapted answers are."
TAGS = ("hf_mass", "test-time-training", "lora")
RISKS = (
    "Test-time training changes weights for one problem. What the problem shows is learned, so wrong or hostile "
    "demonstrations give wrong or hostile answers, and what a base was tuned to refuse may come back.",
    "A bad upload can steer the adapted answers or waste compute. Limit size and time before you adapt to what "
    "strangers send, and treat the answers as theirs.",
    "Nothing stays: the adapted weights are dropped after the problem and the files do not change, unless you save "
    "them. A saved adapter may give away the examples that it was trained on.",
    "Weights, attributions and votes are no measure of how right an answer is.",
)
_STUB = "[More Information Needed]"  # in the cards that PEFT and TRL write by themselves
_BASIC = "<!-- hf_mass: nothing measured -->"


@dataclass(frozen=True)
class Measured:
    """What a result file says, as a card shows it.

    Args:
        table: Markdown.
        command: The command that made it; None where the file does not say.
        source: Name of the file.
        evaluations: The metadata's `model-index`.
        cost: Markdown; None where no cost was measured.
        notes: Sentences on how to read the table.
    """

    table: str
    command: str | None
    source: str
    evaluations: tuple[EvalResult, ...] = ()
    cost: str | None = None
    notes: str = ""


@dataclass(frozen=True)
class CardParts:
    """What a card is made from.

    Args:
        base_model: Hub id, path or name of the base; None where it is not known.
        config: Settings of a `MassModel`, or a mapping of those of a test-time training run; None for not known.
        repo_id: Hub id of the adapter, for title and load snippet.
        title: Title; default: the name in `repo_id`.
        tags: Tags beside the package's own.
        license: Licence identifier as on the Hub; None for not stated.
        datasets: Hub ids of training datasets.
        training_data: What it was trained on, in words.
        example: Task of the load snippet; default: a made-up one with the fields that the prompts need.
        limits: Limits beside the general ones.
        measured: Results; None for a card without any.
    """

    base_model: str | None
    config: MassConfig | Mapping[str, Any] | None
    repo_id: str | None = None
    title: str | None = None
    tags: Sequence[str] = ()
    license: str | None = None
    datasets: Sequence[str] = ()
    training_data: str | None = None
    example: Task | None = None
    limits: Sequence[str] = ()
    measured: Measured | None = None


def write_basic_card(
    folder: str | Path,
    *,
    base_model: str | None,
    config: MassConfig | Mapping[str, Any] | None,
    tags: Sequence[str] = (),
    license: str | None = None,
    datasets: Sequence[str] = (),
    repo_id: str | None = None,
) -> Path:
    """Write the README.md of a saved model about which nothing was measured. A card with more in it is left alone.

    Args:
        folder: Folder of the saved model.
        base_model: Hub id, path or name of the base; None where it is not known.
        config: Settings of a `MassModel`; a mapping for a test-time-trained adapter; None for not known.
        tags: Tags beside the package's own.
        license: Licence identifier as on the Hub; None for not stated.
        datasets: Hub ids of training datasets.
        repo_id: Hub id that it will have.

    Returns:
        The path of the README.md.
    """
    path = Path(folder) / CARD_NAME
    if path.is_file() and not any(mark in path.read_text(encoding="utf-8") for mark in (_STUB, _BASIC)):
        return path
    parts = CardParts(base_model, config, repo_id, tags=tags, license=license, datasets=datasets)
    build_card(parts).save(path)
    return path


def build_card(parts: CardParts) -> ModelCard:
    """The card of these parts."""
    mass, measured = isinstance(parts.config, MassConfig), parts.measured
    title = (
        parts.title or (parts.repo_id or "").rpartition("/")[2] or ("MASS adapters" if mass else "Test-time adapter")
    )
    card = ModelCard.from_template(
        (data := _metadata(parts, title)),
        template_path=str(TEMPLATE),
        metadata=data.to_yaml(),
        title=title,
        summary=_MASS_SUMMARY if mass else _TTT_SUMMARY,
        base=_base_text(parts.base_model),
        load=_mass_snippet(parts) if mass else _ttt_snippet(parts),
        loading_note=_MASS_NOTE if mass else _TTT_NOTE,
        settings=_table(_settings(parts.config)),
        prompts=_prompts(parts.config) if isinstance(parts.config, MassConfig) else (),
        results=_results(measured),
        cost=(measured.cost if measured else None) or "Not measured.",
        training_data=_training_data(parts),
        limits=[*parts.limits, *RISKS],
        licence=f"`{parts.license}`"
        if parts.license
        else "Not stated here. That of the base model applies to the base.",
    )
    return card


# -- parts of the text -------------------------------------------------------------------------------------------------

_MASS_SUMMARY = (
    "A generator, a scorer and an inner adapter for a frozen base model. For a problem the generator writes auxiliary "
    "question-answer pairs, the scorer weighs them, and an inner LoRA loop trains on them before the model answers "
    "(MASS, [arXiv 2603.03524](https://arxiv.org/abs/2603.03524)). Written by `hf_mass`."
)
_TTT_SUMMARY = (
    "A LoRA adapter for one problem, trained at test time: on the problem's own demonstrations (TTT, "
    "[arXiv 2411.07279](https://arxiv.org/abs/2411.07279)), on samples that the model wrote for it (MASS, "
    "[arXiv 2603.03524](https://arxiv.org/abs/2603.03524)), or on both. Written by `hf_mass`."
)
_MASS_NOTE = (
    "The files are safetensors and JSON; loading runs no code from them. "
    '`peft.PeftModel.from_pretrained(base, path, subfolder="generator")` loads the generator without `hf_mass`.'
)
_TTT_NOTE = "The files are safetensors and JSON; loading runs no code from them, and needs PEFT alone."


def hub_id(named: str | None) -> str | None:
    """`named` if it can be the id of a Hub repository, else None: a path, a local folder or a model that ships."""
    if not named or Path(named).is_dir() or shipped_name(named):
        return None
    try:
        validate_repo_id(named)
    except HFValidationError:
        return None
    return named


def _metadata(parts: CardParts, title: str) -> ModelCardData:
    evaluations = list(parts.measured.evaluations) if parts.measured else []
    known: dict[str, Any] = {"base_model": hub_id(parts.base_model), "license": parts.license}
    known |= {"datasets": list(parts.datasets), "eval_results": evaluations}
    return ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[*TAGS, *(["mass"] if isinstance(parts.config, MassConfig) else []), *parts.tags],
        model_name=title,
        **{name: value for name, value in known.items() if value},
    )


def _base_text(named: str | None) -> str:
    if not named:
        return "not known."
    if name := shipped_name(named):
        return f"`{name}`, which ships inside the package `hf_mass`."
    if hub_id(named):
        return f"[`{named}`](https://huggingface.co/{named})."
    return (
        f"`{Path(named).name}`, a local folder; it is not on the Hub under this name."  # the path is nobody's business
    )


def _settings(config: MassConfig | Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    if config is None:
        return []
    if not isinstance(config, MassConfig):
        return sorted(config.items())
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
        ("inner LoRA", f"rank {inner.lora_rank}, alpha {inner.lora_alpha}, on {_listed(inner.target_modules)}"),
        ("inner dropout", inner.dropout),
        ("weighed by, default", config.weigh_by),
        ("scorer", f"{_listed(scorer.features)}; width {scorer.width}; {scorer.normalization}"),
        ("attribution", f"τ = {config.attribution.temperature}, {config.attribution.rounds} rounds"),
        ("sampling", f"temperature {config.temperature}, top_p {config.top_p}, top_k {config.top_k}"),
        ("longest sample / answer / row, tokens", _limits(config)),
    ]


def _limits(config: MassConfig) -> str:
    return f"{config.max_sample_tokens} / {config.max_answer_tokens} / {config.max_length}"


def _listed(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value)


def _table(settings: Sequence[tuple[str, Any]]) -> str:
    if not settings:
        return "Not stated."
    cells = [(name, (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False))) for name, v in settings]
    return markdown_table(("setting", "value"), cells, text_columns=2)


def _prompts(config: MassConfig) -> list[tuple[str, str]]:
    values = {name: getattr(config.format, name) for name in _PROMPTS}
    return [(name, indented(text)) for name, text in values.items() if text]


_PROMPTS = (
    "generator_template",
    "sample_pattern",
    "inner_template",
    "solver_template",
    "demonstration_template",
    "solution_pattern",
)


def indented(text: str) -> str:
    """A Markdown block of code; no fence inside the text can end it."""
    return "\n".join("    " + line for line in text.splitlines())


def _results(measured: Measured | None) -> str:
    if measured is None:
        return f"{NOT_MEASURED}\n\n{_BASIC}"
    made = "The result file does not say by which command."
    if measured.command:
        made = "Made by\n\n" + indented(without_tokens(measured.command))
    told = [measured.table, made, f"From `{measured.source}`. {measured.notes}".strip()]
    return "\n\n".join(told)


def without_tokens(command: str) -> str:
    """The command without access tokens, which a card must not publish."""
    hidden = re.sub(r"(--\w*token[= ]\s*)(?!-)\S+", r"\1***", command)
    return re.sub(r"\bhf_[A-Za-z0-9]{20,}\b", "***", hidden)


def _training_data(parts: CardParts) -> str:
    listed = ", ".join(f"[`{name}`](https://huggingface.co/datasets/{name})" for name in parts.datasets)
    return (
        "\n\n".join(text for text in (parts.training_data, listed and f"Datasets: {listed}.") if text) or "Not stated."
    )


# -- how to load -------------------------------------------------------------------------------------------------------


def _mass_snippet(parts: CardParts) -> str:
    assert isinstance(parts.config, MassConfig)
    task = parts.example or _made_up(parts.config)
    names = ["Demonstration"] * bool(task.demonstrations) + ["MassModel", "Task"]
    return _python(
        f"from hf_mass import {', '.join(names)}",
        "",
        f"mass = MassModel.from_pretrained({_quoted(parts.repo_id or 'path/or/id')})",
        *_task_source(task),
        'print(mass.solve(task).text, "->", mass.solve(task, mass.adapt(task)).text)',
    )


def _ttt_snippet(parts: CardParts) -> str:
    named = shipped_name(parts.base_model) or hub_id(parts.base_model) or "path/of/the/base"
    base = _quoted(named) if not shipped_name(named) else f"resolve_shipped({_quoted(named)})"
    first = ["from hf_mass.store.shipped import resolve_shipped"] if shipped_name(named) else []
    return _python(
        *first,
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({base})",
        f"model = PeftModel.from_pretrained(base, {_quoted(parts.repo_id or 'path/or/id')})",
    )


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _made_up(config: MassConfig) -> Task:
    """A task with whatever the prompts and the scorer ask for, its texts left to the reader."""
    templates = config.format.generator_template + config.format.solver_template
    names = {name for _, name, _, _ in Formatter().parse(templates) if name}
    shown = "demonstrations" in names or "attribution" in config.scorer.features
    fields = dict.fromkeys(sorted(names - {"problem", "demonstrations"}), "...")
    return Task("...", (Demonstration("...", "..."),) if shown else (), fields=fields)


def _task_source(task: Task) -> list[str]:
    """The lines that make a task; its demonstrations come first, where there are more than one."""
    pairs = [f"({_quoted(d.question)}, {_quoted(d.answer)})" for d in task.demonstrations]
    fields = ", ".join(f"{_quoted(name)}: {_quoted(value)}" for name, value in task.fields.items())
    arguments = [_quoted(task.problem), *([f"fields={{{fields}}}"] if fields else [])]
    if len(pairs) == 1:
        arguments.insert(1, f"(Demonstration{pairs[0]},)")
    elif pairs:
        arguments.insert(1, "tuple(Demonstration(*pair) for pair in shown)")
    first = [f"shown = [{', '.join(pairs)}]"] if len(pairs) > 1 else []
    return [*first, f"task = Task({', '.join(arguments)})"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
