"""LoRA as a function of stacked matrices: the right task's matrices on the right rows, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import relative_error
from torch import Tensor, nn

from hf_mass.core.lora import LoraFunction, LoraSite
from hf_mass.core.trees import Tree
from hf_mass.errors import DataError, UnsupportedModelError


class TwoMaps(nn.Module):
    """Two linear maps with a curve between them, on [rows, length, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def made(tasks: int, seed: int = 0, rank: int = 2) -> tuple[TwoMaps, LoraFunction, Tree]:
    torch.manual_seed(seed)
    model = TwoMaps()
    sites = {
        "first": LoraSite(model.first, "first.A", "first.B", 0.7),
        "second": LoraSite(model.second, "second.A", "second.B", 1.3),
    }
    params = {
        "first.A": torch.randn(tasks, rank, 3).double(),
        "first.B": torch.randn(tasks, 5, rank).double(),
        "second.A": torch.randn(tasks, rank, 5).double(),
        "second.B": torch.randn(tasks, 2, rank).double(),
    }
    return model, LoraFunction(sites), params


def merged(model: TwoMaps, params: Tree, task: int, x: Tensor) -> Tensor:
    """One task's answer from its merged weights W + scaling · B A."""
    first = model.first.weight + 0.7 * params["first.B"][task] @ params["first.A"][task]
    second = model.second.weight + 1.3 * params["second.B"][task] @ params["second.A"][task]
    return torch.tanh(x @ first.T + model.first.bias) @ second.T + model.second.bias


@given(tasks=st.integers(1, 4), data=st.data(), length=st.integers(1, 4), rank=st.integers(1, 3))
def test_rows_are_answered_by_the_merged_weights_of_their_task(
    tasks: int, data: st.DataObject, length: int, rank: int
) -> None:
    row_task = data.draw(st.lists(st.integers(0, tasks - 1), min_size=1, max_size=6))
    model, function, params = made(tasks, rank=rank)
    x = torch.randn(len(row_task), length, 3).double()
    with function.applied(params, torch.tensor(row_task)):
        found = model(x)
    expected = torch.stack([merged(model, params, task, row) for task, row in zip(row_task, x, strict=True)])
    assert relative_error(found, expected) < 1e-12


def test_grouped_and_gathered_rows_agree() -> None:
    """Rows task by task take a path without a gather; in another order they take the one with it."""
    model, function, params = made(3)
    x, row_task = torch.randn(6, 4, 3).double(), torch.arange(3).repeat_interleave(2)
    shuffled = torch.tensor([5, 0, 3, 1, 4, 2])
    leaves = {name: leaf.requires_grad_() for name, leaf in params.items()}
    outputs, gradients = [], []
    for order in (torch.arange(6), shuffled):
        with function.applied(leaves, row_task[order]):
            output = model(x[order])[torch.argsort(order)]
            gradients.append(torch.autograd.grad(output.square().sum(), list(leaves.values())))
        outputs.append(output)
    assert relative_error(outputs[1], outputs[0]) < 1e-14
    for first, second in zip(*gradients, strict=True):
        assert relative_error(second, first) < 1e-14


@pytest.mark.parametrize("row_task", [[0, 0, 1, 1, 2, 2], [2, 0, 1, 1, 0, 2], [0, 2, 2]])
def test_rows_do_not_see_the_matrices_of_another_task(row_task: list[int]) -> None:
    model, function, params = made(3)
    rows = torch.tensor(row_task)
    x = torch.randn(len(rows), 4, 3).double()
    leaves = {name: leaf.requires_grad_() for name, leaf in params.items()}
    with function.applied(leaves, rows):
        before = model(x)
        own = torch.autograd.grad(before[rows == 2].sum(), list(leaves.values()))
    for gradient in own:
        assert (gradient[:2] == 0).all() and (gradient[2] != 0).any()
    # A task's matrices may even be broken: other tasks' rows are the same to the last bit.
    broken = {name: leaf.detach().clone() for name, leaf in params.items()}
    for leaf in broken.values():
        leaf[2] = float("nan")
    with function.applied(broken, rows):
        after = model(x)
    assert torch.equal(after[rows != 2], before[rows != 2])
    assert after[rows == 2].isnan().all()


def test_output_keeps_the_dtype_of_the_base() -> None:
    model, function, params = made(1)
    model.to(torch.bfloat16)
    single = {name: leaf.float().requires_grad_() for name, leaf in params.items()}
    with function.applied(single, torch.tensor([0, 0])):
        output = model(torch.randn(2, 3, 3).bfloat16())
        gradients = torch.autograd.grad(output.float().sum(), list(single.values()))
    assert output.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_nothing_is_left_after_the_context() -> None:
    model, function, params = made(2)
    x, row_task = torch.randn(2, 4, 3).double(), torch.tensor([0, 1])
    before = model(x)
    with function.applied(params, row_task):
        assert not torch.equal(model(x), before)
    assert torch.equal(model(x), before)
    with pytest.raises(RuntimeError, match="stop"), function.applied(params, row_task):
        raise RuntimeError("stop")
    with (
        pytest.raises(KeyError),
        function.applied({"first.A": params["first.A"], "first.B": params["first.B"]}, row_task),
    ):
        pass  # the second site's matrices are missing, after the first site was hooked
    assert torch.equal(model(x), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_inputs_without_rows_and_length_are_refused() -> None:
    model, function, params = made(2)
    with (
        function.applied(params, torch.tensor([0, 1])),
        pytest.raises(UnsupportedModelError, match=r"'first' got an input of shape \(2, 3\).*target_modules"),
    ):
        model(torch.randn(2, 3).double())


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("row_task", [[0, 1], [1, 0]])
def test_another_number_of_rows_is_refused(row_task: list[int], rows: int) -> None:
    """Such inputs could be reshaped into [tasks, ...] all the same, and rows would get another task's matrices."""
    model, function, params = made(2)
    with (
        function.applied(params, torch.tensor(row_task)),
        pytest.raises(DataError, match=rf"'first' got {rows} rows, but row_task names the tasks of 2"),
    ):
        model(torch.randn(rows, 4, 3).double())
