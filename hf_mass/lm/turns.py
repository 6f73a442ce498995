"""Whose turn it is: one thread at a time works with a model, apart from the modes of torch that its host is in.

While a model computes with an update, hooks add that to whatever goes through it. A second caller would get answers of
the first one's weights, and nothing would tell. So callers in other threads wait, and one in the same thread, which
could wait for ever, is refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hf_mass.errors import ConfigError

Called = TypeVar("Called", bound=Callable[..., Any])
Waiting = Callable[[], None]
"""Called ten times a second while another thread has the turn. An exception that it raises ends the waiting."""


class Turn:
    """A lock that the thread that has it may take again."""

    def __init__(self) -> None:
        self._lock, self._depth = threading.RLock(), 0
        self.holder: int | None = None  # the thread that computes with it
        self.lent: dict[int, list[str]] = {}  # thread → what code of the host's runs there in the meantime

    def locked(self) -> bool:
        """Whether anybody has it."""
        return self._depth > 0

    def take(self, seconds: float = 0.0) -> bool:
        """Take it if it is free, or becomes so in this time; whether it was taken."""
        taken = self._lock.acquire(timeout=seconds) if seconds else self._lock.acquire(blocking=False)
        self._depth += taken
        return taken

    def give_back(self) -> None:
        """End what `take` began."""
        self._depth -= 1
        if not self._depth:
            self.holder = None
        self._lock.release()

    def reset(self) -> None:
        """Nobody has it: in a forked process, where the threads that had it are not."""
        self.__init__()  # type: ignore[misc]


TURN = Turn()
"""Held while anything is computed: which kernels torch may use for attention, and its random state, are the whole
process's."""
_OF_MODELS: WeakKeyDictionary[nn.Module, Turn] = WeakKeyDictionary()


_WAITING: dict[int, list[Turn]] = {}
"""Thread → the turns that it waits for."""
_LOOKING = threading.Lock()
"""Held while it is looked who waits for whom: of two threads that wait for each other, one is to go on."""


def _after_fork() -> None:
    _WAITING.clear()
    for turn in (TURN, *_OF_MODELS.values()):
        turn.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _turn_of(model: nn.Module) -> Turn:
    return _OF_MODELS.setdefault(model, Turn())


def require_not_lent(model: nn.Module) -> None:
    """Checks that a model is not in use further up in the same thread.

    Raises:
        ConfigError: If it is.
    """
    if what := _turn_of(model).lent.get(threading.get_ident()):
        raise ConfigError(
            f"The model is in use: this is called from within {what[-1]}, where it may not be as it was. Call it "
            "before or after, or on a model that is loaded once more."
        )


@contextmanager
def using(model: nn.Module, waiting: Waiting = lambda: None, alone: bool = True) -> Iterator[None]:
    """Within this context no other thread computes with a model.

    Args:
        model: The model.
        waiting: See `Waiting`.
        alone: Whether nobody computes with any other model either.

    Raises:
        ConfigError: If the model is lent in this thread, or the thread that has it waits for one that this one has.
    """
    require_not_lent(model)
    turns = [_turn_of(model), *([TURN] if alone else [])]
    try:
        while not _take(turns):
            waiting()
            _require_end(turns)
            if turns[0].take(0.1):  # waited for, but not kept: who waits for one turn must not keep another
                turns[0].give_back()
    finally:
        _WAITING.pop(threading.get_ident(), None)
    for turn in turns:
        turn.holder = threading.get_ident()
    try:
        with apart_from_host() if alone else nullcontext():
            yield
    finally:
        for turn in reversed(turns):
            turn.give_back()


def one_at_a_time(method: Called) -> Called:
    """A method of something that has a `model`, called while no other thread computes; see `using`."""

    @wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        with using(self.model):
            return method(self, *args, **kwargs)

    return cast(Called, called)


def _take(turns: list[Turn]) -> bool:
    """Take all of several turns, or none."""
    taken = list[Turn]()
    for turn in turns:
        if not turn.take(0.05 if taken else 0.0):
            for each in taken:
                each.give_back()
            return False
        taken.append(turn)
    return True


def _require_end(turns: list[Turn]) -> None:
    """Notes that this thread waits for turns, and checks that who has them does not wait for it in turn.

    Raises:
        ConfigError: If so: two threads, each within the use of a model, that call the other's.
    """
    me = threading.get_ident()
    with _LOOKING:
        _WAITING[me] = turns
        reached = _holders(turns) - {me}
        todo = list(reached)
        while todo:
            wanted = _holders(_WAITING.get(todo.pop(), []))
            if me in wanted:
                del _WAITING[me]
                raise ConfigError(
                    "Two threads wait for each other: each calls, from within the use of one model (applied(), "
                    "on_event), the model that the other is using. Call it before or after."
                )
            todo += wanted - reached
            reached |= wanted


def _holders(turns: list[Turn]) -> set[int]:
    return {turn.holder for turn in turns if turn.holder is not None}


@contextmanager
def lent(model: nn.Module, what: str) -> Iterator[None]:
    """Within this context code of the host's runs in the midst of using a model, and may not use it anew.

    Args:
        model: The model.
        what: What this is, for people.
    """
    turn, thread = _turn_of(model), threading.get_ident()
    turn.lent.setdefault(thread, []).append(what)
    try:
        yield
    finally:
        turn.lent[thread].pop()
        if not turn.lent[thread]:
            del turn.lent[thread]


@contextmanager
def apart_from_host() -> Iterator[None]:
    """Within this context (or function) torch is in none of the host's modes in which nothing can be trained: inference
    mode, a default device."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def single_precision() -> Iterator[None]:
    """Within this context new modules are in float32, whatever the host's default: a seed gives the same ones. Nor are
    they in any of its other modes."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with apart_from_host():
            yield
    finally:
        torch.set_default_dtype(before)
