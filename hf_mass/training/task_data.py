"""Tasks as rows of a dataset for TRL."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from hf_mass.errors import DataError
from hf_mass.lm.encoding import TextEncoder
from hf_mass.tasks.formats import PromptFormat
from hf_mass.tasks.task import Task

logger = logging.getLogger(__name__)


def prompt_dataset(tasks: Sequence[Task], fmt: PromptFormat) -> Dataset:
    """The generator's prompt of each task (text, or messages), and which task it belongs to.

    Raises:
        DataError: If some tasks are conversational and some are not.
    """
    if len({task.conversational for task in tasks}) > 1:
        raise DataError("A dataset mixes conversational and plain problems; use one kind.")
    texts = [(task, fmt.generator_prompt(task)) for task in tasks]
    prompts: list[Any] = [fmt.messages(task, text) if task.conversational else text for task, text in texts]
    return Dataset.from_dict({"prompt": prompts, "task_index": list(range(len(tasks)))})


class PromptIds:
    """Prompts of `prompt_dataset` → token ids as the engine makes them, so that training and answering see the same.

    The tokenizer itself may end a prompt, or take what reads as a special token in a problem for one.

    Args:
        tasks: The tasks of the dataset.
        encoder: Renders them.

    Raises:
        DataError: If two tasks have prompts that read alike, with other token ids.
    """

    def __init__(self, tasks: Sequence[Task], encoder: TextEncoder) -> None:
        prompts = prompt_dataset(tasks, encoder.format)["prompt"]
        self._tasks, self._encoder = dict(zip(map(str, prompts), tasks, strict=True)), encoder
        for number, (prompt, task) in enumerate(zip(map(str, prompts), tasks, strict=True)):
            other = self._tasks[prompt]
            if encoder.full_generator_prompt_ids(other) != encoder.full_generator_prompt_ids(task):
                raise DataError(
                    f"Task {number} (id {task.id!r}) has the same prompt as another, in which other words are special "
                    f"tokens: {prompt[-60:]!r}. Take these out of its texts."
                )

    def __call__(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Token ids of each prompt, a text or messages."""
        return [self._encoder.full_generator_prompt_ids(self._tasks[str(prompt)]) for prompt in prompts]


def fitting_tasks(tasks: Sequence[Task], encoder: TextEncoder) -> list[int]:
    """Which tasks have a generator prompt with room for a sample behind it; TRL generates from whole prompts.

    A warning counts those that have not.

    Raises:
        DataError: If no task is left, or a conversational one meets a tokenizer without a chat template.
    """
    room = encoder.max_length - encoder.sample_room
    lengths = [len(encoder.full_generator_prompt_ids(task)) for task in tasks]
    numbers = [number for number, length in enumerate(lengths) if length <= room]
    limits = f"max_length {encoder.max_length} less max_completion_length {encoder.sample_room}"
    if not numbers:
        raise DataError(
            f"All {len(tasks)} generator prompts are longer than {room} tokens ({limits}; the shortest has "
            f"{min(lengths)}). Raise max_length or lower max_completion_length."
        )
    if len(numbers) < len(tasks):
        logger.warning(
            "%d of %d tasks are left out: their generator prompts are longer than %d tokens (%s).",
            *(len(tasks) - len(numbers), len(tasks), room, limits),
        )
    return numbers


def require_tasks(tasks: Any, name: str) -> list[Task]:
    """The tasks as a list.

    Raises:
        DataError: If there are none, or something else is among them.
    """
    if isinstance(tasks, DatasetDict | IterableDatasetDict):
        raise DataError(f"{name} is a {type(tasks).__name__}. Choose a split of it, one of {list(tasks)!r:.200}.")
    if not isinstance(tasks, Collection):  # it may never end
        raise DataError(f"{name} is a {type(tasks).__name__}, of no known length. {_cure(tasks)}")
    several = list(tasks) if all(isinstance(task, Task) for task in tasks) else []
    if not several or not all(isinstance(task, Task) for task in several):
        raise DataError(
            f"{name} must be a non-empty list of hf_mass Tasks, got {type(tasks).__name__} of {len(tasks)} items. "
            "Load them with load_tasks, load_grid_tasks, load_bbh or load_few_shot_file."
        )
    return several


def _cure(tasks: Any) -> str:
    if isinstance(tasks, IterableDataset):
        return "Take as many rows as are wanted: Dataset.from_list(list(dataset.take(1000)))."
    return "Give a list of hf_mass Tasks, as load_tasks, load_grid_tasks, load_bbh or load_few_shot_file make it."
