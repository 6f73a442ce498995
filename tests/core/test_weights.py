"""Scores to weights, and attributions at the weights to attributions at the logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import relative_error
from torch import Tensor

from hf_mass.core.weights import (
    NORMALISATIONS,
    attribution_weights,
    logit_attributions,
    matching_weights,
    nonnegative_minimum,
    normalise_scores,
    standardise,
    uniform_weights,
)
from hf_mass.errors import ConfigError

every_normalisation = pytest.mark.parametrize("normalisation", NORMALISATIONS)


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """(values [N, m], usable [N, m]) with any samples unusable, all of them included."""
    tasks, m = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    values = st.floats(-60, 60, width=32)
    flags = st.lists(st.booleans(), min_size=tasks * m, max_size=tasks * m)
    drawn = draw(st.lists(values, min_size=tasks * m, max_size=tasks * m))
    return torch.tensor(drawn, dtype=torch.float64).view(tasks, m), torch.tensor(draw(flags)).view(tasks, m)


def by_hand(scores: list[float], usable: list[bool], normalisation: str) -> list[float]:
    if normalisation == "softmax":
        raised = [math.exp(z) if u else 0.0 for z, u in zip(scores, usable, strict=True)]
        return [x / (sum(raised) or 1.0) for x in raised]
    curve = {"sigmoid": lambda z: 1 / (1 + math.exp(-z)), "none": lambda z: math.log1p(math.exp(z))}[normalisation]
    return [curve(z) / len(scores) if u else 0.0 for z, u in zip(scores, usable, strict=True)]


@every_normalisation
@given(group=groups())
def test_weights_by_hand(normalisation: str, group: tuple[Tensor, Tensor]) -> None:
    scores, usable = group
    weights = normalise_scores(scores, usable, normalisation)
    expected = [by_hand(z, u, normalisation) for z, u in zip(scores.tolist(), usable.tolist(), strict=True)]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-15)
    assert (weights >= 0).all() and (weights[~usable] == 0).all()
    if normalisation == "softmax":
        torch.testing.assert_close(weights.sum(1), usable.any(1).double())


@every_normalisation
@given(group=groups())
def test_gradients_are_finite_and_miss_unusable_samples(normalisation: str, group: tuple[Tensor, Tensor]) -> None:
    scores, usable = group
    leaf = scores.float().requires_grad_()
    (100 * normalise_scores(leaf, usable, normalisation)).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all()
    assert (leaf.grad[~usable] == 0).all()


@given(group=groups())
def test_softmax_does_not_overflow_or_depend_on_a_shift(group: tuple[Tensor, Tensor]) -> None:
    scores, usable = group
    weights = normalise_scores(scores, usable, "softmax")
    torch.testing.assert_close(normalise_scores(scores + 1e4, usable, "softmax"), weights, rtol=1e-9, atol=1e-15)
    assert normalise_scores(100 * scores.float(), usable, "softmax").isfinite().all()


def test_unknown_normalisation() -> None:
    with pytest.raises(ConfigError, match=r"score_normalization is 'max'; choose one of \['softmax', 'sigmoid', 'none"):
        normalise_scores(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), "max")


def test_uniform_weights() -> None:
    usable = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])
    assert uniform_weights(usable).tolist() == [[0.5, 0.5, 0, 0], [0] * 4, [0.25] * 4]


@given(group=groups())
def test_standardise(group: tuple[Tensor, Tensor]) -> None:
    values, usable = group
    result = standardise(values, usable)
    assert (result[~usable] == 0).all()
    for row, given_values, kept in zip(result, values, usable, strict=True):
        own = given_values[kept]
        if len(own) > 1 and own.max() - own.min() > 1e-3:
            torch.testing.assert_close(row[kept], (own - own.mean()) / own.std(), rtol=1e-9, atol=1e-12)
            # Neither the scale nor the origin of the attributions matters.
            again = standardise((3 * given_values + 7)[None], kept[None])[0]
            torch.testing.assert_close(again, row, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("values", [[[2.0, 2.0, 2.0]], [[5.0, 1.0, 9.0]]])
def test_standardise_without_spread_is_zero(values: list[list[float]]) -> None:
    usable = torch.tensor([[True, values[0][0] == values[0][1], values[0][0] == values[0][1]]])
    assert standardise(torch.tensor(values), usable).tolist() == [[0.0, 0.0, 0.0]]


@given(value=st.floats(-1e6, 1e6, width=32), m=st.integers(1, 24))
def test_equal_values_have_no_spread(value: float, m: int) -> None:
    """The mean of equal numbers may round to another number; that difference is not spread."""
    values, usable = torch.full((1, m), value), torch.ones(1, m, dtype=torch.bool)
    assert (standardise(values, usable) == 0).all()
    assert torch.equal(attribution_weights(values, usable, 3.0), normalise_scores(0 * values, usable, "softmax"))


def test_unusable_values_do_not_matter() -> None:
    usable = torch.tensor([[True, True, False]])
    for other in (0.0, float("nan"), float("inf")):
        result = standardise(torch.tensor([[1.0, 3.0, other]]), usable)
        torch.testing.assert_close(result, torch.tensor([[-(0.5**0.5), 0.5**0.5, 0.0]]))


def test_attribution_weights_prefer_samples_that_lower_the_loss() -> None:
    attributions = torch.tensor([[0.3, -1.0, 0.2, -50.0]], dtype=torch.float64)
    usable = torch.tensor([[True, True, True, False]])
    weights = attribution_weights(attributions, usable, 2.0)[0]
    kept = torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64)
    expected = torch.softmax(-2.0 * (kept - kept.mean()) / kept.std(), 0)
    torch.testing.assert_close(weights[:3], expected)
    assert weights[1] > weights[2] > weights[0] and weights[3] == 0
    sharper = attribution_weights(attributions, usable, 5.0)[0]
    assert sharper[1] > weights[1]


@given(group=groups(), seed=st.integers(0, 1000))
def test_logit_attributions_are_the_chain_rule(group: tuple[Tensor, Tensor], seed: int) -> None:
    scores, usable = group
    logits = (scores / 20).requires_grad_()
    attributions = torch.randn(scores.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = normalise_scores(logits, usable, "softmax")
    (expected,) = torch.autograd.grad((weights * attributions).sum(), logits)
    assert relative_error(logit_attributions(attributions, weights.detach()), -expected) < 1e-9


# -- matching as a set -------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), m=st.integers(1, 12), rank=st.integers(1, 12))
def test_matching_weights_are_the_least_distance_of_a_set(seed: int, m: int, rank: int) -> None:
    """The conditions that hold at the minimum of a convex function over w ≥ 0, and nowhere else (Karush, Kuhn, Tucker);
    also where there are more samples than directions."""
    generator = torch.Generator().manual_seed(seed)
    gradients, target = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (m, 1))
    gram, products = gradients @ gradients.T, gradients @ target[0]
    matrix = gram + 1e-6 * gram.diagonal().mean() * torch.eye(m, dtype=torch.float64)
    found = nonnegative_minimum(matrix, products)
    slope, scale = products - matrix @ found, float(products.abs().max())
    assert (found >= 0).all()
    assert (slope <= 1e-8 * scale).all()
    assert (slope * found).abs().max() <= 1e-8 * scale * max(1.0, float(found.max()))
    weights = matching_weights(gram, products)
    assert float(weights.sum()) == pytest.approx(1.0 if found.any() else 0.0)
    assert torch.allclose(weights * found.sum(), found)


def test_samples_that_are_alike_share_one_weight() -> None:
    """Where a softmax of single attributions gives the pair twice the weight of the one that is as good."""
    gradients = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    target = torch.tensor([1.0, 1.0], dtype=torch.float64)
    weights = matching_weights(gradients @ gradients.T, gradients @ target)
    assert weights.tolist() == pytest.approx([0.25, 0.25, 0.5, 0.0], abs=1e-5)


def test_samples_that_all_point_away_have_no_weight() -> None:
    gradients, target = -torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert matching_weights(gradients @ gradients.T, gradients @ target).tolist() == [0, 0, 0]
