"""Training and evaluation with `MetaAdaptTrainer`: what is learned, logged, counted and survived."""

from __future__ import annotations

import statistics
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from trainer_fixtures import (
    BASE,
    CannedTrainer,
    M,
    chat_model,
    chat_tokenizer,
    largest_difference,
    logged,
    make_trainer,
    trained_values,
    world,
    written,
    written_samples,
)
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_mass.core.token_loss import TokenLoss
from hf_mass.errors import ConfigError, DataError
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.tasks.formats import PromptFormat
from hf_mass.tasks.sources import Columns
from hf_mass.training.adaptation_eval import AdaptationEvalPrediction
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from hf_mass.training.outer import OuterLoop
from research.conventions.settings import conventions_lora


def train(trainer: MetaAdaptTrainer) -> MetaAdaptTrainer:
    trainer.train()
    return trainer


def samples_of(trainer: MetaAdaptTrainer) -> list[list[AuxiliarySample]]:
    """What a `CannedTrainer` writes for its tasks."""
    return written_samples(trainer.train_tasks, trainer.processing_class)


# -- learning --------------------------------------------------------------------------------------------------------


def test_gold_loss_falls(tmp_path: Path) -> None:
    trainer = train(make_trainer(tmp_path, outer_loss="gold", max_steps=15, solve_coefficient=1.0))
    losses = logged(trainer, "outer_loss")
    assert len(losses) == 15
    assert statistics.mean(losses[-3:]) < 0.8 * statistics.mean(losses[:3])


def test_gold_loss_falls_by_the_scorer_alone(tmp_path: Path) -> None:
    """The generator stands still and its samples are the same at every step: only the weights can improve the loss."""
    trainer = make_trainer(
        tmp_path, trainer=CannedTrainer, outer_loss="gold", max_steps=15, learning_rate=0.0, scorer_learning_rate=0.05
    )
    before = trained_values(trainer)
    losses = logged(train(trainer), "outer_loss")
    assert losses[-1] < 0.98 * losses[0] and losses == sorted(losses, reverse=True)
    assert all(torch.equal(p, before[n]) for n, p in trained_values(trainer).items() if not n.startswith("scorer."))


def log_probability(trainer: MetaAdaptTrainer, prompt: str, text: str) -> float:
    tokenizer = trainer.processing_class
    front, back = tokenizer(prompt)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        log_p = trainer.model(input_ids=torch.tensor([front + back])).logits[0].log_softmax(-1)
    return sum(float(log_p[len(front) - 1 + place, token]) for place, token in enumerate(back)) / len(back)


def test_the_generator_learns_to_write_what_is_rewarded(tmp_path: Path) -> None:
    """The same samples at every step, and no solving term: the best of a group gains on the worst."""

    def lead(trainer: MetaAdaptTrainer) -> float:
        leads = []
        for n, task in enumerate(trainer.train_tasks):
            prompt, rewards = CONVENTIONS_FORMAT.generator_prompt(task), step.rewards[n]
            best, worst = (written(prompt, int(index)) for index in (rewards.argmax(), rewards.argmin()))
            leads.append(log_probability(trainer, prompt, best) - log_probability(trainer, prompt, worst))
        return statistics.mean(leads)

    changes = {"outer_loss": "gold", "max_steps": 5, "solve_coefficient": 0.0, "train_scorer": False}
    trainer = make_trainer(tmp_path, trainer=CannedTrainer, **changes)
    step = trainer.outer_loop(trainer.train_tasks, samples_of(trainer), 0, False)
    before = lead(trainer)
    assert lead(train(trainer)) > before + 0.05


def test_verifier_mode_runs_and_counts_agreeing_tasks(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, outer_loss="verifier", num_solutions=8, max_steps=3, logging_steps=2)
    before = trained_values(trainer)
    train(trainer)
    assert largest_difference(before, trained_values(trainer)) > 1e-4
    # Measured at steps 0 and 2, logged with steps 1 and 2.
    entries = [entry for entry in trainer.state.log_history if "reward/adapted" in entry]
    assert entries
    for entry in entries:
        assert 0 <= entry["reward/adapted"] <= 1 and 0 <= entry["tasks/agreeing"] <= 1
        assert 0 <= entry["reward/unadapted"] <= 1
    assert {round(3 * value, 6) % 0.5 for value in logged(trainer, "tasks/agreeing")} == {0.0}


def test_two_inner_steps_in_training_with_every_option(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        outer_loss="gold",
        inner_steps=2,
        inner_learning_rate=5.0,
        inner_optimizer="momentum",
        inner_microbatch=5,
        solve_gradient="full",
        beta=0.1,
        temperature=0.9,
        scorer_features=["hidden", "log_prob", "overlap", "agreement", "attribution"],
    )
    before = trained_values(trainer)
    train(trainer)
    assert trainer.outer_loop.mass.config.inner.steps == 2 and trainer.mass.config.inner.steps == 1
    assert largest_difference(before, trained_values(trainer)) > 1e-4 and len(logged(trainer, "kl")) == 2
    assert all(torch.isfinite(value).all() for value in trained_values(trainer).values())


def test_precision_and_checkpointing_that_are_the_default_on_accelerators(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, outer_loss="gold", inner_steps=2, inner_learning_rate=5.0, bf16=True, gradient_checkpointing=True
    )
    before = trained_values(trainer)
    train(trainer)
    assert largest_difference(before, trained_values(trainer)) > 1e-4
    assert all(torch.isfinite(value).all() for value in trained_values(trainer).values())
    assert logged(trainer, "tasks/skipped") == [0.0, 0.0]


def test_the_inner_adapter_and_the_base_are_never_trained(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, outer_loss="gold")
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if ".default." not in n}
    assert any(".inner." in name for name in frozen)
    train(trainer)
    now = dict(trainer.model.named_parameters())
    assert all(torch.equal(now[name], value) and not now[name].requires_grad for name, value in frozen.items())


def test_uniform_weights_leave_the_scorer_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, outer_loss="gold", train_scorer=False)
    before = [p.detach().clone() for p in trainer.mass.scorer.parameters()]
    train(trainer)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.mass.scorer.parameters(), strict=True))


def test_a_trained_adapter_is_trained_further(tmp_path: Path) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), conventions_lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1e-3)
    trainer = train(make_trainer(tmp_path, outer_loss="gold", options={"model": model, "peft_config": None}))
    values = [p for name, p in trainer.model.named_parameters() if "lora_B.default" in name]
    assert all(1e-4 < float((p - 1e-3).abs().max()) < 2e-2 for p in values)


def test_same_seed_same_run_and_another_seed_another_run(tmp_path: Path) -> None:
    runs = [train(make_trainer(tmp_path, seed=seed, outer_loss="gold")) for seed in (1, 1, 2)]
    assert logged(runs[0], "outer_loss") == logged(runs[1], "outer_loss") != logged(runs[2], "outer_loss")
    assert largest_difference(trained_values(runs[0]), trained_values(runs[1])) == 0


# -- gradients in the trainer ----------------------------------------------------------------------------------------


def test_losses_hold_both_gradients_once_per_optimizer_step(tmp_path: Path) -> None:
    """Before clipping: means over the tasks; γ times the solving term's comes on top of the policy's."""

    def gradients(**changes: Any) -> tuple[CannedTrainer, dict[str, torch.Tensor]]:
        seen: dict[str, torch.Tensor] = {}

        class Spy(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if not seen:
                    named = [*trainer.model.named_parameters(), *trainer.mass.scorer.named_parameters(prefix="scorer")]
                    seen.update({n: p.grad.clone() for n, p in named if p.grad is not None})

        shared = {"outer_loss": "gold", "max_grad_norm": 0.0, "max_steps": 1}
        trainer = make_trainer(tmp_path, trainer=CannedTrainer, options={"callbacks": [Spy()]}, **{**shared, **changes})
        train(trainer)
        return trainer, seen

    trainer, with_solving = gradients(solve_coefficient=0.5)
    _, without = gradients(solve_coefficient=0.0)
    fresh = make_trainer(tmp_path, outer_loss="gold")
    step = fresh.outer_loop(fresh.train_tasks, samples_of(fresh), 0, False)
    for (name, _), expected in zip(trainer.mass.scorer.named_parameters(), step.scorer_gradient, strict=True):
        torch.testing.assert_close(with_solving[f"scorer.{name}"], expected / 3, rtol=1e-4, atol=1e-6)
    assert step.generator_gradient
    for name, expected in step.generator_gradient.items():
        difference = with_solving[name] - without[name]
        torch.testing.assert_close(difference, 0.5 * expected / 3, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"loss_type": "grpo"}, {"beta": 0.05}])
def test_accumulated_batches_share_the_trajectory_of_one_batch(tmp_path: Path, changes: dict[str, Any]) -> None:
    """One batch of 16, and two of 8: generated together (steps_per_generation = 2), so the groups are the same."""
    whole, halves = (
        train(
            make_trainer(
                tmp_path,
                tasks=4,
                outer_loss="gold",
                per_device_train_batch_size=size,
                gradient_accumulation_steps=16 // size,
                max_steps=3,
                **changes,
            )
        )
        for size in (16, 8)
    )
    assert halves.args.steps_per_generation == 2
    for name in ("outer_loss", "rewards/attribution/std", "samples/parse_rate"):
        assert logged(halves, name) == pytest.approx(logged(whole, name), rel=1e-4)
    assert largest_difference(trained_values(whole), trained_values(halves)) < 1e-4


def test_batches_generated_apart_accumulate_where_nothing_is_normalised_over_the_batch(tmp_path: Path) -> None:
    """With steps_per_generation = 1 each half is scored alone, so TRL must not scale rewards by the batch's spread nor
    losses by its tokens: scale_rewards="group" and loss_type="grpo". Then the halves add up to the whole."""
    whole, halves = (
        train(
            make_trainer(
                tmp_path,
                tasks=4,
                trainer=CannedTrainer,
                outer_loss="gold",
                shuffle_dataset=False,
                scale_rewards="group",
                loss_type="grpo",
                per_device_train_batch_size=size,
                gradient_accumulation_steps=16 // size,
                steps_per_generation=1,
                max_steps=2,
            )
        )
        for size in (16, 8)
    )
    assert logged(halves, "outer_loss") == pytest.approx(logged(whole, "outer_loss"), rel=1e-4)
    assert largest_difference(trained_values(whole), trained_values(halves)) < 1e-4


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


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_nan_losses_of_one_task_are_skipped_counted_and_survived(tmp_path: Path, monkeypatch: Any) -> None:
    original = TokenLoss.evaluate

    @contextmanager
    def evaluate(self: TokenLoss, params: Any, rows: Any, row_task: Any, second_order: bool) -> Any:
        with original(self, params, rows, row_task, second_order) as values:
            yield values * torch.ones_like(values).masked_fill(self.row_task[rows] == 1, torch.nan)

    trainer = make_trainer(tmp_path, outer_loss="gold", solve_gradient="full", inner_steps=2, inner_learning_rate=5.0)
    before = trained_values(trainer)
    with monkeypatch.context() as patch:
        patch.setattr(TokenLoss, "evaluate", evaluate)
        train(trainer)
    assert logged(trainer, "tasks/skipped") == pytest.approx([1 / 3, 1 / 3])
    after = trained_values(trainer)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert largest_difference(before, after) > 1e-4  # the other tasks taught it something
    assert all(loss == loss for loss in logged(trainer, "outer_loss"))


@pytest.mark.parametrize("mode", ["gold", "verifier"])
def test_training_goes_on_where_every_inner_loop_explodes(tmp_path: Path, mode: str) -> None:
    trainer = train(make_trainer(tmp_path, outer_loss=mode, inner_learning_rate=1e30, inner_steps=2))
    assert trainer.state.global_step == 2
    assert logged(trainer, "tasks/skipped") == [1.0, 1.0]
    assert all(torch.isfinite(value).all() for value in trained_values(trainer).values())


def test_training_goes_on_where_nothing_can_be_parsed(tmp_path: Path) -> None:
    class Useless(CannedTrainer):
        text = staticmethod(lambda prompt, index: "apple")

    trainer = make_trainer(tmp_path, trainer=Useless, outer_loss="gold", max_steps=4, learning_rate=5e-3)
    train(trainer)
    assert logged(trainer, "samples/parse_rate") == [0.0] * 4 and logged(trainer, "samples/no_match") == [1.0] * 4
    losses = logged(trainer, "outer_loss")
    assert losses[-1] < losses[0]  # L_solve of the unadapted model still teaches
    assert not trainer.seen_rewards[0].any()


# -- conversations ---------------------------------------------------------------------------------------------------


class ChatTrainer(CannedTrainer):
    text = staticmethod(lambda prompt, index: "no pair" if index == 1 else f"1+{index}?\nAnswer: #### {index + 1}")


@pytest.mark.parametrize("mode", ["gold", "verifier"])
def test_conversations_from_columns(tmp_path: Path, mode: str) -> None:
    rows = [
        {"problem": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {n}+1?"}]}
        | {"answer": f"{n}+1 is {n + 1}\n#### {n + 1}"}
        for n in (3, 7)
    ]
    options = {
        "model": chat_model(),
        "processing_class": chat_tokenizer(),
        "train_dataset": Dataset.from_list(rows),
        "columns": Columns(solution="answer", answer="answer"),
        "prompt_format": None,
        "peft_config": None,
    }
    trainer = make_trainer(
        tmp_path,
        tasks=2,
        trainer=ChatTrainer,
        options=options,
        outer_loss=mode,
        verifier="numeric",
        scorer_features=["hidden", "log_prob", "overlap", "agreement"],
        inner_learning_rate=1.0,
        max_length=800,
        max_solution_length=6,
        log_completions=True,
    )
    assert trainer.train_tasks[0].answer == "4" and trainer.train_tasks[0].history == (("system", "Be brief."),)
    prompt = trainer.processing_class.decode(trainer.mass.encoder.generator_prompt_ids(trainer.train_tasks[0]))
    assert prompt.startswith("<system>Be brief.\n<user>") and prompt.endswith("<assistant>")
    train(trainer)
    assert logged(trainer, "samples/parse_rate") == [0.75, 0.75]
    if mode == "gold":
        assert len(logged(trainer, "outer_loss")) == 2
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert table["question"].tolist()[:2] == ["1+0?", ""] and table["reason"].tolist()[:2] == ["", "no_match"]
    metrics = trainer.evaluate(Dataset.from_list(rows))
    assert 0 <= metrics["eval_adapted_accuracy"] <= 1


def test_the_default_format_and_a_model_that_writes_noise(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"problem": f"What is {n}+1?", "answer": str(n + 1)} for n in (3, 7)])
    options = {"model": chat_model(), "processing_class": chat_tokenizer(None), "train_dataset": rows}
    trainer = make_trainer(
        tmp_path,
        tasks=2,
        options={**options, "prompt_format": None, "peft_config": None},
        outer_loss="gold",
        scorer_features=["overlap"],
        max_completion_length=8,
        max_length=700,
        learning_rate=1e-2,
        max_steps=6,
    )
    assert trainer.prompt_format == PromptFormat()
    train(trainer)
    assert logged(trainer, "samples/parse_rate") == [0.0] * 6
    losses = logged(trainer, "outer_loss")
    assert losses[-1] < losses[0]


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
