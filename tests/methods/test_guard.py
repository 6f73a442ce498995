"""The guard: left-out demonstrations decide whether to adapt, how strongly, and when to stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hf_mass
from hf_mass import MASS, TTT, LanguageModel, Task
from hf_mass.engine.session import Session
from hf_mass.errors import ConfigError
from hf_mass.methods.base import Cost
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.guard import Guard
from hf_mass.methods.left_out import halves

RULE = [("abc", "cba"), ("hello", "olleh"), ("stone", "enots"), ("plant", "tnalp"), ("lamp", "pmal"), ("ink", "kni")]
NONE = [("abc", "b"), ("hello", "zz"), ("stone", "q"), ("plant", "r"), ("lamp", "u"), ("ink", "w")]


@pytest.fixture(scope="module")
def strings() -> LanguageModel:
    return hf_mass.load("strings-base", device="cpu")


def task(pairs: list[tuple[str, str]] = RULE, query: str = "river") -> Task:
    return Task.from_pairs(pairs, query)


def quick(**changes: Any) -> TTT:
    return TTT(**{"max_examples": 12, "num_train_epochs": 2, **changes})


def test_a_rule_is_adapted_to_and_noise_is_not(strings: LanguageModel) -> None:
    rule, noise = hf_mass.adapt(strings, [task(), task(NONE)], Guard(quick()))
    assert rule.reason is None and str(rule.answer()) == "revir"
    assert noise.parts == () and "not adapted: at most left-out gain -" in str(noise.guard_note)
    assert str(noise.answer()) == str(noise.before())
    (chosen,) = [entry for entry in rule.guard if entry.chosen]
    assert chosen.gain == max(entry.gain for entry in rule.guard) > 0 > max(entry.gain for entry in noise.guard)
    assert [(e.strength, e.share) for e in rule.guard] == [
        (strength, share) for strength in ("the rate", "0.3 × the rate") for share in (0.5, 1.0)
    ]


def test_what_is_chosen_is_trained_once_on_all_demonstrations(strings: LanguageModel) -> None:
    guarded = hf_mass.adapt(strings, task(), Guard(quick(), [quick()], margin=-100.0))
    (chosen,) = [entry for entry in guarded.guard if entry.chosen]
    alone = hf_mass.adapt(strings, task(), quick())
    steps = round(len(alone.losses) * chosen.share)
    assert guarded.losses == pytest.approx(alone.losses[:steps])
    if chosen.share == 1.0:
        for name, leaf in (alone.adapted or {}).items():
            torch.testing.assert_close((guarded.adapted or {})[name], leaf)


def test_the_gain_is_the_rise_of_the_left_out_answers_in_nats_per_token(strings: LanguageModel) -> None:
    """Worked out with the plain method on each half."""
    method, asked = quick(), task()
    answers = FewShotAnswers(strings, method.resolved(strings, [asked]))
    rises, tokens = list[float](), list[int]()
    folds = [halves(asked, half) for half in (0, 1)]
    trained = Session(strings, method.on_half()).adapt([fold for fold, _ in folds])
    for (_, left_out), record in zip(folds, trained, strict=True):
        (before, counts), (after, _) = (answers.answered_log_probs(left_out, parts) for parts in ((), record.parts))
        rises, tokens = [*rises, *(b - a for a, b in zip(before, after, strict=True))], [*tokens, *counts]
    guarded = hf_mass.adapt(strings, asked, Guard(method, [method]))
    (entry,) = [entry for entry in guarded.guard if entry.share == 1.0]
    assert entry.gain == pytest.approx(sum(rises) / sum(tokens), rel=1e-3)


def test_halves_hold_each_demonstration_once() -> None:
    (first, behind_first), (second, behind_second) = halves(task(), 0), halves(task(), 1)
    assert [pair.question for pair in first.demonstrations] == ["abc", "stone", "lamp"]
    pairs = [(each.problem, each.answer) for each in behind_first]
    assert pairs == [("hello", "olleh"), ("plant", "tnalp"), ("ink", "kni")]
    assert [each.problem for each in behind_second] == [pair.question for pair in first.demonstrations]
    assert all(each.demonstrations == second.demonstrations for each in behind_second)


def test_with_three_demonstrations_it_is_off_and_says_so(strings: LanguageModel) -> None:
    few = task(RULE[:3])
    guarded, plain = (hf_mass.adapt(strings, few, method) for method in (Guard(quick()), quick()))
    assert (
        guarded.guard == ()
        and guarded.guard_note == "off: 3 demonstrations, and the guard needs 4; adapted at the default strength"
    )
    assert guarded.losses == pytest.approx(plain.losses)


def test_a_shared_adaptation_has_one_choice(strings: LanguageModel) -> None:
    tasks = [task(), task([(b, a) for a, b in RULE])]
    first, second = hf_mass.adapt(strings, tasks, Guard(quick(adapters="shared")))
    assert first.guard == second.guard and first.adapted is second.adapted


def test_mass_is_guarded_by_its_rates_and_rising_losses_are_out(strings: LanguageModel) -> None:
    method = MASS(samples=4)
    guarded = hf_mass.adapt(strings, task(), Guard(method, margin=-100.0))
    assert len({entry.strength for entry in guarded.guard}) == len(method.strengths()) > 1
    wild = MASS(samples=4, inner_learning_rate=1e4)
    refused = hf_mass.adapt(strings, task(), Guard(wild, [wild]))
    assert refused.parts == () and refused.guard[0].gain == float("-inf")


def test_the_cost_of_choosing_is_in_the_record_apart_from_the_training_proper(strings: LanguageModel) -> None:
    """Six examples for each half and epoch, twice, with 12 rows each way; six left-out answers are scored three times:
    before, and after half and all of the steps. The rule and its halves take the same number of passes."""
    plain = hf_mass.adapt(strings, task(), quick(), seed=3)
    guarded = hf_mass.adapt(strings, task(), Guard(quick(), [quick()], margin=-100.0), seed=3)
    (chosen,) = [entry for entry in guarded.guard if entry.chosen]
    assert plain.guard_cost == Cost() and plain.cost.backward_passes == 24
    assert guarded.cost.backward_passes == 24 * chosen.share and guarded.cost.forward_passes == 24 * chosen.share
    assert guarded.guard_cost.backward_passes == 2 * 2 * 6 and guarded.guard_cost.forward_passes == 24 + 3 * 6
    assert guarded.guard_cost.sampled_tokens > 0 and guarded.cost.sampled_tokens == 0
    assert guarded.guard_cost.seconds > 0 and guarded.cost.seconds > 0
    together = hf_mass.adapt(strings, [task(), task(query="tulip")], Guard(quick(), [quick()], margin=-100.0), seed=3)
    assert sum(each.guard_cost.backward_passes for each in together) == 24  # one guard for one set of demonstrations


def test_a_guard_without_strengths_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Guard\.strengths is empty"):
        Guard(replace_strengths(quick()))


def replace_strengths(method: TTT) -> TTT:
    method.strengths = list  # type: ignore[method-assign]
    return method
