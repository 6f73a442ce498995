"""Few-shot tasks as tokens: training examples and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from hf_mass.errors import ConfigError, DataError
from hf_mass.lm.chat import Chat
from hf_mass.lm.special_tokens import SpecialTokens
from hf_mass.tasks.chat import Turns
from hf_mass.tasks.few_shot_format import FewShotFormat, Segment
from hf_mass.tasks.leave_one_out import INSTRUCTION, TrainingExample
from hf_mass.tasks.task import Demonstration, Task

T = TypeVar("T", Task, TrainingExample)


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

    What reads as a special token is one where the format or the chat template writes it; in a task's or an example's
    own texts it is text. The methods that take these raise DataError where the tokenizer cannot write it as text, and
    where an answer in a chat has the text that ends it.

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
        self.tokenizer, self.format, self.special = tokenizer, fmt, SpecialTokens(tokenizer)
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
        return self._encoded(example, lambda shown: self.format.render(shown, loss_on, self.turns))  # type: ignore[arg-type]

    def prompt(self, task: Task) -> list[int]:
        """Token ids of a task, up to where its answer begins."""
        return self._encoded(task, lambda shown: self.format.render(shown, template=self.turns))[0]

    def continued(self, task: Task) -> list[int]:
        """Token ids of a task's demonstrations, up to where a further input begins."""
        return self._encoded(task, lambda shown: self.format.continued(shown, self.turns))[0]

    def answered(self, task: Task, answer: str) -> tuple[list[int], list[bool]]:
        """A task's prompt with an answer behind it, on which alone the flags are set."""
        query = Demonstration(task.problem, answer)
        return self.example(TrainingExample(task.demonstrations, query, "", task.fields.get(INSTRUCTION, "")), "query")

    def texts(self, completions: Sequence[Sequence[int]], stop: str | None = None) -> list[str]:
        """Completions as text, without the token that ends them; in a chat up to `stop`, by default an answer's."""
        if self.format.chat:  # the template's own marks are no part of what is said
            stop = stop or self.stop()
            is_token = self.special.control(stop) is not None
            ended = [list(row[: tokens_up_to(self.tokenizer, list(row), stop)]) for row in completions]
            texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in ended]
            return texts if is_token else [text.partition(stop)[0] for text in texts]
        ends = set(self.tokenizer.all_special_ids)
        bodies = [row[:-1] if row and row[-1] in ends else row for row in completions]
        return [self.tokenizer.decode(list(row)) for row in bodies]  # an unknown token stays visible

    def is_ended(self, completion: Sequence[int], stop: str) -> bool:
        """Whether a completion holds what ends it: the special token that `stop` is, or else that text."""
        token = self.special.control(stop)
        return stop in self.tokenizer.decode(list(completion)) if token is None else token in completion

    def is_whole(self, completion: Sequence[int], stop: str) -> bool:
        """Whether the model ended a completion, by `stop` or a special token: the limit of tokens did not."""
        ends = bool(completion) and completion[-1] in self.tokenizer.all_special_ids
        return ends or self.is_ended(completion, stop)

    def _encoded(self, what: T, render: Callable[[T], list[Segment]]) -> tuple[list[int], list[bool]]:
        segments, hidden = render(what), self.special.hidden(what)
        if hidden is not what:  # rendered as it was first, for what a format says of it
            segments = render(hidden)
        self._require_ends(what)
        ids, learned = [*self._before], [False] * len(self._before)
        for segment in segments:
            part = self.special.ids(segment.text)
            ids.extend(part)
            learned.extend([segment.trained] * len(part))
        return ids, learned

    def _require_ends(self, what: Task | TrainingExample) -> None:
        """Refuses an answer that the end of a turn would cut, where that is no token of its own."""
        if self.turns is None:
            return
        answers = [pair.answer for pair in what.demonstrations]
        answers += [what.query.answer] if isinstance(what, TrainingExample) else []
        cut = next((answer for answer in answers if self.turns.stop in answer), None)
        if cut is not None and self.special.control(self.turns.stop) is None:
            raise DataError(
                f"An answer contains {self.turns.stop!r}, with which the chat template ends a turn, so it would be cut "
                f"there: {cut[:60]!r}. Take it out, or unset chat."
            )


def _turns(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> Turns:
    if kwargs.get("enable_thinking"):
        raise ConfigError(
            "chat_template_kwargs has enable_thinking = True, but the answers of few-shot examples have no thoughts to "
            "learn from. Leave it out, or unset chat."
        )
    return Turns.of(Chat(tokenizer, {"enable_thinking": False, **kwargs}).text)


def opening(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer itself puts before a text; many that have a bos_token put none."""
    pairs = ([tokenizer(t, add_special_tokens=s)["input_ids"] for s in (True, False)] for t in _probes(tokenizer))
    ids, bare = next((pair for pair in pairs if pair[1]), ([], []))
    starts = (n for n in range(len(ids) - len(bare) + 1) if ids[n : n + len(bare)] == bare)
    return list(ids[: next(starts, 0)])


def _probes(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Texts, one of which has a token: some tokenizers drop what they do not know."""
    yield "1"
    special = SpecialTokens(tokenizer).added  # what stands around a text cannot be told from one of these within
    yield from (text for text in tokenizer.get_vocab() if text not in special)


def tokens_up_to(tokenizer: PreTrainedTokenizerBase, ids: list[int], stop: str) -> int:
    """Number of tokens up to and including the one that completes `stop`; all where it does not occur.

    Where `stop` is a special token, a text that reads like it does not end anything.
    """
    low, high = 1, len(ids)
    if (token := SpecialTokens(tokenizer).control(stop)) is not None:
        return ids.index(token) + 1 if token in ids else high
    if stop not in tokenizer.decode(ids):
        return high
    while low < high:  # the shortest beginning that contains it
        middle = (low + high) // 2
        low, high = (low, middle) if stop in tokenizer.decode(ids[:middle]) else (middle + 1, high)
    return low
