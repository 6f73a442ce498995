"""From the predictions for a task to ranked answers, and from these to metrics, for grids and texts alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import hf_mass.tasks.bbh  # noqa: F401 - makes its verifier known
from hf_mass.errors import ConfigError, VerifierError
from hf_mass.tasks.checks import require_one_of
from hf_mass.tasks.grids import canonical_grid
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import verify_each
from hf_mass.tasks.voting import (
    IDENTITY,
    Prediction,
    cell_accuracy,
    flat_vote,
    hierarchical_vote,
    rescore,
    self_consistency,
)

VOTES = ("hierarchical", "flat", "self_consistency", "rescore", "first")
"""Ways to rank answers; "first" takes the predictions without a transformation as they come."""


def rank_answers(
    predictions: Sequence[Prediction],
    vote: str,
    within: int = 3,
    top: int = 2,
    scores: Mapping[str, Sequence[float]] | None = None,
) -> list[str]:
    """The best answers by one of `VOTES`, best first.

    Args:
        predictions: The predictions for one task.
        vote: How to rank.
        within: For "hierarchical": answers that each transformation puts forward.
        top: Answers to return at most.
        scores: For "rescore": answer → its log-probabilities under the task's views.
    """
    require_one_of("vote", vote, VOTES)
    if vote == "hierarchical":
        return hierarchical_vote(predictions, within, top)
    if vote == "flat":
        return flat_vote(predictions, top)
    if vote == "self_consistency":
        return self_consistency(predictions, top)
    if vote == "first":
        return candidates([each for each in predictions if each.transformation == IDENTITY])[:top]
    if scores is None:
        raise ConfigError("rank_answers: vote='rescore' needs scores. Give the candidates' log-probabilities.")
    return rescore(scores)[:top]


def candidates(predictions: Sequence[Prediction]) -> list[str]:
    """The distinct answers, as first seen."""
    return list(dict.fromkeys(p.answer for p in predictions if p.answer is not None))


@dataclass(frozen=True)
class TaskScore:
    """How good the answers to one task with a known answer are.

    Args:
        pass_1: Whether the first answer is right.
        pass_2: Whether one of the first two is.
        oracle: Whether any prediction is right: the best that a vote could reach.
        cells: Share of the first answer's cells that are right, for grids; None for texts.
    """

    pass_1: bool
    pass_2: bool
    oracle: bool
    cells: float | None


def score_answers(task: Task, answers: Sequence[str], predictions: Sequence[Prediction]) -> TaskScore | None:
    """Judges ranked answers and the predictions behind them; None for a task whose answer is not known.

    They are judged by the task's verifier; grids whose verifier is "exact_match" are right if all cells are.

    Raises:
        VerifierError: If the verifier is unknown, or cannot judge one of them.
    """
    score = try_scoring(task, answers, predictions)
    if isinstance(score, VerifierError):
        raise score
    return score


def try_scoring(
    task: Task, answers: Sequence[str], predictions: Sequence[Prediction]
) -> TaskScore | VerifierError | None:
    """As `score_answers`; the error where the verifier raised on one of them.

    Raises:
        VerifierError: If the verifier is unknown, or returns what is no number from 0 to 1.
    """
    if task.answer is None:
        return None
    is_grid = canonical_grid(task.answer) is not None
    if is_grid and task.verifier == "exact_match":  # a lone digit is a grid, too, and may be a number for others
        right = {task.answer}
    else:
        right = set[str]()
        distinct = list(dict.fromkeys([*answers, *candidates(predictions)]))
        for answer, reward in zip(distinct, verify_each([task] * len(distinct), distinct), strict=True):
            if isinstance(reward, VerifierError):
                return reward
            right |= {answer} if reward >= 1.0 else set()
    return TaskScore(
        pass_1=any(answer in right for answer in answers[:1]),
        pass_2=any(answer in right for answer in answers[:2]),
        oracle=any(p.answer in right for p in predictions),
        cells=cell_accuracy(answers[0] if answers else None, task.answer) if is_grid else None,
    )


def mean_scores(scores: Sequence[TaskScore | None]) -> dict[str, float]:
    """pass@1, pass@2, oracle, and cell accuracy where there are grids, over the tasks with a known answer."""
    known = [score for score in scores if score is not None]
    if not known:
        return {}
    means = {
        "pass@1": fmean(score.pass_1 for score in known),
        "pass@2": fmean(score.pass_2 for score in known),
        "oracle": fmean(score.oracle for score in known),
    }
    cells = [score.cells for score in known if score.cells is not None]
    return means | ({"cell_accuracy": fmean(cells)} if cells else {})
