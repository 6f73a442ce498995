"""How much memory a device has left, and how much the graph of one training row takes: both measured, not guessed."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_mass.core import trees
from hf_mass.core.lora import LoraFunction
from hf_mass.core.memory import FAST, MemoryPlan, choose_plan
from hf_mass.core.meter import unmetered
from hf_mass.core.token_loss import TokenBatch, TokenLoss
from hf_mass.core.trees import Tree

PROBED_TOKENS = 128  # a piece this long is enough to measure, and small beside any row that memory is short for
TRAINING_BYTES = 2**31
"""The graph of one pass of plain training on a CPU beyond which rows go one after another: time is the same, and they
share the machine's memory with others."""
_BYTES_PER_TOKEN: WeakKeyDictionary[LoraFunction, float] = WeakKeyDictionary()


def free_bytes(device: torch.device) -> int:
    """Memory that new tensors can have: of the GPU (what its allocator holds unused included), or of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def pass_bytes(device: torch.device) -> int | None:
    """The graph of one pass beyond which larger passes gain nothing; None on devices that larger ones fill better.

    On a CPU a few rows keep the cores busy, and fresh pages of memory are what costs (measured: eight tasks of six rows
    take 0.87 of the time in passes of 150 to 300 MB as in one).
    """
    return 2**28 if device.type == "cpu" else None


@torch.enable_grad()
def graph_bytes_per_token(loss: TokenLoss, start: Tree) -> float:
    """What a first-order pass keeps for its backward pass, per token, from one forward pass over a piece of a row.

    Counted are the storages that autograd saves, each once; parameters and buffers of the model are not among them.
    Every token of the piece counts as an answer token, so the estimate errs on the safe side for rows with prompts.
    What grows with the square of the length (attention that is not fused) is left out.

    Args:
        loss: The row losses.
        start: Parameters of one task, leaves [1, ...]; only their shapes matter.
    """
    longest = loss.batch.attention_mask.sum(1).argmax()
    ids = loss.batch.input_ids[longest][loss.batch.attention_mask[longest].bool()][:PROBED_TOKENS][None]
    row = torch.zeros(1, dtype=torch.long, device=ids.device)
    piece = TokenBatch(ids, torch.ones_like(ids), ids, row)
    dropout = loss.dropout.probability if loss.dropout else 0.0
    probe = TokenLoss(loss.model, loss.lora, piece, reduction=loss.reduction, memory=FAST, dropout=dropout)
    weights = [x for x in (*loss.model.parameters(), *loss.model.buffers()) if _has_storage(x)]
    of_model = {x.untyped_storage().data_ptr() for x in weights}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _has_storage(tensor) and (storage := tensor.untyped_storage()).data_ptr() not in of_model:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        # Ones, since a pass at B = 0 keeps less than the later ones do; the values do not matter here.
        probe.evaluate(trees.leaves(trees.tree_map(torch.ones_like, start)), row, row, second_order=False),
    ):
        pass
    return sum(sizes.values()) / ids.numel()


def training_plan(loss: TokenLoss, start: Tree) -> MemoryPlan:
    """What the passes of a step of plain training may keep, by the memory that is free now.

    Args:
        loss: The row losses.
        start: Parameters of one task, leaves [1, ...].
    """
    if loss.lora not in _BYTES_PER_TOKEN:
        with unmetered():
            _BYTES_PER_TOKEN[loss.lora] = graph_bytes_per_token(loss, start)
    rows, length = loss.batch.input_ids.shape
    device = loss.batch.input_ids.device
    row_bytes = int(_BYTES_PER_TOKEN[loss.lora] * length)
    tree_bytes = sum(leaf[0].nbytes for leaf in start.values())
    enough = TRAINING_BYTES if device.type == "cpu" else None
    preference = "auto" if loss.lora.layers else "fast"
    return choose_plan(preference, rows, row_bytes, tree_bytes, free_bytes(device), None, enough)


def _has_storage(tensor: object) -> bool:
    """False for a quantised weight: a parameter that wraps others and has no storage of its own."""
    return not is_traceable_wrapper_subclass(tensor)
