"""How much memory a device has left, and how much the graph of one training row takes: both measured, not guessed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
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
_GRAPH_BYTES: WeakKeyDictionary[LoraFunction, GraphBytes] = WeakKeyDictionary()


def free_bytes(device: torch.device) -> int:
    """Memory that new tensors can have: of the GPU (what its allocator holds unused included), or of the machine
    and the container that it runs in."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(int(psutil.virtual_memory().available), *container_memory())


def hand_back(device: torch.device) -> None:
    """Returns freed memory to the system, where the C library (glibc) would keep it and it would not count as free.

    What is kept grows with the variety of shapes: a process that adapted a 135M model to a hundred tasks held 12 GB of
    which it used 1.3, and plans were lean for want of memory. Takes a tenth of a second there.
    """
    if device.type == "cpu" and _TRIM is not None:
        _TRIM(0)


_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None


def container_memory(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What is left of each limit that this process's control groups and those above them have (Linux, v1 and v2).

    Args:
        groups: The file that names the process's groups.
        root: Where they are mounted.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, (limit, usage, file) = (root / "memory", _V1) if controllers else (root, _V2)
        within = Path(path.lstrip("/"))
        for place in (mount / within, *(mount / parent for parent in within.parents)):  # a container sees its own only
            try:
                # Pages of files that were not used lately make room for others.
                used = int((place / usage).read_text()) - _entry(place / "memory.stat", file)
                yield max(0, int((place / limit).read_text()) - used)
            except (OSError, ValueError):  # no such group here, or no limit ("max")
                continue


_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_V2 = "memory.max", "memory.current", "inactive_file"


def _entry(file: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[0] == name), 0)


def pass_bytes(device: torch.device) -> int | None:
    """The graph of one pass beyond which larger passes gain nothing; None on devices that larger ones fill better.

    On a CPU a few rows keep the cores busy, and fresh pages of memory are what costs (measured: eight tasks of six rows
    take 0.87 of the time in passes of 150 to 300 MB as in one).
    """
    return 2**28 if device.type == "cpu" else None


@dataclass(frozen=True)
class GraphBytes:
    """What a first-order pass keeps for its backward pass.

    Args:
        per_token: In proportion to a row's length.
        per_pair: In proportion to its square, as attention that is not fused does.
    """

    per_token: float
    per_pair: float

    def row(self, length: int) -> int:
        """That of one row of `length` tokens."""
        return int(self.per_token * length + self.per_pair * length**2)


def graph_bytes(loss: TokenLoss, start: Tree, second_order: bool = False) -> GraphBytes:
    """Measured by forward passes over pieces of a row.

    Counted are the storages that autograd saves, each once; parameters and buffers of the model are not among them.
    Every token of the piece counts as an answer token, so the estimate errs on the safe side for rows with prompts.

    Args:
        loss: The row losses.
        start: Parameters of one task, leaves [1, ...]; only their shapes matter.
        second_order: With what takes the place of fused kernels in passes that are differentiated twice.
    """
    longest = loss.batch.attention_mask.sum(1).argmax()
    ids = loss.batch.input_ids[longest][loss.batch.attention_mask[longest].bool()]
    ids = ids.repeat(-(-PROBED_TOKENS // ids.numel()))[None, :PROBED_TOKENS] if ids.numel() >= 4 else ids[None]
    length = ids.shape[1]
    whole = _saved_bytes(loss, start, ids, second_order)
    if length < 4:
        return GraphBytes(whole / length, 0.0)
    quarter = length // 4
    # The second difference leaves nothing of what is constant or grows with the length.
    one, two = (_saved_bytes(loss, start, ids[:, : times * quarter], second_order) for times in (1, 2))
    four = whole if length == 4 * quarter else _saved_bytes(loss, start, ids[:, : 4 * quarter], second_order)
    per_pair = max(0.0, (four - 3 * two + 2 * one) / (6 * quarter**2))
    return GraphBytes(max(0.0, whole / length - per_pair * length), per_pair)


@torch.enable_grad()
def _saved_bytes(loss: TokenLoss, start: Tree, ids: Tensor, second_order: bool) -> int:
    row = torch.zeros(1, dtype=torch.long, device=ids.device)
    piece = TokenBatch(ids, torch.ones_like(ids), ids, row)
    dropout = loss.dropout.probability if loss.dropout else 0.0
    probe = TokenLoss(loss.model, loss.lora, piece, reduction=loss.reduction, memory=FAST, dropout=dropout)
    weights = [x for x in (*loss.model.parameters(), *loss.model.buffers()) if _has_storage(x)]
    of_model = {x.untyped_storage().data_ptr() for x in weights}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # a storage that is freed would lend its address to the next

    def pack(tensor: Tensor) -> Tensor:
        if _has_storage(tensor) and (storage := tensor.untyped_storage()).data_ptr() not in of_model:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        # Ones, since a pass at B = 0 keeps less than the later ones do; the values do not matter here.
        probe.evaluate(trees.leaves(trees.tree_map(torch.ones_like, start)), row, row, second_order),
    ):
        pass
    return sum(sizes.values())


def training_plan(loss: TokenLoss, start: Tree) -> MemoryPlan:
    """What the passes of a step of plain training may keep, by the memory that is free now.

    Args:
        loss: The row losses.
        start: Parameters of one task, leaves [1, ...].
    """
    if loss.lora not in _GRAPH_BYTES:
        with unmetered():
            _GRAPH_BYTES[loss.lora] = graph_bytes(loss, start)
    rows, length = loss.batch.input_ids.shape
    device = loss.batch.input_ids.device
    row_bytes = _GRAPH_BYTES[loss.lora].row(length)
    tree_bytes = sum(leaf[0].nbytes for leaf in start.values())
    enough = TRAINING_BYTES if device.type == "cpu" else None
    preference = "auto" if loss.lora.layers else "fast"
    return choose_plan(preference, rows, row_bytes, tree_bytes, free_bytes(device), None, enough)


def _has_storage(tensor: object) -> bool:
    """False for a quantised weight: a parameter that wraps others and has no storage of its own."""
    return not is_traceable_wrapper_subclass(tensor)
