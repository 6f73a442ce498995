"""What test-time training came to for each task, and its files: a run that is killed goes on where it stopped.

<output_dir>/ttt_run.json            the settings that the results depend on
<output_dir>/tasks/<name>/           one folder a task, written whole or not at all
    result.json                      answers, predictions, losses, reason
    adapter_config.json, adapter_model.safetensors    where adapters are kept; a PEFT adapter
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import Tensor

from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.store.adapters import write_adapter
from hf_mass.store.folders import DIGESTS, replace_text, require_sealed, settle, write_atomically
from hf_mass.store.json_files import read_json
from hf_mass.store.storage import ADAPTER_FILES
from hf_mass.tasks.answers import TaskScore, score_answers
from hf_mass.tasks.leave_one_out import INSTRUCTION
from hf_mass.tasks.task import Task
from hf_mass.tasks.voting import Prediction

logger = logging.getLogger(__name__)

RUN_NAME, RESULT_NAME, FORMAT_VERSION = "ttt_run.json", "result.json", 1
_CURE = "Remove {}, and resume."


@dataclass(frozen=True)
class TaskResult:
    """What test-time training came to for one task.

    Args:
        task: The task.
        answers: The ranked answers, best first; empty if there is none.
        predictions: Every prediction behind them.
        reason: Why the task was not trained on, or not answered; None if all went well. An untrained task is answered
            by the model as it is.
        examples: Number of its training examples.
        losses: Mean training loss of each step ("sft"), or mean reward of each logged step ("grpo").
        seconds: Wall time of training and answering, shared evenly by the tasks of a pass.
        adapter: The folder of its adapter, where adapters are kept.
        guard: What the guard did and why, in words; None where there was none.
    """

    task: Task
    answers: tuple[str, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    reason: str | None = None
    examples: int = 0
    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    adapter: Path | None = field(default=None, compare=False)
    guard: str | None = None

    @property
    def answer(self) -> str | None:
        """The best answer; None if there is none."""
        return self.answers[0] if self.answers else None

    def score(self) -> TaskScore | None:
        """How good the answers are; None where the task's answer is not known."""
        return score_answers(self.task, self.answers, self.predictions)


class ResultStore:
    """The results of one run under a folder.

    Args:
        folder: `output_dir`.
        settings: What the results depend on, as JSON values. Those of an earlier run are compared on `resume`.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = Path(folder), dict(settings)
        self._digest = _digest(json.dumps(self.settings, sort_keys=True))

    def begin(self, resume: bool) -> None:
        """Start a run, or go on with the one that is there.

        Raises:
            ConfigError: If it has other settings.
            CheckpointError: If its settings cannot be read, or the folder cannot be written to.
        """
        path = self.folder / RUN_NAME
        if resume and path.is_file():
            earlier = read_json(path, _CURE.format(path.parent))
            differing = [k for k in {*earlier, *self.settings} if earlier.get(k) != self.settings.get(k)]
            if name := min(differing, default=""):
                raise ConfigError(
                    f"{path} is of a run with {name} = {earlier.get(name)!r}, and this one has "
                    f"{self.settings.get(name)!r}. Use the same settings to resume, or another output_dir."
                )
            return
        replace_text(path, json.dumps(self.settings, indent=2) + "\n")

    def place(self, task: Task) -> Path:
        """The folder of a task: its id, and a digest of what it asks."""
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", task.id)[:60].lstrip(".") or "task"
        return self.folder / "tasks" / f"{name}-{tasks_digest([task])}"

    def load(self, task: Task) -> TaskResult | None:
        """A finished task's result; None if it is not finished.

        One that was trained on but never answered is not, nor is what a run with other settings left here.

        Raises:
            CheckpointError: If its folder is damaged.
        """
        folder = self.place(task)
        settle(folder)
        if not (folder / RESULT_NAME).is_file() and not any(folder.glob("[!.]*")):  # nothing, or what a kill left
            return None
        values = read_json(folder / RESULT_NAME, _CURE.format(folder))
        values.pop(DIGESTS, None)
        if values.pop("format_version", None) != FORMAT_VERSION:
            raise CheckpointError(f"{folder / RESULT_NAME} is of another format version. Remove {folder}, and resume.")
        if values.pop("settings", None) != self._digest or values.get("predictions") == []:
            return None
        has_adapter = values.pop("adapter_kept", False)
        for name in ADAPTER_FILES if has_adapter else ():
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder / name} is missing: the adapter was half written or half copied. Remove {folder}, and "
                    "resume the run with resume=True to train it again."
                )
        require_sealed(folder, RESULT_NAME)
        try:
            predictions = tuple(Prediction(**each) for each in values.pop("predictions"))
            for name in ("answers", "losses"):
                if not isinstance(values[name], list):
                    raise TypeError(f"{name} is {values[name]!r:.60}")
                values[name] = tuple(values[name])
            result = TaskResult(task, predictions=predictions, adapter=folder if has_adapter else None, **values)
            _require_types(result)
            return result
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder / RESULT_NAME} does not hold a result ({error}). Remove {folder}, and resume."
            ) from error

    def finished(self, task: Task) -> TaskResult | None:
        """As `load`, but a damaged folder is warned about and counts as not finished."""
        try:
            return self.load(task)
        except CheckpointError as error:
            logger.warning("%s The task is done again.", error)
            return None

    def save(self, result: TaskResult, weights: Mapping[str, Tensor] | None, config: PeftConfig) -> TaskResult:
        """Write one task's folder, with its adapter if there are weights; the result, with the adapter's place."""
        folder = self.place(result.task)
        values = {k: v for k, v in asdict(result).items() if k not in ("task", "adapter")}
        values |= {"format_version": FORMAT_VERSION, "settings": self._digest, "adapter_kept": weights is not None}

        def write(temporary: Path) -> None:
            (temporary / RESULT_NAME).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            if weights is not None:
                write_adapter(temporary, weights, config.to_dict())

        write_atomically(folder, write, RESULT_NAME)
        return replace(result, adapter=folder if weights is not None else None)


def _require_types(result: TaskResult) -> None:
    """Checks what was read from a file, which may be anybody's.

    Raises:
        TypeError: If a value is of another type than results have.
    """
    texts, numbers = (str, type(None)), (int, float)
    kinds: list[tuple[str, Any, tuple[type, ...]]] = [
        ("answers", result.answers, (str,)),
        ("losses", result.losses, numbers),
        ("reason and guard", (result.reason, result.guard), texts),
        ("examples", (result.examples,), (int,)),
        ("seconds", (result.seconds,), numbers),
        ("an answer of predictions", [p.answer for p in result.predictions], texts),
        ("a transformation of predictions", [p.transformation for p in result.predictions], (str,)),
        ("a permutation of predictions", [p.permutation for p in result.predictions], (int,)),
        ("cut of predictions", [p.cut for p in result.predictions], (bool,)),
        ("a log_prob of predictions", [p.log_prob for p in result.predictions], (*numbers, type(None))),
    ]
    for name, values, allowed in kinds:
        if wrong := [value for value in values if type(value) not in allowed]:
            raise TypeError(f"{name} is {wrong[0]!r:.60}")


def tasks_digest(tasks: Sequence[Task]) -> str:
    """A digest of what tasks ask, their known answers apart."""
    pairs = [[[d.question, d.answer] for d in task.demonstrations] for task in tasks]
    queries = [[task.id, task.problem, task.fields.get(INSTRUCTION, "")] for task in tasks]
    return _digest(json.dumps([queries, pairs]))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
