"""Named parameter trees: flat dictionaries from a name to a tensor whose first dimension counts tasks.

A tree of N tasks holds [N, ...] tensors. Every operation here is linear and keeps the tasks apart, so the gradient of a
sum over tasks with respect to such a tree is each task's own gradient, stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Tree = dict[str, Tensor]


def tree_map(function: Callable[..., Tensor], first: Tree, *rest: Tree) -> Tree:
    """Apply `function` leaf by leaf to trees of the same names."""
    return {name: function(leaf, *(tree[name] for tree in rest)) for name, leaf in first.items()}


def add(first: Tree, second: Tree, scale: float = 1.0) -> Tree:
    """`first + scale * second`, leaf by leaf."""
    return tree_map(lambda x, y: x + scale * y, first, second)


def zeros_like(tree: Tree) -> Tree:
    """A tree of zeros of the same shapes, dtypes and device."""
    return tree_map(torch.zeros_like, tree)


def detached(tree: Tree) -> Tree:
    """The same values outside any autograd graph."""
    return tree_map(Tensor.detach, tree)


def leaves(tree: Tree) -> Tree:
    """The same values as new leaves of the autograd graph, which require gradients."""
    return tree_map(lambda x: x.detach().requires_grad_(), tree)


def repeat_tasks(tree: Tree, num_tasks: int) -> Tree:
    """[1, ...] leaves expanded (without copying) to [num_tasks, ...]."""
    return tree_map(lambda x: x.expand(num_tasks, *x.shape[1:]), tree)


def gather_tasks(tree: Tree, row_task: Tensor) -> Tree:
    """[N, ...] leaves indexed to [R, ...] by the task of each row."""
    return tree_map(lambda x: x.index_select(0, row_task), tree)


def scatter_rows(tree: Tree, row_task: Tensor, num_tasks: int) -> Tree:
    """[R, ...] leaves summed into [num_tasks, ...] by the task of each row; the adjoint of `gather_tasks`."""
    return tree_map(lambda x: x.new_zeros(num_tasks, *x.shape[1:]).index_add_(0, row_task, x), tree)


@dataclass(frozen=True)
class TaskSubset:
    """The tasks that some rows belong to, so that a pass over few rows handles the parameters of few tasks.

    Args:
        tasks: [P] int64, ascending.
        local: [rows] int64 in [0, P): each row's task as a place in `tasks`.
        everything: Whether these are all tasks.
    """

    tasks: Tensor
    local: Tensor
    everything: bool

    @classmethod
    def of(cls, row_task: Tensor, total: int) -> TaskSubset:
        """The tasks of rows [rows] out of `total`."""
        tasks, local = row_task.unique(return_inverse=True)
        return cls(tasks, local, tasks.numel() == total)

    def take(self, tree: Tree) -> Tree:
        """[N, ...] leaves cut to [P, ...]."""
        return tree if self.everything else gather_tasks(tree, self.tasks)

    def add_to(self, total: Tree, part: Tree) -> None:
        """Add leaves [P, ...] to those of their tasks in `total` [N, ...], in place."""
        for name, leaf in part.items():
            total[name].index_add_(0, self.tasks, leaf.to(total[name].dtype))


def scale_rows(tree: Tree, factors: Tensor) -> Tree:
    """Leaves [R, ...] times factors [R]."""
    return tree_map(lambda x: x * factors.to(x.dtype).view(-1, *([1] * (x.dim() - 1))), tree)


def row_dot(first: Tree, second: Tree) -> Tensor:
    """Inner products per leading index: Σ over names and trailing dimensions, [R]."""
    return torch.stack([(first[name] * second[name])[:, None].flatten(1).sum(1) for name in first]).sum(0)


def num_tasks(tree: Tree) -> int:
    """The size of the leading dimension shared by all leaves."""
    return next(iter(tree.values())).shape[0]


def concatenate_rows(trees: Iterable[Tree]) -> Tree:
    """Leaves of several trees joined along the leading dimension."""
    parts = list(trees)
    return {name: torch.cat([tree[name] for tree in parts]) for name in parts[0]}
