"""Test-time training on few-shot tasks (arXiv 2411.07279): a LoRA for each task, trained on its own demonstrations.

Many tasks are trained side by side in the same passes over the base, and answered in one batch; each ends where it
would have ended alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_mass.core import trees
from hf_mass.core.fitting import FitStep, fit, schedule_factor
from hf_mass.core.token_loss import IGNORED, TokenBatch, TokenLoss
from hf_mass.core.trees import Tree
from hf_mass.errors import DataError
from hf_mass.models.binding import BoundLora, deterministic
from hf_mass.models.encoding import pad_rows
from hf_mass.models.few_shot_config import FitConfig, PredictConfig
from hf_mass.models.generation import Sampling, complete, row_seed
from hf_mass.tasks.few_shot_format import FewShotFormat, Messages
from hf_mass.tasks.grids import grid_text, parse_grid
from hf_mass.tasks.leave_one_out import TrainingExample, demonstration_orders, training_examples
from hf_mass.tasks.task import Task
from hf_mass.tasks.transformations import Transformation, transform_task
from hf_mass.tasks.voting import Prediction


@dataclass(frozen=True)
class FitRecord:
    """What test-time training on one task came to.

    Args:
        task: The task.
        params: Its trained matrices, leaves [1, ...]; None where there are none.
        reason: Why there are none.
        examples: Number of training examples.
        losses: Mean loss of each step.
    """

    task: Task
    params: Tree | None
    reason: str | None
    examples: int
    losses: tuple[float, ...]


@dataclass(frozen=True)
class _Rows:
    """The training data of one task as tokens: ids and which of them are learned."""

    sequences: list[list[int]]
    learned: list[list[bool]]


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

    def example(self, example: TrainingExample, loss_on: str) -> tuple[list[int], list[bool]]:
        """(ids, whether each is learned). Segment by segment, so that a task's prompt begins as its examples do."""
        ids, learned = self._start()
        for segment in self.format.render(example, loss_on, self._template):  # type: ignore[arg-type]
            part = self.tokenizer(segment.text, add_special_tokens=False)["input_ids"]
            ids.extend(part)
            learned.extend([segment.trained] * len(part))
        return ids, learned

    def prompt(self, task: Task) -> list[int]:
        """Token ids of a task, up to where its answer begins."""
        ids, _ = self._start()
        for segment in self.format.render(task, template=self._template):
            ids.extend(self.tokenizer(segment.text, add_special_tokens=False)["input_ids"])
        return ids

    def _start(self) -> tuple[list[int], list[bool]]:
        first = self.tokenizer.bos_token_id
        return ([], []) if first is None or self.format.chat else ([first], [False])

    def _template(self, messages: Messages, add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        )


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

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    # -- training -----------------------------------------------------------------------------------------------------

    def adapt(self, tasks: Sequence[Task], seed: int = 0, shared: bool = False) -> list[FitRecord]:
        """Train each task's adapter, side by side; or one adapter on the data of all (`shared`).

        A task whose data cannot be made, or whose loss is not finite, gets a record with the reason; the others go on.
        """
        data: list[_Rows | None] = []
        reasons: list[str | None] = []
        for task in tasks:
            try:
                data.append(self._rows(task, seed))
                reasons.append(None)
            except DataError as error:
                data.append(None)
                reasons.append(str(error))
        usable = [i for i, rows in enumerate(data) if rows is not None]
        parts = [rows for rows in data if rows is not None]
        if not parts:
            return [FitRecord(task, None, reason, 0, ()) for task, reason in zip(tasks, reasons, strict=True)]
        if shared:
            joined = _Rows([s for p in parts for s in p.sequences], [m for p in parts for m in p.learned])
            trained, losses = self._fit([joined], seed)
            owners = [0] * len(parts)
        else:
            trained, losses = self._fit(parts, seed)
            owners = list(range(len(parts)))
        records = [FitRecord(task, None, reason, 0, ()) for task, reason in zip(tasks, reasons, strict=True)]
        for place, index, owner in zip(range(len(usable)), usable, owners, strict=True):
            params = trees.tree_map(lambda x, n=owner: x[n : n + 1].clone(), trained)
            finite = all(bool(leaf.isfinite().all()) for leaf in params.values())
            records[index] = FitRecord(
                tasks[index],
                params if finite else None,
                None if finite else "the training loss is not finite; lower learning_rate",
                len(parts[place].sequences),
                tuple(losses[owner]),
            )
        return records

    def _rows(self, task: Task, seed: int) -> _Rows:
        config = self.fit_config
        examples = training_examples(
            task,
            config.data,
            row_seed("few-shot", seed, task.id),
            lambda e: len(self.encoder.example(e, config.loss_on)[0]),
        )
        pairs = [self.encoder.example(example, config.loss_on) for example in examples]
        return _Rows([ids for ids, _ in pairs], [learned for _, learned in pairs])

    def _fit(self, parts: Sequence[_Rows], seed: int) -> tuple[Tree, list[list[float]]]:
        """(matrices, leaves [N, ...]; mean loss of each step of each of the N parts)."""
        config, losses = self.fit_config, [list[float]() for _ in parts]
        plans = [_batches(len(rows.sequences), config, row_seed("order", seed, n)) for n, rows in enumerate(parts)]
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

        with deterministic(self.model), self.lora.inactive():
            trained = fit(steps(), self.lora.start(len(parts)), config.make_optimizer(), config.max_grad_norm, note)
        return trained, losses

    def _step(
        self, parts: Sequence[_Rows], plans: Sequence[Sequence[Sequence[int]]], present: Sequence[int], index: int
    ) -> FitStep:
        config = self.fit_config
        sequences = [parts[n].sequences[r] for n in present for r in plans[n][index]]
        learned = [parts[n].learned[r] for n in present for r in plans[n][index]]
        row_task = torch.tensor([n for n in present for _ in plans[n][index]], device=self.device)
        loss = TokenLoss(self.model, self.lora.function, self._batch(sequences, learned, row_task))
        counts = torch.tensor([1 / len(plans[n][index]) for n in present for _ in plans[n][index]], device=self.device)
        rates = torch.zeros(len(parts), device=self.device)
        for n in present:
            rates[n] = schedule_factor(config.lr_scheduler_type, index, len(plans[n]), config.warmup_ratio)
        return FitStep(loss, counts, rates)

    def _batch(self, sequences: list[list[int]], learned: list[list[bool]], row_task: Tensor) -> TokenBatch:
        ids, mask = pad_rows(sequences, int(self.tokenizer.pad_token_id), self.device, side="right")
        labels = torch.full_like(ids, IGNORED)
        for row, flags in enumerate(learned):
            chosen = torch.tensor(flags, device=self.device).nonzero()[:, 0]
            labels[row, chosen] = ids[row, chosen]
        return TokenBatch(ids, mask, labels, row_task)

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(
        self, tasks: Sequence[Task], records: Sequence[FitRecord] | None = None, seed: int = 0
    ) -> list[list[Prediction]]:
        """A prediction for each task, transformation, order of the demonstrations and sample, mapped back.

        Args:
            tasks: The tasks.
            records: Their adapters; None, or a record without one, for the model as it is.
            seed: Draws the orders and the samples.
        """
        views = [view for n, task in enumerate(tasks) for view in self._views(n, task, seed)]
        texts = [""] * len(views)
        adapted = [records is not None and records[view.owner].params is not None for view in views]
        for chosen in (True, False):
            index = [i for i, flag in enumerate(adapted) if flag == chosen]
            for start in range(0, len(index), self.predict_config.batch_size):
                part = index[start : start + self.predict_config.batch_size]
                for i, text in zip(
                    part, self._answers([views[i] for i in part], records if chosen else None), strict=True
                ):
                    texts[i] = text
        found: list[list[Prediction]] = [[] for _ in tasks]
        for view, text in zip(views, texts, strict=True):
            found[view.owner].append(view.read(self.encoder.format, text))
        return found

    def _views(self, owner: int, task: Task, seed: int) -> Iterator[_View]:
        config, rng = self.predict_config, random.Random(row_seed("orders", seed, task.id))
        for transformation in config.transformations:
            changed = transform_task(task, transformation)
            for number, order in enumerate(demonstration_orders(len(task.demonstrations), config.permutations, rng)):
                shown = replace(changed, demonstrations=tuple(changed.demonstrations[i] for i in order))
                for sample in range(config.samples):
                    row = row_seed("predict", seed, task.id, transformation.name, number, sample)
                    yield _View(owner, shown, transformation, number, row)

    def _answers(self, views: Sequence[_View], records: Sequence[FitRecord] | None) -> list[str]:
        prompts = [self.encoder.prompt(view.task) for view in views]
        sampling = Sampling(self.predict_config.max_new_tokens, self.predict_config.temperature)
        seeds, stop = [view.seed for view in views], self.encoder.format.stop
        with deterministic(self.model):
            if records is None:
                with self.lora.inactive():
                    ids = complete(self.model, self.tokenizer, prompts, sampling, seeds, stop)
            else:
                owners = sorted({view.owner for view in views})
                params = [records[n].params for n in owners]
                stacked = {name: torch.cat([p[name] for p in params if p is not None]) for name in params[0] or {}}
                row_task = torch.tensor([owners.index(view.owner) for view in views], device=self.device)
                with self.lora.applied(stacked, row_task):
                    ids = complete(self.model, self.tokenizer, prompts, sampling, seeds, stop)
        return [self.tokenizer.decode(row, skip_special_tokens=False) for row in ids]


@dataclass(frozen=True)
class _View:
    """One way of asking a task."""

    owner: int
    task: Task
    transformation: Transformation
    permutation: int
    seed: int

    def read(self, fmt: FewShotFormat, text: str) -> Prediction:
        """The answer in a text, mapped back; None where it cannot be read or mapped back."""
        answer = fmt.read_answer(text)
        if answer is not None and fmt.grid_form is not None:
            grid = parse_grid(answer)
            back = None if grid is None else self.transformation.invert(grid)
            answer = None if back is None else grid_text(back)
        return Prediction(answer, self.transformation.name, self.permutation)


def _batches(count: int, config: FitConfig, seed: int) -> list[list[int]]:
    """Rows of each step: every epoch goes over all of them in an order of its own."""
    rng, steps = random.Random(seed), list[list[int]]()
    for _ in range(config.epochs):
        order = rng.sample(range(count), count)
        steps.extend(order[i : i + config.batch_size] for i in range(0, count, config.batch_size))
    return steps
