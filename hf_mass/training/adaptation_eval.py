"""Evaluation of a `MassModel`: greedy answers before and after adapting, spread over processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from accelerate import Accelerator
from accelerate.utils import gather_object

from hf_mass.methods.base import Adaptation, Answer
from hf_mass.methods.mass_model import MassModel
from hf_mass.tasks.task import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaptationEvalPrediction:
    """What `compute_metrics` gets.

    Args:
        tasks: The evaluated tasks.
        records: How each was adapted to (without adapted weights and model).
        before: Greedy answers of the unadapted model.
        after: Greedy answers at the adapted weights.
        adapted: Whether there were adapted weights.
    """

    tasks: list[Task]
    records: list[Adaptation]
    before: list[Answer]
    after: list[Answer]
    adapted: list[bool]

    def metrics(self) -> dict[str, float]:
        """Accuracy before and after (NaN where no task has a gold answer), and how adapting went."""
        samples = [sample for record in self.records for sample in record.samples]
        return {
            "accuracy": _mean([a.score for a in self.before if a.score is not None]),
            "adapted_accuracy": _mean([a.score for a in self.after if a.score is not None]),
            "parse_rate": _mean([float(sample.usable) for sample in samples]),
            "unadapted_share": _mean([float(not adapted) for adapted in self.adapted]),
            "sampled_tokens": _mean([record.cost.sampled_tokens for record in self.records]),
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def evaluate_adaptation(
    mass: MassModel, tasks: Sequence[Task], accelerator: Accelerator, weigh_by: str, batch_size: int
) -> AdaptationEvalPrediction:
    """Adapt to every task and solve it, `batch_size` tasks in one pass, each process taking every so-many-th batch."""
    starts = range(0, len(tasks), batch_size)
    rows = []
    for start in list(starts)[accelerator.process_index :: accelerator.num_processes]:
        part = list(tasks[start : start + batch_size])
        records = mass.adapt(part, weigh_by)
        before, after = mass.solve(part), mass.solve(part, records)
        adapted = [bool(record.parts) for record in records]
        # Weights, model and method need not travel between processes.
        records = [replace(record, parts=(), lm=None, method=None) for record in records]
        rows += list(zip(range(start, start + len(part)), records, before, after, adapted, strict=True))
    ordered = sorted(gather_object(rows), key=lambda row: row[0])
    if reasons := [answer.reason for row in ordered for answer in row[2:4] if answer.score is None and answer.reason]:
        logger.warning("%d of %d answers have no score; first: %s", len(reasons), 2 * len(ordered), reasons[0])
    return AdaptationEvalPrediction(list(tasks), *([row[column] for row in ordered] for column in (1, 2, 3, 4)))
