"""Test-time training on few-shot tasks (arXiv 2411.07279): a LoRA for each task, trained on its own demonstrations.

Many tasks are trained side by side in the same passes over the base, and answered in one batch; each ends where it
would have ended alone. Tasks with the same demonstrations (the queries of one benchmark task, the test inputs of one
puzzle) share one adapter.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch

from hf_mass.core import trees
from hf_mass.core.fitting import FitState, FitStep, begin_fit, fit_step, schedule_factor
from hf_mass.core.optimizers import InnerOptimizer, make_optimizer
from hf_mass.core.token_loss import TokenLoss
from hf_mass.errors import ConfigError, DataError
from hf_mass.lm.adapters import Part
from hf_mass.lm.binding import BoundLora, deterministic
from hf_mass.lm.device_memory import training_plan
from hf_mass.lm.encoding import token_batch
from hf_mass.lm.few_shot_encoding import ExampleRows, FewShotEncoder
from hf_mass.lm.generation import row_seed
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Answer, Method, Progress
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.ttt_settings import ASKED_ONCE, STRIPS, TTTSettings
from hf_mass.tasks.checks import shown
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.leave_one_out import INSTRUCTION, TrainingExample, training_examples
from hf_mass.tasks.task import Task

STRENGTHS = (1.0, 0.4)
"""Shares of the learning rate that a guard chooses from."""


@dataclass(frozen=True)
class TTTState:
    """Where the training of N adapters stands."""

    tasks: tuple[Task, ...]
    settings: TTTSettings  # how they are trained
    owners: tuple[int, ...]  # for each task which of the distinct sets of demonstrations it has
    reasons: tuple[str | None, ...]  # for each set why it cannot be trained on, or None
    adapters: tuple[int, ...]  # for each set which adapter it trains; −1 for none
    examples: tuple[int, ...]  # for each set the number of its training examples
    rows: tuple[ExampleRows, ...]  # the training examples of each adapter
    batches: tuple[list[list[int]], ...]  # for each adapter the rows of each of its steps
    lora: BoundLora  # the adapter that all start from
    optimizer: InnerOptimizer  # AdamW at the highest rate; the schedule scales its updates
    fit: FitState  # parameters [N, ...] and moments
    losses: tuple[tuple[float, ...], ...]  # for each adapter the mean loss of each step
    dropout_seed: int


class TTT(Method[TTTState]):
    """Test-time training.

    Args:
        settings: All settings; None for the model's own for the kind of task at hand, with `changes`.
        preset: Name of the settings to start from instead of the model's own (see `TTT_PRESETS`).
        changes: Settings that differ; see `TTTSettings`.
    """

    name = "ttt"

    def __init__(self, settings: TTTSettings | None = None, preset: str | None = None, **changes: Any) -> None:
        self.settings, self.preset, self.changes = settings, preset, changes
        self.scale, self.asked_once = 1.0, False  # share of the learning rate; whether to leave the vote out
        if settings is None:  # wrong settings are told before a model is loaded
            TTTSettings.preset("text" if preset is None else preset, **changes)
        elif not isinstance(settings, TTTSettings):
            raise ConfigError(f"TTT: settings is {shown(settings)}; give TTTSettings(...), or leave it out.")

    @property
    def joint(self) -> bool:  # type: ignore[override]
        adapters = self.changes.get("adapters") if self.settings is None else self.settings.adapters
        return adapters == "shared"

    def __repr__(self) -> str:
        return f"TTT({', '.join(f'{name}={value!r}' for name, value in self.changes.items())})"

    @property
    def strength(self) -> str:
        return "the rate" if self.scale == 1 else f"{self.scale:g} × the rate"

    def strengths(self) -> list[Method[Any]]:
        """The rate that is set, and a third of it."""
        return [self.scaled(scale) for scale in STRENGTHS]

    def scaled(self, scale: float) -> TTT:
        """The same at another learning rate."""
        other = copy(self)
        other.scale = self.scale * scale
        return other

    def on_half(self) -> TTT:
        """The same without a vote. Examples of half of the demonstrations are half as long."""
        other = copy(self)
        other.asked_once = True
        return other

    def resolved(self, lm: LanguageModel, tasks: Sequence[Task]) -> TTTSettings:
        """The settings for these tasks on this model.

        Raises:
            DataError: If the model has none for such tasks.
        """
        settings = self.settings or self._suiting(lm, tasks)
        changes = ASKED_ONCE if self.asked_once else {}
        return replace(settings, learning_rate=settings.learning_rate * self.scale, **changes)

    def _suiting(self, lm: LanguageModel, tasks: Sequence[Task]) -> TTTSettings:
        kind = kind_of(tasks)
        suiting: Mapping[str, Any] | None = lm.defaults.get("ttt", {}).get(kind)
        if suiting is None and self.preset is None:
            raise DataError(f"{lm.name} cannot be trained on demonstrations of {kind}. Choose method 'mass'.")
        values = {"preset": "text", **(suiting or {})} if self.preset is None else {"preset": self.preset}
        preset, changes = values.pop("preset"), {**values, **_chat(lm), **self.changes}
        if kind == "grids" and not any("\n" in text for task in tasks for text in (task.problem, *data_key(task)[1:])):
            changes = {**STRIPS, **changes}
        return TTTSettings.preset(preset, **changes)

    def require(self, lm: LanguageModel, tasks: Sequence[Task]) -> None:
        if not all(task.demonstrations for task in tasks):
            raise DataError("The problem has no solved examples to train on. Add some, or choose method 'mass'.")
        self.require_room(lm, tasks)

    def require_room(self, lm: LanguageModel, tasks: Sequence[Task]) -> None:
        """Checks that every task and an answer fit into the model's context.

        Raises:
            DataError: If one does not.
        """
        answers = FewShotAnswers(lm, self.resolved(lm, tasks))
        for task in tasks:
            answers.require_room(task)

    # -- training -----------------------------------------------------------------------------------------------------

    def begin(self, lm: LanguageModel, tasks: Sequence[Task], seed: int) -> TTTState:
        """Training examples and an order of them for each distinct set of demonstrations.

        A set of which no data can be made gets the reason; the others go on.
        """
        settings = self.resolved(lm, tasks)
        lora, encoder = (
            lm.starting_lora(settings.lora),
            FewShotEncoder(lm.tokenizer, settings.format, lm.chat_template_kwargs),
        )
        places: dict[tuple[str, ...], int] = {}
        owners = [places.setdefault(data_key(task), len(places)) for task in tasks]
        distinct = [tasks[owners.index(place)] for place in range(len(places))]
        rows, reasons = [ExampleRows([], [])] * len(distinct), list[str | None]()
        for place, task in enumerate(distinct):
            try:
                examples = few_shot_examples(lm, settings, task, seed)
                pairs = [encoder.example(example, settings.loss_on) for example in examples]
                rows[place] = ExampleRows([ids for ids, _ in pairs], [learned for _, learned in pairs])
                reasons.append(None)
            except DataError as error:
                reasons.append(str(error))
        trained = [place for place, reason in enumerate(reasons) if reason is None]
        if settings.adapters == "shared":
            sequences = [ids for place in trained for ids in rows[place].sequences]
            learned = [flags for place in trained for flags in rows[place].learned]
            parts, seeds = [ExampleRows(sequences, learned)] * bool(trained), [row_seed("order", seed)]
            adapters = [0 if place in trained else -1 for place in range(len(distinct))]
        else:
            parts = [rows[place] for place in trained]
            seeds = [row_seed("order", seed, *data_key(distinct[place])) for place in trained]
            adapters = [trained.index(place) if place in trained else -1 for place in range(len(distinct))]
        optimizer = make_optimizer(
            "adamw",
            settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            epsilon=settings.adam_epsilon,
            weight_decay=settings.weight_decay,
        )
        return TTTState(
            tuple(tasks),
            settings,
            tuple(owners),
            tuple(reasons),
            tuple(adapters),
            tuple(map(len, rows)),
            tuple(parts),
            tuple(_batches(len(part), settings, one) for part, one in zip(parts, seeds, strict=False)),
            lora,
            optimizer,
            begin_fit(lora.start(max(1, len(parts))), optimizer),
            ((),) * len(parts),
            row_seed("dropout", seed),
        )

    def step(self, lm: LanguageModel, state: TTTState) -> TTTState:
        """One minibatch of each adapter that is not done."""
        settings, index = state.settings, state.fit.step
        present = [n for n, batches in enumerate(state.batches) if index < len(batches)]
        owners = [n for n in present for _ in state.batches[n][index]]
        pairs = [(state.rows[n], r) for n in present for r in state.batches[n][index]]
        sequences, learned = [rows.sequences[r] for rows, r in pairs], [rows.learned[r] for rows, r in pairs]
        batch = token_batch(sequences, learned, owners, int(lm.tokenizer.pad_token_id), lm.device)
        single: dict[str, Any] = {"device": lm.device, "dtype": torch.float32}
        counts = torch.tensor([1 / len(state.batches[n][index]) for n in owners], **single)
        rates = torch.zeros(len(state.rows), **single)
        for n in present:
            rates[n] = schedule_factor(settings.lr_scheduler_type, index, len(state.batches[n]), settings.warmup_steps)
        with deterministic(lm.model), state.lora.inactive():
            share, seed = settings.lora_dropout, state.dropout_seed
            loss = TokenLoss(lm.model, state.lora.function, batch, dropout=share, seed=seed).at_step(index)
            loss.use(training_plan(loss, trees.tree_map(lambda leaf: leaf[:1], state.fit.params)))
            fit, values = fit_step(FitStep(loss, counts, rates), state.fit, state.optimizer, settings.max_grad_norm)
        losses, sizes = list(state.losses), [len(state.batches[n][index]) for n in present]
        for n, own in zip(present, values.split(sizes), strict=True):
            losses[n] = (*losses[n], float(own.mean()))
        return replace(state, fit=fit, losses=tuple(losses))

    def stop(self, state: TTTState) -> bool:
        return state.fit.step >= max(map(len, state.batches), default=0)

    def progress(self, state: TTTState) -> Progress:
        steps = max(map(len, state.batches), default=0)
        latest = [values[-1] for values in state.losses if len(values) == state.fit.step and values]
        loss = sum(latest) / len(latest) if latest else None
        return Progress("Training on the demonstrations", state.fit.step, steps, loss)

    def finish(self, lm: LanguageModel, state: TTTState) -> list[Adaptation]:
        """Tasks that share an adapter have the same object."""
        parts: list[tuple[Part, ...]] = []
        for n in range(len(state.rows)):
            tree = trees.tree_map(lambda x, n=n: x[n : n + 1].clone(), state.fit.params)
            finite = all(bool(leaf.isfinite().all()) for leaf in tree.values())
            parts.append(((state.lora, tree),) if finite else ())
        adaptations = []
        for task, place in zip(state.tasks, state.owners, strict=True):
            n, reason = state.adapters[place], state.reasons[place]
            if n >= 0 and not parts[n]:
                reason = "the training loss is not finite; lower learning_rate"
            losses = state.losses[n] if n >= 0 else ()
            trained = parts[n] if n >= 0 else ()
            adaptations.append(Adaptation(task, trained, reason, losses, state.examples[place]))
        return adaptations

    # -- answering ----------------------------------------------------------------------------------------------------

    def answer(
        self, lm: LanguageModel, tasks: Sequence[Task], adaptations: Sequence[Adaptation] | None, seed: int
    ) -> list[Answer]:
        """Every task under all its views, and the answers by the vote, best first."""
        parts = None if adaptations is None else [each.parts[-1] if each.parts else None for each in adaptations]
        return FewShotAnswers(lm, self.resolved(lm, tasks)).answer(tasks, parts, seed)

    def explain(self, lm: LanguageModel, adaptation: Adaptation) -> list[dict[str, Any]]:
        """Each demonstration with its loss behind the others, before and after: nats per token."""
        settings, task = self.resolved(lm, [adaptation.task]), adaptation.task
        answers = FewShotAnswers(lm, settings)
        left_out = [task.leave_one_out(n) for n in range(len(task.demonstrations))]
        rows = [answers.encoder.answered(each, str(each.answer)) for each in left_out]
        batch = answers.batch([ids for ids, _ in rows], [flags for _, flags in rows], [0] * len(rows))

        def losses(part: Part | None) -> list[float | None]:
            sums = answers.summed_log_probs(batch, part)
            return [-value / sum(flags) for value, (_, flags) in zip(sums, rows, strict=True)]

        before = losses(None)
        after = losses(adaptation.parts[-1]) if adaptation.parts else [None] * len(rows)
        return [
            {"question": pair.question, "answer": pair.answer, "loss_before": old, "loss_after": new}
            for pair, old, new in zip(task.demonstrations, before, after, strict=True)
        ]

    def defaults(self, lm: LanguageModel, tasks: Sequence[Task]) -> dict[str, Any]:
        kind, by_kind = kind_of(tasks), dict(lm.defaults.get("ttt", {}))
        suiting = {"preset": self.preset} if self.preset else dict(by_kind.get(kind, {"preset": "text"}))
        changes = self.changes if self.settings is None else vars(self.settings)
        return {**lm.defaults, "ttt": {**by_kind, kind: {**suiting, **_chat(lm), **changes}}}


def _chat(lm: LanguageModel) -> dict[str, Any]:
    """The setting of whether tasks are a chat, where the model says so."""
    return {} if lm.chat is None else {"chat": lm.chat}


def few_shot_examples(lm: LanguageModel, settings: TTTSettings, task: Task, seed: int) -> list[TrainingExample]:
    """The training examples of a task, as many as fit into the model's context.

    Raises:
        DataError: If none can be made.
    """
    data = settings.data()
    encoder = FewShotEncoder(lm.tokenizer, settings.format, lm.chat_template_kwargs)
    limits = [n for n in (data.max_tokens, lm.context) if n is not None]
    return training_examples(
        task,
        replace(data, max_tokens=min(limits, default=None)),
        row_seed("few-shot", seed, *data_key(task)),
        lambda example: len(encoder.example(example, "query")[0]),
    )


def data_key(task: Task) -> tuple[str, ...]:
    """What a task's training data depend on."""
    pairs = tuple(text for pair in task.demonstrations for text in (pair.question, pair.answer))
    return task.fields.get(INSTRUCTION, ""), *pairs


def sharing_data(tasks: Sequence[Task]) -> list[list[int]]:
    """Numbers of tasks, those with the same data together."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for n, task in enumerate(tasks):
        groups.setdefault(data_key(task), []).append(n)
    return list(groups.values())


def _batches(count: int, settings: TTTSettings, seed: int) -> list[list[int]]:
    """Rows of each step: every epoch goes over all of them in an order of its own."""
    rng, steps, size = random.Random(seed), list[list[int]](), settings.per_device_train_batch_size
    for _ in range(settings.num_train_epochs):
        order = rng.sample(range(count), count)
        steps.extend(order[i : i + size] for i in range(0, count, size))
    return steps
