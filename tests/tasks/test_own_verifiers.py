"""Verifiers of one's own: what they return is checked, what they raise is told, and they can neither hang nor change a
task."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from hf_mass.errors import VerifierError
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import VERIFIERS, register_verifier, verify_batch, verify_each


class Bad:
    """A verifier that returns one value for all."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __call__(self, task: Task, text: str) -> float:
        return self.value  # type: ignore[return-value]


class BadBatch(Bad):
    def batch(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[float]:
        return [self.value] * len(tasks)  # type: ignore[list-item]


@pytest.mark.parametrize("kind", [Bad, BadBatch])
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), None, "1.0", 1e30, -0.5, 1.5, [1.0], 1j, np.nan, np.ones(2)]
)
def test_what_is_no_reward_is_refused_by_name(value: object, kind: type[Bad], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_mass.tasks.verifiers.VERIFIERS", {**VERIFIERS, "mine": kind(value)})
    with pytest.raises(VerifierError, match=r"'mine' returned .*task id 't3'.*number from 0 to 1"):
        verify_batch([Task("p", answer="a", id="t3", verifier="mine")], ["x"])


@pytest.mark.parametrize("value", [0, 1, True, 0.5, np.float32(0.5), np.int64(1), torch.tensor(0.5), Fraction(1, 2)])
def test_any_kind_of_number_is_a_reward(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_mass.tasks.verifiers.VERIFIERS", {**VERIFIERS, "mine": Bad(value)})
    (reward,) = verify_batch([Task("p", answer="a", verifier="mine")], ["x"])
    assert type(reward) is float
    assert reward == float(value)


@pytest.mark.parametrize("batched", [False, True])
def test_a_verifier_that_raises_is_that_tasks_reason(batched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Raising:
        def __call__(self, task: Task, text: str) -> float:
            return 1.0 / len(text)

        if batched:

            def batch(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[float]:
                return [self(task, text) for task, text in zip(tasks, texts, strict=True)]

    monkeypatch.setattr("hf_mass.tasks.verifiers.VERIFIERS", {**VERIFIERS, "mine": Raising()})
    tasks = [Task("p", answer="a", id=f"t{n}", verifier="mine") for n in range(3)]
    first, failed, last = verify_each(tasks, ["x", "", "xx"])
    assert (first, last) == (1.0, 0.5)
    assert re.search(r"'mine' raised ZeroDivisionError: .*task id 't1'", str(failed))
    with pytest.raises(VerifierError, match="'mine' raised ZeroDivisionError"):
        verify_batch(tasks, ["x", "", "xx"])


def test_a_batch_of_another_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Short(Bad):
        def batch(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[float]:
            return [1.0]

    monkeypatch.setattr("hf_mass.tasks.verifiers.VERIFIERS", {**VERIFIERS, "mine": Short(1.0)})
    with pytest.raises(VerifierError, match="'mine' returned 1 rewards for 2 texts"):
        verify_batch([Task("p", answer="a", verifier="mine")] * 2, ["x", "y"])


def mine(monkeypatch: pytest.MonkeyPatch, verifier: Any) -> Task:
    """A task that a verifier of one's own judges."""
    monkeypatch.setitem(VERIFIERS, "mine", verifier)
    return Task("p", answer="a", id="t3", verifier="mine", fields={"k": "v"})


async def waits(task: Task, text: str) -> float:
    return 1.0


def leaves(task: Task, text: str) -> float:
    raise SystemExit(3)


def changes(task: Task, text: str) -> float:
    task.fields["k"] = "changed"  # type: ignore[index]
    return 1.0


class Empties:
    __call__ = changes

    def batch(self, tasks: list[Task], texts: list[str]) -> list[float]:
        scores = [changes(task, text) for task, text in zip(tasks, texts, strict=True)]
        tasks.clear(), texts.clear()
        return scores


def test_a_verifier_that_is_async_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VerifierError, match=r"'mine' is async, and nobody awaits it\. Make it a plain function"):
        verify_each([mine(monkeypatch, waits)], ["a"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [10**400, Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity"), "True", {}, object()])
def test_odd_rewards_are_refused_by_name(value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VerifierError, match=r"'mine' returned .*number from 0 to 1"):
        verify_each([mine(monkeypatch, Bad(value))], ["a"])


def test_a_verifier_that_leaves_the_program_is_that_tasks_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = verify_each([mine(monkeypatch, leaves)], ["a"])
    assert "'mine' raised SystemExit: 3" in str(found)


def test_what_a_verifier_changes_is_changed_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for verifier in (changes, Empties()):
        task = mine(monkeypatch, verifier)
        assert verify_each([task, task], ["a", "b"]) == [1.0, 1.0] and task.fields == {"k": "v"}
    assert verify_each([mine(monkeypatch, Bad(Decimal("0.5")))], ["a"]) == [0.5]


@pytest.mark.parametrize("hang", [lambda: time.sleep(60), lambda: re.match(r"(a+)+$", "a" * 40 + "b")])
def test_a_verifier_that_hangs_is_ended(hang: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(task: Task, text: str) -> float:
        if text == "b":
            hang()
        return 1.0

    monkeypatch.setattr("hf_mass.tasks.verifiers.VERIFIERS", dict(VERIFIERS))
    register_verifier("mine", time_limit=0.3)(hangs)
    task, begun = Task("p", answer="a", verifier="mine"), time.monotonic()
    first, second, third = verify_each([task] * 3, ["a", "b", "a"])
    assert first == third == 1.0 and time.monotonic() - begun < 5
    assert "'mine' raised TimeoutError: it has not returned after 0.3 s" in str(second) and "time_limit=" in str(second)
