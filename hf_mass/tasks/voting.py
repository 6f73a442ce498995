r"""From many predictions for one task to a few ranked answers, and how good these are.

A task is answered once per transformation of its grids, order of its demonstrations and sample. Predictions are texts,
mapped back already; two agree if their texts are equal, so grids come in one form (the canonical one, "0 1\n2 3").

Where answers tie, the one that was predicted more often without a transformation goes first, then the one seen first:
the order depends on the predictions alone, never on hashes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

from hf_mass.errors import DataError
from hf_mass.tasks.checks import require_whole
from hf_mass.tasks.grids import Grid, canonical_grid, grid_text, parse_grid, transposed

_T = TypeVar("_T")

IDENTITY = "identity"
"""Name of the transformation that changes nothing."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer to a task, in the task's own orientation and colours.

    Args:
        answer: The answer; None if the generated text could not be read, or not be mapped back.
        transformation: Name of the transformation under which it was generated.
        permutation: Number of the order of demonstrations under which it was generated.
        log_prob: Log-probability of the generated text, where it is known; no vote uses it.
        cut: Whether the generated text was ended by the limit of tokens, not by the model.
    """

    answer: str | None
    transformation: str = IDENTITY
    permutation: int = 0
    log_prob: float | None = None
    cut: bool = False


def hierarchical_vote(predictions: Iterable[Prediction], within: int = 3, top: int = 2) -> list[str]:
    """Votes within each transformation, then across transformations (arXiv 2411.07279, §4).

    Every transformation puts forward its `within` most frequent answers. One that has fewer distinct answers adds the
    grid of its most frequent rows and the one of its most frequent columns, as far as they are new and needed. Then
    each transformation has one vote for each answer that it put forward. Of answers with as many votes, those that
    were predicted more often without a transformation go first, then first choices before second ones.

    Args:
        predictions: The predictions for one task; those without an answer have no vote.
        within: Answers that each transformation puts forward at most.
        top: Answers to return at most, best first.
    """
    require_whole("hierarchical_vote: within", within, 1)
    require_whole("hierarchical_vote: top", top, 1)
    groups: dict[str, list[str]] = {}
    for prediction in predictions:
        if prediction.answer is not None:
            groups.setdefault(prediction.transformation, []).append(prediction.answer)
    choices = [_put_forward(answers, within) for answers in groups.values()]
    # First choices before second ones, whichever transformation has them.
    ballots = [answer for place in zip_longest(*choices) for answer in place if answer is not None]
    return _ranked(ballots, Counter(groups.get(IDENTITY, ())))[:top]


def flat_vote(predictions: Iterable[Prediction], top: int = 2) -> list[str]:
    """One vote for each prediction with an answer, whatever its transformation: at most `top` answers, best first."""
    require_whole("flat_vote: top", top, 1)
    answers = [(each.answer, each.transformation) for each in predictions if each.answer is not None]
    untransformed = Counter(answer for answer, transformation in answers if transformation == IDENTITY)
    return _ranked([answer for answer, _ in answers], untransformed)[:top]


def self_consistency(predictions: Iterable[Prediction], top: int = 2) -> list[str]:
    """The `flat_vote` of the predictions without a transformation: the usual majority among sampled answers."""
    return flat_vote([each for each in predictions if each.transformation == IDENTITY], top)


def rescore(candidates: Mapping[str, Sequence[float]]) -> list[str]:
    """Ranks candidates by their mean log-probability under transformations (as the winners of the ARC Prize 2024 did).

    Args:
        candidates: Answer → the log-probability of the (transformed) answer under each transformation of the task, the
            same transformations for all. Of equally likely answers the first in the mapping goes first.
    """
    counts = {len(log_probs) for log_probs in candidates.values()}
    if len(counts) > 1 or 0 in counts:
        raise DataError(
            f"rescore: the candidates have {sorted(counts)} log-probabilities each. Score every candidate under the "
            "same transformations, at least one."
        )
    for answer, log_probs in candidates.items():
        if any(math.isnan(value) or value == math.inf for value in log_probs):
            raise DataError(f"rescore: {list(log_probs)} of {answer[:80]!r} are no log-probabilities. Use numbers.")
    # Every candidate has as many, so the sum ranks as the mean does.
    return sorted(candidates, key=lambda answer: -math.fsum(candidates[answer]))


def cell_accuracy(answer: str | None, gold: str) -> float:
    """The share of cells that are right; 0 for a grid of another shape, a text that is no grid, or None."""
    expected = parse_grid(gold)
    if expected is None:
        raise DataError(f"cell_accuracy: the gold answer is no grid: {gold[:80]!r}. Use it for tasks on grids only.")
    grid = parse_grid(answer) if answer is not None else None
    if grid is None or _shape(grid) != _shape(expected):
        return 0.0
    pairs = [pair for rows in zip(grid, expected, strict=True) for pair in zip(*rows, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def majority_rows(grids: Sequence[Grid]) -> Grid:
    """The grid of the most frequent row at each place, of at least one grid.

    It has the most frequent shape, and a row counts if its grid is as wide as that. Ties go to what is seen first.
    """
    height, width = _by_count(_shape(grid) for grid in grids)[0]
    wide = [grid for grid in grids if len(grid[0]) == width]
    return tuple(_by_count(grid[row] for grid in wide if row < len(grid))[0] for row in range(height))


def majority_columns(grids: Sequence[Grid]) -> Grid:
    """The grid of the most frequent column at each place; otherwise as `majority_rows`."""
    return transposed(majority_rows([transposed(grid) for grid in grids]))


def _put_forward(answers: Sequence[str], within: int) -> list[str]:
    """The most frequent answers, filled up from the most frequent rows and columns."""
    choices = _by_count(answers)
    grids = [grid for answer in answers if (grid := canonical_grid(answer)) is not None]
    if grids and len(choices) < within:
        for majority in (majority_rows, majority_columns):
            filler = grid_text(majority(grids))
            if filler not in choices:
                choices.append(filler)
    return choices[:within]


def _by_count(values: Iterable[_T]) -> list[_T]:
    """The distinct values, most frequent first; of equally frequent ones the first seen."""
    return [value for value, _ in Counter(values).most_common()]


def _ranked(ballots: Iterable[str], untransformed: Mapping[str, int]) -> list[str]:
    """The distinct answers by votes, then by how often they were predicted without a transformation, then as seen."""
    votes = Counter(ballots)
    return sorted(votes, key=lambda answer: (-votes[answer], -untransformed.get(answer, 0)))


def _shape(grid: Grid) -> tuple[int, int]:
    return len(grid), len(grid[0])
