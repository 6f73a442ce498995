"""Counting what a computation costs: tokens sampled, and rows and tokens through forward and backward passes. And
telling whoever watches of the steps of inner loops.

Passes are counted where they are made (`hf_mass.core.token_loss`, and generation above the core), so whoever runs any
method inside `metered()` knows what it took without the method's help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


PassWatch = Callable[[], None]
"""Called before a pass. An exception that it raises ends the work."""
_METERS: ContextVar[tuple[tuple[Meter, PassWatch], ...]] = ContextVar("meters", default=())


@contextmanager
def metered(on_pass: PassWatch = lambda: None) -> Iterator[Meter]:
    """Context that gives a meter of all that is computed within it, in this thread; contexts may be nested.

    Args:
        on_pass: Called before each pass.
    """
    meter = Meter()
    token = _METERS.set((*_METERS.get(), (meter, on_pass)))
    try:
        yield meter
    finally:
        _METERS.reset(token)


@contextmanager
def unmetered() -> Iterator[None]:
    """Context of what is no part of a method, such as finding out how much memory a pass takes: it is not counted."""
    token = _METERS.set(())
    try:
        yield
    finally:
        _METERS.reset(token)


def count_sampled(tokens: int) -> None:
    """Note generated tokens."""
    for meter, _ in _METERS.get():
        meter.sampled_tokens += tokens


def count_pass(rows: int, length: int, backward: bool) -> None:
    """Note a pass over `rows` rows of `length` tokens, and whether a backward pass follows."""
    for meter, on_pass in _METERS.get():
        on_pass()
        meter.forward_passes += rows
        if backward:
            meter.backward_passes += rows
            meter.trained_tokens += rows * length


# -- inner steps -------------------------------------------------------------------------------------------------------

StepWatch = Callable[[float], None]
"""Called with the loss before an inner step, in nats per token. An exception that it raises ends the inner loop."""
_STEP_WATCH: ContextVar[StepWatch | None] = ContextVar("step_watch", default=None)


@contextmanager
def watching_steps(watch: StepWatch) -> Iterator[None]:
    """Within this context every inner step in this thread is watched, whoever asked for it."""
    token = _STEP_WATCH.set(watch)
    try:
        yield
    finally:
        _STEP_WATCH.reset(token)


def tell_step(loss: Callable[[], float]) -> None:
    """Tell of an inner step; the loss before it is computed only where somebody watches."""
    if (watch := _STEP_WATCH.get()) is not None:
        watch(loss())
