"""The guard: left-out demonstrations decide whether to adapt, how strongly, and when to stop."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from model_fixtures import byte_base, byte_tokenizer

import hf_mass
from hf_mass import MASS, TTT, LanguageModel, NoAdaptation, Task
from hf_mass.engine.session import Session
from hf_mass.errors import ConfigError
from hf_mass.lm.encoding import TextEncoder
from hf_mass.methods import guard as guard_module
from hf_mass.methods.base import Adaptation, Cost, Method
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.guard import STOPS, Guard, guarded
from hf_mass.methods.guard_choice import choose
from hf_mass.methods.left_out import Reading, halves
from hf_mass.methods.sequence import TTTThenMASS

RULE = [("abc", "cba"), ("hello", "olleh"), ("stone", "enots"), ("plant", "tnalp"), ("lamp", "pmal"), ("ink", "kni")]
NONE = [("abc", "b"), ("hello", "zz"), ("stone", "q"), ("plant", "r"), ("lamp", "u"), ("ink", "w")]


@pytest.fixture(scope="module")
def strings() -> LanguageModel:
    return hf_mass.load("strings-base", device="cpu")


def task(pairs: list[tuple[str, str]] = RULE, query: str = "river") -> Task:
    return Task.from_pairs(pairs, query)


def quick(**changes: Any) -> TTT:
    return TTT(**{"max_examples": 12, "num_train_epochs": 2, **changes})


@pytest.fixture(scope="module")
def plain(strings: LanguageModel) -> Adaptation:
    """The rule learned without a guard."""
    return hf_mass.adapt(strings, task(), quick())


@pytest.fixture(scope="module")
def taken(strings: LanguageModel) -> Adaptation:
    """The rule learned at the one strength that there is, whatever is gained."""
    return hf_mass.adapt(strings, task(), Guard(quick(), [quick()], margin=-100.0))


def test_a_rule_is_adapted_to_and_noise_is_not(strings: LanguageModel) -> None:
    rule, noise = hf_mass.adapt(strings, [task(), task(NONE)], Guard(quick(learning_rate=5e-3)))
    assert rule.reason is None and str(rule.answer()) == "revir"
    assert noise.parts == () and "not adapted: at most left-out gain -" in str(noise.guard_note)
    assert str(noise.answer()) == str(noise.before())
    (chosen,) = [entry for entry in rule.guard if entry.chosen]
    assert replace(chosen, chosen=False) == choose([replace(entry, chosen=False) for entry in rule.guard])
    assert chosen.gain > 0 > max(entry.gain for entry in noise.guard)
    tried = [(strength, share) for strength in ("the rate", "0.4 × the rate") for share in (0.5, 1.0)]
    assert [(e.strength, e.share) for e in noise.guard] == tried
    assert [(e.strength, e.share) for e in rule.guard] == tried[:2]  # the default is taken: no other is tried


def test_what_is_chosen_is_trained_once_on_all_demonstrations(plain: Adaptation, taken: Adaptation) -> None:
    (chosen,) = [entry for entry in taken.guard if entry.chosen]
    steps = round(len(plain.losses) * chosen.share)
    assert taken.losses == pytest.approx(plain.losses[:steps])
    if chosen.share == 1.0:
        for name, leaf in (plain.adapted or {}).items():
            torch.testing.assert_close((taken.adapted or {})[name], leaf)


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


def test_the_default_is_given_up_only_where_a_second_cut_says_so_too(
    strings: LanguageModel, plain: Adaptation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the second cut finds is set by hand: the readings of its folds after training, on top of the first's."""
    measured = guard_module.read

    def run(bonus: float) -> Adaptation:
        def read(*args: Any) -> Reading:
            reading, fold, adaptation = measured(*args), args[3], args[4]
            shift = 0.0 if adaptation is None else -50.0 if fold.half < 2 else bonus
            return replace(
                reading,
                log_probs=tuple(value + shift for value in reading.log_probs),
                right=(False,) * len(reading.right),
            )

        monkeypatch.setattr(guard_module, "read", read)
        return hf_mass.adapt(strings, task(), Guard(quick()))

    kept, given_up = run(100.0), run(-50.0)
    assert kept.parts and [(e.strength, e.left_out) for e in kept.guard] == [("the rate", 12), ("the rate", 12)]
    assert given_up.parts == () and {(e.strength, e.left_out) for e in given_up.guard} == {
        ("the rate", 12),
        ("0.4 × the rate", 12),
    }
    assert kept.losses == pytest.approx(plain.losses)


def test_with_three_demonstrations_it_is_off_and_says_so(strings: LanguageModel) -> None:
    few = task(RULE[:3])
    guarded, plain = (hf_mass.adapt(strings, few, method) for method in (Guard(quick()), quick()))
    assert (
        guarded.guard == ()
        and guarded.guard_note == "off: 3 demonstrations, and the guard needs 4; adapted at the default strength"
    )
    assert guarded.losses == pytest.approx(plain.losses)


def test_without_demonstrations_it_is_off_and_says_so(strings: LanguageModel) -> None:
    (bare,) = hf_mass.adapt(strings, [Task("river", ())], MASS(samples=4), guard=True)
    assert bare.guard == () and isinstance(bare.method, Guard)
    assert bare.guard_note == "off: no demonstrations, and the guard needs 4; adapted at the default strength"


# -- a shared adaptation -----------------------------------------------------------------------------------------------


def test_a_shared_adaptation_has_one_choice_by_the_mean_of_its_tasks(strings: LanguageModel) -> None:
    """Also for a task with too few demonstrations to be measured itself."""
    tasks = [task(), task([(a, b[0]) for a, b in RULE]), task(NONE[:3])]
    records = hf_mass.adapt(strings, tasks, Guard(quick(adapters="shared"), margin=-100.0))
    assert len({id(each.adapted) for each in records}) == 1 and records[0].parts
    assert len({each.guard for each in records}) == len({each.guard_note for each in records}) == 1
    assert {entry.left_out for entry in records[0].guard} == {12}


def test_what_is_left_out_is_in_no_training_data_of_a_shared_adaptation(
    strings: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[list[Task]] = []
    begin = TTT.begin

    def spy(self: TTT, lm: LanguageModel, tasks: Any, seed: int) -> Any:
        begun.append(list(tasks))
        return begin(self, lm, tasks, seed)

    monkeypatch.setattr(TTT, "begin", spy)
    rules = [task(), task([(a, b[0]) for a, b in RULE])]
    hf_mass.adapt(strings, rules, Guard(quick(adapters="shared"), margin=-100.0))
    *folds, final = [{pair for each in tasks for pair in each.demonstrations} for tasks in begun]
    assert len(folds) == 4 and len(final) == 12  # two strengths on each half; then both tasks with all they have
    for demonstrations in folds:
        assert len(demonstrations) == 6 and len({pair.question for pair in demonstrations}) == 3


# -- MASS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def trying_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weaker strengths are tried also where the default is taken."""
    monkeypatch.setattr("hf_mass.methods.guard.is_default", lambda entry: False)


@pytest.mark.usefixtures("trying_all")
def test_mass_is_guarded_by_its_rates_and_rising_losses_are_out(strings: LanguageModel) -> None:
    method = MASS(samples=4)
    tried = hf_mass.adapt(strings, task(), Guard(method, margin=100.0))
    assert len({entry.strength for entry in tried.guard}) == len(method.strengths()) > 1 and tried.parts == ()
    wild = MASS(samples=4, inner_learning_rate=1e4)
    refused = hf_mass.adapt(strings, task(), Guard(wild, [wild]))
    assert refused.parts == () and refused.guard[0].gain == float("-inf")
    assert "the training loss rose from" in str(refused.guard[0].reason) and refused.reason is None
    assert str(refused.guard_note).startswith(
        "not adapted; the inner rate ruled out after 100% of the steps: the train"
    )


@pytest.mark.usefixtures("trying_all")
def test_mass_draws_its_samples_once_from_a_fold_alone(strings: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One draw for all rates; no left-out answer is in any prompt, and what is in sight is."""
    drawn: list[list[str]] = []
    prompt_ids = TextEncoder.generator_prompt_ids

    def spy(self: TextEncoder, asked: Task) -> list[int]:
        ids = prompt_ids(self, asked)
        drawn.append([asked.id, self.tokenizer.decode(ids)])
        return ids

    monkeypatch.setattr(TextEncoder, "generator_prompt_ids", spy)
    tried = hf_mass.adapt(strings, task(), Guard(MASS(samples=4), margin=100.0))
    assert len({entry.strength for entry in tried.guard}) == 3
    assert [each.rpartition("#")[2] for each, _ in drawn] == ["half0", "half1", "half2", "half3"]
    for half, (_, prompt) in enumerate(drawn):
        fold, left_out = halves(task(), half)
        assert all(pair.answer in prompt for pair in fold.demonstrations)
        assert not any(str(each.answer) in prompt or each.problem in prompt for each in left_out)
    five = task(RULE[:5])  # halves of three and two, which run apart
    drawn.clear()
    hf_mass.adapt(strings, five, Guard(MASS(samples=4), margin=100.0))
    assert len(drawn) == 4


def test_both_in_turn_are_guarded(strings: LanguageModel) -> None:
    method = TTTThenMASS(quick(), MASS(samples=4))
    tried = hf_mass.adapt(strings, task(), Guard(method, margin=100.0))
    assert [(entry.strength, entry.share) for entry in tried.guard] == [
        ("the rate", 1.0),
        ("0.4 × the rate in both", 1.0),
    ]
    guarded = hf_mass.adapt(strings, task(), Guard(method, margin=-100.0))
    assert [entry.chosen for entry in guarded.guard] == [True] and len(guarded.parts) == 2


# -- giving a strength up ----------------------------------------------------------------------------------------------


def test_a_strength_whose_loss_rises_is_given_up_midway(
    strings: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the second step is the first that a step has made: there it ends, and the other strength goes on."""
    steps: list[float] = []
    step = TTT.step

    def spy(self: TTT, lm: LanguageModel, state: Any) -> Any:
        steps.append(self.scale)
        return step(self, lm, state)

    monkeypatch.setattr(TTT, "step", spy)
    wild = quick(num_train_epochs=6, learning_rate=3.0)
    guarded = hf_mass.adapt(strings, task(), Guard(wild, [wild, wild.scaled(1e-3)]))
    out, *others = guarded.guard
    assert out.gain == float("-inf") and "the training loss rose from" in str(out.reason)
    assert steps.count(1.0) == 2 and out.share < STOPS[0]
    assert [(entry.strength, entry.share, entry.reason) for entry in others] == [
        ("0.001 × the rate", 0.5, None),
        ("0.001 × the rate", 1.0, None),
    ]
    assert f"the rate ruled out after {out.share:.0%} of the steps: the training loss rose" in str(guarded.guard_note)


def test_one_set_that_fails_does_not_end_the_others(
    strings: LanguageModel, taken: Adaptation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of one set of demonstrations are made to rise; the other is measured as it would be alone."""
    finish = TTT.finish

    def spoiled(self: TTT, lm: LanguageModel, state: Any) -> Any:
        wrong = set(task(NONE).demonstrations)
        return [
            replace(each, losses=(1.0, 9.0)) if set(each.task.demonstrations) <= wrong else each
            for each in finish(self, lm, state)
        ]

    monkeypatch.setattr(TTT, "finish", spoiled)
    first, second = hf_mass.adapt(strings, [task(), task(NONE)], Guard(quick(), [quick()], margin=-100.0))
    assert [entry.gain for entry in first.guard] == pytest.approx([entry.gain for entry in taken.guard], rel=1e-3)
    assert [entry.gain for entry in second.guard] == [float("-inf")] * 2 and second.parts == ()


# -- cost --------------------------------------------------------------------------------------------------------------


def test_the_cost_of_choosing_is_in_the_record_apart_from_the_training_proper(
    strings: LanguageModel, plain: Adaptation, taken: Adaptation
) -> None:
    """Twelve examples of each half in two epochs; six left-out answers are scored before, and after half and all of the
    steps."""
    (chosen,) = [entry for entry in taken.guard if entry.chosen]
    assert plain.guard_cost == Cost() and plain.cost.backward_passes == 24
    assert taken.cost.backward_passes == 24 * chosen.share and taken.cost.forward_passes == 24 * chosen.share
    assert taken.guard_cost.backward_passes == 48 and taken.guard_cost.forward_passes == 48 + 3 * 6
    assert taken.guard_cost.sampled_tokens > 0 and taken.cost.sampled_tokens == 0
    assert taken.guard_cost.seconds > 0 and taken.cost.seconds > 0
    together = hf_mass.adapt(strings, [task(), task(query="tulip")], Guard(quick(), [quick()], margin=-100.0))
    assert sum(each.guard_cost.backward_passes for each in together) == 48  # one guard for one set of demonstrations


def test_a_guard_without_strengths_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Guard\.strengths is empty"):
        Guard(replace_strengths(quick()))


def replace_strengths(method: TTT) -> TTT:
    method.strengths = list  # type: ignore[method-assign]
    return method


# -- where it is on ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unshipped() -> LanguageModel:
    return hf_mass.load(byte_base(), byte_tokenizer())


def test_it_is_on_for_models_that_do_not_ship_and_where_it_is_asked_for(
    strings: LanguageModel, unshipped: LanguageModel
) -> None:
    method = quick()
    assert guarded(method, strings, [task()]) is method
    assert isinstance(guarded(method, strings, [task()], True), Guard)
    assert isinstance(guarded(method, unshipped, [task()]), Guard)
    assert guarded(method, unshipped, [task()], False) is method
    own = Guard(method, margin=0.5)
    assert guarded(own, unshipped, [task()]) is own is guarded(own, strings, [task()], True)
    assert guarded(own, strings, [task()], False) is method


def test_no_guard_is_the_bare_method(unshipped: LanguageModel) -> None:
    bare, default = (hf_mass.adapt(unshipped, task(), quick(), guard) for guard in (False, None))
    assert bare.guard == () and bare.guard_note is None and isinstance(bare.method, TTT) and len(bare.losses) > 0
    assert len(default.guard) >= 2 and default.guard_note is not None and isinstance(default.method, Guard)
    solution = hf_mass.solve(unshipped, task(), quick(), guard=False)
    assert solution.adaptations[0].losses == pytest.approx(bare.losses) and solution.to_dict()["guard"] == []


def test_a_guard_that_cannot_be_is_refused_with_the_cure(strings: LanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"'vote' has no strengths.*Choose method 'ttt', 'mass' or 'both'"):
        hf_mass.adapt(strings, task(), "vote", guard=True)
    conventions = hf_mass.load("conventions-mass", device="cpu")
    with pytest.raises(ConfigError, match=r"texts cannot be read: the tokenizer of conventions-mass.*leave the guard"):
        hf_mass.solve(conventions, task(), "mass", guard=True)
    assert isinstance(hf_mass.adapt(strings, task(), "none").method, NoAdaptation)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "ttt"}, r"Guard\.method is 'ttt'; give a method"),
        ({"method": TTT}, r"Guard\.method is <class .*give a method"),
        ({"strengths": TTT()}, r"Guard\.strengths is .*; give a list of methods"),
        ({"strengths": [1]}, r"Guard\.strengths is .1.; give a list of methods"),
        ({"reads_by": MASS()}, r"Guard\.reads_by is .*; give a TTT"),
        ({"margin": float("nan")}, r"Guard\.margin is nan; choose a finite number"),
        ({"margin": "0"}, r"Guard\.margin is '0'; choose a finite number"),
    ],
)
def test_arguments_of_other_types_are_refused_by_name(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Guard(**{"method": TTT(), **arguments})


def test_a_solution_says_what_the_guard_did(strings: LanguageModel) -> None:
    tasks = [task(), task(NONE), task(query="tulip")]
    solution = hf_mass.solve(strings, tasks, quick(learning_rate=5e-3), guard=True)
    assert solution.reason is None  # not adapting is no failure
    rule, noise = solution.to_dict()["guard"]
    assert (rule["queries"], noise["queries"]) == ([0, 2], [1])
    assert rule["note"] == solution.adaptations[0].guard_note and noise["note"].startswith("not adapted")
    assert [entry["gain"] for entry in rule["entries"]] == [e.gain for e in solution.adaptations[0].guard]
    assert rule["seconds"] > 0 and rule["trained_tokens"] > 0
    json.dumps(solution.to_dict(), allow_nan=False)


def test_a_method_of_ones_own_is_guarded_once_it_has_strengths(unshipped: LanguageModel) -> None:
    class Own(TTT):
        name = "own"

        def strengths(self) -> list[Method[Any]]:
            return [self]

    class Without(Own):
        def strengths(self) -> list[Method[Any]]:
            return []

    own = hf_mass.adapt(unshipped, task(), Own(max_examples=20))
    assert {entry.strength for entry in own.guard} == {"the rate"} and own.guard[-1].share == 1.0
    assert hf_mass.adapt(unshipped, task(), Without(max_examples=6)).guard_note is None
    with pytest.raises(ConfigError, match="method 'own' has no strengths"):
        hf_mass.adapt(unshipped, task(), Without(max_examples=6), guard=True)
