"""Auxiliary samples: what the generator wrote for a task, parsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_mass.tasks.formats import PromptFormat


@dataclass(frozen=True, slots=True)
class AuxiliarySample:
    """One generated (question, answer).

    Args:
        text: The completion as it was generated.
        token_ids: Its tokens, with the end-of-sequence token where it ended.
        question: p_i; empty if it could not be read.
        answer: a_i; empty if it could not be read.
        reason: Why the sample has weight 0, or None for a usable one.
    """

    text: str
    token_ids: tuple[int, ...]
    question: str
    answer: str
    reason: str | None = None

    @property
    def usable(self) -> bool:
        """Whether the inner loop can train on it."""
        return self.reason is None


def read_sample(text: str, token_ids: Sequence[int], fmt: PromptFormat) -> AuxiliarySample:
    """Parse one completion."""
    parsed = fmt.parse_sample(text)
    return AuxiliarySample(text, tuple(token_ids), parsed.question, parsed.answer, parsed.reason)


def usable_mask(samples: Sequence[Sequence[AuxiliarySample]], device: torch.device | str) -> Tensor:
    """[N, m] bool."""
    return torch.tensor([[sample.usable for sample in group] for group in samples], device=device)
