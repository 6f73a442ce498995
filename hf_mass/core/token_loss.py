"""Row losses of a causal language model: mean negative log-likelihood over the answer tokens of each row."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_mass.core import trees
from hf_mass.core.dropout import LoraDropout, without_noise
from hf_mass.core.kernels import dtype_of, fused_is_slower, recomputing_without_reentry, twice_differentiable
from hf_mass.core.layer_sweep import checkpointed, swept_curvature
from hf_mass.core.lora import LoraFunction
from hf_mass.core.losses import Curvature
from hf_mass.core.memory import FAST, LEAN, MemoryPlan
from hf_mass.core.meter import count_pass, unmetered
from hf_mass.core.second_order import double_backward
from hf_mass.core.sharing import NO_SHARING, Sequences, Sharing, sequence_numbers
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
    def lengths(self) -> Tensor:
        """Tokens of each row [R] int64."""
        return self.attention_mask.sum(1)

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


def token_log_probs(
    model: nn.Module, batch: TokenBatch, cut: bool = True, sequences: Sequences | None = None
) -> tuple[Tensor, Tensor]:
    """(log p of every answer token [R, S−1], mask of answer tokens [R, S−1] bool), float32 or wider; 0 elsewhere.

    Args:
        model: A causal language model.
        batch: R rows with T answer tokens in all.
        cut: Let the output head see the positions before answer tokens only: logits of the others, [V] wide each, are
            never made. Not possible where the head carries a low-rank update of its own, which must tell rows apart.
        sequences: What the model is given in the place of the rows.
    """
    ids = batch.input_ids if sequences is None else sequences.input_ids
    count_pass(ids.shape[0], ids.shape[1], torch.is_grad_enabled())
    answers = batch.labels[:, 1:] != IGNORED  # [R, S − 1]
    row, column = answers.nonzero(as_tuple=True)
    # Where the hidden state before each answer token is.
    place = row * ids.shape[1] + column if sequences is None else sequences.place[row, column]  # [T]
    head = getattr(model, "get_output_embeddings", lambda: None)() if cut else None

    calls = 0

    def select(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal calls
        calls, hidden = calls + 1, inputs[0]
        if hidden.shape[:2] != ids.shape:
            raise UnsupportedModelError(
                f"{type(module).__name__}, the output head, got hidden states of shape {tuple(hidden.shape)} for "
                f"input_ids {tuple(ids.shape)}; a causal language model gives one for each token."
            )
        return (hidden.flatten(0, 1)[place][None], *inputs[1:])

    handle = head.register_forward_pre_hook(select) if isinstance(head, nn.Module) else None
    try:
        with without_noise(model, ids.device):
            # No mask: padding stands behind the text, where no token looks, and attention takes its kernel's fast path.
            inputs = {"input_ids": ids} if sequences is None else sequences.arguments(dtype_of(model))
            logits = model(**inputs, use_cache=False).logits
    finally:
        if handle is not None:
            handle.remove()
    if handle is not None and calls != 1:
        raise UnsupportedModelError(
            f"{type(head).__name__}, the output head, was called {calls} times in a forward pass; logits come from one "
            "call of it."
        )
    logits = logits.flatten(0, 1)[place] if handle is None else logits[0]  # [T, V]
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
        sharing: Which rows may be read as one sequence; none under dropout.

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
        sharing: Sharing = NO_SHARING,
    ) -> None:
        self.model, self.lora, self.batch, self.reduction = model, lora, batch, reduction
        sharing = NO_SHARING if dropout else sharing
        self.sequence = sequence_numbers(batch.input_ids, batch.lengths, batch.row_task, sharing)  # [R]
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
        """Returns True if the inner loop may hold R trees of parameters. Rows that share a sequence have none."""
        return self.memory.keep_row_gradients and not self.shares

    @cached_property
    def shares(self) -> bool:
        """Whether some rows are read as one sequence."""
        return int(self.sequence.max()) + 1 < len(self.batch)

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each sequence [G] int64."""
        if not self.shares:
            return self.batch.lengths
        return (self._put_together(self.batch, self.sequence).parts >= 0).sum(1)

    def _sequences(self, rows: Tensor, row_task: Tensor) -> Sequences | None:
        """What rows [rows] at parameters `row_task` [rows] are read as; None for the rows apart.

        Rows at parameters of their own stay apart: what they share would be read at none of them.
        """
        if not self.shares:
            return None
        return self._put_together(self.batch.select(rows), self.sequence[rows] * len(self.batch) + row_task)

    @staticmethod
    def _put_together(batch: TokenBatch, keys: Tensor) -> Sequences:
        """Rows with the same key [R] as one sequence; in the order of the keys."""
        groups = [(keys == key).nonzero()[:, 0].tolist() for key in keys.unique()]
        return Sequences.of(batch.input_ids, batch.lengths, groups)

    def microbatches(self, second_order: bool = False) -> Iterator[Tensor]:
        """As many sequences at a time as the memory plan says; in several passes, those of like length go together."""
        at_once = self.memory.rows(len(self.lengths), second_order, int(self.lengths.max()))
        if at_once < len(self.lengths):
            # Task by task within a pass: its rows then share one product.
            for chunk in self.lengths.argsort(stable=True).split(at_once):
                yield torch.isin(self.sequence, chunk).nonzero()[:, 0]
        else:
            yield torch.arange(len(self.batch), device=self.row_task.device)

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
        batch, sequences = self.batch.select(rows), self._sequences(rows, row_task)
        with ExitStack() as stack:
            stack.enter_context(self._applied(params, rows, row_task, sequences or batch, second_order))
            if self.memory.checkpoint and not second_order:
                stack.enter_context(checkpointed(self.lora.layers))
            log_probs, mask = token_log_probs(self.model, batch, self._head_is_plain, sequences)
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
        inputs = self._sequences(rows, self.row_task[rows]) or self.batch.select(rows)
        layers = {layer: self.lora.leaves_of(layer) for layer in self.lora.layers}

        def at(leaves: Tree, row_task: Tensor) -> AbstractContextManager[None]:
            return self._applied(leaves, rows, row_task, inputs, True, incomplete=True)

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
        inputs: TokenBatch | Sequences,
        second_order: bool,
        incomplete: bool = False,
    ) -> Iterator[None]:
        positions, dropout = inputs.positions, None
        if isinstance(inputs, Sequences):
            row_task = row_task[inputs.first]
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
