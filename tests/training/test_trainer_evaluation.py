"""What `MetaAdaptTrainer` logs, its evaluation, and the optimizer that it is given."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import get_peft_model
from trainer_fixtures import (
    BASE,
    CannedTrainer,
    M,
    largest_difference,
    logged,
    make_trainer,
    samples_of,
    train,
    trained_values,
    world,
)
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_mass.errors import ConfigError, DataError
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.training.adaptation_eval import AdaptationEvalPrediction
from hf_mass.training.outer import OuterLoop
from research.conventions.settings import conventions_lora

# -- logs ------------------------------------------------------------------------------------------------------------


def test_logs_name_everything_that_is_measured(tmp_path: Path) -> None:
    trainer = train(make_trainer(tmp_path, trainer=CannedTrainer, outer_loss="verifier", max_steps=1))
    entry = trainer.state.log_history[0]
    for name in (
        *("attribution/mean", "attribution/std", "weights/entropy", "samples/parse_rate", "tasks/skipped"),
        *("reward/adapted", "reward/unadapted", "tasks/agreeing", "inner_loss/before", "inner_loss/after"),
        *("samples/empty", "samples/no_match", "samples/no_question", "samples/no_answer"),
    ):
        assert isinstance(entry[name], float), name
    usable = [sample.usable for group in samples_of(trainer) for sample in group]
    assert 0 < sum(usable) < len(usable)
    assert entry["samples/parse_rate"] == pytest.approx(sum(usable) / len(usable))
    assert entry["samples/no_match"] == pytest.approx(1 - entry["samples/parse_rate"])
    assert entry["inner_loss/after"] < entry["inner_loss/before"]
    weights = [sum(sample.usable for sample in group) for group in samples_of(trainer)]
    assert entry["weights/entropy"] == pytest.approx(sum(torch.tensor(weights).log()).item() / 3, rel=1e-4)


def test_costly_measures_are_taken_once_per_log(tmp_path: Path, monkeypatch: Any) -> None:
    calls: list[bool] = []
    original = OuterLoop.__call__
    monkeypatch.setattr(OuterLoop, "__call__", lambda self, *args: calls.append(args[-1]) or original(self, *args))
    train(make_trainer(tmp_path, outer_loss="gold", max_steps=4, logging_steps=2))
    assert calls == [True, False, True, False]


def test_samples_are_tabled_with_weight_attribution_and_reason(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, trainer=CannedTrainer, outer_loss="gold", log_completions=True, max_steps=1)
    step = trainer.outer_loop(trainer.train_tasks, samples_of(trainer), 0, False)
    train(trainer)
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert len(table) == 3 * M
    mean = -step.attributions[step.usable].mean().item()
    assert logged(trainer, "attribution/mean") == pytest.approx([mean], rel=1e-3) and mean != 0
    for n, task in enumerate(trainer.train_tasks):  # positive = helpful
        part = table[table["prompt"] == CONVENTIONS_FORMAT.generator_prompt(task)].reset_index()
        assert part["weight"].tolist() == pytest.approx(step.weights[n].tolist(), abs=1e-5)
        assert part["attribution"].tolist() == pytest.approx((-step.attributions[n]).tolist(), rel=1e-3, abs=1e-4)
        assert (part["reason"] == "").tolist() == step.usable[n].tolist()
        assert ((part["weight"] == 0) == (part["reason"] == "no_match")).all()
        assert part["attribution"].notna().all() and part["advantage"].notna().all()
        asked = [sample.question for sample in samples_of(trainer)[n]]
        assert part["question"].tolist() == asked


def test_rewards_of_the_users_own_functions_are_added(tmp_path: Path) -> None:
    def short(completions: list[str], **_: Any) -> list[float]:
        return [float(len(text) < 15) for text in completions]

    options = {"reward_funcs": short}
    trainer = train(make_trainer(tmp_path, trainer=CannedTrainer, options=options, outer_loss="gold", max_steps=1))
    assert trainer.seen_rewards[0].shape == (3 * M, 2)
    assert "rewards/short/mean" in trainer.state.log_history[0]


# -- evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_reports_accuracy_before_and_after(tmp_path: Path) -> None:
    tasks = world().tasks("validation", 30)
    options = {"eval_dataset": tasks}
    trainer = make_trainer(tmp_path, options=options, inference_samples=12, weigh_by="demonstrations")
    metrics = trainer.evaluate()
    assert metrics["eval_adapted_accuracy"] > metrics["eval_accuracy"]
    assert metrics["eval_parse_rate"] > 0.9 and metrics["eval_unadapted_share"] == 0
    assert metrics["eval_sampled_tokens"] == pytest.approx(12 * 5, rel=0.1)
    records = trainer.mass.adapt(tasks)
    after = trainer.mass.solve(tasks, records)
    assert metrics["eval_adapted_accuracy"] == pytest.approx(statistics.mean(s.score for s in after))
    before = trainer.mass.solve(tasks)
    assert metrics["eval_accuracy"] == pytest.approx(statistics.mean(s.score for s in before))
    assert trainer.state.log_history[-1]["eval_adapted_accuracy"] == metrics["eval_adapted_accuracy"]
    assert trainer.evaluate(metric_key_prefix="test")["test_accuracy"] == metrics["eval_accuracy"]


def test_evaluation_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    tasks = world().tasks("validation", 7)
    one, all_at_once = (
        make_trainer(tmp_path, options={"eval_dataset": tasks}, per_device_eval_batch_size=size).evaluate()
        for size in (2, 50)
    )
    assert one == pytest.approx(all_at_once)


def test_evaluation_of_several_sets_and_the_users_own_metrics(tmp_path: Path) -> None:
    seen: list[AdaptationEvalPrediction] = []

    def compute(prediction: AdaptationEvalPrediction) -> dict[str, float]:
        seen.append(prediction)
        return {"first_weight": float(prediction.records[0].weights[0]), "accuracy": -1.0}

    sets = {"near": world().tasks("validation", 3), "far": world().tasks("test_families", 2)}
    options = {"eval_dataset": sets, "compute_metrics": compute}
    trainer = make_trainer(tmp_path, options=options)
    metrics = trainer.evaluate()
    assert {name for name in metrics if "first_weight" in name} == {"eval_near_first_weight", "eval_far_first_weight"}
    assert metrics["eval_near_accuracy"] == -1.0 and "eval_far_adapted_accuracy" in metrics
    assert [p.tasks for p in seen] == list(sets.values())
    assert all(len(p.records) == len(p.before) == len(p.after) == len(p.tasks) for p in seen)
    assert all(record.lm is None and record.samples for p in seen for record in p.records)
    assert all(record.parts == () and record.reason is None for p in seen for record in p.records)
    other = trainer.evaluate(world().tasks("validation", 2, seed=5))
    assert "eval_adapted_accuracy" in other and len(seen[-1].tasks) == 2
    assert trainer.evaluate().keys() == metrics.keys()  # the trainer's own sets are as before


def test_evaluation_without_data_and_without_gold(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(DataError, match="eval_dataset"):
        trainer.evaluate()
    tasks = [replace(task, answer=None, solution=None) for task in world().tasks("validation", 2)]
    metrics = trainer.evaluate(tasks)
    assert metrics["eval_accuracy"] != metrics["eval_accuracy"] and metrics["eval_parse_rate"] > 0


def test_evaluation_during_training_changes_nothing_but_the_log(tmp_path: Path) -> None:
    options = {"eval_dataset": world().tasks("validation", 3)}
    shared = {"outer_loss": "gold", "max_steps": 4, "logging_steps": 2}
    with_evaluation = train(make_trainer(tmp_path, options=options, eval_strategy="steps", eval_steps=1, **shared))
    without = train(make_trainer(tmp_path, options=options, **shared))
    assert len(logged(with_evaluation, "eval_adapted_accuracy")) == 4
    assert largest_difference(trained_values(with_evaluation), trained_values(without)) == 0
    own = [entry for entry in with_evaluation.state.log_history if "eval_accuracy" in entry]
    assert not any(name for entry in own for name in entry if "outer_loss" in name or "reward" in name)
    assert logged(with_evaluation, "outer_loss") == logged(without, "outer_loss")


# -- the user's own optimizer ----------------------------------------------------------------------------------------


def test_a_given_optimizer_trains_the_scorer_too(tmp_path: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), conventions_lora())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    options = {"model": model, "peft_config": None, "optimizers": (optimizer, None)}
    trainer = make_trainer(tmp_path, options=options, outer_loss="gold")
    before = [p.detach().clone() for p in trainer.mass.scorer.parameters()]
    train(trainer)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.mass.scorer.parameters(), strict=True))
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.1, trainer.args.scorer_learning_rate]


def test_a_scheduler_that_does_not_know_the_scorer_is_refused(tmp_path: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), conventions_lora())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    options = {"model": model, "peft_config": None, "optimizers": (optimizer, schedule)}
    with pytest.raises(ConfigError, match=r"optimizers.*scheduler"):
        train(make_trainer(tmp_path, options=options, outer_loss="gold"))


def test_the_scorer_has_a_rate_of_its_own_that_follows_the_schedule(tmp_path: Path) -> None:
    trainer = train(make_trainer(tmp_path, outer_loss="gold", lr_scheduler_type="linear", scorer_learning_rate=0.4))
    groups = trainer.optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == [2e-3, 2e-3, 0.4]
    assert {id(p) for p in groups[-1]["params"]} == {id(p) for p in trainer.mass.scorer.parameters()}
    assert groups[-1]["lr"] == groups[0]["lr"] == 0.0


def test_the_scorers_gradient_is_clipped_apart(tmp_path: Path) -> None:
    norms: list[float] = []

    class Spy(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            gradients = [p.grad for p in trainer.mass.scorer.parameters() if p.grad is not None]
            norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))

    trainer = make_trainer(
        tmp_path, trainer=CannedTrainer, options={"callbacks": [Spy()]}, outer_loss="gold", max_grad_norm=1e-3
    )
    train(trainer)
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-2)
    assert all(p.grad is None for p in trainer.mass.scorer.parameters())
