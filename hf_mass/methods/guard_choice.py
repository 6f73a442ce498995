"""What a guard decides from what it measured, and how it says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hf_mass.methods.base import GuardEntry


def choose(entries: Sequence[GuardEntry], margin: float = 0.0) -> GuardEntry | None:
    """The entry to train by, or None for not adapting: the weakest whose gain is within one standard error of the best.

    The one-standard-error rule (Breiman, Friedman, Olshen, Stone: Classification and Regression Trees, 1984, section
    3.4.3). Few demonstrations are left out, so that gains differ by chance, and the largest one alone would mostly be
    that of the strongest training. Not adapting is the weakest strength of all, with a gain of `margin`.

    Args:
        entries: What was measured, at least one.
        margin: Gain of not adapting, in nats per answer token.
    """
    best = max(entries, key=lambda entry: entry.gain)
    enough = best.gain - best.error
    if margin >= enough:
        return None
    return min((e for e in entries if e.gain >= enough), key=lambda entry: (-entry.number, entry.share))


def common(by_set: Sequence[Sequence[GuardEntry]]) -> tuple[GuardEntry, ...]:
    """What was measured for sets that share an adaptation, as one: the mean over those that could be trained."""
    alike: dict[tuple[int, float], list[GuardEntry]] = {}
    for entries in by_set:
        for entry in entries:
            alike.setdefault((entry.number, entry.share), []).append(entry)
    trained = [([entry for entry in entries if entry.reason is None], entries) for entries in alike.values()]
    return tuple(mean(some) if some else entries[0] for some, entries in trained)


def mean(entries: Sequence[GuardEntry]) -> GuardEntry:
    """What was measured at one strength on several sets of demonstrations, as one."""
    sums = {name: sum(getattr(e, name) for e in entries) for name in ("right_before", "right", "left_out")}
    error = math.sqrt(sum(e.error**2 for e in entries)) / len(entries)
    return replace(entries[0], gain=sum(e.gain for e in entries) / len(entries), error=error, **sums)


def said(entry: GuardEntry) -> str:
    """What was measured at one strength."""
    if entry.reason is not None:
        return f"ruled out after {entry.share:.0%} of the steps: {entry.reason}"
    right = f"{entry.right_before} → {entry.right} of {entry.left_out} left-out answers right"
    return f"left-out gain {entry.gain:+.3f} ± {entry.error:.3f} nats per answer token, {right}"


def told(entries: Sequence[GuardEntry]) -> str:
    """What was chosen, and why."""
    best = next((entry for entry in entries if entry.chosen), None)
    parts = [f"{entry.strength} {said(entry)}" for entry in entries if entry.reason is not None]
    if best is not None:
        parts.insert(0, f"adapted at {best.strength}, {best.share:.0%} of the steps: {said(best)}")
    else:
        largest = max(entries, key=lambda entry: entry.gain)
        parts.insert(0, "not adapted" + ("" if largest.reason else f": at most {said(largest)}"))
    return "; ".join(parts)
