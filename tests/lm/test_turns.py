"""One thread at a time computes with a model, whatever modes torch is in; the host's model stays its own."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from model_fixtures import WORLD, byte_base, byte_tokenizer, conventions_model, equal_trees, text_task
from torch import nn
from ttt_fixtures import strip_task

import hf_mass
from hf_mass import TTT, Adaptation, LanguageModel, Task
from hf_mass.errors import ConfigError
from hf_mass.lm.fingerprint import base_digest
from hf_mass.lm.turns import TURN, Turn, using

QUICK: dict[str, Any] = {"lora_r": 2, "learning_rate": 0.05, "num_train_epochs": 3, "max_completion_length": 6}
FIRST, SECOND = text_task(), strip_task("four")


def adapt(lm: LanguageModel, task: Task = FIRST, **options: Any) -> Adaptation:
    return hf_mass.adapt(lm, task, TTT(**QUICK), guard=False, **options)


def fresh(chosen: nn.Module | None = None) -> LanguageModel:
    return hf_mass.load(chosen or byte_base(), byte_tokenizer(), device="cpu")  # type: ignore[arg-type]


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    found: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def work(n: int) -> None:
        start.wait()
        try:
            found[n] = calls[n]()
        except Exception as error:  # noqa: BLE001 - it is compared
            found[n] = error

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


# -- threads -----------------------------------------------------------------------------------------------------------


def test_threads_adapt_one_model_as_if_alone() -> None:
    lm = fresh()
    expected = [adapt(lm, task).adapted for task in (FIRST, SECOND)]
    for _ in range(3):
        found = at_once(lambda: adapt(lm, FIRST), lambda: adapt(lm, SECOND))
        assert all(equal_trees(record.adapted, tree) for record, tree in zip(found, expected, strict=True))

    async def gathered() -> list[Adaptation]:
        return await asyncio.gather(*(asyncio.to_thread(adapt, lm, task) for task in (FIRST, SECOND)))

    found = asyncio.run(gathered())
    assert all(equal_trees(record.adapted, tree) for record, tree in zip(found, expected, strict=True))
    assert not TURN.locked()


def test_answers_at_once_are_of_their_own_weights() -> None:
    lm = fresh()
    records = [adapt(lm, task) for task in (FIRST, SECOND)]
    calls = [each for record in records for each in (record.answer, record.before, record.explain)]
    expected = [repr(call()) for call in calls]
    assert [repr(each) for each in at_once(*calls)] == expected


def test_a_mass_model_serves_threads() -> None:
    mass = conventions_model(trained=True)
    tasks = WORLD.tasks("validation", 2)
    expected = [mass.adapt(task).adapted for task in tasks]
    found = at_once(*(lambda task=task: mass.adapt(task) for task in tasks))  # type: ignore[misc]
    assert all(equal_trees(record.adapted, tree) for record, tree in zip(found, expected, strict=True))


def test_others_wait_while_weights_are_applied() -> None:
    lm = fresh()
    record, expected, applied = adapt(lm), adapt(lm, SECOND).adapted, threading.Event()
    ids = torch.tensor([[100, 101, 102]])

    def of_ones_own() -> bool:
        with record.applied(), torch.no_grad():
            first = lm.model(input_ids=ids).logits
            applied.set()
            return all(torch.equal(lm.model(input_ids=ids).logits, first) for _ in range(100))

    def other() -> Adaptation:
        applied.wait(60)
        return adapt(lm, SECOND)

    same, found = at_once(of_ones_own, other)
    assert same and equal_trees(found.adapted, expected)


def test_threads_that_would_wait_for_each_other_are_told() -> None:
    """One within applied() of a model calls the other's, which calls the first from an event."""
    mine, others = fresh(), fresh()
    record, expected = adapt(mine), adapt(others, SECOND).adapted
    applied, begun = threading.Event(), threading.Event()
    told: list[str] = []

    def of_ones_own() -> None:
        with record.applied():
            applied.set()
            begun.wait(60)
            calls_other(lambda: adapt(others))

    def calls_other(call: Callable[[], Any]) -> None:
        try:
            call()
        except ConfigError as error:
            told.append(str(error))

    def heard(event: object) -> None:
        begun.set()
        calls_other(lambda: adapt(mine))

    def other() -> Adaptation:
        applied.wait(60)
        return adapt(others, SECOND, on_event=heard)

    _, found = at_once(of_ones_own, other)  # each is given a minute
    assert equal_trees(found.adapted, expected)
    assert told and all("Two threads wait for each other" in each for each in told)
    assert not TURN.locked() and adapt(mine).adapted is not None


# -- the same thread ---------------------------------------------------------------------------------------------------


def test_a_model_in_use_is_refused_to_the_same_thread() -> None:
    lm = fresh()
    record, other = adapt(lm), adapt(fresh(), SECOND)
    calls: list[Callable[[], Any]] = [
        lambda: adapt(lm, SECOND),
        lambda: hf_mass.solve(lm, SECOND, "none"),
        record.answer,
        record.before,
        record.explain,
        lambda: record.applied().__enter__(),
    ]
    with record.applied():
        for call in calls:
            with pytest.raises(ConfigError, match=r"The model is in use: this is called from within applied\(\)"):
                call()
        assert other.answer().sampled_tokens  # another model
    record.answer()
    heard: list[BaseException] = []

    def listen(event: object) -> None:
        for call in calls:
            try:
                call()
            except ConfigError as error:
                heard.append(error)

    expected = record.adapted
    assert equal_trees(adapt(lm, on_event=listen).adapted, expected)
    assert len(heard) > 6 and all("within on_event" in str(error) for error in heard)


def test_a_turn_ends_with_what_it_was_taken_for() -> None:
    lm, turn = fresh(), Turn()
    with pytest.raises(ZeroDivisionError), using(lm.model):
        assert TURN.locked()
        raise ZeroDivisionError
    assert not TURN.locked()
    assert turn.take() and turn.take() and turn.locked()
    turn.give_back()
    turn.give_back()
    assert not turn.locked()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_waits_for_nobody() -> None:
    lm = fresh()
    expected = adapt(lm).adapted
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with using(lm.model):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        child = os.fork()
        if child == 0:  # nothing of pytest is run here
            os._exit(0 if equal_trees(adapt(lm).adapted, expected) else 1)
        until = time.monotonic() + 60
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
            time.sleep(0.05)
        if ended == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == (child, 0)
    finally:
        done.set()
        thread.join()


# -- modes of the host -------------------------------------------------------------------------------------------------


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "a default device": lambda: torch.device("meta"),
    "double precision": lambda: default_dtype(torch.float64),
    "half precision": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_host_change_nothing(mode: str) -> None:
    base = byte_base()
    expected = adapt(fresh())
    with MODES[mode]():
        found = adapt(fresh(base))
        texts = found.answer().text, found.before().text
        mass = conventions_model()
    assert equal_trees(found.adapted, expected.adapted)
    assert texts == (expected.answer().text, expected.before().text)
    assert equal_trees(dict(mass.scorer.state_dict()), dict(conventions_model().scorer.state_dict()))


def test_weights_of_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        base = byte_base()
    with pytest.raises(ConfigError, match=r"made in torch\.inference_mode\(\)"):
        fresh(base)


def test_a_model_of_tuples_is_read_by_name() -> None:
    base = byte_base()
    base.config.return_dict = False
    assert equal_trees(adapt(fresh(base)).adapted, adapt(fresh()).adapted)
    assert base.config.return_dict is False


def test_the_hosts_parameters_keep_their_flags() -> None:
    base = byte_base()
    frozen = base.lm_head.weight.requires_grad_(False)
    lm = fresh(base)
    assert all(p.requires_grad == (p is not frozen) for p in base.parameters())
    assert not any(p.requires_grad for name, p in lm.model.named_parameters() if "lora_" not in name)
    own = {p.data_ptr() for p in lm.model.parameters()}
    assert all(p.data_ptr() in own for p in base.parameters())  # no weight is stored twice
    adapt(lm)
    assert all(p.grad is None for p in base.parameters())
    digest = base_digest(lm.model.get_base_model(), lm.tokenizer)
    loss = base(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
    loss.backward()  # it is trained as before,
    torch.optim.SGD(base.parameters(), 0.1).step()
    assert base_digest(lm.model.get_base_model(), lm.tokenizer) != digest  # and the shared weights follow
