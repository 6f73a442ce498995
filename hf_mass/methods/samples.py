"""Auxiliary samples: what the generator wrote for a task, parsed, and the features that a scorer reads off them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from hf_mass.lm.encoding import TextEncoder
from hf_mass.lm.generation import Sampling, complete, row_seed
from hf_mass.tasks.formats import PromptFormat
from hf_mass.tasks.task import Task


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


def write_samples(
    model: PreTrainedModel | PeftModel,
    encoder: TextEncoder,
    tasks: Sequence[Task],
    count: int,
    sampling: Sampling,
    seed: int,
) -> list[list[AuxiliarySample]]:
    """`count` samples of each task from the generator (the model as it is), reproducible task by task."""
    prompts = [prompt for task in tasks for prompt in [encoder.generator_prompt_ids(task)] * count]
    seeds = [row_seed("auxiliary", seed, task.id, task.problem, i) for task in tasks for i in range(count)]
    ids = complete(model, encoder.tokenizer, prompts, sampling, seeds, alike=len(tasks) == 1)
    texts = encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)
    read = [read_sample(text, row, encoder.format) for text, row in zip(texts, ids, strict=True)]
    return [read[start : start + count] for start in range(0, len(read), count)]


def usable_mask(samples: Sequence[Sequence[AuxiliarySample]], device: torch.device | str) -> Tensor:
    """[N, m] bool."""
    return torch.tensor([[sample.usable for sample in group] for group in samples], device=device)


def agreement(group: Sequence[AuxiliarySample], fmt: PromptFormat) -> list[list[float]]:
    """For each of m samples, the share of the others with the same question, answer, and rationale: [m][3]."""

    def rationale(sample: AuxiliarySample) -> str:
        parts = fmt.split_solution(sample.answer)
        return parts.rationale if parts else sample.answer

    keys = [(sample.question, sample.answer, rationale(sample)) for sample in group]
    others = max(1, len(group) - 1)
    return [
        [
            sum(other.usable and keys[j][part] == keys[i][part] for j, other in enumerate(group) if j != i) / others
            for part in range(3)
        ]
        for i in range(len(group))
    ]


def overlap(
    sample: AuxiliarySample, question_ids: Sequence[int], answer_ids: Sequence[int], shown: set[int]
) -> list[float]:
    """Share of the question's and of the answer's tokens that occur in the task's prompt: [2]."""
    return [sum(token in shown for token in ids) / len(ids) if ids else 0.0 for ids in (question_ids, answer_ids)]
