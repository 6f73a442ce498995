"""What a guard decides from what it measured, and how it says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hf_mass.methods.base import GuardEntry

CHANCE = 2
"""Left-out answers by which two strengths must differ at least for it to say more than chance."""
MORE = 0.2
"""Share of the left-out answers that another strength must have right beside the default's, to take its place."""
LOST, FEWER = 0.3, 0.15
"""Shares of them that a strength must lose to be spoken against: by that alone, and where the others became less likely
too."""


def choose(entries: Sequence[GuardEntry], margin: float = 0.0) -> GuardEntry | None:
    """The entry to train by, or None for not adapting.

    The default strength, with all of its steps, is taken unless left-out demonstrations speak against it: by many fewer
    answers that are right (`LOST`), by some fewer and a gain below the margin (`FEWER`), or by no more and a gain that
    is more than a standard error below it. Less than that is mostly noise, since there are few answers and half of the
    demonstrations teach less than all. Where they do, the entry with the largest gain is taken, of those that make
    left-out answers likelier and no fewer of them right. Another of those takes the place of either where `CHANCE`
    answers more are right. Their likelihood alone cannot rank strengths: it goes on rising where answers are right
    already, or will never be.

    Args:
        entries: What was measured, at least one.
        margin: Left-out gain that adapting must reach, in nats per answer token.
    """
    helpful = [entry for entry in entries if entry.gain > margin and entry.right >= entry.right_before]
    default = next((entry for entry in entries if is_default(entry) and not harms(entry, margin)), None)
    chosen = default or max(helpful, key=lambda entry: entry.gain, default=None)
    rightest = max(helpful, key=lambda entry: (entry.right, entry.gain), default=chosen)
    if chosen is None or rightest is None:
        return None
    more = max(CHANCE, MORE * rightest.left_out)
    return rightest if rightest.right - chosen.right >= more else chosen


def harms(entry: GuardEntry, margin: float) -> bool:
    """Whether left-out demonstrations speak against a strength."""
    lost, gain = entry.right_before - entry.right, entry.gain - margin
    many, some = (lost >= max(CHANCE, share * entry.left_out) for share in (LOST, FEWER))
    return many or (some and gain < 0) or (lost >= 0 and gain + entry.error < 0)


def is_default(entry: GuardEntry) -> bool:
    """Whether it is the default strength with all of its steps."""
    return entry.number == 0 and entry.share == 1.0


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
