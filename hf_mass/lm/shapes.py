"""The shape of a low-rank adapter, as plain data: what settings say before any model is there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoraShape:
    """A plain LoRA.

    Args:
        rank: r.
        alpha: Updates are scaled by alpha / rank.
        targets: Names of linear modules, or "all-linear".
    """

    rank: int
    alpha: int
    targets: str | tuple[str, ...] = "all-linear"
