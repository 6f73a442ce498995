"""Model cards: a README.md with YAML metadata, how to load, settings, what was measured, limits and risks.

A card is made from parts, which are plain data. What they leave out describes a PEFT adapter that was trained at test
time; a method with more to say fills in more. `hf_mass.evaluation.cards` reads results and costs from a result file;
without them the card says that nothing was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_mass.store.hub_files import CARD_NAME
from hf_mass.store.markdown import markdown_table
from hf_mass.store.shipped import ASSETS, shipped_name

TEMPLATE = ASSETS / "model_card.md"
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
class CardParts:
    """What a card is made from. The defaults are those of a PEFT adapter that was trained at test time.

    Args:
        base_model: Hub id, path or name of the base; None if it is not known.
        settings: Rows of the table of settings, (name, value); none if they are not known.
        repo_id: Hub id of the adapter, for title and load snippet.
        title: Title; default: the name in `repo_id`, else `kind`.
        kind: Title of a model without a name.
        summary: What the model is.
        prompts: Prompts and patterns, (name, text).
        snippet: Lines of Python that load the model; none for PEFT's.
        loading_note: What stands below the snippet.
        tags: Tags beside the package's own.
        license: Licence identifier as on the Hub; None if not stated.
        datasets: Hub ids of training datasets.
        training_data: What it was trained on, in words.
        limits: Limits beside the general ones.
        results: Markdown, what was measured.
        cost: Markdown, what a problem takes.
        evaluations: The metadata's `model-index`.
    """

    base_model: str | None = None
    settings: Sequence[tuple[str, Any]] = ()
    repo_id: str | None = None
    title: str | None = None
    kind: str = "Test-time adapter"
    summary: str = (
        "A LoRA adapter for one problem, trained at test time: on the problem's own demonstrations (TTT, "
        "[arXiv 2411.07279](https://arxiv.org/abs/2411.07279)), on samples that the model wrote for it (MASS, "
        "[arXiv 2603.03524](https://arxiv.org/abs/2603.03524)), or on both. Written by `hf_mass`."
    )
    prompts: Sequence[tuple[str, str]] = ()
    snippet: Sequence[str] = ()
    loading_note: str = "The files are safetensors and JSON; loading runs no code from them, and needs PEFT alone."
    tags: Sequence[str] = ()
    license: str | None = None
    datasets: Sequence[str] = ()
    training_data: str | None = None
    limits: Sequence[str] = ()
    results: str = f"{NOT_MEASURED}\n\n{_BASIC}"
    cost: str = "Not measured."
    evaluations: Sequence[EvalResult] = ()


def write_basic_card(folder: str | Path, parts: CardParts) -> Path:
    """Write the README.md of a saved model about which nothing was measured. A card with more in it is left alone.

    Args:
        folder: Folder of the saved model.
        parts: What the card is made from.

    Returns:
        The path of the README.md.
    """
    path = Path(folder) / CARD_NAME
    if not path.is_file() or any(mark in path.read_text(encoding="utf-8") for mark in (_STUB, _BASIC)):
        build_card(parts).save(path)
    return path


def build_card(parts: CardParts) -> ModelCard:
    """The card of these parts."""
    title = parts.title or (parts.repo_id or "").rpartition("/")[2] or parts.kind
    data = ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        tags=[*TAGS, *parts.tags],
        model_name=title,
        base_model=hub_id(parts.base_model),
        license=parts.license,
        datasets=list(parts.datasets) or None,
        eval_results=list(parts.evaluations) or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        metadata=data.to_yaml(),
        title=title,
        summary=parts.summary,
        base=_base_text(parts.base_model),
        load="\n".join(["```python", *(parts.snippet or _snippet(parts)), "```"]),
        loading_note=parts.loading_note,
        settings=_table(parts.settings),
        prompts=[(name, indented(text)) for name, text in parts.prompts],
        results=parts.results,
        cost=parts.cost,
        training_data=_training_data(parts),
        limits=[*parts.limits, *RISKS],
        licence=f"`{parts.license}`"
        if parts.license
        else "Not stated here. That of the base model applies to the base.",
    )


# -- parts of the text -------------------------------------------------------------------------------------------------


def hub_id(name: str | None) -> str | None:
    """`name` if it can be the id of a Hub repository, else None: a path, a local folder or a model that ships."""
    if not name or Path(name).is_dir() or shipped_name(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _base_text(base: str | None) -> str:
    if not base:
        return "not known."
    if name := shipped_name(base):
        return f"`{name}`, which ships inside the package `hf_mass`."
    if hub_id(base):
        return f"[`{base}`](https://huggingface.co/{base})."
    # The path is nobody's business.
    return f"`{Path(base).name}`, a local folder; it is not on the Hub under this name."


def _table(settings: Sequence[tuple[str, Any]]) -> str:
    if not settings:
        return "Not stated."
    cells = [(name, (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False))) for name, v in settings]
    return markdown_table(("setting", "value"), cells, text_columns=2)


def peft_snippet(base: str, adapter: str, *imports: str) -> list[str]:
    """Lines of Python that load a PEFT adapter; the `base` is an expression."""
    return [
        *imports,
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({base})",
        f"model = PeftModel.from_pretrained(base, {quoted(adapter)})",
    ]


def converted_snippet(base: str, adapter: str) -> list[str]:
    """As `peft_snippet`, for a `base` by name that only `load_base` makes a causal language model of."""
    return [
        "from peft import PeftModel",
        "from hf_mass.lm.base_models import load_base",
        "",
        f"base = load_base({quoted(base)})",
        f"model = PeftModel.from_pretrained(base, {quoted(adapter)})",
    ]


def _snippet(parts: CardParts) -> list[str]:
    adapter = parts.repo_id or "path/or/id"
    if name := shipped_name(parts.base_model):
        resolve = "from hf_mass.store.shipped import resolve_shipped"
        return peft_snippet(f"resolve_shipped({quoted(name)})", adapter, resolve)
    return peft_snippet(quoted(hub_id(parts.base_model) or "path/of/the/base"), adapter)


def quoted(text: str) -> str:
    """A string as Python source."""
    return json.dumps(text, ensure_ascii=False)


def indented(text: str) -> str:
    """A Markdown block of code; no fence inside the text can end it."""
    return "\n".join("    " + line for line in text.splitlines())


def without_tokens(command: str) -> str:
    """The command without access tokens, which a card must not publish."""
    command = re.sub(r"(--\w*token[= ]\s*)(?!-)\S+", r"\1***", command)
    return re.sub(r"\bhf_[A-Za-z0-9]{20,}\b", "***", command)


def _training_data(parts: CardParts) -> str:
    links = ", ".join(f"[`{name}`](https://huggingface.co/datasets/{name})" for name in parts.datasets)
    return "\n\n".join(text for text in (parts.training_data, links and f"Datasets: {links}.") if text) or "Not stated."
