"""Reinforcement learning at test time: which prompts answers are sampled to, and what earns a reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from accelerate.utils import gather_object

from hf_mass.errors import DataError
from hf_mass.lm.few_shot_encoding import View, task_views
from hf_mass.methods.ttt import FewShotAdapter, data_key
from hf_mass.tasks.answers import score_answers
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

    def read(self, text: str, few_shot: FewShotAdapter) -> str | None:
        """The answer in a completion, in the task's own orientation."""
        return self.view.read(few_shot.encoder.format, text).answer


def reinforced_prompts(
    few_shot: FewShotAdapter, tasks: Sequence[Task], reward: str, seed: int
) -> list[ReinforcedPrompt]:
    """What to sample answers to for tasks that share an adapter.

    "exact_match": the left-out demonstrations of their training examples. "majority": the views of their own queries.

    Raises:
        DataError: If nothing can be made of them.
    """
    if reward == "majority":
        views = [v for n, task in enumerate(tasks) for v in task_views(n, task, few_shot.predict_config, seed)]
        return [_prompt(few_shot, view, None) for view in views]
    prompts: dict[str, ReinforcedPrompt] = {}
    for task in {data_key(task): task for task in reversed(tasks)}.values():  # one of those with the same data
        for example in few_shot.examples(task, seed):
            shown = _as_task(task, example)
            prompt = _prompt(few_shot, View(0, shown, Identity(), None, 0, 0), example.query.answer)
            prompts.setdefault(f"{prompt.text}\0{prompt.gold}", prompt)
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


def _prompt(few_shot: FewShotAdapter, view: View, gold: str | None) -> ReinforcedPrompt:
    ids = few_shot.encoder.prompt(view.task)
    return ReinforcedPrompt(few_shot.tokenizer.decode(ids, skip_special_tokens=False), ids, view, gold)


def ttt_reward(
    prompts: Sequence[ReinforcedPrompt], few_shot: FewShotAdapter, completions: Sequence[str], numbers: Sequence[int]
) -> list[float]:
    """Rewards of this process's completions, each to the prompt of that number.

    The majority is that of all processes' completions of a prompt; of equally frequent answers the first one. A
    completion that cannot be read earns nothing and has no vote.
    """
    read = [prompts[n].read(text, few_shot) for n, text in zip(numbers, completions, strict=True)]
    votes: dict[int, Counter[str]] = {}
    for n, answer in gather_object(list(zip(numbers, read, strict=True))):
        if answer is not None:
            votes.setdefault(n, Counter())[answer] += 1
    return [_reward(prompts[n], answer, votes.get(n)) for n, answer in zip(numbers, read, strict=True)]


def _reward(prompt: ReinforcedPrompt, answer: str | None, votes: Counter[str] | None) -> float:
    if answer is None or not votes:
        return 0.0
    if prompt.gold is None:
        return float(answer == votes.most_common(1)[0][0])
    score = score_answers(prompt.view.task, [answer], [])
    return float(score is not None and score.pass_1)
