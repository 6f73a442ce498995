"""Answering without adapting: the model as it is, and a majority vote over sampled answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hf_mass.errors import ConfigError
from hf_mass.lm.binding import deterministic
from hf_mass.lm.generation import Sampling, complete, row_seed
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Answer, Method, is_method
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.judging import judge
from hf_mass.methods.mass import MASS, as_read
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.sampling import is_ended
from hf_mass.methods.ttt import TTT
from hf_mass.methods.ttt_settings import ASKED_ONCE
from hf_mass.tasks.checks import require_method, require_whole, shown
from hf_mass.tasks.kinds import kind_of
from hf_mass.tasks.task import Task


class NoAdaptation(Method[tuple[Task, ...]]):
    """The model as it is.

    Args:
        asks: The method whose prompt and vote it answers by; None for the few-shot prompt where tasks have
            demonstrations and the model has one for such tasks, else that of MASS.
    """

    name = "none"

    def __init__(self, asks: Method[Any] | None = None) -> None:
        if asks is not None and not is_method(asks):
            raise ConfigError(f"NoAdaptation.asks is {shown(asks)}; give a method, such as TTT(), or leave it out.")
        self.asks = asks

    def _asks(self, lm: LanguageModel, tasks: Sequence[Task]) -> Method[Any]:
        few_shot = kind_of(tasks) in lm.defaults.get("ttt", {}) and all(task.demonstrations for task in tasks)
        return self.asks or (TTT() if few_shot else MASS())

    def require(self, lm: LanguageModel, tasks: Sequence[Task]) -> None:
        asks = self._asks(lm, tasks)
        if isinstance(asks, TTT):
            asks.require_room(lm, tasks)  # demonstrations are not needed for answering
        else:
            asks.require(lm, tasks)

    def begin(self, lm: LanguageModel, tasks: Sequence[Task], seed: int) -> tuple[Task, ...]:
        return tuple(tasks)

    def step(self, lm: LanguageModel, state: tuple[Task, ...]) -> tuple[Task, ...]:
        """Nothing."""
        return state

    def stop(self, state: tuple[Task, ...]) -> bool:
        """At once."""
        return True

    def finish(self, lm: LanguageModel, state: tuple[Task, ...]) -> list[Adaptation]:
        """Records without adapted weights."""
        return [Adaptation(task) for task in state]

    def answer(
        self, lm: LanguageModel, tasks: Sequence[Task], adaptations: Sequence[Adaptation] | None, seed: int
    ) -> list[Answer]:
        return self._asks(lm, tasks).answer(lm, tasks, None, seed)


class MajorityVote(NoAdaptation):
    """The most frequent of several sampled answers; ties go to the answer seen first.

    Args:
        samples: Answers to each task.
        token_budget: Tokens for each task, instead: as many answers as fit, by the length of a greedy one.
        asks: Whose prompt it asks by.
    """

    name = "vote"
    asks: MASS

    def __init__(self, samples: int = 16, token_budget: float | None = None, asks: MASS | None = None) -> None:
        require_whole("MajorityVote.samples", samples, 1, 4096)
        if token_budget is not None and (type(token_budget) not in (int, float) or not 0 < token_budget <= 1e9):
            raise ConfigError(f"MajorityVote.token_budget is {shown(token_budget)}; choose a number above 0, or None.")
        require_method("MajorityVote.asks", asks, MASS)
        self.samples, self.token_budget, self.asks = samples, token_budget, asks or MASS()

    def answer(
        self, lm: LanguageModel, tasks: Sequence[Task], adaptations: Sequence[Adaptation] | None, seed: int
    ) -> list[Answer]:
        """The tokens are those of all votes."""
        mass, tasks = self.asks.resolved(lm, tasks), as_read(lm, tasks)
        if self.token_budget is None:
            return vote(mass, tasks, self.samples, seed)
        places: dict[int, list[int]] = {}  # each task has a number of votes of its own, whatever else is asked with it
        for n, greedy in enumerate(mass.solve(tasks)):
            places.setdefault(max(1, round(self.token_budget / max(1, greedy.sampled_tokens))), []).append(n)
        answers = dict[int, Answer]()
        for count, numbers in places.items():
            answers.update(zip(numbers, vote(mass, [tasks[n] for n in numbers], count, seed), strict=True))
        return [answers[n] for n in range(len(tasks))]


def vote(mass: MassModel, tasks: Sequence[Task], count: int, seed: int) -> list[Answer]:
    """The majority among `count` sampled solutions of each task."""
    answers = dict[int, Answer]()
    few_shot = [n for n, task in enumerate(tasks) if mass.encoder.few_shot_for(task)]
    if few_shot and mass.config.few_shot is not None:
        settings = {**ASKED_ONCE, "predict_samples": count, "predict_temperature": 1.0, "vote": "flat"}
        few_shot_answers = FewShotAnswers(mass, replace(mass.config.few_shot, **settings))
        answers.update(zip(few_shot, few_shot_answers.answer([tasks[n] for n in few_shot], None, seed), strict=True))
    if asked := [n for n in range(len(tasks)) if n not in answers]:
        answers.update(zip(asked, _vote(mass, [tasks[n] for n in asked], count, seed), strict=True))
    return [answers[n] for n in range(len(tasks))]


def _vote(mass: MassModel, tasks: Sequence[Task], count: int, seed: int) -> list[Answer]:
    prompts = [mass.encoder.solver_prompt_ids(task) for task in tasks for _ in range(count)]
    seeds = [row_seed("vote", seed, task.id, task.problem, j) for task in tasks for j in range(count)]
    with deterministic(mass.model), mass.adapter.lora.inactive():
        ids = complete(mass.model, mass.tokenizer, prompts, Sampling(mass.config.max_answer_tokens, 1.0), seeds)
    texts = mass.tokenizer.batch_decode(ids, skip_special_tokens=True)
    winners, tokens, cut = [], [], []
    for n in range(len(tasks)):
        votes = texts[n * count : (n + 1) * count]
        answers = [parts.answer if (parts := mass.config.format.split_solution(text)) else None for text in votes]
        frequent = Counter(answer for answer in answers if answer is not None).most_common(1)
        first = answers.index(frequent[0][0] if frequent else None)
        winners.append(votes[first])
        cut.append(not is_ended(mass.encoder, ids[n * count + first]))
        tokens.append(sum(len(row) for row in ids[n * count : (n + 1) * count]))
    return judge(mass.config.format, tasks, winners, tokens, cut=cut)
