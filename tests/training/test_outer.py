"""The outer step against a reference that shares no code with it.

The reference lets PEFT apply both adapters, takes rows one at a time without padding, keeps the graph of the whole
inner loop, and leaves every derivative to autograd. Everything is float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from outer_reference import Reference, Setup
from tiny_models import relative_error
from torch import Tensor
from trainer_fixtures import M, settings, wide_mass, world, written_samples

from hf_mass.core.token_loss import TokenLoss
from hf_mass.errors import UnsupportedModelError, VerifierError
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import VERIFIERS
from hf_mass.training import outer
from hf_mass.training.outer import OuterLoop

EXACT = 1e-9


@pytest.fixture
def build(tmp_path: Path) -> Any:
    def make(tasks: int = 2, **changes: Any) -> Setup:
        base = {"outer_loss": "gold", "inner_learning_rate": 2.0, "scorer_features": ["log_prob", "agreement"]}
        config = settings(tmp_path, tasks, **{**base, **changes})
        mass, drawn = wide_mass(config), world().tasks("train", tasks)
        return Setup(mass, OuterLoop(mass, config), drawn, written_samples(drawn, mass.tokenizer))

    return make


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_attributions_are_the_derivatives_of_an_unrolled_loop(build: Any, steps: int) -> None:
    setup = build(inner_steps=steps)
    found, reference = setup.step(), Reference(setup)
    weights = found.weights.clone().requires_grad_()
    loss = reference.gold(weights)
    assert relative_error(torch.tensor(found.metrics["outer_loss"]).sum(), loss.detach().float()) < 1e-6
    assert relative_error(found.attributions, reference.gradient(loss, weights)[0]) < EXACT
    assert found.attributions.abs().max() > 1e-3


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("mode", ["direct", "full"])
def test_solving_gradient_of_the_generator_is_that_of_an_unrolled_loop(build: Any, mode: str, steps: int) -> None:
    setup = build(inner_steps=steps, solve_gradient=mode, inner_microbatch=3)
    found, reference = setup.step(), Reference(setup)
    loss = reference.gold(found.weights, direct=mode == "direct")
    expected = reference.gradient(loss, list(reference.phi.values()))
    assert found.generator_gradient.keys() == reference.phi.keys()
    for (name, _), gradient in zip(reference.phi.items(), expected, strict=True):
        assert relative_error(found.generator_gradient[name], gradient) < EXACT, name


def test_following_the_inner_steps_changes_the_generators_gradient(build: Any) -> None:
    gradients = [build(solve_gradient=mode).step().generator_gradient for mode in ("direct", "full")]
    assert max(relative_error(gradients[0][name], gradients[1][name]) for name in gradients[0]) > 0.01


def test_momentum_is_followed_too(build: Any) -> None:
    """No reference of its own: with momentum 0 the heavy ball is SGD, and with any other it is not."""

    def gradient(**changes: Any) -> dict[str, Tensor]:
        return build(inner_steps=2, solve_gradient="full", **changes).step().generator_gradient

    plain = gradient()
    still, moving = (gradient(inner_optimizer="momentum", inner_momentum=value) for value in (0.0, 0.9))
    assert max(relative_error(still[name], plain[name]) for name in plain) < EXACT
    assert max(relative_error(moving[name], plain[name]) for name in plain) > 0.01


@pytest.mark.parametrize("normalization", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("steps", [1, 2])
def test_gradient_of_the_scorer_is_a_finite_difference_of_the_outer_loss(
    build: Any, steps: int, normalization: str
) -> None:
    reward = "logit" if normalization == "softmax" else "sample"
    setup = build(inner_steps=steps, score_normalization=normalization, generator_reward=reward)
    found, reference = setup.step(), Reference(setup)
    mass = setup.mass
    problem = mass.adapter.problem(setup.tasks, setup.samples)
    features = mass.features(problem)
    parameters = list(mass.scorer.parameters())
    directions = [torch.randn(p.shape, dtype=torch.float64) for p in parameters]

    def shifted(size: float) -> float:
        with torch.no_grad():
            for p, direction in zip(parameters, directions, strict=True):
                p += size * direction
            weights = mass.scorer(features, problem.usable)
            for p, direction in zip(parameters, directions, strict=True):
                p -= size * direction
        return float(reference.gold(weights).detach())

    # Richardson: the error of the central difference falls with the fourth power of the step.
    coarse, fine = ((shifted(h) - shifted(-h)) / (2 * h) for h in (2e-4, 1e-4))
    expected = (4 * fine - coarse) / 3
    slope = sum(float((g * d).sum()) for g, d in zip(found.scorer_gradient, directions, strict=True))
    assert slope == pytest.approx(expected, rel=1e-6)
    assert abs(slope) > 1e-3


@pytest.mark.parametrize("steps", [1, 2])
def test_logit_rewards_are_minus_the_derivative_at_the_softmax_logit(build: Any, steps: int) -> None:
    setup = build(inner_steps=steps)
    found, reference = setup.step(), Reference(setup)
    logits = found.weights.clamp(min=1e-300).log().requires_grad_()
    usable = found.usable
    weights = torch.where(usable, logits, torch.full_like(logits, -torch.inf)).softmax(1)
    assert relative_error(weights.detach(), found.weights) < EXACT
    expected = -reference.gradient(reference.gold(weights), logits)[0]
    assert relative_error(found.rewards[usable], expected[usable]) < EXACT


def test_sample_rewards_are_minus_the_attributions(build: Any) -> None:
    found = build(generator_reward="sample").step()
    assert torch.equal(found.rewards[found.usable], -found.attributions[found.usable])


def test_both_rules_give_the_same_step(build: Any) -> None:
    adjoint, unrolled = (build(inner_steps=2, meta_gradient=rule).step() for rule in ("adjoint", "unrolled"))
    assert relative_error(unrolled.attributions, adjoint.attributions) < EXACT
    for found, expected in zip(unrolled.scorer_gradient, adjoint.scorer_gradient, strict=True):
        assert relative_error(found, expected) < EXACT


def test_no_solving_gradient_is_computed_where_its_coefficient_is_zero(build: Any, monkeypatch: Any) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("computed for nothing")

    monkeypatch.setattr("hf_mass.training.outer.direct_gradient", refuse)
    assert build(solve_coefficient=0.0).step().generator_gradient == {}


def test_uniform_weights_and_no_gradient_without_a_trained_scorer(build: Any) -> None:
    found = build(train_scorer=False).step()
    kept = found.usable.double()
    assert relative_error(found.weights.double(), kept / kept.sum(1, keepdim=True)) < 1e-7
    assert all(not gradient.any() for gradient in found.scorer_gradient)
    assert found.attributions.any()


def test_an_outer_step_leaves_the_model_as_it_was(build: Any) -> None:
    setup = build(inner_steps=2, solve_gradient="full")
    before = {name: p.detach().clone() for name, p in setup.mass.model.named_parameters()}
    setup.mass.model.train()
    setup.step(detailed=True)
    assert all(torch.equal(p, before[name]) for name, p in setup.mass.model.named_parameters())
    assert all(p.grad is None for p in [*setup.mass.model.parameters(), *setup.mass.scorer.parameters()])
    assert setup.mass.model.training and setup.mass.model.active_adapter == "default"


def test_full_gradient_without_a_second_derivative_names_the_cure(build: Any, monkeypatch: Any) -> None:
    @contextmanager
    def evaluate(*args: Any, **kwargs: Any) -> Iterator[Tensor]:
        if kwargs.get("second_order"):
            raise NotImplementedError("derivative for some_backward is not implemented")
        with original(*args, **kwargs) as values:
            yield values

    setup, original = build(solve_gradient="full"), TokenLoss.evaluate
    monkeypatch.setattr(TokenLoss, "evaluate", evaluate)
    with pytest.raises(UnsupportedModelError, match=r"solve_gradient='full' need.*inner_steps=1"):
        setup.step()


# -- malformed samples -------------------------------------------------------------------------------------------------


def malformed(group: list[AuxiliarySample], index: int, text: str = "nonsense") -> list[AuxiliarySample]:
    bad = replace(group[index], text=text, question="", answer="", reason="no_match", token_ids=(9, 9, 2))
    return [*group[:index], bad, *group[index + 1 :]]


@pytest.mark.parametrize("reward", ["logit", "sample"])
def test_malformed_samples_get_weight_zero_and_the_lowest_reward_of_their_group(build: Any, reward: str) -> None:
    setup = build(generator_reward=reward)
    clean = [[s for s in written_samples([t], setup.mass.tokenizer, 12)[0] if s.usable][:M] for t in setup.tasks]
    found = setup.step([malformed(clean[0], 2), clean[1]])
    assert found.usable.tolist() == [[True, True, False, True], [True] * 4]
    assert found.weights[0, 2] == 0 and found.weights[0].sum().item() == pytest.approx(1)
    assert found.attributions[0, 2] == 0
    assert found.rewards[0, 2] == found.rewards[0][found.usable[0]].min()
    assert found.rewards[0].unique().numel() == 3
    assert found.metrics["samples/parse_rate"] == [0.75, 1.0]
    assert found.metrics["samples/no_match"] == [0.25, 0.0]
    assert found.metrics["samples/empty"] == [0.0, 0.0]


def test_what_a_malformed_sample_says_does_not_matter(build: Any) -> None:
    setup = build()
    one, other = (setup.step([malformed(setup.samples[0], 1, text), setup.samples[1]]) for text in ("a", "b c d"))
    assert torch.equal(one.rewards, other.rewards)
    for first, second in zip(one.scorer_gradient, other.scorer_gradient, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("mode", ["gold", "verifier"])
def test_without_any_usable_sample_the_unadapted_model_is_judged(build: Any, mode: str) -> None:
    setup = build(outer_loss=mode, num_solutions=8)
    useless = [malformed(malformed(malformed(malformed(g, 0), 1), 2), 3) for g in setup.samples]
    found = setup.step(useless, detailed=True)
    assert not found.weights.any() and not found.attributions.any() and not found.rewards.any()
    assert all(not gradient.any() for gradient in found.scorer_gradient)
    assert found.metrics["samples/no_match"] == [1.0, 1.0] and found.metrics["tasks/skipped"] == [0.0, 0.0]
    assert any(gradient.abs().max() > 0 for gradient in found.generator_gradient.values())
    if mode == "gold":
        reference = Reference(setup)
        expected = [
            reference.nll(reference.start, CONVENTIONS_FORMAT.solver_prompt(t), str(t.solution)).item()
            for t in setup.tasks
        ]
        assert found.metrics["outer_loss"] == pytest.approx(expected, rel=1e-9)
    else:
        assert len(found.metrics["reward/unadapted"]) == len(found.metrics["reward/adapted"]) == 2


def test_a_task_without_usable_samples_does_not_disturb_the_others(build: Any) -> None:
    setup = build()
    useless = malformed(malformed(malformed(malformed(setup.samples[0], 0), 1), 2), 3)
    found, alone = setup.step([useless, setup.samples[1]]), setup.loop(setup.tasks[1:], setup.samples[1:], 0, False)
    assert not found.weights[0].any() and not found.rewards[0].any()
    assert relative_error(found.rewards[1:], alone.rewards) < EXACT


# -- verified solutions ------------------------------------------------------------------------------------------------


def answer_with(setup: Setup, monkeypatch: Any, solutions: list[list[str]]) -> None:
    """Let the adapted weights answer with these solutions."""
    flat = [
        [*setup.mass.tokenizer(text, add_special_tokens=False)["input_ids"], 2] for group in solutions for text in group
    ]
    monkeypatch.setattr(setup.mass.adapter, "complete", lambda *args: flat)


def test_verifier_loss_is_the_group_normalised_policy_gradient(build: Any, monkeypatch: Any) -> None:
    setup = build(outer_loss="verifier", num_solutions=3)
    gold = [str(task.solution) for task in setup.tasks]
    wrong = f"rule00 {next(c for c in ('red', 'blue') if c != setup.tasks[0].answer)}"
    # One of three right, and one that cannot be read; in the second task all agree.
    answer_with(setup, monkeypatch, [[gold[0], wrong, "rule01"], [gold[1]] * 3])
    found, reference = setup.step(), Reference(setup)
    rewards = torch.tensor([1.0, 0.0, 0.0])
    advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-4)).double()
    weights = found.weights.clone().requires_grad_()
    theta = reference.adapt(setup.tasks[0], setup.samples[0], weights[0])
    prompt = CONVENTIONS_FORMAT.solver_prompt(setup.tasks[0])
    loss = sum(
        a * reference.nll(theta, prompt, text) / 3
        for a, text in zip(advantages, [gold[0], wrong, "rule01"], strict=True)
    )
    assert found.metrics["reward/adapted"] == pytest.approx([1 / 3, 1])
    assert found.metrics["tasks/agreeing"] == [0.0, 1.0]
    assert found.metrics["outer_loss"] == pytest.approx([float(loss), 0.0], rel=1e-6)
    assert relative_error(found.attributions, reference.gradient(loss, weights)[0]) < 1e-6
    assert not found.attributions[1].any() and not found.rewards[1].any()


def test_a_verifier_that_raises_ends_training_by_its_name(build: Any, monkeypatch: Any) -> None:
    """A wrong answer and one that could not be judged are not the same to learn from."""

    def raising(task: Task, text: str) -> float:
        raise KeyError("gone")

    monkeypatch.setitem(VERIFIERS, "mine", raising)
    setup = build(outer_loss="verifier", num_solutions=2)
    answer_with(setup, monkeypatch, [[str(task.solution)] * 2 for task in setup.tasks])
    tasks = [replace(task, verifier="mine") for task in setup.tasks]
    with pytest.raises(VerifierError, match=r"'mine' raised KeyError.*gone"):
        setup.loop(tasks, setup.samples, 0, False)


def test_where_all_solutions_agree_nothing_is_learned(build: Any, monkeypatch: Any) -> None:
    setup = build(outer_loss="verifier", num_solutions=2)
    answer_with(setup, monkeypatch, [[str(task.solution)] * 2 for task in setup.tasks])
    found = setup.step()
    assert found.metrics["tasks/agreeing"] == [1.0, 1.0] and found.metrics["tasks/skipped"] == [0.0, 0.0]
    assert found.metrics["outer_loss"] == [0.0, 0.0] and not found.rewards.any()
    assert found.generator_gradient == {} and all(not g.any() for g in found.scorer_gradient)


def test_solutions_do_not_depend_on_the_rest_of_the_batch(build: Any) -> None:
    setup = build(outer_loss="verifier", tasks=3, num_solutions=8)
    together = setup.step()
    apart = [setup.loop([t], [g], 0, False) for t, g in zip(setup.tasks, setup.samples, strict=True)]
    assert together.metrics["reward/adapted"] == [step.metrics["reward/adapted"][0] for step in apart]
    assert relative_error(together.rewards, torch.cat([step.rewards for step in apart])) < 1e-6
    assert together.metrics["tasks/agreeing"] != [1.0, 1.0, 1.0]


def test_other_solutions_are_sampled_at_another_step(build: Any, monkeypatch: Any) -> None:
    setup = build(outer_loss="verifier")
    seen: list[Any] = []
    original = setup.mass.adapter.complete
    monkeypatch.setattr(setup.mass.adapter, "complete", lambda *args: seen.append(args[-1]) or original(*args))
    for step in (0, 1, 1):
        setup.loop(setup.tasks, setup.samples, step, False)
    assert len(set(seen[0])) == 2 * 4 and seen[1] == seen[2] and not set(seen[0]) & set(seen[1])


# -- numbers that are none ---------------------------------------------------------------------------------------------


def poison(monkeypatch: Any, task: int) -> None:
    """Every loss of one task, with its gradient, becomes NaN."""
    original = TokenLoss.evaluate

    @contextmanager
    def evaluate(self: TokenLoss, params: Any, rows: Tensor, row_task: Tensor, second_order: bool) -> Iterator[Tensor]:
        with original(self, params, rows, row_task, second_order) as values:
            factor = torch.ones_like(values).masked_fill(self.row_task[rows] == task, torch.nan)
            yield values * factor

    monkeypatch.setattr(TokenLoss, "evaluate", evaluate)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("mode", ["direct", "full"])
def test_a_task_with_nan_losses_is_skipped_and_counted(build: Any, monkeypatch: Any, mode: str, steps: int) -> None:
    setup = build(inner_steps=steps, solve_gradient=mode, scorer_features=["log_prob", "attribution"])
    expected = setup.loop(setup.tasks[:1], setup.samples[:1], 0, True)
    poison(monkeypatch, 1)
    found = setup.step(detailed=True)
    assert found.metrics["tasks/skipped"] == [0.0, 1.0]
    assert found.rewards[1].isnan().all() and relative_error(found.rewards[:1], expected.rewards) < EXACT
    assert found.metrics["outer_loss"] == pytest.approx(expected.metrics["outer_loss"])
    for one, other in zip(found.scorer_gradient, expected.scorer_gradient, strict=True):
        assert relative_error(one, other) < EXACT
    for name, gradient in expected.generator_gradient.items():
        assert relative_error(found.generator_gradient[name], gradient) < EXACT
    finite = [value for values in found.metrics.values() for value in values]
    assert all(torch.isfinite(torch.tensor(finite)))


@pytest.mark.parametrize("mode", ["gold", "verifier"])
@pytest.mark.parametrize(("rate", "steps"), [(1e12, 1), (1e30, 2), (1e100, 1), (1e200, 2)])
def test_exploding_inner_steps_give_no_gradient(build: Any, mode: str, rate: float, steps: int) -> None:
    """The first inner loss is finite; what follows need not be. Whatever is kept, nothing non-finite comes out."""
    found = build(outer_loss=mode, inner_learning_rate=rate, inner_steps=steps, solve_gradient="full").step()
    numbers = [*found.scorer_gradient, *found.generator_gradient.values(), found.attributions]
    assert all(torch.isfinite(value).all() for value in numbers)
    assert found.rewards.isnan().all(1).tolist() == [bool(skipped) for skipped in found.metrics["tasks/skipped"]]
    if mode == "gold" and rate >= 1e100:  # at 1e100 the adapted weights are finite, and the outer loss is not
        assert found.metrics["tasks/skipped"] == [1.0, 1.0] and not found.metrics.get("outer_loss")


def test_only_adapters_that_train_get_a_gradient(build: Any) -> None:
    setup = build()
    names = outer.trainable_parameters(setup.mass.model)
    assert names and all(".default." in name for name in names)
