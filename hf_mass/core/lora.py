"""LoRA as a function: low-rank updates whose weights are arguments, one set per task of a batch.

A site is a module whose output gets `scaling * B A x` added (LoRA, arXiv 2106.09685, eq. 3). The matrices come from a
`Tree` of stacked leaves A [N, r, d_in] and B [N, d_out, r], so one pass over the shared base serves N tasks, and the
result is differentiable with respect to every task's matrices, in forward and in reverse mode.

Left out on purpose: DoRA, and sites that do not see [rows, length, features].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hf_mass.core.dropout import LoraDropout
from hf_mass.core.trees import Tree, num_tasks
from hf_mass.errors import DataError, UnsupportedModelError


@dataclass(frozen=True, slots=True)
class LoraSite:
    """Where one low-rank update is added.

    Args:
        module: The module whose output is changed; it is called with x [rows, length, d_in].
        a: Name of the leaf A [N, r, d_in].
        b: Name of the leaf B [N, d_out, r].
        scaling: Factor of the update (alpha / r in PEFT).
    """

    module: nn.Module
    a: str
    b: str
    scaling: float


class LoraFunction:
    """Applies a tree of low-rank updates to a model for the length of a context.

    Args:
        sites: Where the updates are added, by name.
        layers: The model's decoder layers in the order of its forward pass, for passes that take one at a time; empty
            where it has none that could be told apart.
    """

    def __init__(self, sites: Mapping[str, LoraSite], layers: Sequence[nn.Module] = ()) -> None:
        self.sites, self.layers = dict(sites), tuple(layers)

    def leaves_of(self, layer: nn.Module) -> list[str]:
        """Names of the parameters that a layer uses."""
        inside = set(layer.modules())
        return [leaf for site in self.sites.values() if site.module in inside for leaf in (site.a, site.b)]

    @contextmanager
    def applied(
        self, params: Tree, row_task: Tensor, dropout: LoraDropout | None = None, incomplete: bool = False
    ) -> Iterator[None]:
        """Within this context the model answers row r with the updates of task `row_task[r]`.

        Backward passes must run inside the context: activation checkpointing recomputes the forward pass during
        backward, and outside of the context it would silently recompute it without the updates.

        Args:
            params: Stacked leaves, [N, ...].
            row_task: [rows] int64 in [0, N).
            dropout: Masks of the low-rank path; None for none.
            incomplete: Leave sites without leaves among `params` as the model has them.

        Raises:
            DataError: When the model is called with another number of rows.
            UnsupportedModelError: When a site is called with anything but [rows, length, features].
        """
        grouped = _is_grouped(row_task, num_tasks(params))
        with ExitStack() as stack:
            for index, (name, site) in enumerate(self.sites.items()):
                if site.a in params or not incomplete:
                    drop = partial(dropout.mask, index) if dropout else None
                    hook = _update_hook(name, site, params[site.a], params[site.b], row_task, grouped, drop)
                    stack.callback(site.module.register_forward_hook(hook).remove)
            yield


def _is_grouped(row_task: Tensor, tasks: int) -> bool:
    """Whether rows lie task by task, equally many for each: then no gather of the matrices is needed."""
    rows = row_task.numel()
    if rows % tasks:
        return False
    expected = torch.arange(tasks, device=row_task.device).repeat_interleave(rows // tasks)
    return bool(torch.equal(row_task, expected))


def _update_hook(
    name: str,
    site: LoraSite,
    a: Tensor,
    b: Tensor,
    row_task: Tensor,
    grouped: bool,
    drop: Callable[[int], Tensor] | None,
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if x.dim() != 3:
            raise UnsupportedModelError(
                f"LoRA site {name!r} got an input of shape {tuple(x.shape)}; [rows, length, features] is needed to "
                "tell the tasks of a batch apart. Take this module out of the inner adapter's target_modules."
            )
        rows, _, features = x.shape
        if rows != row_task.numel():  # would otherwise be spread over the wrong tasks without a sign
            raise DataError(
                f"LoRA site {name!r} got {rows} rows, but row_task names the tasks of {row_task.numel()}. Call the "
                "model with one row for each entry of row_task."
            )
        left, right = (a, b) if grouped else (a.index_select(0, row_task), b.index_select(0, row_task))
        x = x.to(a.dtype)
        if drop is not None:
            x = x * drop(features).to(x.dtype)
        stacked = x.reshape(left.shape[0], -1, features)  # [N or rows, rows per task * length, d_in]
        low = stacked.bmm(left.transpose(1, 2))  # [.., .., r]
        if output.dtype == low.dtype:  # one pass over the output, where scaling and adding apart would take three
            base = output.reshape(left.shape[0], -1, output.shape[-1])
            return torch.baddbmm(base, low, right.transpose(1, 2), alpha=site.scaling).view(output.shape)
        update = low.bmm(right.transpose(1, 2))  # [.., .., d_out]
        return output + (site.scaling * update).reshape(output.shape).to(output.dtype)

    return hook
