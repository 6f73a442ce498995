"""Answering few-shot tasks under many views, at the weights of many adaptations side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch

from hf_mass.core.token_loss import TokenBatch, token_log_probs
from hf_mass.core.trees import concatenate_rows, num_tasks
from hf_mass.errors import AdaptationError, DataError
from hf_mass.lm.adapters import Part
from hf_mass.lm.binding import deterministic
from hf_mass.lm.encoding import token_batch
from hf_mass.lm.few_shot_encoding import FewShotEncoder
from hf_mass.lm.generation import Sampling, complete
from hf_mass.lm.language_model import LanguageModel
from hf_mass.lm.prefix import SHORTEST
from hf_mass.methods.base import Answer
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.methods.views import task_views
from hf_mass.tasks.answers import rank_answers
from hf_mass.tasks.task import Task
from hf_mass.tasks.voting import Prediction, flat_vote

RESCORED = 4
"""Answers of a task that are scored again, the most frequent ones."""
MANY = 3
"""Rows that begin alike at the same weights, from which on what they begin with is read once."""
Pass = tuple[list[int], Part | None, list[int]]
"""Rows that go through the model together, the adapter with stacked matrices [N, ...] (None for the model as it is),
and which of the N each row takes."""


class FewShotAnswers:
    """Predictions and log-probabilities of answers.

    Args:
        lm: The model.
        settings: How tasks read and are asked.
    """

    def __init__(self, lm: LanguageModel, settings: TTTSettings) -> None:
        self.lm, self.settings = lm, settings
        self.encoder = FewShotEncoder(lm.tokenizer, settings.format, lm.chat_template_kwargs)

    def require_room(self, task: Task) -> None:
        """Checks that a task and an answer of one token fit into the model's context.

        Raises:
            DataError: If they do not.
        """
        length = len(self.encoder.prompt(task))
        if self.lm.context is not None and length >= self.lm.context:
            raise DataError(
                f"Task {task.id!r} with its {len(task.demonstrations)} demonstrations has {length} tokens, and the "
                f"model's context {self.lm.context}. Give fewer or shorter demonstrations, or a more compact format."
            )

    def answer(self, tasks: Sequence[Task], parts: Sequence[Part | None] | None = None, seed: int = 0) -> list[Answer]:
        """Every task under all its views, and the answers by the vote, best first; the arguments are those of
        `predict`."""
        settings, reasons = self.settings, list[str | None]()
        for task in tasks:
            try:
                self.require_room(task)
                reasons.append(None)
            except DataError as error:
                reasons.append(str(error))
        predictions, tokens = self.predict(tasks, parts, seed)
        scores: list[dict[str, list[float]] | None] = [None] * len(tasks)
        if settings.vote == "rescore":
            frequent = [flat_vote(each, RESCORED) for each in predictions]
            scores = list(self.log_probs(tasks, frequent, parts, seed))
        replies = []
        for n, task in enumerate(tasks):
            ranked = rank_answers(predictions[n], settings.vote, settings.vote_within, 2, scores[n])
            best = ranked[0] if ranked else None
            behind = [each.cut for each in predictions[n] if each.answer == best]
            outcome = {"ranked": tuple(ranked), "predictions": tuple(predictions[n]), "reason": reasons[n]}
            cut = bool(behind) and all(behind)
            replies.append(Answer.judged(task, best, sampled_tokens=tokens[n], cut=cut, **outcome))
        return replies

    def predict(
        self, tasks: Sequence[Task], parts: Sequence[Part | None] | None = None, seed: int = 0
    ) -> tuple[list[list[Prediction]], list[int]]:
        """A prediction for each task, transformation, order of the demonstrations and sample, mapped back.

        Args:
            tasks: The tasks.
            parts: The adapter of each; None for the model as it is.
            seed: Draws the orders and the samples.

        Returns:
            The predictions of each task, and the tokens generated for it. A view that is longer than the model's
            context has no answer.
        """
        views = [view for n, task in enumerate(tasks) for view in task_views(n, task, self.settings, seed)]
        predictions: list[list[Prediction]] = [[] for _ in tasks]
        completions: dict[int, list[int]] = {}
        cut: set[int] = set()
        prompts = [self.encoder.prompt(view.task) for view in views]
        longest = [self._longest_answer(task) for task in tasks]
        for room, numbers in self._by_room(prompts, max(longest, default=1)).items():
            owners, fitting = [views[n].owner for n in numbers], [prompts[n] for n in numbers]
            for rows, part, row_task in self._passes(owners, fitting, parts):
                batch = [numbers[r] for r in rows]
                limits = [min(room, longest[views[n].owner]) for n in batch]
                seeds = [views[n].seed for n in batch]
                stops = {self.encoder.stop(views[n].task) for n in batch}
                stop = stops.pop() if len(stops) == 1 else self.encoder.stop()
                ids = self._completions([prompts[n] for n in batch], seeds, max(limits), stop, part, row_task)
                completions.update((n, row[:limit]) for n, row, limit in zip(batch, ids, limits, strict=True))
                cut |= {n for n in batch if not self.encoder.is_whole(completions[n], stop)}
        texts = dict(zip(completions, self.encoder.texts(list(completions.values())), strict=True))
        tokens = [0] * len(tasks)
        for number, view in enumerate(views):
            predictions[view.owner].append(view.read(self.encoder.format, texts.get(number, ""), number in cut))
            tokens[view.owner] += len(completions.get(number, ()))
        return predictions, tokens

    def log_probs(
        self,
        tasks: Sequence[Task],
        candidates: Sequence[Sequence[str]],
        parts: Sequence[Part | None] | None = None,
        seed: int = 0,
    ) -> list[dict[str, list[float]]]:
        """Log-probabilities of answers, in nats, under each view of the task that `predict` asks.

        Args:
            tasks: The tasks.
            candidates: Answers to each of them, in the task's own orientation and colours.
            parts: As for `predict`.
            seed: Draws the orders, as for `predict`.

        Returns:
            For each task answer → the log-probability of the answer as it reads in each view. Views in which an
            answer goes beyond the model's context are left out.

        Raises:
            DataError: If no view of a task has room for its answers.
        """
        rows: list[tuple[int, str, list[int], list[bool]]] = []
        for n, (task, answers) in enumerate(zip(tasks, candidates, strict=True)):
            rows += [(n, *row) for row in self._scored_rows(task, list(dict.fromkeys(answers)), seed)]
        values: dict[int, float] = {}
        for batch, part, row_task in self._passes([r[0] for r in rows], [r[2] for r in rows], parts):
            tokens = self.batch([rows[r][2] for r in batch], [rows[r][3] for r in batch], row_task)
            values.update(zip(batch, self.summed_log_probs(tokens, part), strict=True))
        by_answer: list[dict[str, list[float]]] = [{} for _ in tasks]
        for number, (n, answer, _, _) in enumerate(rows):
            by_answer[n].setdefault(answer, []).append(values[number])
        return by_answer

    def _scored_rows(self, task: Task, answers: list[str], seed: int) -> list[tuple[str, list[int], list[bool]]]:
        """(answer, ids, which of them are scored) for each view and answer."""
        views = {(v.transformation.name, v.number): v for v in task_views(0, task, self.settings, seed)}
        rows, context = [], self.lm.context
        for view in views.values():
            answered = [self.encoder.answered(view.task, view.show(answer, self.encoder.format)) for answer in answers]
            if context is None or all(len(ids) <= context for ids, _ in answered):
                rows += [(answer, *each) for answer, each in zip(answers, answered, strict=True)]
        if answers and not rows:
            raise DataError(
                f"Task {task.id!r} has no view with room for its answers in the model's context of {context} tokens. "
                "Give fewer demonstrations, or vote by 'hierarchical'."
            )
        return rows

    def _by_room(self, prompts: Sequence[list[int]], longest: int) -> dict[int, list[int]]:
        """Tokens, `longest` at most → prompts with room for them: one near the context's end cuts no others short."""
        numbers: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            room = [] if self.lm.context is None else [self.lm.context - len(prompt)]
            numbers.setdefault(min([longest, *room]), []).append(number)
        return {room: rows for room, rows in numbers.items() if room > 0}

    def _passes(
        self, owners: Sequence[int], rows: Sequence[Sequence[int]], parts: Sequence[Part | None] | None
    ) -> Iterator[Pass]:
        """Rows of token ids of like length share a pass. Those without an adapter go through the model as it is.

        Rows that begin alike at the same weights have passes of their own where they are many: what they begin with is
        read once then.
        """
        row_parts = [None if parts is None else parts[n] for n in owners]
        beginnings = [(id(part), tuple(ids[:SHORTEST])) for part, ids in zip(row_parts, rows, strict=True)]
        frequency = Counter(beginnings)
        groups: dict[Any, list[int]] = {}
        for r, (part, beginning) in enumerate(zip(row_parts, beginnings, strict=True)):
            alike = beginning if frequency[beginning] >= MANY else None
            groups.setdefault((part and id(part[0]), alike), []).append(r)
        size = self.settings.predict_batch_size
        for numbers in sorted(groups.values(), key=lambda numbers: row_parts[numbers[0]] is not None):
            first = row_parts[numbers[0]]
            if first is not None and first[0].model is not self.lm.model:
                raise AdaptationError("An adaptation is of another model. Answer with its own: adaptation.answer().")
            numbers.sort(key=lambda r: -len(rows[r]))
            for start in range(0, len(numbers), size):
                # A task's rows share its products.
                batch = sorted(numbers[start : start + size], key=lambda r: owners[r])
                if first is None:
                    yield batch, None, [0] * len(batch)
                    continue
                trees = [part[1] for r in batch if (part := row_parts[r]) is not None]
                distinct = {id(tree): tree for tree in trees}
                place = {tree: n for n, tree in enumerate(distinct)}
                yield batch, (first[0], concatenate_rows(distinct.values())), [place[id(tree)] for tree in trees]

    def batch(self, sequences: list[list[int]], learned: list[list[bool]], row_task: list[int]) -> TokenBatch:
        """Sequences with the loss on the learned tokens."""
        return token_batch(sequences, learned, row_task, int(self.lm.tokenizer.pad_token_id), self.lm.device)

    def _completions(
        self,
        prompts: list[list[int]],
        seeds: list[int],
        longest: int,
        stop: str,
        part: Part | None,
        row_task: list[int],
    ) -> list[list[int]]:
        sampling = Sampling(longest, self.settings.predict_temperature)
        alike = part is None or num_tasks(part[1]) == 1
        rows = None if alike else torch.tensor(row_task, device=self.lm.device)
        with self._at([] if part is None else [part], rows):
            return complete(self.lm.model, self.lm.tokenizer, prompts, sampling, seeds, stop, alike=alike)

    @contextmanager
    def _at(self, parts: Sequence[Part], row_task: torch.Tensor | None = None) -> Iterator[None]:
        """Within this context the model is at adapted weights, or as it is where there are none."""
        with ExitStack() as stack:
            stack.enter_context(deterministic(self.lm.model))
            for lora, tree in parts:
                stack.enter_context(lora.applied(tree, row_task))
            if not parts:
                stack.enter_context(self.lm.bare())
            yield

    def _longest_answer(self, task: Task) -> int:
        """Tokens that an answer to the task may have."""
        factor, most = self.settings.predict_length_factor, self.settings.max_completion_length
        if factor is None or not task.demonstrations:
            return most
        bare = [replace(task, demonstrations=(), problem=pair.question) for pair in task.demonstrations]
        answered = [self.encoder.answered(each, d.answer) for each, d in zip(bare, task.demonstrations, strict=True)]
        return min(most, math.ceil(factor * max(sum(flags) for _, flags in answered)))

    @torch.no_grad()
    def answered_log_probs(self, tasks: Sequence[Task], parts: Sequence[Part] = ()) -> tuple[list[float], list[int]]:
        """(log p of the known answer to each task at adapted weights, in nats; the number of its tokens)."""
        rows = [self.encoder.answered(task, str(task.answer)) for task in tasks]
        batch = self.batch([ids for ids, _ in rows], [flags for _, flags in rows], [0] * len(rows))
        with self._at(parts):
            values, _ = token_log_probs(self.lm.model, batch, cut=not parts)
        return values.double().sum(1).tolist(), [sum(flags) for _, flags in rows]

    @torch.no_grad()
    def summed_log_probs(self, batch: TokenBatch, part: Part | None) -> list[float]:
        """log p of the learned tokens of each row, in nats."""
        with self._at([] if part is None else [part], batch.row_task):
            values, _ = token_log_probs(self.lm.model, batch, cut=part is None)
        return [float(value) for value in values.double().sum(1)]
