"""Counting what a computation costs: tokens sampled, and rows and tokens through forward and backward passes.

Passes are counted where they are made (`hf_mass.core.token_loss`, and generation above the core), so whoever runs any
method inside `metered()` knows what it took without the method's help.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Meter:
    """What was spent so far.

    Args:
        sampled_tokens: Tokens that were generated.
        trained_tokens: Tokens of rows that went through a backward pass, padding included.
        forward_passes: Rows that went through the model, generation apart.
        backward_passes: Rows that went back through it.
    """

    sampled_tokens: int = 0
    trained_tokens: int = 0
    forward_passes: int = 0
    backward_passes: int = 0


_METERS: ContextVar[tuple[Meter, ...]] = ContextVar("meters", default=())


@contextmanager
def metered() -> Iterator[Meter]:
    """Context that gives a meter of all that is computed within it, in this thread; contexts may be nested."""
    meter = Meter()
    token = _METERS.set((*_METERS.get(), meter))
    try:
        yield meter
    finally:
        _METERS.reset(token)


def count_sampled(tokens: int) -> None:
    """Note generated tokens."""
    for meter in _METERS.get():
        meter.sampled_tokens += tokens


def count_pass(rows: int, length: int, backward: bool) -> None:
    """Note a pass over `rows` rows of `length` tokens, and whether a backward pass follows."""
    for meter in _METERS.get():
        meter.forward_passes += rows
        if backward:
            meter.backward_passes += rows
            meter.trained_tokens += rows * length
