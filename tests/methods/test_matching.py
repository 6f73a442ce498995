"""Samples that are weighed as a set: against a least-squares problem made of gradients that are taken one by one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import combinations

import pytest
import torch
from model_fixtures import BASE, conventions_config, conventions_model, right_sample, written
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_mass.core.trees import Tree, leaves
from hf_mass.errors import DataError
from hf_mass.methods import inner
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.tasks.task import Task


def flat(tree: Tree) -> Tensor:
    return torch.cat([leaf[0].flatten().double() for leaf in tree.values()])


def gradients(mass: MassModel, task: Task, samples: Sequence[AuxiliarySample]) -> tuple[Tensor, Tensor]:
    """(∇ℓ_i [m, P], the gradient g [P] of the loss on the demonstrations), each from a pass of its own."""
    adapter = mass.adapter
    start, first = adapter.lora.start(1), torch.zeros(1, dtype=torch.long)
    derivations = [adapter.proposed_derivations(task, samples)]
    with adapter.lora.inactive():
        target = flat(adapter.demonstration_loss([task], derivations).gradient(start).params)
        rows = []
        for sample in samples:
            loss = adapter.token_loss([adapter.encoder.inner_row(0, task, sample.question, sample.answer)])
            point = leaves(start)
            with loss.evaluate(point, first, first, False) as values:
                found = torch.autograd.grad(values[0], list(point.values()), materialize_grads=True)
            rows.append(flat(dict(zip(point, found, strict=True))))
    return torch.stack(rows), target


def least_distance(rows: Tensor, target: Tensor) -> float:
    """The least |Σ w_i rows_i − target|² over w ≥ 0, by trying every subset."""
    least = float(target.square().sum())
    for size in range(1, len(rows) + 1):
        for subset in map(list, combinations(range(len(rows)), size)):
            found = torch.linalg.lstsq(rows[subset].T, target[:, None]).solution[:, 0]
            if (found >= 0).all():
                least = min(least, float((found @ rows[subset] - target).square().sum()))
    return least


@pytest.mark.parametrize("steps", [1, 2])
def test_weights_are_those_of_the_nearest_combination(tasks: list[Task], steps: int) -> None:
    mass = conventions_model(conventions_config(inner_steps=steps))
    wrong = written("tom plum blue rule01"), written("bob fig red rule02")
    for task in tasks[:3]:
        group = [wrong[0], *(right_sample(task, d.question) for d in task.demonstrations[:2]), wrong[1]]
        record = mass.adapt([task], "matching", [group])[0]
        rows, target = gradients(mass, task, group)
        mean = record.weights.double() @ rows
        scale = (mean @ target) / (mean @ mean)  # the weights sum to one: what they were scaled by is lost
        distance, least = float((scale * mean - target).square().sum()), least_distance(rows, target)
        assert least <= distance * (1 + 1e-9) <= least * (1 + 1e-4)
        assert record.weights.sum().item() == pytest.approx(1)
        assert record.attributions is not None and record.adapted is not None and record.reason is None
        expected = mass.config.inner.learning_rate * (rows @ target)
        torch.testing.assert_close(record.attributions.double(), expected, rtol=1e-3, atol=1e-5)


def test_a_base_in_float64_is_weighed_alike(tasks: list[Task]) -> None:
    base, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), AutoTokenizer.from_pretrained(BASE)
    group = [right_sample(tasks[0], d.question) for d in tasks[0].demonstrations[:2]]
    group.append(written("tom plum blue rule01"))
    weights = [
        MassModel.from_base(each, conventions_config(), None, tokenizer)
        .adapt([tasks[0]], "matching", [group])[0]
        .weights
        for each in (base, copy.deepcopy(base).double())
    ]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_a_task_whose_samples_all_point_away_stays_unadapted(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is turned round, so that what helps the demonstrations of the other one harms them."""
    mass, matching = conventions_model(), inner.matching_weights
    signs = iter((-1, 1))
    monkeypatch.setattr(inner, "matching_weights", lambda gram, products: matching(gram, next(signs) * products))
    groups = [[right_sample(task)] * 2 for task in tasks[:2]]
    first, second = mass.adapt(tasks[:2], "matching", groups)
    assert first.adapted is None and first.weights.tolist() == [0, 0]
    assert first.reason == "no combination of the samples helps the demonstrations"
    assert second.adapted is not None
    assert mass.solve(tasks[0], first) == mass.solve(tasks[0])


def test_demonstrations_are_needed(tasks: list[Task]) -> None:
    alone = Task(tasks[0].problem, fields=tasks[0].fields)
    with pytest.raises(DataError, match="demonstrations"):
        conventions_model().adapt([alone], "matching", [[right_sample(tasks[0])]])
