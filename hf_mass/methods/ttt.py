"""Test-time training on few-shot tasks (arXiv 2411.07279): a LoRA for each task, trained on its own demonstrations.

Many tasks are trained side by side in the same passes over the base, and answered in one batch; each ends where it
would have ended alone. Tasks with the same demonstrations (the queries of one benchmark task, the test inputs of one
puzzle) share one adapter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_mass.core import trees
from hf_mass.core.fitting import FitStep, fit, schedule_factor
from hf_mass.core.token_loss import TokenBatch, TokenLoss, token_log_probs
from hf_mass.core.trees import Tree
from hf_mass.errors import DataError
from hf_mass.lm.binding import BoundLora, deterministic
from hf_mass.lm.few_shot_encoding import ExampleRows, FewShotEncoder, task_views, token_batch
from hf_mass.lm.generation import Sampling, Watch, complete, row_seed
from hf_mass.methods.ttt_settings import FitConfig, PredictConfig
from hf_mass.tasks.leave_one_out import INSTRUCTION, TrainingExample, training_examples
from hf_mass.tasks.task import Task
from hf_mass.tasks.voting import Prediction

OnStep = Callable[[int, int, list[float]], None]
"""(number of the step, number of steps, mean loss of each adapter that is still training) → nothing."""


@dataclass(frozen=True)
class FitRecord:
    """What test-time training on one task came to.

    Args:
        task: The task.
        params: Its trained matrices, leaves [1, ...]; None where there are none. Tasks with the same demonstrations
            have the same object.
        reason: Why there are none.
        examples: Number of training examples.
        losses: Mean loss of each step.
    """

    task: Task
    params: Tree | None
    reason: str | None = None
    examples: int = 0
    losses: tuple[float, ...] = ()


class FewShotAdapter:
    """Trains and answers few-shot tasks with one adapter of a PEFT model, which itself is never changed.

    Args:
        model: The PEFT model.
        tokenizer: Its tokenizer.
        fit_config: How to train.
        predict_config: How to answer.
        adapter: Name of the adapter that each task starts from.
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        fit_config: FitConfig,
        predict_config: PredictConfig,
        adapter: str = "default",
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.fit_config, self.predict_config = fit_config, predict_config
        self.lora = BoundLora(model, adapter)
        self.encoder = FewShotEncoder(tokenizer, fit_config.format)
        self.watch: Watch | None = None  # sees answers while they are written

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    # -- training -----------------------------------------------------------------------------------------------------

    def adapt(
        self,
        tasks: Sequence[Task],
        seed: int = 0,
        shared: bool = False,
        on_step: OnStep | None = None,
    ) -> list[FitRecord]:
        """Train each task's adapter, side by side; or one adapter on the data of all (`shared`).

        A task whose data cannot be made, or whose loss is not finite, gets a record with the reason; the others go on.

        Args:
            tasks: The tasks.
            seed: Draws examples and their order.
            shared: Whether all tasks get one adapter.
            on_step: Called after each step with its number, the number of steps, and the mean loss of each adapter that
                is still training. An exception that it raises ends the training.
        """
        places: dict[tuple[object, ...], int] = {}
        owners = [places.setdefault(data_key(task), len(places)) for task in tasks]
        different = [tasks[owners.index(place)] for place in range(len(places))]
        found: list[FitRecord] = [FitRecord(task, None) for task in different]
        parts: dict[int, ExampleRows] = {}
        for place, task in enumerate(different):
            try:
                parts[place] = self.example_rows(task, seed)
            except DataError as error:
                found[place] = FitRecord(task, None, str(error))
        if parts:
            trained, losses, rows = self._train(
                list(parts.values()), [different[n] for n in parts], seed, shared, on_step
            )
            for place, row, part in zip(parts, rows, parts.values(), strict=True):
                found[place] = _record(different[place], trained, row, len(part), losses[row])
            if shared:  # one object, as tasks with the same demonstrations have
                whole = found[next(iter(parts))].params
                found = [replace(r, params=whole) if n in parts else r for n, r in enumerate(found)]
        return [replace(found[owner], task=task) for task, owner in zip(tasks, owners, strict=True)]

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens that the model was made for; None where its config does not say."""
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return longest if isinstance(longest, int) and longest > 0 else None

    def require_room(self, task: Task) -> None:
        """Checks that a task and an answer of one token fit into the model's context.

        Raises:
            DataError: If they do not.
        """
        length = len(self.encoder.prompt(task))
        if self.context is not None and length >= self.context:
            raise DataError(
                f"Task {task.id!r} with its {len(task.demonstrations)} demonstrations has {length} tokens, and the "
                f"model's context {self.context}. Give fewer or shorter demonstrations, or a more compact format."
            )

    def example_rows(self, task: Task, seed: int = 0) -> ExampleRows:
        """The training examples of a task as tokens.

        Raises:
            DataError: If none can be made.
        """
        pairs = [self.encoder.example(each, self.fit_config.loss_on) for each in self.examples(task, seed)]
        return ExampleRows([ids for ids, _ in pairs], [learned for _, learned in pairs])

    def examples(self, task: Task, seed: int = 0) -> list[TrainingExample]:
        """The training examples of a task that fit into the model's context.

        Raises:
            DataError: If none can be made.
        """
        data = self.fit_config.data
        limits = [n for n in (data.max_tokens, self.context) if n is not None]
        return training_examples(
            task,
            replace(data, max_tokens=min(limits, default=None)),
            row_seed("few-shot", seed, *data_key(task)),
            lambda example: len(self.encoder.example(example, "query")[0]),
        )

    def _train(
        self, parts: list[ExampleRows], tasks: list[Task], seed: int, shared: bool, on_step: OnStep | None
    ) -> tuple[Tree, list[list[float]], list[int]]:
        """(matrices, leaves [N, ...]; losses of each of the N; which of the N each part has)."""
        if not shared:
            seeds = [row_seed("order", seed, *data_key(task)) for task in tasks]
            return *self._fit(parts, seeds, on_step), list(range(len(parts)))
        joined = ExampleRows([s for p in parts for s in p.sequences], [m for p in parts for m in p.learned])
        return *self._fit([joined], [row_seed("order", seed)], on_step), [0] * len(parts)

    def _fit(
        self, parts: Sequence[ExampleRows], seeds: Sequence[int], on_step: OnStep | None
    ) -> tuple[Tree, list[list[float]]]:
        """(matrices, leaves [N, ...]; mean loss of each step of each of the N parts)."""
        config, losses = self.fit_config, [list[float]() for _ in parts]
        plans = [_batches(len(rows), config, one) for rows, one in zip(parts, seeds, strict=True)]
        owners: list[list[int]] = []

        def steps() -> Iterator[FitStep]:
            for index in range(max(map(len, plans))):
                present = [n for n, plan in enumerate(plans) if index < len(plan)]
                owners.append(present)
                yield self._step(parts, plans, present, index)

        def note(index: int, values: Tensor) -> None:
            place = 0
            for n in owners[index]:
                count = len(plans[n][index])
                losses[n].append(float(values[place : place + count].mean()))
                place += count
            if on_step is not None:
                on_step(index, max(map(len, plans)), [losses[n][-1] for n in owners[index]])

        with deterministic(self.model), self.lora.inactive():
            trained = fit(steps(), self.lora.start(len(parts)), config.make_optimizer(), config.max_grad_norm, note)
        return trained, losses

    def _step(
        self, parts: Sequence[ExampleRows], plans: Sequence[Sequence[Sequence[int]]], present: Sequence[int], index: int
    ) -> FitStep:
        config = self.fit_config
        sequences = [parts[n].sequences[r] for n in present for r in plans[n][index]]
        learned = [parts[n].learned[r] for n in present for r in plans[n][index]]
        batch = self._batch(sequences, learned, [n for n in present for _ in plans[n][index]])
        counts = torch.tensor([1 / len(plans[n][index]) for n in present for _ in plans[n][index]], device=self.device)
        rates = torch.zeros(len(parts), device=self.device)
        for n in present:
            rates[n] = schedule_factor(config.lr_scheduler_type, index, len(plans[n]), config.warmup_ratio)
        return FitStep(TokenLoss(self.model, self.lora.function, batch), counts, rates)

    def _batch(self, sequences: list[list[int]], learned: list[list[bool]], row_task: list[int]) -> TokenBatch:
        return token_batch(sequences, learned, row_task, int(self.tokenizer.pad_token_id), self.device)

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(
        self, tasks: Sequence[Task], records: Sequence[FitRecord] | None = None, seed: int = 0
    ) -> list[list[Prediction]]:
        """A prediction for each task, transformation, order of the demonstrations and sample, mapped back.

        Args:
            tasks: The tasks.
            records: Their adapters; None, or a record without one, for the model as it is.
            seed: Draws the orders and the samples.

        Returns:
            The predictions of each task. A view that is longer than the model's context has no answer.
        """
        views = [view for n, task in enumerate(tasks) for view in task_views(n, task, self.predict_config, seed)]
        found: list[list[Prediction]] = [[] for _ in tasks]
        texts: dict[int, str] = {}
        prompts = [self.encoder.prompt(view.task) for view in views]
        longest = [self._longest_answer(task) for task in tasks]
        for room, fitting in self._by_room(prompts).items():
            owners, lengths = [views[n].owner for n in fitting], [len(prompts[n]) for n in fitting]
            for rows, params, row_task in self._passes(owners, lengths, records):
                part = [fitting[r] for r in rows]
                seeds = [views[n].seed for n in part]
                limits = [min(room, longest[views[n].owner]) for n in part]
                answers = self._answers([prompts[n] for n in part], seeds, limits, params, row_task)
                texts.update(zip(part, answers, strict=True))
        for number, view in enumerate(views):
            found[view.owner].append(view.read(self.encoder.format, texts.get(number, "")))
        return found

    def score(
        self,
        tasks: Sequence[Task],
        candidates: Sequence[Sequence[str]],
        records: Sequence[FitRecord] | None = None,
        seed: int = 0,
    ) -> list[dict[str, list[float]]]:
        """Log-probabilities of answers, in nats, under each view of the task that `predict` asks.

        Args:
            tasks: The tasks.
            candidates: Answers to each of them, in the task's own orientation and colours.
            records: As for `predict`.
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
        for part, params, row_task in self._passes([r[0] for r in rows], [len(r[2]) for r in rows], records):
            chosen = self._batch([rows[r][2] for r in part], [rows[r][3] for r in part], row_task)
            values.update(zip(part, self._log_probs(chosen, params), strict=True))
        found: list[dict[str, list[float]]] = [{} for _ in tasks]
        for number, (n, answer, _, _) in enumerate(rows):
            found[n].setdefault(answer, []).append(values[number])
        return found

    def _scored_rows(self, task: Task, answers: list[str], seed: int) -> list[tuple[str, list[int], list[bool]]]:
        """(answer, ids, which of them are scored) for each view and answer."""
        views = {(v.transformation.name, v.number): v for v in task_views(0, task, self.predict_config, seed)}
        rows = []
        for view in views.values():
            shown = [self.encoder.answered(view.task, view.show(answer, self.encoder.format)) for answer in answers]
            if self.context is None or all(len(ids) <= self.context for ids, _ in shown):
                rows += [(answer, *each) for answer, each in zip(answers, shown, strict=True)]
        if answers and not rows:
            raise DataError(
                f"Task {task.id!r} has no view with room for its answers in the model's context of {self.context} "
                "tokens. Give fewer demonstrations, or vote by 'hierarchical'."
            )
        return rows

    def _by_room(self, prompts: Sequence[list[int]]) -> dict[int, list[int]]:
        """Longest answer → prompts that have room for it: one near the context's end must not cut the others' short."""
        found: dict[int, list[int]] = {}
        for number, prompt in enumerate(prompts):
            left = [] if self.context is None else [self.context - len(prompt)]
            found.setdefault(min([self.predict_config.max_new_tokens, *left]), []).append(number)
        return {room: numbers for room, numbers in found.items() if room > 0}

    def _passes(
        self, owners: Sequence[int], lengths: Sequence[int], records: Sequence[FitRecord] | None
    ) -> Iterator[tuple[list[int], Tree | None, list[int]]]:
        """Rows that go through the model together, with stacked matrices and which of them each row takes.

        Rows of like length share a pass. Those without an adapter go through the model as it is.
        """
        adapters = [None if records is None else records[n].params for n in owners]
        size = self.predict_config.batch_size
        for bare in (True, False):
            rows = [r for r in range(len(owners)) if (adapters[r] is None) == bare]
            rows.sort(key=lambda r: -lengths[r])
            for start in range(0, len(rows), size):
                part = sorted(rows[start : start + size], key=lambda r: owners[r])  # a task's rows share its products
                trees_of = {id(a): a for r in part if (a := adapters[r]) is not None}
                if bare:
                    yield part, None, [0] * len(part)
                else:
                    order = {key: n for n, key in enumerate(trees_of)}
                    stacked = {
                        name: torch.cat([tree[name] for tree in trees_of.values()])
                        for name in next(iter(trees_of.values()))
                    }
                    yield part, stacked, [order[id(adapters[r])] for r in part]

    def _answers(
        self, prompts: list[list[int]], seeds: list[int], limits: list[int], params: Tree | None, row_task: list[int]
    ) -> list[str]:
        sampling = Sampling(max(limits), self.predict_config.temperature)
        arguments = (self.model, self.tokenizer, prompts, sampling, seeds, self.encoder.format.stop, self.watch)
        with deterministic(self.model):
            if params is None:
                ids = complete(*arguments)
            else:
                with self.lora.applied(params, torch.tensor(row_task, device=self.device)):
                    ids = complete(*arguments)
        return self.texts([row[:limit] for row, limit in zip(ids, limits, strict=True)])

    def _longest_answer(self, task: Task) -> int:
        """Tokens that an answer to the task may have."""
        config = self.predict_config
        if config.length_factor is None or not task.demonstrations:
            return config.max_new_tokens
        bare = [replace(task, demonstrations=(), problem=shown.question) for shown in task.demonstrations]
        answered = [self.encoder.answered(each, d.answer) for each, d in zip(bare, task.demonstrations, strict=True)]
        return min(config.max_new_tokens, math.ceil(config.length_factor * max(sum(flags) for _, flags in answered)))

    def texts(self, completions: Sequence[list[int]]) -> list[str]:
        """Completions as text, without the token that ends them."""
        ends = set(self.tokenizer.all_special_ids)
        bodies = [row[:-1] if row and row[-1] in ends else row for row in completions]
        # In a chat the template's own marks are no part of an answer; elsewhere an unknown token must stay visible.
        return [self.tokenizer.decode(row, skip_special_tokens=self.encoder.format.chat) for row in bodies]

    @torch.no_grad()
    def _log_probs(self, batch: TokenBatch, params: Tree | None) -> list[float]:
        with deterministic(self.model):
            if params is None:
                values, _ = token_log_probs(self.model, batch)
            else:
                with self.lora.applied(params, batch.row_task):
                    values, _ = token_log_probs(self.model, batch, cut=False)
        return [float(value) for value in values.double().sum(1)]


def _record(task: Task, trained: Tree, row: int, examples: int, losses: list[float]) -> FitRecord:
    params = trees.tree_map(lambda x: x[row : row + 1].clone(), trained)
    if not all(bool(leaf.isfinite().all()) for leaf in params.values()):
        return FitRecord(task, None, "the training loss is not finite; lower learning_rate", examples, tuple(losses))
    return FitRecord(task, params, None, examples, tuple(losses))


def data_key(task: Task) -> tuple[object, ...]:
    """What a task's training data depend on."""
    pairs = tuple(text for shown in task.demonstrations for text in (shown.question, shown.answer))
    return task.fields.get(INSTRUCTION, ""), *pairs


def _batches(count: int, config: FitConfig, seed: int) -> list[list[int]]:
    """Rows of each step: every epoch goes over all of them in an order of its own."""
    rng, steps = random.Random(seed), list[list[int]]()
    for _ in range(config.epochs):
        order = rng.sample(range(count), count)
        steps.extend(order[i : i + config.batch_size] for i in range(0, count, config.batch_size))
    return steps
