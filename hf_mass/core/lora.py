"""LoRA as a function: low-rank updates whose weights are arguments, one set per task of a batch.

A site is a module whose output gets `scaling * B A x` added (LoRA, arXiv 2106.09685, eq. 3). The matrices come from a
`Tree` of stacked leaves A [N, r, d_in] and B [N, d_out, r], so one pass over the shared base serves N tasks, and the
result is differentiable with respect to every task's matrices, in forward and in reverse mode.

Left out on purpose: DoRA, and sites that do not see [rows, length, features].
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_mass.core.dropout import LoraDropout
from hf_mass.core.trees import Tree, num_tasks
from hf_mass.errors import DataError, ModelWarning, UnsupportedModelError


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
        self.used: set[str] = set()  # sites that were ever called
        self._told = False

    def leaves_of(self, layer: nn.Module) -> list[str]:
        """Names of the parameters that a layer uses."""
        inside = set(layer.modules())
        return [leaf for site in self.sites.values() if site.module in inside for leaf in (site.a, site.b)]

    @contextmanager
    def applied(
        self,
        params: Tree,
        row_task: Tensor | None,
        dropout: LoraDropout | None = None,
        incomplete: bool = False,
        only_once: bool = False,
    ) -> Iterator[None]:
        """Within this context the model answers row r with the updates of task `row_task[r]`.

        Backward passes must run inside the context: activation checkpointing recomputes the forward pass during
        backward, and outside of the context it would silently recompute it without the updates.

        Args:
            params: Stacked leaves, [N, ...].
            row_task: [rows] int64 in [0, N); None for one task and any number of rows.
            dropout: Masks of the low-rank path; None for none.
            incomplete: Leave sites without leaves among `params` as the model has them.
            only_once: Promise that the pass is differentiated once, backwards: then a faster product serves.

        Raises:
            DataError: When the model is called with another number of rows.
            UnsupportedModelError: When a site is called with anything but [rows, length, features].
        """
        if not params:  # a layer without a site
            yield
            return
        if row_task is None and num_tasks(params) != 1:
            raise DataError(
                f"row_task is None, and params hold {num_tasks(params)} tasks. Say which task each row is of."
            )
        chunks = None if row_task is None else _chunk_tasks(row_task, num_tasks(params))
        update: Callable[..., Tensor] = _updated
        if only_once and torch.is_grad_enabled():
            update = _FreshUpdate.apply if self._is_fresh(params) else _OnceUpdate.apply
        with ExitStack() as stack:
            if "torch._dynamo" in sys.modules:
                # Compiled code does not know of hooks that came later, and cannot be differentiated twice.
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for index, (name, site) in enumerate(self.sites.items()):
                if site.a in params or not incomplete:
                    drop = partial(dropout.mask, index) if dropout else None
                    hook = _update_hook(name, site, params[site.a], params[site.b], row_task, chunks, drop, update)
                    stack.callback(site.module.register_forward_hook(hook).remove)
                    if name not in self.used:
                        note = partial(_note, self.used, name)
                        stack.callback(site.module.register_forward_hook(note).remove)
            yield

    def tell_unused(self) -> None:
        """After a pass: warn, once, of sites that it did not call, whose updates change nothing.

        Raises:
            UnsupportedModelError: If it called none.
        """
        unused = [name for name in self.sites if name not in self.used]
        if not unused or self._told:
            return
        sites = f"{len(unused)} of {len(self.sites)} LoRA sites were not called (first: {unused[0]})"
        if not self.used:
            raise UnsupportedModelError(f"{sites}: adapting would change nothing. Choose other target_modules.")
        self._told = True
        warnings.warn(
            f"{sites}: the model reads their weights without calling them, or text does not reach them. Their updates "
            "change nothing; leave them out of target_modules.",
            ModelWarning,
            stacklevel=2,
        )

    def _is_fresh(self, params: Tree) -> bool:
        """Returns True if B is zero everywhere, as LoRA starts."""
        nonzero = [params[site.b].any() for site in self.sites.values() if site.b in params]
        return not bool(torch.stack(nonzero).any())  # one transfer from a device, not one for each site


def _note(used: set[str], name: str, *_: Any) -> None:
    used.add(name)


def _chunk_tasks(row_task: Tensor, tasks: int) -> Tensor | None:
    """The task of each chunk [chunks], where rows are cut into equal chunks of one task each, as large as can be.

    One product serves a chunk, and a copy of its task's matrices is gathered for it. None where each task has one
    chunk, in order: then the matrices serve as they are.
    """
    _, counts = torch.unique_consecutive(row_task, return_counts=True)
    chunks = row_task[:: math.gcd(*counts.tolist())]
    in_order = torch.arange(tasks, device=chunks.device)
    return None if torch.equal(chunks, in_order) else chunks


def _update_hook(
    name: str,
    site: LoraSite,
    a: Tensor,
    b: Tensor,
    row_task: Tensor | None,
    chunks: Tensor | None,
    drop: Callable[[int], Tensor] | None,
    update: Callable[..., Tensor],
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if x.dim() != 3:
            raise UnsupportedModelError(
                f"LoRA site {name!r} got an input of shape {tuple(x.shape)}; [rows, length, features] is needed to "
                "tell the tasks of a batch apart. Take this module out of the inner adapter's target_modules."
            )
        rows, _, features = x.shape
        if row_task is not None and rows != row_task.numel():  # else rows are spread over the wrong tasks in silence
            raise DataError(
                f"LoRA site {name!r} got {rows} rows, but row_task names the tasks of {row_task.numel()}. Call the "
                "model with one row for each entry of row_task."
            )
        left, right = (a, b) if chunks is None else (a.index_select(0, chunks), b.index_select(0, chunks))
        x = x.to(a.dtype)
        if drop is not None:
            x = x * drop(features).to(x.dtype)
        stacked = x.reshape(left.shape[0], -1, features)  # [chunks, rows of a chunk * length, d_in]
        base = output.reshape(left.shape[0], -1, output.shape[-1])  # [.., .., d_out]
        # The low-rank path keeps its own dtype, float32 on a bfloat16 base, where the model runs under autocast too.
        with torch.autocast(device_type=x.device.type, enabled=False):
            return update(base, stacked, left, right, site.scaling).view(output.shape)

    return hook


def _updated(output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """y + scaling · B A x for G groups: y [G, T, d_out], x [G, T, d_in], A [G, r, d_in], B [G, d_out, r]."""
    return _added(output, x.bmm(a.transpose(1, 2)), b, scaling)


def _added(output: Tensor, low: Tensor, b: Tensor, scaling: float) -> Tensor:
    """y + scaling · B low, low [G, T, r]: one pass over y where the dtypes agree, instead of three."""
    if output.dtype == low.dtype:
        return torch.baddbmm(output, low, b.transpose(1, 2), alpha=scaling)
    return output + (scaling * low).bmm(b.transpose(1, 2)).to(output.dtype)  # the narrow factor is scaled


class _OnceUpdate(torch.autograd.Function):
    """`_updated` with its first derivative written out, every skinny product with the long dimension last.

    With g the gradient at the output and z = A xᵀ [G, r, T]: B̄ᵀ = s z g, and through u = s Bᵀ gᵀ [G, r, T], Ā = u x
    and x̄ = uᵀ A. A product [T, d] × [d, r] with a small r takes up to four times as long on a CPU as [r, d] × [d, T],
    and the backward pass that autograd makes of `_updated` has three of the slow kind.
    """

    @staticmethod
    def forward(context: Any, output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """See `_updated`."""
        low = a.bmm(x.transpose(1, 2))  # [G, r, T]
        context.save_for_backward(x, a, b, low)
        context.scaling = scaling
        return _added(output, low.transpose(1, 2), b, scaling)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Cotangents of y, x, A, B; none of the scaling."""
        x, a, b, low = context.saved_tensors
        wide = gradient.to(low.dtype)
        up = b.transpose(1, 2).bmm(wide.transpose(1, 2)).mul_(context.scaling)  # [G, r, T]
        b_bar = low.bmm(wide).mul_(context.scaling).transpose(1, 2)
        x_bar = up.transpose(1, 2).bmm(a) if context.needs_input_grad[1] else None
        return gradient, x_bar, up.bmm(x), b_bar, None


class _FreshUpdate(torch.autograd.Function):
    """`_OnceUpdate` at B = 0: nothing is added, Ā = 0 and x̄ = 0, and B̄ takes two products."""

    @staticmethod
    def forward(context: Any, output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """See `_updated`."""
        context.save_for_backward(a.bmm(x.transpose(1, 2)))  # [G, r, T]
        context.scaling, context.a_shape = scaling, a.shape
        return output.clone()  # a view may not be written to, as Falcon's layers do

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Cotangents of y, A and B."""
        (low,) = context.saved_tensors
        b_bar = low.bmm(gradient.to(low.dtype)).mul_(context.scaling).transpose(1, 2)
        return gradient, None, low.new_zeros(context.a_shape), b_bar, None
