"""The meta-gradient rules against a graph unrolled by hand, closed forms and finite differences.

The reference below shares nothing with the package: it runs PEFT's own forward pass with the adapter active, one task
and one unpadded sequence at a time, and keeps the whole graph."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from tiny_models import lora_model, random_batch, random_tree, relative_error, tree_error
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_mass.core import trees
from hf_mass.core.inner_loop import InnerLoop, Trajectory
from hf_mass.core.losses import WeightedLoss
from hf_mass.core.meta_gradients import RULES, MetaGradient, MetaGradientRule, get_rule
from hf_mass.core.optimizers import SGD, make_optimizer
from hf_mass.core.token_loss import IGNORED, TokenBatch, TokenLoss
from hf_mass.core.trees import Tree
from hf_mass.lm.binding import BoundLora

EXACT = 1e-9  # relative, in float64
KINDS = ("llama", "gpt2", "qwen2")
both_rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())


# -- the problems, and what is asked of the package --------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One bilevel problem on a tiny language model, at θ_0 = `start`."""

    kind: str
    inner: TokenBatch
    weights: Tensor
    outer: TokenBatch
    coefficients: Tensor
    start: Tree
    steps: int = 1
    momentum: float | None = None
    learning_rate: float = 0.3
    reduction: str = "mean"
    microbatch: int | None = None

    @property
    def num_tasks(self) -> int:
        return trees.num_tasks(self.start)


@functools.cache
def model_of(kind: str) -> PeftModel:
    return lora_model(kind)


@functools.cache
def bound(kind: str) -> BoundLora:
    return BoundLora(model_of(kind), "inner")


def make_case(
    kind: str,
    inner_tasks: list[int],
    outer_tasks: list[int],
    num_tasks: int,
    weights: list[float] | None = None,
    coefficients: list[float] | None = None,
    side: str = "right",
    own_starts: bool = False,
    seed: int = 0,
    **changes: object,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    start = bound(kind).start(num_tasks)
    if own_starts:
        start = trees.add(start, random_tree(start, generator, 0.1))
    inner = random_batch(inner_tasks, generator, side)
    outer = random_batch(outer_tasks, generator, side)
    s = torch.rand(len(inner), generator=generator) if weights is None else torch.tensor(weights)
    c = torch.randn(len(outer), generator=generator) if coefficients is None else torch.tensor(coefficients)
    return Case(kind, inner, s.double(), outer, c.double(), start, **changes)


def adapt(case: Case) -> tuple[Trajectory, WeightedLoss]:
    function, model = bound(case.kind).function, model_of(case.kind)
    inner = TokenLoss(model, function, case.inner, case.microbatch, case.reduction)
    outer = TokenLoss(model, function, case.outer, case.microbatch, case.reduction)
    name = "sgd" if case.momentum is None else "momentum"
    loop = InnerLoop(case.steps, make_optimizer(name, case.learning_rate, case.momentum or 0.0))
    return loop.run(inner, case.start, case.weights), WeightedLoss(outer, case.coefficients)


def solve(case: Case, rule: MetaGradientRule, start_gradient: bool = True) -> tuple[Trajectory, MetaGradient, Tensor]:
    with bound(case.kind).inactive():
        trajectory, outer = adapt(case)
        return trajectory, rule(trajectory, outer, start_gradient), trajectory.final_losses()


# -- the reference -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    adapted: Tree
    losses: Tensor  # [K + 1, R]
    attributions: Tensor
    outer_losses: Tensor
    outer_gradient: Tree
    start_gradient: Tree


def sequence_loss(model: PeftModel, theta: Tree, batch: TokenBatch, row: int, reduction: str) -> Tensor:
    real = batch.attention_mask[row].bool()
    ids, labels = batch.input_ids[row][real], batch.labels[row][real]
    logits = functional_call(model, theta, kwargs={"input_ids": ids[None], "use_cache": False}).logits[0]
    answered = (labels[1:] != IGNORED).nonzero().flatten()
    log_p = functional.log_softmax(logits, dim=-1)[answered, ids[answered + 1]]
    return -(log_p.mean() if reduction == "mean" else log_p.sum())


def unroll_task(case: Case, task: int) -> tuple[Tree, Tensor, list[Tensor], Tensor, tuple[Tensor, ...]]:
    """θ_K, L_outer, ℓ(θ_0) … ℓ(θ_K) of the task's rows, and derivatives of L_outer by θ_K, by s and by θ_0."""
    model = model_of(case.kind)
    assert model.active_adapters == ["inner"]
    start = {name: leaf[task].clone().requires_grad_() for name, leaf in case.start.items()}
    weights = case.weights.clone().requires_grad_()
    rows = [row for row, owner in enumerate(case.inner.row_task.tolist()) if owner == task]

    def losses_at(theta: Tree) -> list[Tensor]:
        return [sequence_loss(model, theta, case.inner, row, case.reduction) for row in rows]

    theta, history = dict(start), []
    velocity = {name: torch.zeros_like(leaf) for name, leaf in start.items()}
    for _ in range(case.steps if rows else 0):
        losses = losses_at(theta)
        total = sum(weights[row] * loss for row, loss in zip(rows, losses, strict=True))
        slopes = torch.autograd.grad(total, list(theta.values()), create_graph=True)
        velocity = {n: (case.momentum or 0.0) * velocity[n] + g for n, g in zip(theta, slopes, strict=True)}
        theta = {name: leaf - case.learning_rate * velocity[name] for name, leaf in theta.items()}
        history.append(torch.stack(losses).detach())
    if rows:
        history.append(torch.stack(losses_at(theta)).detach())
    zero = 0.0 * sum(leaf.sum() for leaf in theta.values()) + 0.0 * weights.sum()  # a task may have no outer row
    outer = zero + sum(
        case.coefficients[row] * sequence_loss(model, theta, case.outer, row, case.reduction)
        for row, owner in enumerate(case.outer.row_task.tolist())
        if owner == task
    )
    derivatives = torch.autograd.grad(outer, [*theta.values(), weights, *start.values()], materialize_grads=True)
    return theta, outer.detach(), history, weights, derivatives


def unroll(case: Case) -> Reference:
    adapted, outer_gradient, start_gradient = [], [], []
    outer_losses, attributions = [], torch.zeros_like(case.weights)
    losses = torch.zeros(case.steps + 1, len(case.inner), dtype=torch.float64)
    names = list(case.start)
    with sdpa_kernel(SDPBackend.MATH):
        for task in range(case.num_tasks):
            theta, outer, history, _, derivatives = unroll_task(case, task)
            adapted.append({name: leaf.detach() for name, leaf in theta.items()})
            outer_losses.append(outer)
            outer_gradient.append(dict(zip(names, derivatives[: len(names)], strict=True)))
            attributions += derivatives[len(names)]
            start_gradient.append(dict(zip(names, derivatives[len(names) + 1 :], strict=True)))
            for step, values in enumerate(history):
                losses[step, case.inner.row_task == task] = values

    def stack(parts: list[Tree]) -> Tree:
        return {name: torch.stack([part[name] for part in parts]) for name in names}

    return Reference(
        stack(adapted), losses, attributions, torch.stack(outer_losses), stack(outer_gradient), stack(start_gradient)
    )


def check_against_reference(case: Case, rule: MetaGradientRule, tolerance: float = EXACT) -> Reference:
    trajectory, result, final_losses = solve(case, rule)
    expected = unroll(case)
    assert result.start_gradient is not None
    assert tree_error(trajectory.adapted, expected.adapted) < tolerance
    assert relative_error(torch.stack([*trajectory.losses, final_losses]), expected.losses) < tolerance
    assert relative_error(result.attributions, expected.attributions) < tolerance
    assert relative_error(result.outer_losses, expected.outer_losses) < tolerance
    assert tree_error(result.outer_gradient, expected.outer_gradient) < tolerance
    assert tree_error(result.start_gradient, expected.start_gradient) < tolerance
    return expected


# -- language models against the reference -----------------------------------------------------------------------------


@both_rules
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_rules_agree_with_the_unrolled_graph(kind: str, steps: int, rule: MetaGradientRule) -> None:
    side = "left" if steps == 2 else "right"
    case = make_case(kind, [0, 1, 0, 1, 1], [1, 0, 1], 2, side=side, steps=steps, microbatch=2)
    expected = check_against_reference(case, rule)
    assert (expected.attributions.abs() > 1e-6).all()  # something was compared
    assert all((leaf.abs() > 1e-9).any() for leaf in expected.start_gradient.values())


@both_rules
@pytest.mark.parametrize("m", [1, 2, 5, 9])
def test_any_number_of_samples(m: int, rule: MetaGradientRule) -> None:
    check_against_reference(make_case("llama", [0] * m, [0], 1, steps=2, microbatch=4), rule)


@both_rules
@pytest.mark.parametrize("steps", [1, 3])
def test_momentum(steps: int, rule: MetaGradientRule) -> None:
    case = make_case("gpt2", [0, 0, 1], [0, 1], 2, steps=steps, momentum=0.9)
    expected = check_against_reference(case, rule)
    if steps > 1:
        assert tree_error(unroll(replace(case, momentum=None)).adapted, expected.adapted) > 1e-3


@both_rules
def test_start_with_zero_b(rule: MetaGradientRule) -> None:
    case = make_case("llama", [0, 0, 1], [0, 1], 2, steps=2)
    start = {name: leaf * 0 if "lora_B" in name else leaf for name, leaf in case.start.items()}
    check_against_reference(replace(case, start=start), rule)


@both_rules
def test_zero_weights(rule: MetaGradientRule) -> None:
    """Rows of weight 0 leave θ alone and still have an attribution; a task of such rows only is not adapted."""
    case = make_case("llama", [0, 0, 1], [0, 1], 2, weights=[0.7, 0.0, 0.0], steps=2)
    expected = check_against_reference(case, rule)
    assert (expected.attributions.abs() > 1e-6).all()
    adapted = solve(case, rule)[0].adapted
    assert all(torch.equal(leaf[1], case.start[name][1]) for name, leaf in adapted.items())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    tasks = draw(st.integers(1, 3), label="N")
    owners = st.lists(st.integers(0, tasks - 1), min_size=1, max_size=4)
    inner, outer = draw(owners, label="row_task"), draw(owners, label="outer row_task")
    weight = st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.7])
    coefficient = st.sampled_from([-1.0, 0.0, 0.5, 1.0])
    return make_case(
        draw(st.sampled_from(KINDS), label="kind"),
        inner,
        outer,
        tasks,
        draw(st.lists(weight, min_size=len(inner), max_size=len(inner)), label="s"),
        draw(st.lists(coefficient, min_size=len(outer), max_size=len(outer)), label="c"),
        side=draw(st.sampled_from(["left", "right"]), label="side"),
        own_starts=draw(st.booleans(), label="own starts"),
        seed=draw(st.integers(0, 1000), label="seed"),
        steps=draw(st.integers(1, 3), label="K"),
        momentum=draw(st.sampled_from([None, 0.5]), label="momentum"),
        reduction=draw(st.sampled_from(["mean", "sum"]), label="reduction"),
        microbatch=draw(st.sampled_from([None, 1, 2, 3]), label="microbatch"),
        learning_rate=draw(st.sampled_from([0.05, 0.3]), label="learning rate"),
    )


@both_rules
@settings(max_examples=25)
@given(case=cases())
def test_rules_agree_with_the_unrolled_graph_everywhere(rule: MetaGradientRule, case: Case) -> None:
    check_against_reference(case, rule)


@both_rules
@pytest.mark.parametrize("steps", [1, 2])
def test_finite_differences(steps: int, rule: MetaGradientRule) -> None:
    case = make_case("gpt2", [0, 1, 1], [0, 1], 2, steps=steps)
    _, result, _ = solve(case, rule)
    generator = torch.Generator().manual_seed(5)
    along_s = torch.randn(3, generator=generator, dtype=torch.float64)
    along_start = random_tree(case.start, generator, 1.0)

    def outer_loss(amount: float, weights: bool) -> Tensor:
        moved = (
            replace(case, weights=case.weights + amount * along_s)
            if weights
            else replace(case, start=trees.add(case.start, along_start, amount))
        )
        with bound(case.kind).inactive():
            trajectory, outer = adapt(moved)
            return outer.value(trajectory.adapted).detach()

    h = 1e-5
    slopes = {w: (outer_loss(h, w) - outer_loss(-h, w)) / (2 * h) for w in (True, False)}
    assert result.start_gradient is not None
    assert relative_error(result.attributions @ along_s, slopes[True]) < 1e-6
    assert relative_error(trees.row_dot(result.start_gradient, along_start).sum(), slopes[False]) < 1e-6


# -- equivalent runs ---------------------------------------------------------------------------------------------------


@both_rules
def test_float32_is_close_to_float64(rule: MetaGradientRule) -> None:
    case = make_case("llama", [0, 0, 1, 1], [0, 1], 2, steps=3, side="left")
    _, exact, _ = solve(case, rule)
    model = lora_model("llama", torch.float32)
    lora = BoundLora(model, "inner")
    start = lora.start(2)
    assert {leaf.dtype for leaf in start.values()} == {torch.float32}
    with lora.inactive():
        outer = WeightedLoss(TokenLoss(model, lora.function, case.outer), case.coefficients.float())
        trajectory = InnerLoop(3, SGD(case.learning_rate)).run(
            TokenLoss(model, lora.function, case.inner), start, case.weights.float()
        )
        result = rule(trajectory, outer, start_gradient=True)
    assert result.attributions.dtype == torch.float32
    assert relative_error(result.attributions.double(), exact.attributions) < 1e-4
    for found, expected in (
        (result.start_gradient, exact.start_gradient),
        (result.outer_gradient, exact.outer_gradient),
    ):
        assert found is not None and expected is not None
        assert tree_error({name: leaf.double() for name, leaf in found.items()}, expected) < 1e-4


@both_rules
def test_bfloat16_base_has_float32_adjoints(rule: MetaGradientRule) -> None:
    # A small learning rate: larger ones amplify the rounding of the base's activations.
    case = make_case("llama", [0, 0, 1, 1], [0, 1], 2, steps=2, learning_rate=0.01)
    _, exact, _ = solve(case, rule)
    lora = BoundLora(model := lora_model("llama", torch.bfloat16), "inner")
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    with lora.inactive():
        outer = WeightedLoss(TokenLoss(model, lora.function, case.outer), case.coefficients.float())
        inner = TokenLoss(model, lora.function, case.inner)
        trajectory = InnerLoop(2, SGD(case.learning_rate)).run(inner, lora.start(2), case.weights.float())
        result = rule(trajectory, outer, start_gradient=True)
    assert result.start_gradient is not None
    leaves = [*trajectory.adapted.values(), *result.outer_gradient.values(), *result.start_gradient.values()]
    for tensor in (result.attributions, result.outer_losses, *leaves):
        assert tensor.dtype == torch.float32 and tensor.isfinite().all()
    assert functional.cosine_similarity(result.attributions.double(), exact.attributions, dim=0) > 0.99


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("steps", [1, 2])
def test_reweighted_equals_a_new_run(steps: int, momentum: float | None) -> None:
    case = make_case("llama", [1, 0, 1], [0, 1], 2, steps=steps, momentum=momentum)
    other = replace(case, weights=torch.tensor([0.2, 0.0, 1.1], dtype=torch.float64))
    with bound("llama").inactive():
        (trajectory, outer), (expected, _) = adapt(case), adapt(other)
        found = trajectory.reweighted(other.weights)
        assert tree_error(found.adapted, expected.adapted) < EXACT
        first, second = (get_rule("adjoint")(t, outer, start_gradient=True) for t in (found, expected))
    assert relative_error(first.attributions, second.attributions) < EXACT
    assert first.start_gradient is not None and second.start_gradient is not None
    assert tree_error(first.start_gradient, second.start_gradient) < EXACT
