"""Text to token rows: few-shot prompts, or questions (through the chat template where a task is conversational)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_mass.core.token_loss import IGNORED, TokenBatch
from hf_mass.errors import DataError
from hf_mass.lm.chat import Chat
from hf_mass.lm.few_shot_encoding import FewShotEncoder, opening
from hf_mass.lm.special_tokens import SpecialTokens
from hf_mass.tasks.few_shot_format import FewShotFormat
from hf_mass.tasks.formats import PromptFormat
from hf_mass.tasks.task import Demonstration, Task


@dataclass(frozen=True, slots=True)
class Row:
    """One training sequence as text.

    Args:
        task: Index of the task it belongs to.
        prompt_ids: Token ids that are conditioned on.
        answer_ids: Token ids that are learned.
    """

    task: int
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]


class TextEncoder:
    """Renders tasks with a tokenizer and a `PromptFormat`, or where they show demonstrations a `FewShotFormat`.

    What reads as a special token is one where the format or the chat template writes it; in the texts of a task, a
    sample or an answer it is text (DataError where the tokenizer cannot write it so).

    Args:
        tokenizer: Needs an end-of-sequence token; a missing padding token is set to it.
        fmt: The prompt format.
        max_length: Longest row in tokens; longer prompts are cut on the left, since the question stands at their end.
        sample_room: Tokens kept free behind a generator prompt, so that what is generated fits max_length too.
        answer_room: The same behind a solver prompt.
        few_shot: How tasks with demonstrations read; None for `fmt` there too.
        chat_template_kwargs: For the chat template, where tasks are conversational.

    Raises:
        DataError: If the tokenizer has no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        fmt: PromptFormat,
        max_length: int,
        sample_room: int = 0,
        answer_room: int = 0,
        few_shot: FewShotFormat | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise DataError("tokenizer.eos_token is None; answers need an end. Set tokenizer.eos_token.")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self.format, self.max_length = tokenizer, fmt, max_length
        self.sample_room, self.answer_room = sample_room, answer_room
        self.chat = Chat(tokenizer, chat_template_kwargs or {})
        self.few_shot = None if few_shot is None else FewShotEncoder(tokenizer, few_shot, chat_template_kwargs)
        self._special, self._before = SpecialTokens(tokenizer), opening(tokenizer)
        # The same prompts come back for every sample, demonstration and round of one task.
        self._ids = lru_cache(maxsize=65536)(lambda text: tuple(self._special.ids(text)))

    def few_shot_for(self, task: Task) -> FewShotEncoder | None:
        """What renders this task where it reads as a list of solved examples; None where it is a question."""
        return self.few_shot if task.demonstrations and not task.history else None

    def prompt_ids(self, task: Task, text: str, room: int = 0) -> list[int]:
        """The last token ids of a rendered prompt, leaving `room` tokens up to max_length.

        Raises:
            DataError: If the task is conversational and the tokenizer has no chat template, or no room is left.
        """
        return self._last(self.full_prompt_ids(task, text), room)

    def _last(self, ids: list[int], room: int) -> list[int]:
        length = self.max_length - room
        if length < 1:
            raise DataError(f"max_length {self.max_length} leaves no prompt beside {room} answer tokens; raise it.")
        return ids[-length:]

    def full_prompt_ids(self, task: Task, text: str) -> list[int]:
        """All token ids of a rendered prompt, through the chat template where the task is conversational.

        A special token in the text is one; in the conversation before it, it is text.

        Raises:
            DataError: If the task is conversational and the tokenizer has no chat template.
        """
        if not task.conversational:
            return [*self._before, *self._ids(text)]
        if not self.tokenizer.chat_template:
            raise DataError(
                f"Task {task.id!r} is conversational, but the tokenizer has no chat_template. Use an instruction-"
                "tuned model, set tokenizer.chat_template, or give `problem` as plain text."
            )
        return list(self._ids(self.chat.text(self.format.messages(self._special.hidden(task), text), True)))

    def generator_prompt_ids(self, task: Task) -> list[int]:
        """Token ids on which the generator writes a sample (see `prompt_ids`)."""
        if few_shot := self.few_shot_for(task):
            return self._last(few_shot.continued(task), self.sample_room)
        return self._last(self.full_generator_prompt_ids(task), self.sample_room)

    def full_generator_prompt_ids(self, task: Task) -> list[int]:
        """All token ids that ask for a sample, even where a task reads as solved examples (see `full_prompt_ids`)."""
        return self.full_prompt_ids(task, self.format.generator_prompt(self._special.hidden(task)))

    def solver_prompt_ids(self, task: Task) -> list[int]:
        """Token ids on which the task is solved (see `prompt_ids`)."""
        return self._last(self.full_solver_prompt_ids(task), self.answer_room)

    def full_solver_prompt_ids(self, task: Task) -> list[int]:
        """All token ids on which the task is solved (see `full_prompt_ids`)."""
        if few_shot := self.few_shot_for(task):
            return few_shot.prompt(task)
        return self.full_prompt_ids(task, self.format.solver_prompt(self._special.hidden(task)))

    def inner_row(self, n: int, task: Task, question: str, answer: str) -> Row:
        """What the inner loop trains of an auxiliary sample of task n."""
        if few_shot := self.few_shot_for(task):
            return self._few_shot_row(few_shot, n, task, Demonstration(question, answer))
        prompt = self.format.inner_prompt(self._special.hidden(question), self._special.hidden(task))
        return Row(n, self.prompt_ids(task, prompt), self.answer_ids(answer))

    def demonstration_row(self, n: int, task: Task, index: int, derivation: str) -> Row:
        """The answer to demonstration `index` of task n, after a derivation, behind the others where they are shown."""
        pair, others = task.demonstrations[index], task.leave_one_out(index).demonstrations
        if few_shot := self.few_shot_for(task):
            return self._few_shot_row(few_shot, n, replace(task, demonstrations=others), pair)
        shown, hidden = self._special.hidden(replace(task, demonstrations=others)), self._special.hidden
        prompt = self.prompt_ids(shown, self.format.demonstration_prompt(hidden(pair.question), shown))
        answer = self.format.compose_solution(hidden(derivation), hidden(pair.answer))
        return Row(n, prompt, list(self._ids(self.format.written(answer))))

    @staticmethod
    def _few_shot_row(few_shot: FewShotEncoder, n: int, task: Task, pair: Demonstration) -> Row:
        ids, learned = few_shot.answered(replace(task, problem=pair.question), pair.answer)
        start = learned.index(True)
        return Row(n, ids[:start], ids[start:])

    def answer_ids(self, answer: str, end: bool = True) -> list[int]:
        """Token ids of an answer, with the end-of-sequence token behind it where it `end`s."""
        ids = self._ids(self.format.written(self._special.hidden(answer)))
        return [*ids, self.tokenizer.eos_token_id] if end else list(ids)

    def batch(self, rows: Sequence[Row], device: torch.device | str) -> TokenBatch:
        """Rows as one right-padded batch; the loss is on the answers.

        Args:
            rows: At least one row.
            device: Where the tensors go.
        """
        sequences, learned = [], []
        for row in rows:
            answer = row.answer_ids[: self.max_length - 1]
            prompt = row.prompt_ids[-(self.max_length - len(answer)) :]
            sequences.append([*prompt, *answer])
            learned.append([False] * len(prompt) + [True] * len(answer))
        return token_batch(sequences, learned, [row.task for row in rows], self.tokenizer.pad_token_id, device)


def token_batch(
    sequences: Sequence[Sequence[int]],
    learned: Sequence[Sequence[bool]],
    row_task: Sequence[int],
    pad: int,
    device: torch.device | str,
) -> TokenBatch:
    """Sequences as one right-padded batch whose labels are the learned tokens; row r is of task `row_task[r]`."""
    ids, mask = pad_rows(sequences, pad, device, side="right")
    is_learned, _ = pad_rows(learned, False, device, side="right")
    labels = ids.masked_fill(is_learned == 0, IGNORED)
    return TokenBatch(ids, mask, labels, torch.tensor(list(row_task), device=device))


def pad_rows(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str, side: str, prefix: int = 0
) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), both [rows, longest] int64, padded on `side`.

    The first `prefix` tokens, which all sequences share, stay in front of padding on the left.
    """
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for index, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if side == "left" else slice(0, len(sequence))
        ids[index, place] = torch.tensor(list(sequence), dtype=torch.long)
        mask[index, place] = 1
        if prefix and place.start:
            ids[index, :prefix] = torch.tensor(list(sequence[:prefix]), dtype=torch.long)
            mask[index, :prefix] = 1
            padding = slice(prefix, prefix + place.start)
            ids[index, padding], mask[index, padding] = pad, 0
    return ids.to(device), mask.to(device)
