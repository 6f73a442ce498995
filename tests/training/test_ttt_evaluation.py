"""`TTTTrainer.evaluate`: accuracy before and after, tasks that fail, verifiers that raise."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from ttt_fixtures import FIVE, FOUR, RAGGED, SINGLE, make_trainer, strip_task

from hf_mass.errors import VerifierError
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.tasks.task import Task
from hf_mass.tasks.verifiers import VERIFIERS
from hf_mass.tasks.voting import Prediction
from hf_mass.training.ttt_results import TaskResult


def test_metrics_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four tasks with an answer two are right at first, one at second, one among its predictions; one is unknown."""
    answers = {"a": "4 4", "b": "4 4", "c": "1 2", "d": "1 2", "e": None}
    predicted = {
        "a": ["4 4", "4 4", "5 5"],
        "b": ["5 4", "5 4", "4 4"],
        "c": ["1 3", "1 3", "7 7", "7 7", "1 2"],
        "d": ["1 2"],
        "e": ["0 0"],
    }
    tasks = [replace(strip_task(name), answer=answer) for name, answer in answers.items()]
    called: list[dict[str, float]] = []

    class Spy(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
            called.append(metrics)

    trainer = make_trainer(tmp_path, options={"eval_dataset": tasks, "callbacks": [Spy()]})

    def canned(self: FewShotAnswers, part: Sequence[Task], *_: Any) -> Any:
        return [[Prediction(text) for text in predicted[task.id]] for task in part], [0] * len(part)

    monkeypatch.setattr(FewShotAnswers, "predict", canned)
    metrics = trainer.evaluate()
    expected = {"pass@1": 0.5, "pass@2": 0.75, "oracle": 1.0, "cell_accuracy": (1 + 0.5 + 0.5 + 1) / 4}
    assert metrics == {**{f"eval_{name}": value for name, value in expected.items()}, "eval_tasks": 5, "eval_failed": 0}
    assert called == [metrics] and metrics.items() <= trainer.state.log_history[-1].items()
    other = trainer.evaluate([tasks[1], SINGLE, RAGGED][:1], metric_key_prefix="test")
    assert other["test_pass@1"] == 0.0 and other["test_pass@2"] == 1.0 and other["test_tasks"] == 1


def test_failed_tasks_count_as_wrong(tmp_path: Path) -> None:
    metrics = make_trainer(tmp_path).evaluate([FOUR, RAGGED])
    assert (metrics["eval_pass@1"], metrics["eval_tasks"], metrics["eval_failed"]) == (0.5, 2, 1)


def test_evaluation_of_the_model_as_it_is(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, options={"eval_dataset": [FOUR, FIVE]})
    plain, adapted = trainer.evaluate(adapt=False), trainer.evaluate()
    right = [r.answer == r.task.answer for r in trainer.predict([FOUR, FIVE], adapt=False)]
    assert plain["eval_pass@1"] == sum(right) / 2 < adapted["eval_pass@1"] == 1.0


def test_a_verifier_that_raises_is_told_and_its_task_has_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(VERIFIERS, "mine", lambda task, text: 1 / len(text))
    trainer = make_trainer(tmp_path)
    tasks = [Task("p", answer="x", verifier="mine", id=name) for name in ("good", "bad")]
    results = [TaskResult(tasks[0], ("x",)), TaskResult(tasks[1], ("",))]
    monkeypatch.setattr(trainer, "predict", lambda *args, **kwargs: results[-len(args[0]) :])
    with caplog.at_level(logging.WARNING):
        figures = trainer.evaluate(tasks)
    assert (figures["eval_pass@1"], figures["eval_tasks"], figures["eval_failed"]) == (1.0, 2, 1)
    assert "1 of 2 tasks could not be judged" in caplog.text and "task id 'bad'" in caplog.text
    with pytest.raises(VerifierError, match="'mine' raised ZeroDivisionError"):
        trainer.evaluate(tasks[1:])
