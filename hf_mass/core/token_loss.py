"""Row losses of a causal language model: mean negative log-likelihood over the answer tokens of each row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_mass.core.lora import LoraFunction
from hf_mass.core.trees import Tree
from hf_mass.errors import DataError

IGNORED = -100


@dataclass(frozen=True)
class TokenBatch:
    """R padded sequences, each of one task.

    Args:
        input_ids: [R, S] int64.
        attention_mask: [R, S] int64, 0 on padding (either side).
        labels: [R, S] int64, the token itself where it is an answer token, −100 elsewhere.
        row_task: [R] int64 in [0, N).
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    row_task: Tensor

    def __post_init__(self) -> None:
        shapes = {tuple(x.shape) for x in (self.input_ids, self.attention_mask, self.labels)}
        if len(shapes) != 1 or self.row_task.shape != self.input_ids.shape[:1]:
            raise DataError(
                f"TokenBatch: input_ids {tuple(self.input_ids.shape)}, attention_mask "
                f"{tuple(self.attention_mask.shape)} and labels {tuple(self.labels.shape)} must share one shape [R, S] "
                f"and row_task {tuple(self.row_task.shape)} must be [R]."
            )
        empty = (self.labels[:, 1:] != IGNORED).sum(1) == 0
        if empty.any():
            raise DataError(
                f"TokenBatch.labels: row {int(empty.nonzero()[0])} has no answer token, so its mean loss is undefined. "
                "Leave such rows out and give their samples weight 0."
            )

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def select(self, rows: Tensor) -> TokenBatch:
        """The rows given, cut to the columns that any of them uses."""
        mask = self.attention_mask[rows]
        used = mask.any(0).nonzero()
        columns = slice(int(used.min()), int(used.max()) + 1)
        return replace(
            self,
            input_ids=self.input_ids[rows, columns],
            attention_mask=mask[:, columns],
            labels=self.labels[rows, columns],
            row_task=self.row_task[rows],
        )


def token_log_probs(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """(log p of every label token [R, S−1], mask of answer tokens [R, S−1] bool), float32 or wider.

    Positions count from each row's first real token, so the padding side does not matter.
    """
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    logits = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, use_cache=False
    ).logits[:, :-1]
    labels = batch.labels[:, 1:]
    mask = labels != IGNORED
    wide = logits if logits.dtype == torch.float64 else logits.float()
    nll = functional.cross_entropy(
        wide.reshape(-1, wide.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="none"
    )
    return -nll.view(labels.shape), mask


class TokenLoss:
    """`RowLoss` of a language model under stacked low-rank updates.

    Args:
        model: Called with input_ids, attention_mask, position_ids, use_cache; returns an object with `.logits`.
        lora: The low-rank updates that the parameters stand for.
        batch: R rows.
        microbatch: Rows in one pass; None for all of them.
        reduction: "mean" or "sum" over a row's answer tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        lora: LoraFunction,
        batch: TokenBatch,
        microbatch: int | None = None,
        reduction: str = "mean",
    ) -> None:
        self.model, self.lora, self.batch, self.microbatch, self.reduction = model, lora, batch, microbatch, reduction
        self.row_task = batch.row_task

    def microbatches(self) -> Iterator[Tensor]:
        """Consecutive rows, `microbatch` at a time."""
        rows = torch.arange(len(self.batch), device=self.row_task.device)
        yield from rows.split(self.microbatch or max(1, len(self.batch)))

    @contextmanager
    def evaluate(self, params: Tree, rows: Tensor, row_task: Tensor, second_order: bool) -> Iterator[Tensor]:
        """Context that gives the losses [rows] (see `RowLoss.evaluate`)."""
        with ExitStack() as stack:
            if second_order:
                stack.enter_context(twice_differentiable(self.model))
            stack.enter_context(self.lora.applied(params, row_task))
            log_probs, mask = token_log_probs(self.model, self.batch.select(rows))
            total = -(log_probs * mask).sum(1)
            yield total / mask.sum(1) if self.reduction == "mean" else total


class _SmoothSiLU(nn.Module):
    """x · sigmoid(x) from operations with every derivative rule (`aten::silu_backward` has no forward-mode one)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class _SmoothGELU(nn.Module):
    """x Φ(x) with the error function, for the same reason."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x * 0.7071067811865476))


class _SmoothGELUTanh(nn.Module):
    """The tanh form of GELU, for the same reason."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


_SMOOTH = {
    "SiLU": _SmoothSiLU,
    "SiLUActivation": _SmoothSiLU,
    "GELUActivation": _SmoothGELU,
    "GELUTanh": _SmoothGELUTanh,
}


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Within this context attention uses the math kernel and activations are written out.

    The fused attention kernel has neither a forward-mode nor a double-backward rule on a CPU. The values agree with the
    fused ones up to rounding.
    """
    replaced = []
    for parent in model.modules():
        for name, child in parent.named_children():
            smooth = _SMOOTH.get(type(child).__name__)
            if isinstance(child, nn.GELU):
                smooth = _SmoothGELUTanh if child.approximate == "tanh" else _SmoothGELU
            if smooth is not None:
                replaced.append((parent, name, child))
                setattr(parent, name, smooth())
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)
