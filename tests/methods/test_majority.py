"""The majority vote: as many answers as a budget buys, for each task by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from model_fixtures import byte_base, byte_tokenizer, text_task

import hf_mass
from hf_mass import MASS, MajorityVote, MassModel, Task
from hf_mass.methods.base import Answer


def test_a_budget_buys_each_task_its_own_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the answers of the tasks are that are asked beside it."""
    lm = hf_mass.load(byte_base(), byte_tokenizer(), device="cpu")
    tasks = [text_task(10**n) for n in range(6)]
    method = MajorityVote(token_budget=40, asks=MASS(max_answer_tokens=6, prompt_format="default"))
    solve = MassModel.solve

    def longer(self: MassModel, asked: Any, *rest: Any, **options: Any) -> Any:
        """The greedy answers, as if they were as long as their questions."""
        if isinstance(asked, Task):
            return replace(solve(self, asked, *rest, **options), sampled_tokens=len(asked.problem))
        return [longer(self, task, *rest, **options) for task in asked]

    monkeypatch.setattr(MassModel, "solve", longer)

    def answers(numbers: list[int]) -> dict[int, Answer]:
        return dict(zip(numbers, method.answer(lm, [tasks[n] for n in numbers], None, 0), strict=True))

    together, reverse = answers([*range(6)]), answers([*reversed(range(6))])
    alone = {n: answers([n])[n] for n in range(6)}
    assert len({answer.sampled_tokens for answer in alone.values()}) > 1
    for found in (together, reverse):
        assert {n: (a.text, a.written, a.sampled_tokens) for n, a in found.items()} == {
            n: (a.text, a.written, a.sampled_tokens) for n, a in alone.items()
        }
