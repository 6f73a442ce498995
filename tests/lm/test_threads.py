"""CPU threads: measured, chosen where the process is ours, and only told of where it is not."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest
import torch

import hf_mass
from hf_mass.engine import models
from hf_mass.lm import threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def costing(monkeypatch: pytest.MonkeyPatch, of_two: float) -> None:
    """A machine where a product takes a millisecond of a clock with one thread, and `of_two` with two."""
    now = [0.0]

    def product() -> None:
        now[0] += of_two if torch.get_num_threads() == 2 else 1.0

    monkeypatch.setattr(threads, "_product", product)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])


@pytest.mark.parametrize(("of_two", "used"), [(0.6, 2), (1.0, 1), (40.0, 1)])
def test_one_thread_is_chosen_unless_two_are_faster(
    two_threads: None, of_two: float, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    costing(monkeypatch, of_two)
    assert threads.relative_time() == pytest.approx(of_two) and torch.get_num_threads() == 2
    assert threads.choose_threads("cuda") is None and torch.get_num_threads() == 2
    told = threads.choose_threads("cpu")
    assert torch.get_num_threads() == used
    assert told == (None if used == 2 else f"1 CPU thread instead of 2, which take {of_two:.1f} times as long just now")
    assert threads.relative_time() == pytest.approx(of_two if used == 2 else 1.0)


@pytest.mark.parametrize(("of_two", "warned"), [(1.1, False), (40.0, True)])
def test_loading_warns_and_changes_nothing(
    two_threads: None,
    of_two: float,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    costing(monkeypatch, of_two)
    monkeypatch.setattr(models, "SMALL", 0)
    with caplog.at_level(logging.WARNING, "hf_mass"):
        hf_mass.load("strings-base", device="cpu")
    assert torch.get_num_threads() == 2
    text = "2 CPU threads take 40.0 times as long as one just now: other processes want the cores. Call"
    assert any(text in message for message in caplog.messages) == warned


def test_a_measurement_takes_little_and_leaves_the_threads(two_threads: None) -> None:
    begun = time.process_time()
    assert 0.1 < threads.relative_time() < 1e4
    assert time.process_time() - begun < 10 and torch.get_num_threads() == 2
