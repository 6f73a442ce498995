"""Reinforcement learning at test time as a method: which prompts answers are sampled to, and what earns a reward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate.utils import gather_object

from hf_mass.core.trees import Tree
from hf_mass.engine.session import passes
from hf_mass.errors import DataError
from hf_mass.lm.adapters import Part
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation, Progress
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.ttt import TTT, data_key, few_shot_examples
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.methods.views import View, task_views
from hf_mass.tasks.answers import score_answers
from hf_mass.tasks.few_shot_format import FewShotFormat
from hf_mass.tasks.grid_transformations import Identity
from hf_mass.tasks.leave_one_out import INSTRUCTION, TrainingExample
from hf_mass.tasks.task import Task


@dataclass(frozen=True)
class ReinforcedPrompt:
    """One prompt to sample answers to."""

    text: str  # as the model reads it
    ids: list[int]  # its tokens
    view: View  # reads an answer
    gold: str | None  # the answer that is rewarded, in canonical form; None for agreement with the majority


Reinforce = Callable[[list[ReinforcedPrompt]], tuple[Tree, tuple[float, ...]]]
"""Runs TRL's loop on prompts: (trained matrices, leaves [1, ...]; mean reward of each logged step)."""


@dataclass(frozen=True)
class ReinforcedState:
    """How many of the groups of tasks that share an adapter are through."""

    tasks: tuple[Task, ...]
    seed: int  # of the training examples
    groups: tuple[tuple[int, ...], ...]  # numbers of tasks that share an adapter
    adaptations: dict[int, Adaptation] = field(default_factory=dict)  # by number of the task, as far as it is


class Reinforcement(TTT):
    """Answers as `TTT` does, at weights that a loop of TRL trained.

    Args:
        settings: What examples to make, and how tasks are asked.
        reward: "exact_match" or "majority"; see `reinforced_prompts`.
        reinforce: The loop.
    """

    name = "grpo"

    def __init__(self, settings: TTTSettings, reward: str, reinforce: Reinforce) -> None:
        super().__init__(settings)
        self.reward, self.reinforce = reward, reinforce

    def begin(self, lm: LanguageModel, tasks: Sequence[Task], seed: int) -> Any:
        groups = [list(range(len(tasks)))] if self.joint else passes(tasks, 1)
        return ReinforcedState(tuple(tasks), seed, tuple(map(tuple, groups)))

    def step(self, lm: LanguageModel, state: Any) -> Any:
        """One run of the loop, for the next group."""
        group = next(group for group in state.groups if group[0] not in state.adaptations)
        settings, part = self.resolved(lm, state.tasks), [state.tasks[n] for n in group]
        prompts: list[ReinforcedPrompt] = []
        parts: tuple[Part, ...] = ()
        reason: str | None = None
        rewards: tuple[float, ...] = ()
        try:
            prompts = reinforced_prompts(lm, settings, part, self.reward, state.seed)
            tree, rewards = self.reinforce(prompts)
            if all(bool(leaf.isfinite().all()) for leaf in tree.values()):
                parts = ((lm.starting_lora(), tree),)
            else:
                reason = "the weights are not finite; lower learning_rate"
        except DataError as error:
            reason = str(error)
        trained = {n: Adaptation(state.tasks[n], parts, reason, rewards, len(prompts)) for n in group}
        return replace(state, adaptations={**state.adaptations, **trained})

    def stop(self, state: Any) -> bool:
        return len(state.adaptations) == len(state.tasks)

    def progress(self, state: Any) -> Progress:
        return Progress("Learning from rewards")

    def finish(self, lm: LanguageModel, state: Any) -> list[Adaptation]:
        return [state.adaptations[n] for n in range(len(state.tasks))]


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
    prompts: dict[tuple[Any, ...], ReinforcedPrompt] = {}
    for task in {data_key(task): task for task in reversed(tasks)}.values():  # one of those with the same data
        for example in few_shot_examples(lm, settings, task, seed):
            each = prompt(View(0, _as_task(task, example), Identity(), None, 0, 0), example.query.answer)
            prompts.setdefault((*each.ids, each.gold), each)
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

    def reward(n: int, answer: str | None) -> float:
        if answer is None:
            return 0.0
        if prompts[n].gold is None:
            return float(answer == votes[n].most_common(1)[0][0])
        score = score_answers(prompts[n].view.task, [answer], [])
        return float(score is not None and score.pass_1)

    return [reward(n, answer) for n, answer in zip(numbers, answers, strict=True)]
