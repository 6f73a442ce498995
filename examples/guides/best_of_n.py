"""Best of n, a method of your own: sample n answers, take the one whose tokens the model finds likeliest on average.

hf_mass.adapt("grids-base", task, BestOfN(16)).answer()
hf-mass evaluate puzzles --methods few-shot,best_of_n:BestOfN       # in this folder
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_mass import Task
from hf_mass.lm.generation import row_seed
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Answer, Method
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.ttt import TTT
from hf_mass.methods.ttt_settings import ASKED_ONCE

GREEDY, SAMPLED = TTT(**ASKED_ONCE), TTT(**{**ASKED_ONCE, "predict_temperature": 1.0})


@dataclass(frozen=True)
class Candidates(Adaptation):
    """A task's record: log-probability per token and text of each answer. It has no adapted weights."""

    scored: tuple[tuple[float, str | None], ...] = ()


@dataclass
class BestOfN(Method[list[Candidates]]):
    """Each step samples one more answer to every task by the few-shot prompt; the model as it is scores it."""

    n: int = 8
    name = "best of n"

    def begin(self, lm: LanguageModel, tasks: Sequence[Task], seed: int) -> list[Candidates]:
        return [Candidates(task, seed=seed) for task in tasks]

    def step(self, lm: LanguageModel, state: list[Candidates]) -> list[Candidates]:
        tasks, seed = [each.task for each in state], row_seed("best of n", state[0].seed, len(state[0].scored))
        model = FewShotAnswers(lm, SAMPLED.resolved(lm, tasks))
        texts = [[each.answer] if each.answer else [] for (each,) in model.predict(tasks, seed=seed)[0]]
        records = []
        for each, sums in zip(state, model.log_probs(tasks, texts), strict=True):
            means = [(v / sum(model.encoder.answered(each.task, text)[1]), text) for text, (v,) in sums.items()]
            records.append(replace(each, scored=(*each.scored, *(means or ((-math.inf, None),)))))
        return records

    def stop(self, state: list[Candidates]) -> bool:
        return len(state[0].scored) == self.n

    def finish(self, lm: LanguageModel, state: list[Candidates]) -> list[Adaptation]:
        return list(state)

    def answer(self, lm: LanguageModel, tasks: Sequence[Task], adaptations: Any, seed: int) -> list[Answer]:
        if [each.task for each in adaptations or ()] != list(tasks):  # nothing was sampled for these questions
            return GREEDY.answer(lm, tasks, None, seed)
        return [Answer.judged(task, max(each.scored)[1]) for task, each in zip(tasks, adaptations, strict=True)]
