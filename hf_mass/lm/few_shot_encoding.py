"""Few-shot tasks as tokens: training examples and prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from hf_mass.tasks.few_shot_format import FewShotFormat, Messages, Segment
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
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fmt: FewShotFormat) -> None:
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self.format = tokenizer, fmt
        self._before = [] if fmt.chat else opening(tokenizer)

    def example(self, example: TrainingExample, loss_on: str) -> tuple[list[int], list[bool]]:
        """(ids, whether each is learned). Segment by segment, so that a task's prompt begins as its examples do."""
        return self._encoded(self.format.render(example, loss_on, self._template))  # type: ignore[arg-type]

    def prompt(self, task: Task) -> list[int]:
        """Token ids of a task, up to where its answer begins."""
        return self._encoded(self.format.render(task, template=self._template))[0]

    def continued(self, task: Task) -> list[int]:
        """Token ids of a task's demonstrations, up to where a further input begins."""
        return self._encoded(self.format.continued(task, self._template))[0]

    def answered(self, task: Task, answer: str) -> tuple[list[int], list[bool]]:
        """A task's prompt with an answer behind it, on which alone the flags are set."""
        query = Demonstration(task.problem, answer)
        return self.example(TrainingExample(task.demonstrations, query, "", task.fields.get(INSTRUCTION, "")), "query")

    def texts(self, completions: Sequence[Sequence[int]]) -> list[str]:
        """Completions as text, without the token that ends them."""
        ends = set(self.tokenizer.all_special_ids)
        bodies = [row[:-1] if row and row[-1] in ends else row for row in completions]
        # In a chat the template's own marks are no part of an answer; elsewhere an unknown token must stay visible.
        return [self.tokenizer.decode(list(row), skip_special_tokens=self.format.chat) for row in bodies]

    def _encoded(self, segments: Iterable[Segment]) -> tuple[list[int], list[bool]]:
        ids, learned = [*self._before], [False] * len(self._before)
        for segment in segments:
            part = self.tokenizer(segment.text, add_special_tokens=False)["input_ids"]
            ids.extend(part)
            learned.extend([segment.trained] * len(part))
        return ids, learned

    def _template(self, messages: Messages, add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        )


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer itself puts before a text; many that have a bos_token put none."""
    ids, bare = (tokenizer("1", add_special_tokens=special)["input_ids"] for special in (True, False))
    starts = (n for n in range(len(ids) - len(bare) + 1) if ids[n : n + len(bare)] == bare)
    return list(ids[: next(starts, 0)])
