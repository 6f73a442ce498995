"""Few-shot tasks as tokens: training examples and prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_mass.errors import ConfigError
from hf_mass.lm.chat import Chat
from hf_mass.tasks.chat import Turns
from hf_mass.tasks.few_shot_format import FewShotFormat, Segment
from hf_mass.tasks.leave_one_out import INSTRUCTION, TrainingExample
from hf_mass.tasks.task import Demonstration, Task


@dataclass(frozen=True)
class ExampleRows:
    """Training examples as tokens.

    Args:
        sequences: Token ids of each example.
        learned: For each of them whether the loss is on it.
    """

    sequences: list[list[int]]
    learned: list[list[bool]]

    def __len__(self) -> int:
        return len(self.sequences)


class FewShotEncoder:
    """Turns few-shot tasks and training examples into token ids.

    Args:
        tokenizer: A missing padding token is set to the end of sequence.
        fmt: How they read.
        chat_template_kwargs: For the chat template, where the format is a chat. Answers of examples have no thoughts,
            so `enable_thinking` is False there.

    Raises:
        ConfigError: If the format is a chat, and the tokenizer has no chat template or one of no use, or thoughts are
            asked for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        fmt: FewShotFormat,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self.format = tokenizer, fmt
        self.turns = _turns(tokenizer, chat_template_kwargs or {}) if fmt.chat else None
        self._before = [] if fmt.chat else opening(tokenizer)

    def stop(self, task: Task | None = None) -> str:
        """The text that ends a generated answer, to a task or to any."""
        return str(self.format.stop(task)) if self.turns is None else self.turns.stop

    @property
    def input_stop(self) -> str:
        """The text that ends a generated input."""
        return str(self.format.input_stop) if self.turns is None else self.turns.question_stop

    def example(self, example: TrainingExample, loss_on: str) -> tuple[list[int], list[bool]]:
        """(ids, whether each is learned). Segment by segment, so that a task's prompt begins as its examples do."""
        return self._encoded(self.format.render(example, loss_on, self.turns))  # type: ignore[arg-type]

    def prompt(self, task: Task) -> list[int]:
        """Token ids of a task, up to where its answer begins."""
        return self._encoded(self.format.render(task, template=self.turns))[0]

    def continued(self, task: Task) -> list[int]:
        """Token ids of a task's demonstrations, up to where a further input begins."""
        return self._encoded(self.format.continued(task, self.turns))[0]

    def answered(self, task: Task, answer: str) -> tuple[list[int], list[bool]]:
        """A task's prompt with an answer behind it, on which alone the flags are set."""
        query = Demonstration(task.problem, answer)
        return self.example(TrainingExample(task.demonstrations, query, "", task.fields.get(INSTRUCTION, "")), "query")

    def texts(self, completions: Sequence[Sequence[int]], stop: str | None = None) -> list[str]:
        """Completions as text, without the token that ends them; in a chat up to `stop`, by default an answer's."""
        if self.format.chat:  # the template's own marks are no part of what is said
            stop = stop or self.stop()
            ended = [list(row[: tokens_up_to(self.tokenizer, list(row), stop)]) for row in completions]
            return [self.tokenizer.decode(row, skip_special_tokens=True).partition(stop)[0] for row in ended]
        ends = set(self.tokenizer.all_special_ids)
        bodies = [row[:-1] if row and row[-1] in ends else row for row in completions]
        return [self.tokenizer.decode(list(row)) for row in bodies]  # an unknown token stays visible

    def is_ended(self, completion: Sequence[int], stop: str) -> bool:
        """Whether a completion holds the text that ends it."""
        return stop in self.tokenizer.decode(list(completion))

    def _encoded(self, segments: Iterable[Segment]) -> tuple[list[int], list[bool]]:
        ids, learned = [*self._before], [False] * len(self._before)
        for segment in segments:
            part = self.tokenizer(segment.text, add_special_tokens=False)["input_ids"]
            ids.extend(part)
            learned.extend([segment.trained] * len(part))
        return ids, learned


def _turns(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> Turns:
    if kwargs.get("enable_thinking"):
        raise ConfigError(
            "chat_template_kwargs has enable_thinking = True, but the answers of few-shot examples have no thoughts to "
            "learn from. Leave it out, or unset chat."
        )
    return Turns.of(Chat(tokenizer, {"enable_thinking": False, **kwargs}).text)


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer itself puts before a text; many that have a bos_token put none."""
    ids, bare = (tokenizer("1", add_special_tokens=special)["input_ids"] for special in (True, False))
    starts = (n for n in range(len(ids) - len(bare) + 1) if ids[n : n + len(bare)] == bare)
    return list(ids[: next(starts, 0)])


def tokens_up_to(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: str) -> int:
    """Number of tokens up to and including the one that completes `stop`; all where it does not occur."""
    low, high = 1, len(ids)
    if stop not in tokenizer.decode(ids):
        return high
    while low < high:  # the shortest beginning that contains it
        middle = (low + high) // 2
        low, high = (low, middle) if stop in tokenizer.decode(ids[:middle]) else (middle + 1, high)
    return low
