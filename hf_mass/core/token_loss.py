"""Row losses of a causal language model: mean negative log-likelihood over the answer tokens of each row."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_mass.core import trees
from hf_mass.core.dropout import LoraDropout, without_noise
from hf_mass.core.layer_sweep import checkpointed, swept_curvature
from hf_mass.core.lora import LoraFunction
from hf_mass.core.losses import Curvature
from hf_mass.core.memory import FAST, LEAN, MemoryPlan
from hf_mass.core.meter import count_pass, unmetered
from hf_mass.core.second_order import double_backward
from hf_mass.core.symmetry import TOKENS, require_second_order
from hf_mass.core.trees import Tree
from hf_mass.errors import DataError, ModelWarning, UnsupportedModelError

IGNORED = -100


@dataclass(frozen=True)
class TokenBatch:
    """R padded sequences, each of one task.

    Padding stands behind the text; sequences that are given with padding elsewhere are moved to the front. No token
    then looks at padding, in no model: one with a recurrent state would count padding in front of the text, whatever
    the attention mask says.

    Args:
        input_ids: [R, S] int64.
        attention_mask: [R, S] int64, 0 on padding.
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
        if (self.attention_mask.diff(dim=1) > 0).any():
            order = self.attention_mask.argsort(dim=1, descending=True, stable=True)
            for name in ("input_ids", "attention_mask", "labels"):
                object.__setattr__(self, name, getattr(self, name).gather(1, order))
        empty = (self.labels[:, 1:] != IGNORED).sum(1) == 0
        if empty.any():
            raise DataError(
                f"TokenBatch.labels: row {int(empty.nonzero()[0])} has no answer token, so its mean loss is undefined. "
                "Leave such rows out and give their samples weight 0."
            )

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def positions(self) -> Tensor:
        """[R, S] int64."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device).expand(self.input_ids.shape)

    def select(self, rows: Tensor) -> TokenBatch:
        """Some of the rows, cut to the columns that any of them uses."""
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


def token_log_probs(model: nn.Module, batch: TokenBatch, cut: bool = True) -> tuple[Tensor, Tensor]:
    """(log p of every answer token [R, S−1], mask of answer tokens [R, S−1] bool), float32 or wider; 0 elsewhere.

    Args:
        model: A causal language model.
        batch: R rows with T answer tokens in all.
        cut: Let the output head see the positions before answer tokens only: logits of the others, [V] wide each, are
            never made. Not possible where the head carries a low-rank update of its own, which must tell rows apart.
    """
    count_pass(len(batch), batch.input_ids.shape[1], torch.is_grad_enabled())
    answers = batch.labels[:, 1:] != IGNORED  # [R, S − 1]
    row, column = answers.nonzero(as_tuple=True)
    head = getattr(model, "get_output_embeddings", lambda: None)() if cut else None

    calls = 0

    def select(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal calls
        calls, hidden = calls + 1, inputs[0]
        if hidden.shape[:2] != batch.input_ids.shape:
            raise UnsupportedModelError(
                f"{type(module).__name__}, the output head, got hidden states of shape {tuple(hidden.shape)} for "
                f"input_ids {tuple(batch.input_ids.shape)}; a causal language model gives one for each token."
            )
        return (hidden[row, column][None], *inputs[1:])

    handle = head.register_forward_pre_hook(select) if isinstance(head, nn.Module) else None
    try:
        with without_noise(model, batch.input_ids.device):
            # No mask: padding stands behind the text, where no token looks, and attention takes its kernel's fast path.
            logits = model(input_ids=batch.input_ids, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    if handle is not None and calls != 1:
        raise UnsupportedModelError(
            f"{type(head).__name__}, the output head, was called {calls} times in a forward pass; logits come from one "
            "call of it."
        )
    logits = logits[row, column] if handle is None else logits[0]  # [T, V]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nll = functional.cross_entropy(logits, batch.labels[row, column + 1], reduction="none")  # [T]
    return nll.new_zeros(answers.shape).index_put((row, column), -nll), answers


class TokenLoss:
    """`RowLoss` of a language model under stacked low-rank updates.

    Args:
        model: Called with input_ids, attention_mask, position_ids, use_cache; returns an object with `.logits`.
        lora: The low-rank updates that the parameters stand for.
        batch: R rows.
        microbatch: Rows in one pass; None for what the memory plan says.
        reduction: "mean" or "sum" over a row's answer tokens.
        memory: What the passes may keep.
        dropout: Probability that an entry is dropped on the low-rank path.
        seed: Of the dropout masks.

    Raises:
        UnsupportedModelError: If the memory plan asks for layers that the model does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        lora: LoraFunction,
        batch: TokenBatch,
        microbatch: int | None = None,
        reduction: str = "mean",
        memory: MemoryPlan = FAST,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.model, self.lora, self.batch, self.reduction = model, lora, batch, reduction
        self.use(replace(memory, microbatch=microbatch) if microbatch else memory)
        self.row_task = batch.row_task
        same_task = batch.row_task[:, None] == batch.row_task[None, :]
        keys = same_task.tril(-1).sum(1)  # 0, 1, … for the rows of each task, in their order
        self.dropout = LoraDropout(dropout, seed, keys, batch.positions) if dropout else None

    def use(self, memory: MemoryPlan) -> None:
        """Follow another memory plan from now on; raises UnsupportedModelError as the constructor does."""
        if memory.checkpoint and not self.lora.layers:
            raise UnsupportedModelError(
                f'memory="lean" takes one decoder layer at a time, but {type(self.model).__name__} has none that '
                'transformers can checkpoint. Use memory="fast".'
            )
        self.memory = memory

    @property
    def keep_row_gradients(self) -> bool:
        """Returns True if the inner loop may hold R trees of parameters."""
        return self.memory.keep_row_gradients

    def microbatches(self, second_order: bool = False) -> Iterator[Tensor]:
        """As many rows at a time as the memory plan says; in several passes, rows of like length go together."""
        at_once = self.memory.rows(len(self.batch), second_order, self.batch.input_ids.shape[1])
        rows = torch.arange(len(self.batch), device=self.row_task.device)
        if at_once < len(self.batch):
            # Task by task within a pass: its rows then share one product.
            chunks = self.batch.attention_mask.sum(1).argsort(stable=True).split(at_once)
            yield from (chunk.sort().values for chunk in chunks)
        else:
            yield rows

    def at_step(self, step: int) -> TokenLoss:
        """The losses under the dropout masks of an inner step."""
        if self.dropout is None:
            return self
        other = copy.copy(self)
        other.dropout = self.dropout.at_step(step)
        return other

    @contextmanager
    def evaluate(self, params: Tree, rows: Tensor, row_task: Tensor, second_order: bool) -> Iterator[Tensor]:
        """Context that gives the losses [rows] (see `RowLoss.evaluate`)."""
        batch = self.batch.select(rows)
        with ExitStack() as stack:
            stack.enter_context(self._applied(params, rows, row_task, batch.positions, second_order))
            if self.memory.checkpoint and not second_order:
                stack.enter_context(checkpointed(self.lora.layers))
            log_probs, mask = token_log_probs(self.model, batch, self._head_is_plain)
            self.lora.tell_unused()
            total = -log_probs.sum(1)
            yield total / mask.sum(1) if self.reduction == "mean" else total

    def curvature(
        self, params: Tree, rows: Tensor, coefficients: Tensor, direction: Tree, also: Sequence[Tensor] = ()
    ) -> Curvature:
        """Second derivatives over the rows given: of one layer at a time where the memory plan says so."""
        self.require_second_order(params)
        if self.memory.checkpoint and also:
            warnings.warn(
                'inner_memory is "lean", but a second-order pass of solve_gradient="full" keeps the whole graph of its '
                'rows. Use solve_gradient="direct", or a small inner_microbatch where memory is short.',
                ModelWarning,
                stacklevel=2,
            )
        if not self.memory.checkpoint or also:
            return double_backward(self, params, rows, coefficients, direction, also, checked=True)
        positions = self.batch.select(rows).positions
        layers = {layer: self.lora.leaves_of(layer) for layer in self.lora.layers}

        def at(leaves: Tree, row_task: Tensor) -> AbstractContextManager[None]:
            return self._applied(leaves, rows, row_task, positions, True, incomplete=True)

        return swept_curvature(self, layers, at, params, rows, coefficients, direction, checked=True)

    def require_second_order(self, params: Tree) -> None:
        """Refuse a model that would leave second-order terms out (see `hf_mass.core.symmetry`)."""
        piece, row = self._piece(), torch.zeros_like(self.row_task[:1])

        def evaluate(leaves: Tree) -> AbstractContextManager[Tensor]:
            return piece.evaluate(leaves, row, row, second_order=True)

        require_second_order(self.model, self.lora, _of_one_task(params), evaluate)

    def sweeps(self, params: Tree) -> bool:
        """Whether passes with tangents go through the model layer by layer: a few tokens tell."""
        piece, row, one_task = self._piece(), torch.zeros_like(self.row_task[:1]), _of_one_task(params)
        try:
            with unmetered():
                piece.use(LEAN)
                piece.curvature(one_task, row, torch.ones(1, device=row.device), one_task)
        except UnsupportedModelError:
            return False
        return True

    def _piece(self) -> TokenLoss:
        """One row of a dozen tokens."""
        ids = self.batch.input_ids[self.batch.attention_mask.bool()]
        ids = ids.repeat(-(-TOKENS // ids.numel()))[None, :TOKENS]
        batch = TokenBatch(ids, torch.ones_like(ids), ids, torch.zeros_like(self.row_task[:1]))
        return TokenLoss(self.model, self.lora, batch)

    @contextmanager
    def _applied(
        self,
        params: Tree,
        rows: Tensor,
        row_task: Tensor,
        positions: Tensor,
        second_order: bool,
        incomplete: bool = False,
    ) -> Iterator[None]:
        dropout = None
        if self.dropout is not None:
            dropout = replace(self.dropout, row_keys=self.dropout.row_keys[rows], positions=positions)
        with ExitStack() as stack:
            stack.enter_context(recomputing_without_reentry(self.model))
            if second_order:
                stack.enter_context(twice_differentiable(self.model))
            elif fused_is_slower(self.model, positions):
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(self.lora.applied(params, row_task, dropout, incomplete, not second_order))
            yield

    @cached_property
    def _head_is_plain(self) -> bool:
        head = getattr(self.model, "get_output_embeddings", lambda: None)()
        return all(site.module is not head for site in self.lora.sites.values())


def _of_one_task(params: Tree) -> Tree:
    return trees.tree_map(lambda x: x[:1], params)


@contextmanager
def recomputing_without_reentry(model: nn.Module) -> Iterator[None]:
    """Within this context reentrant checkpointing is the other kind.

    transformers' reentrant one gives no gradient to weights whose layer gets inputs without one, as behind a frozen
    embedding, and refuses `torch.autograd.grad`.
    """
    key, swapped = "_gradient_checkpointing_func", dict[nn.Module, Any]()
    try:
        for module in model.modules():
            function = vars(module).get(key)
            if module.training and isinstance(function, partial) and function.keywords.get("use_reentrant", True):
                swapped[module] = function
                other = partial(function.func, *function.args, **{**function.keywords, "use_reentrant": False})
                setattr(module, key, other)
        yield
    finally:
        for module, function in swapped.items():
            setattr(module, key, function)


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Within this context attention runs on the math kernel, whatever implementation the model is set to.

    Fused kernels (sdpa's on a CPU, flash, flex) have no double-backward rule. The values agree up to rounding. The
    backward passes must run inside the context too: recomputation happens there.
    """
    substitutes: dict[int, str] = {}  # by configuration: what takes the place of a fused kernel
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            configs[id(config)] = config
            if getattr(module, "_supports_sdpa", False):
                substitutes[id(config)] = "sdpa"
    fused = [(c, c._attn_implementation) for c in configs.values() if c._attn_implementation not in _TWICE]
    try:
        for config, _ in fused:
            config._attn_implementation = substitutes.get(id(config), "eager")
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for config, implementation in fused:
            config._attn_implementation = implementation


_TWICE = ("sdpa", "eager", None)
SHORT = 192
"""Tokens of a row up to which sdpa's math kernel is the faster one on a CPU in bfloat16."""


def fused_is_slower(model: nn.Module, positions: Tensor) -> bool:
    """Whether the fused attention of a CPU would take longer than plain products, over rows at positions [R, S].

    Its backward pass in half precision is slow (9 heads of 64, 2 rows, forward and backward: 12 ms against 7 of the
    math kernel at 135 tokens, 5 against 3 at 64, 22 against 37 at 300). In float32 they are alike.
    """
    half = getattr(model, "dtype", None) in (torch.bfloat16, torch.float16)
    return half and positions.device.type == "cpu" and positions.shape[1] <= SHORT and torch.is_grad_enabled()
