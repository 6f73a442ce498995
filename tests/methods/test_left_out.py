"""What a guard goes by: halves of the demonstrations, readings of left-out answers, the gain and its error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import hf_mass
from hf_mass import TTT, Adaptation, LanguageModel, Task
from hf_mass.engine.session import Session
from hf_mass.methods.base import GuardEntry
from hf_mass.methods.guard_choice import choose, common, said, told
from hf_mass.methods.left_out import Fold, Reading, counts_right, failure, gain, halves, read, rise
from hf_mass.methods.samples import AuxiliarySample

RULE = [("abc", "cba"), ("hello", "olleh"), ("stone", "enots"), ("plant", "tnalp"), ("lamp", "pmal"), ("ink", "kni")]


@pytest.fixture(scope="module")
def strings() -> LanguageModel:
    return hf_mass.load("strings-base", device="cpu")


def task() -> Task:
    return Task.from_pairs(RULE, "river", "revir")


def test_halves_hold_each_demonstration_once() -> None:
    (first, behind_first), (second, behind_second) = halves(task(), 0), halves(task(), 1)
    assert [pair.question for pair in first.demonstrations] == ["abc", "stone", "lamp"]
    pairs = [(each.problem, each.answer) for each in behind_first]
    assert pairs == [("hello", "olleh"), ("plant", "tnalp"), ("ink", "kni")]
    assert [each.problem for each in behind_second] == [pair.question for pair in first.demonstrations]
    for each in behind_second:  # the fold's first, then the others that are left out
        others = [pair for pair in first.demonstrations if pair.question != each.problem]
        assert each.demonstrations == (*second.demonstrations, *others)
    assert all(each.solution is None for each in (*behind_first, *behind_second))


@pytest.mark.parametrize("count", [4, 5, 6, 7, 10])
def test_a_second_cut_is_as_even_as_the_first_and_another_one(count: int) -> None:
    numbered = Task.from_pairs([(f"q{n}", f"a{n}") for n in range(count)], "?")
    kept = [[pair.question for pair in halves(numbered, half)[0].demonstrations] for half in range(4)]
    for a, b in (kept[:2], kept[2:]):
        assert sorted(a + b) == sorted(f"q{n}" for n in range(count)) and abs(len(a) - len(b)) <= 1
    assert sorted(kept[:2]) != sorted(kept[2:])
    assert [each.problem for each in halves(numbered, 2)[1]] == kept[3]


def test_what_is_right_is_what_the_method_writes(strings: LanguageModel) -> None:
    """Against the answers of the plain method, before and after training on the half."""
    method = TTT(max_examples=12, num_train_epochs=4, predict_transformations=["none"], vote="first")
    fold = Fold(0, 0, *halves(Task.from_pairs([(word, f"{word}x{word[0]}") for word, _ in RULE], "river"), 0))
    (trained,) = Session(strings, method).adapt([fold.task])
    for adaptation in (None, trained):
        adaptations = None if adaptation is None else [adaptation] * len(fold.left_out)
        written = [str(answer) for answer in method.answer(strings, fold.left_out, adaptations, 0)]
        right = sum(text == each.answer for text, each in zip(written, fold.left_out, strict=True))
        assert read(strings, method, method, fold, adaptation, 0).right.count(True) == right
    counts = [sum(map(bool, read(strings, method, method, fold, each, 0).right)) for each in (None, trained)]
    assert counts[1] == 3 > counts[0]


def test_the_gain_is_a_ratio_of_sums_with_the_error_of_one() -> None:
    """The error against the spread of the ratio over many resamples of the left-out answers."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 5, 400)
    before = -2.0 * tokens
    after = before + tokens * rng.normal(0.3, 1.0, 400)
    value, error = gain(Reading(tuple(before), tuple(tokens), ()), Reading(tuple(after), tuple(tokens), ()))
    assert value == pytest.approx((after - before).sum() / tokens.sum())
    draws = rng.integers(0, 400, (4000, 400))
    ratios = (after - before)[draws].sum(1) / tokens[draws].sum(1)
    assert error == pytest.approx(ratios.std(), rel=0.05)
    assert gain(Reading((-1.0,), (2,), ()), Reading((0.0,), (2,), ())) == (0.5, 0.0)


def test_readings_of_two_folds_are_put_together() -> None:
    both = Reading((-1.0,), (2,), (True,)) + Reading((-2.0, -3.0), (1, 1), (False, None))
    assert both == Reading((-1.0, -2.0, -3.0), (2, 1, 1), (True, False, None))


@pytest.mark.parametrize(
    ("first", "last", "room", "told"),
    [
        (5.0, 11.0, None, "rose from 5.00 to 11.00"),
        (5.0, 9.9, None, None),  # minibatches differ
        (0.1, 1.0, None, None),
        (0.1, 2.0, None, None),
        (0.1, 2.2, None, "rose from 0.10 to 2.20"),
        (0.5, 0.6, 0.0, "rose from 0.50 to 0.60"),
        (2.0, math.nan, None, "not finite"),
        (2.0, math.inf, None, "not finite"),
    ],
)
def test_a_loss_that_rises_is_told(first: float, last: float, room: float | None, told: str | None) -> None:
    reason = rise(first, last, room)
    assert reason is None if told is None else told in str(reason)


def test_samples_are_the_same_before_and_after_so_any_rise_of_theirs_counts() -> None:
    part = (None, {})
    samples = (AuxiliarySample("q a", (1,), "q", "a"), AuxiliarySample("", (1,), "", "", "no_match"))
    weights = torch.tensor([1.0, 0.0])

    def record(before: float, after: float) -> Adaptation:
        losses = torch.tensor([[before, math.nan], [after, math.nan]])
        return Adaptation(task(), (part,), samples=samples, weights=weights, sample_losses=losses)  # type: ignore[arg-type]

    assert failure(record(1.0, 0.9)) is None
    assert failure(record(1.0, 1.1)) == "the training loss rose from 1.00 to 1.10 nats per token"
    assert failure(Adaptation(task(), reason="no usable sample")) == "no usable sample"
    assert failure(Adaptation(task(), (part,), losses=(2.0, 1.0))) is None  # type: ignore[arg-type]


def test_minibatches_of_a_shared_adaptation_are_of_other_tasks() -> None:
    rising, broken = (Adaptation(task(), ((None, {}),), losses=(0.5, last)) for last in (4.0, math.nan))  # type: ignore[arg-type]
    assert failure(rising) == "the training loss rose from 0.50 to 4.00 nats per token"
    assert failure(rising, joint=True) is None
    assert failure(broken, joint=True) == "the training loss is not finite"


def test_sets_that_share_an_adaptation_count_alike() -> None:
    """The mean of their gains; a set that could not be trained on does not count."""
    one = GuardEntry("the rate", 1.0, 0.4, 0, error=0.3, right_before=1, right=2, left_out=6)
    two = GuardEntry("the rate", 1.0, 0.2, 0, error=0.4, right_before=0, right=5, left_out=8)
    none = GuardEntry("the rate", 1.0, -math.inf, 0, reason="no example fits")
    (both,) = common([(one,), (two,), (none,)])
    assert (both.gain, both.error) == (pytest.approx(0.3), pytest.approx(0.25))
    assert (both.right_before, both.right, both.left_out, both.reason) == (1, 7, 14, None)
    assert common([(none,), (none,)]) == (none,)


PLACES = [(0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0)]


@pytest.mark.parametrize(
    ("gains", "right", "margin", "chosen"),
    [
        ((1.0, 0.2, 0.5, 0.8), (5, 5, 5, 5), 0.0, 1),  # nothing speaks against the default, whatever has a larger gain
        ((1.0, 0.2, 0.5, 0.8), (6, 5, 6, 6), 0.0, 1),  # one answer more may be chance
        ((1.0, 0.2, 0.5, 0.8), (7, 5, 7, 6), 0.0, 0),  # two more are not; of equals the larger gain
        ((1.0, 0.2, 1.5, 0.8), (7, 5, 7, 6), 0.0, 2),
        ((1.0, -0.1, 0.5, 0.8), (5, 4, 5, 5), 0.0, 1),  # within a standard error of no gain
        ((-1.0, -0.1, -0.5, -0.8), (3, 3, 3, 3), 0.0, 1),
        ((1.0, -0.4, 0.5, 0.8), (5, 4, 5, 5), 0.0, 0),  # beyond it, and no more are right
        ((1.0, -0.4, 0.5, 0.8), (5, 5, 5, 5), 0.0, 1),  # one more is right: the two disagree
        ((0.9, 0.2, -0.5, -0.8), (3, 2, 3, 3), 0.0, 1),  # two fewer are right, and all are likelier: likewise
        ((0.9, 0.2, 0.5, 1.8), (3, 1, 4, 3), 0.0, 2),  # three of ten fewer are right, however likely they became
        ((0.9, 0.2, 0.5, 1.8), (3, 1, 3, 3), 0.0, None),
        ((0.9, -0.1, 0.5, 1.8), (4, 2, 4, 4), 0.0, 3),  # two fewer, and the others less likely
        ((0.9, -0.1, 0.5, 1.8), (4, 3, 4, 4), 0.0, 1),
        ((1.0, 0.2, 0.5, 1.8), (5, 2, 5, 5), 0.0, 3),  # another has two more
        ((1.0, -0.4, 0.5, 1.8), (3, 3, 3, 3), 0.0, None),  # others must have no fewer right
        ((0.1, 0.2, 0.1, 0.1), (4, 4, 4, 4), 0.6, None),  # the margin
        ((0.1, 0.2, 0.1, 0.1), (5, 5, 5, 5), 0.4, 1),
        ((-0.3, -0.4, -0.1, -0.2), (9, 9, 9, 9), 0.0, 1),
        ((-0.3, -0.4, -0.1, -0.2), (4, 4, 4, 4), 0.0, None),
        ((-math.inf, -math.inf, 0.5, 0.4), (0, 0, 4, 4), 0.0, 2),
        ((-math.inf,) * 4, (0, 0, 0, 0), -100.0, None),
    ],
)
def test_the_default_is_chosen_unless_left_out_answers_speak_against_it(
    gains: tuple[float, ...], right: tuple[int, ...], margin: float, chosen: int | None
) -> None:
    """Four of ten left-out answers were right before; the standard error of each gain is .3."""
    measured = zip(PLACES, gains, right, strict=True)
    entries = [GuardEntry("", s, g, n, False, 0.3, 4, r, 10) for (n, s), g, r in measured]
    assert choose(entries, margin) is (None if chosen is None else entries[chosen])


def test_twice_as_many_left_out_answers_need_twice_as_many_more() -> None:
    """Three more of twenty are chance, as one of ten is."""

    def chosen(right: int) -> GuardEntry | None:
        default = GuardEntry("the rate", 1.0, 0.5, 0, False, 0.3, 3, 2, 20)
        return choose([default, GuardEntry("0.4 × the rate", 1.0, 0.6, 1, False, 0.3, 3, right, 20)])

    assert [chosen(right).number for right in (5, 6)] == [0, 1]  # type: ignore[union-attr]


def test_what_was_done_is_said_in_words() -> None:
    entry = GuardEntry("the rate", 0.5, 0.25, 0, True, 0.1, right_before=1, right=4, left_out=6)
    out = GuardEntry("0.4 × the rate", 0.5, -math.inf, 1, reason="the training loss is not finite")
    assert said(entry) == "left-out gain +0.250 ± 0.100 nats per answer token, 1 → 4 of 6 left-out answers right"
    assert told([entry, out]) == (
        f"adapted at the rate, 50% of the steps: {said(entry)}; "
        "0.4 × the rate ruled out after 50% of the steps: the training loss is not finite"
    )
    assert (
        told([out]) == "not adapted; 0.4 × the rate ruled out after 50% of the steps: the training loss is not finite"
    )


def test_an_answer_that_could_not_be_judged_counts_as_neither_right_nor_wrong() -> None:
    before = Reading((0.0,) * 4, (1,) * 4, (True, True, None, False))
    after = Reading((0.0,) * 4, (1,) * 4, (True, None, False, True))
    assert counts_right(before, after) == (1, 2, 2)  # not 2 → 2 of 4
