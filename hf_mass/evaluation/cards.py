"""Cards made from what was measured: the card of a saved model, with the numbers of its result file and no others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from hf_mass.errors import CheckpointError, DataError
from hf_mass.evaluation.tables import ResultRow, ResultTable
from hf_mass.methods.mass_card import mass_card
from hf_mass.methods.mass_files import read_saved
from hf_mass.store.card import CardParts, build_card, indented, without_tokens
from hf_mass.store.hub_files import CARD_NAME
from hf_mass.store.markdown import markdown_table
from hf_mass.store.storage import ADAPTER_FILES, read_json

_OWN_ROWS = "MASS,"
_PACKAGES = ("torch", "transformers", "trl", "peft", "hf_mass")


def make_card(
    folder: str | Path,
    results: str | Path | None = None,
    *,
    methods: Sequence[str] | None = None,
    dataset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    **details: Any,
) -> ModelCard:
    """The card of a saved `MassModel`, or of an adapter that test-time training saved.

    Args:
        folder: The saved model; nothing is written to it.
        results: A result table that was measured with it (`ResultTable.save`, such as the results.json of
            examples/train.py); None for a card that says that nothing was measured.
        methods: The table's rows that are this model, unadapted and adapted; they go into the `model-index`. Default:
            those whose names begin with "MASS,", else all. The card shows the whole table in any case.
        dataset: What the splits are of, for the `model-index`: a Hub id or a short name. Default: the one entry of
            `datasets`, else the table's title.
        settings: Of the training of an adapter, such as `TTTConfig.result_settings()`; a `MassModel` has its own.
        details: What no file says: `repo_id`, `title`, `tags`, `license`, `datasets`, `training_data`, `limits` and
            `base_model`, each as in `CardParts`; and for a `MassModel` the `example` of `mass_card`.

    Returns:
        The card; `save` writes it.

    Raises:
        CheckpointError: If the folder holds no saved model, or its files cannot be read.
        DataError: If the result file is missing, is no result table, or has no such row.
    """
    folder = Path(folder)
    config, _, base = read_saved(folder)
    details.setdefault("base_model", base)
    if results is not None:
        datasets = list(details.get("datasets", ()))
        details |= read_measured(Path(results), methods, dataset or (datasets[0] if len(datasets) == 1 else None))
    if config is not None:
        return build_card(mass_card(config, **details))
    if not settings:  # all that an adapter's own file says of how it was trained is its shape
        values = read_json(folder / ADAPTER_FILES[0])
        settings = {name: values[name] for name in ("peft_type", "r", "lora_alpha", "target_modules") if name in values}
    return build_card(CardParts(settings=sorted(settings.items()), **details))


def write_card(folder: str | Path, results: str | Path | None = None, **details: Any) -> Path:
    """Write the card of `make_card`, which has the same arguments, as the README.md of its folder; returns its path.

    Raises:
        CheckpointError: As in `make_card`, or if the file could not be written.
        DataError: As in `make_card`.
    """
    card, path = make_card(folder, results, **details), Path(folder) / CARD_NAME
    try:
        card.save(path)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error}. Give a folder that is yours.") from error
    return path


def read_measured(path: Path, methods: Sequence[str] | None = None, dataset: str | None = None) -> dict[str, Any]:
    """The fields of `CardParts` that a result file fills in; arguments and errors as in `make_card`."""
    table = _read_table(path)
    of_model = [row.method for row in table if row.method.startswith(_OWN_ROWS)] or [row.method for row in table]
    rows = [table[method] for method in (of_model if methods is None else methods)]
    command = table.meta.get("command")
    made = "The result file does not say by which command."
    if command is not None:
        made = "Made by\n\n" + indented(without_tokens(str(command)))
    parts = [table.to_markdown(), made, f"From `{path.name}`. {_notes(table)}"]
    # What else the file knows of the model's own rows, such as the inner rates that they were measured at.
    if figures := [f"- {row.method}; {name}: {value:g}" for row in rows for name, value in row.extra.items()]:
        parts += ["Measured with, or besides (the settings above are the defaults that are saved):", "\n".join(figures)]
    measured = {"results": "\n\n".join(parts), "evaluations": _evaluations(table, rows, dataset)}
    if any(row.sampled_tokens is not None or row.latency_s is not None for row in rows):
        measured["cost"] = _cost(table, rows)
    return measured


# -- the results -------------------------------------------------------------------------------------------------------


def _read_table(path: Path) -> ResultTable:
    try:
        table = ResultTable.load(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give a results.json, or none at all.") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(table.meta, Mapping):
        raise DataError(f"{path}: meta is a {type(table.meta).__name__}, not names and values. Make the table again.")
    for row in table:
        numbers = [row.sampled_tokens, row.latency_s, *row.extra.values()]
        for interval in row.accuracy.values():
            numbers += [interval.mean, interval.low, interval.high]
        if not all(n is None or (isinstance(n, int | float) and math.isfinite(n)) for n in numbers):
            raise DataError(f"{path}: {row.method!r} has a figure that is no finite number. Measure it again.")
    return table


def _evaluations(table: ResultTable, rows: Sequence[ResultRow], dataset: str | None) -> list[EvalResult]:
    """One for each split and method."""
    dataset_type = dataset or re.sub(r"[^a-z0-9]+", "-", table.title.lower()).strip("-") or "unnamed"
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset_type,
            dataset_name=table.title,
            dataset_split=split,
            metric_type="accuracy",
            metric_name=row.method,
            metric_value=row.accuracy[split].mean,
            metric_args={name: value for name, value in asdict(row.accuracy[split]).items() if name != "mean"},
        )
        for split in table.splits
        for row in rows
        if split in row.accuracy
    ]


def _cost(table: ResultTable, rows: Sequence[ResultRow]) -> str:
    """Tokens and seconds of the model's own rows."""
    cells = []
    for row in rows:
        tokens = "not measured" if row.sampled_tokens is None else f"{row.sampled_tokens:.0f}"
        seconds = "not measured" if row.latency_s is None else f"{row.latency_s:.3g}"
        cells.append((row.method, tokens, seconds))
    machine = table.meta.get("machine")
    where = f"On: {machine}." if machine else "The result file does not say on which machine."
    costs = markdown_table(("method", "sampled tokens", "seconds"), cells)
    return f"{costs}\n\nAuxiliary samples and adaptation are included. {where}"


def _notes(table: ResultTable) -> str:
    """How to read the table, and what it was made with."""
    seeds = {interval.seeds for row in table for interval in row.accuracy.values()}
    sentences = [f"{table.title}: mean, and in brackets the confidence interval of `hf_mass.evaluation.statistics`."]
    if seeds == {1}:
        sentences.append("There is one seed, so the intervals speak of this one run and not of other runs.")
    elif seeds:
        sentences.append("Where there are several seeds, a row is a mean over runs, and these files are of one run.")
    versions = ", ".join(f"{name} {table.meta[name]}" for name in _PACKAGES if name in table.meta)
    date = f"on {table.meta['date']}" if "date" in table.meta else ""
    if circumstances := " with ".join(part for part in (date, versions) if part):
        sentences.append(f"Measured {circumstances}.")
    return " ".join(sentences)
