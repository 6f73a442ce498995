"""What methods came to on tasks, kept in a file that a run is resumed from; and digests of what that depends on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.lm.fingerprint import base_digest, lora_digest, weights_digest
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Answer, Cost
from hf_mass.methods.mass_model import MassModel
from hf_mass.store.folders import replace_text, require_writable
from hf_mass.tasks.task import Task

OUTCOMES, FORMAT_VERSION = "outcomes.json", 2


class Outcomes:
    """What every row came to on every task, kept in a file batch by batch.

    Args:
        file: The file; None to keep nothing.
        about: What outcomes depend on, as JSON values; a run is resumed with the same only.
        resume: Whether to start from what is there, but for tasks whose verifier raised.

    Raises:
        ConfigError: If what is there is of another run.
        CheckpointError: If it cannot be read, or nothing be written there.
    """

    def __init__(self, file: Path | None, about: Mapping[str, Any], resume: bool = False) -> None:
        self.file, self.about = file, json.loads(json.dumps({"format": FORMAT_VERSION, **about}))
        self.methods: dict[str, dict[str, list[dict[str, Any] | None]]] = {}
        if file is None:
            return
        require_writable(file.parent)
        if not resume or not file.is_file():
            return
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            self.methods, before = _of_right_types(content["methods"]), content["about"]
            differing = [key for key, value in self.about.items() if before.get(key) != value]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise CheckpointError(f"{file} cannot be read ({error!r}). Evaluate again without --resume.") from error
        if differing:
            raise ConfigError(
                f"{file} is of a run with {differing[0]} = {before.get(differing[0])}, and this one has "
                f"{self.about[differing[0]]}. Resume with the same, or give another --output."
            )

    def rows(self, name: str, seed: int, tasks: Sequence[Task]) -> list[dict[str, Any] | None]:
        """The outcome of each task, None for those that are missing. What is put there is kept by `save`.

        Raises:
            CheckpointError: If there are not as many, or one is of another task.
        """
        rows = self.methods.setdefault(name, {}).setdefault(str(seed), [None] * len(tasks))
        where = f"{self.file} holds {{}} of {name!r:.60}, seed {seed}, and {{}}. Evaluate again without --resume."
        if len(rows) != len(tasks):
            raise CheckpointError(where.format(f"{len(rows)} outcomes", f"there are {len(tasks)} tasks"))
        for row, task in zip(rows, tasks, strict=True):
            if row is not None and (row["task"], row["domain"]) != (task.id, task.domain):
                raise CheckpointError(
                    where.format(f"an outcome of task {row['task']!r:.60}", f"its place is that of {task.id!r}")
                )
        return rows

    def complete(self, name: str, seeds: Sequence[int]) -> list[list[dict[str, Any]]]:
        """The outcomes of a row with each seed, none of which is missing."""
        return [[row for row in self.methods[name][str(seed)] if row is not None] for seed in seeds]

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.file is not None:
            content = {"about": self.about, "methods": self.methods}
            replace_text(self.file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _of_right_types(methods: Any) -> dict[str, dict[str, list[dict[str, Any] | None]]]:
    """Outcomes as they were read from a file, which may be anybody's; without those that nobody could judge.

    Raises:
        ValueError: If one is of another type than `outcome` makes them.
    """
    costs, texts = set(vars(Cost())), (str, type(None))
    for row in (row for seeds in methods.values() for rows in seeds.values() for row in list(rows) if row is not None):
        right = 0 if row["right"] is None else row["right"]
        numbers = [right, *row["cost"].values()]
        are_numbers = all(type(number) in (int, float) and 0 <= number <= sys.float_info.max for number in numbers)
        are_texts = (
            isinstance(row["domain"], str)
            and isinstance(row["task"], str)
            and all(isinstance(row[name], texts) for name in ("answer", "reason"))
        )
        if not are_numbers or not are_texts or set(row["cost"]) != costs or right > 1:
            raise ValueError(f"no outcome: {row!r:.200}")
        if not isinstance(row.get("guard", ""), str):
            raise ValueError(f"no outcome: guard is {row['guard']!r:.60}")
    return {
        name: {seed: [row and (None if row["right"] is None else row) for row in rows] for seed, rows in seeds.items()}
        for name, seeds in methods.items()
    }


def outcome(task: Task, adaptation: Adaptation | str, answer: tuple[Answer, Cost] | str | None) -> dict[str, Any]:
    """What one row came to on one task, as JSON values; a text in place of a record is the reason why there is none.

    "right" is None where the verifier raised on the answer.
    """
    values = {"task": task.id, "domain": task.domain, "right": 0.0, "answer": None}
    cost = Cost() if isinstance(adaptation, str) else adaptation.cost
    if isinstance(adaptation, str) or answer is None or isinstance(answer, str):
        return {**values, "reason": adaptation if isinstance(adaptation, str) else answer, "cost": asdict(cost)}
    record, of_answer = answer
    reasons = (adaptation.reason, record.reason) if record.score is not None else (record.reason, adaptation.reason)
    values |= {"right": record.score, "answer": record.text, "reason": reasons[0] or reasons[1]}
    values |= {} if adaptation.guard_note is None else {"guard": adaptation.guard_note}
    return {**values, "cost": asdict(cost + adaptation.guard_cost + of_answer)}


def digest(tasks: Sequence[Task]) -> str:
    """A digest of what tasks ask, of their known answers and of what judges them."""
    return hashlib.sha256(repr(list(tasks)).encode()).hexdigest()[:16]


def model_digest(lm: LanguageModel) -> str:
    """A digest of what a model answers with: base, tokenizer, and what was trained into it."""
    parts = [base_digest(lm.model.get_base_model(), lm.tokenizer)]
    if lm.untrained is None:
        parts.append(lora_digest(lm.starting_lora()))
    if isinstance(lm, MassModel):
        parts += [lora_digest(lm.adapter.lora), weights_digest(lm.scorer.state_dict())]
        parts.append(repr(lm.config))
    parts.append(repr((lm.chat, dict(lm.chat_template_kwargs), lm.defaults)))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
