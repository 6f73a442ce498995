"""What adapting and solving return: records, not tuples."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hf_mass.core.trees import Tree
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.tasks.task import Task


@dataclass(frozen=True)
class AdaptationRecord:
    """How one task was adapted to.

    Args:
        task: The task.
        samples: Its m auxiliary samples.
        weights: s [m] float32, 0 for unusable samples.
        attributions: ∂L/∂s [m] to the task's demonstrations, where they were computed; negative helps.
        losses: ℓ_i(θ_k) [K + 1, m] before the first step and after each; NaN for unusable samples.
        adapted: θ' as leaves [1, ...]; None if the task could not be adapted to.
        reason: Why it could not ("no usable sample", "non-finite inner loss"), or None.
        sampled_tokens: Tokens generated for the samples.
        seconds: Wall time of generating, scoring and adapting, shared evenly over a batch.
    """

    task: Task
    samples: tuple[AuxiliarySample, ...]
    weights: Tensor
    attributions: Tensor | None
    losses: Tensor
    adapted: Tree | None
    reason: str | None = None
    sampled_tokens: int = 0
    seconds: float = 0.0

    @property
    def losses_before(self) -> Tensor:
        """ℓ_i(θ_0) [m]."""
        return self.losses[0]

    @property
    def losses_after(self) -> Tensor:
        """ℓ_i(θ') [m]."""
        return self.losses[-1]

    def table(self) -> list[dict[str, object]]:
        """One row per sample: question, answer, weight, attribution, reason."""
        return [
            {
                "question": sample.question,
                "answer": sample.answer,
                "weight": float(self.weights[i]),
                "attribution": None if self.attributions is None else float(self.attributions[i]),
                "loss_before": float(self.losses_before[i]),
                "loss_after": float(self.losses_after[i]),
                "reason": sample.reason,
            }
            for i, sample in enumerate(self.samples)
        ]


@dataclass(frozen=True)
class Solution:
    """An answer to a task.

    Args:
        task: The task.
        text: The solution as generated.
        answer: Its final answer; None if none could be read.
        reward: The verifier's judgement in [0, 1]; None where the task has no gold answer.
        sampled_tokens: Tokens generated for the solution alone.
    """

    task: Task
    text: str
    answer: str | None
    reward: float | None
    sampled_tokens: int
