"""Reinforcement learning at test time: which prompts answers are sampled to, and what earns a reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from accelerate.utils import gather_object

from hf_mass.errors import DataError
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.ttt import FewShotExamples, data_key
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.methods.views import View, task_views
from hf_mass.tasks.answers import score_answers
from hf_mass.tasks.few_shot_format import FewShotFormat
from hf_mass.tasks.leave_one_out import INSTRUCTION, TrainingExample
from hf_mass.tasks.task import Task
from hf_mass.tasks.transformations import Identity


@dataclass(frozen=True)
class ReinforcedPrompt:
    """One prompt to sample answers to.

    Args:
        text: As the model reads it.
        ids: Its tokens.
        view: Reads an answer.
        gold: The answer that is rewarded, in canonical form; None for agreement with the majority.
    """

    text: str
    ids: list[int]
    view: View
    gold: str | None


def reinforced_prompts(
    lm: LanguageModel, settings: TTTSettings, tasks: Sequence[Task], reward: str, seed: int
) -> list[ReinforcedPrompt]:
    """What to sample answers to for tasks that share an adapter.

    "exact_match": the left-out demonstrations of their training examples. "majority": the views of their own queries.

    Raises:
        DataError: If nothing can be made of them.
    """
    answers = FewShotAnswers(lm, settings)

    def prompt(view: View, gold: str | None) -> ReinforcedPrompt:
        ids = answers.encoder.prompt(view.task)
        return ReinforcedPrompt(lm.tokenizer.decode(ids, skip_special_tokens=False), ids, view, gold)

    if reward == "majority":
        return [prompt(view, None) for n, task in enumerate(tasks) for view in task_views(n, task, settings, seed)]
    prompts: dict[str, ReinforcedPrompt] = {}
    for task in {data_key(task): task for task in reversed(tasks)}.values():  # one of those with the same data
        for example in FewShotExamples(lm, settings).of(task, seed):
            view = View(0, _as_task(task, example), Identity(), None, 0, 0)
            each = prompt(view, example.query.answer)
            prompts.setdefault(f"{each.text}\0{each.gold}", each)
    if not prompts:
        raise DataError("There are no tasks to sample answers for. Give at least one.")
    return list(prompts.values())


def _as_task(task: Task, example: TrainingExample) -> Task:
    fields = {**task.fields, INSTRUCTION: example.instruction} if example.instruction else dict(task.fields)
    return replace(
        task,
        problem=example.query.question,
        answer=example.query.answer,
        demonstrations=example.demonstrations,
        solution=None,
        fields=fields,
    )


def ttt_reward(
    prompts: Sequence[ReinforcedPrompt], fmt: FewShotFormat, completions: Sequence[str], numbers: Sequence[int]
) -> list[float]:
    """Rewards of this process's completions, each to the prompt of that number.

    The majority is that of all processes' completions of a prompt; of equally frequent answers the first one. A
    completion that cannot be read earns nothing and has no vote.
    """
    answers = [prompts[n].view.read(fmt, text).answer for n, text in zip(numbers, completions, strict=True)]
    votes: dict[int, Counter[str]] = {}
    for n, answer in gather_object(list(zip(numbers, answers, strict=True))):
        if answer is not None:
            votes.setdefault(n, Counter())[answer] += 1
    return [_reward(prompts[n], answer, votes.get(n)) for n, answer in zip(numbers, answers, strict=True)]


def _reward(prompt: ReinforcedPrompt, answer: str | None, votes: Counter[str] | None) -> float:
    if answer is None or not votes:
        return 0.0
    if prompt.gold is None:
        return float(answer == votes.most_common(1)[0][0])
    score = score_answers(prompt.view.task, [answer], [])
    return float(score is not None and score.pass_1)
