"""Training with `MetaAdaptTrainer`: what is learned, and what is survived."""

from __future__ import annotations

import statistics
from contextlib import contextmanager
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
    chat_model,
    chat_tokenizer,
    largest_difference,
    logged,
    make_trainer,
    samples_of,
    train,
    trained_values,
    written,
)
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_mass.core.token_loss import TokenLoss
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.tasks.formats import PromptFormat
from hf_mass.tasks.sources import Columns
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from research.conventions.settings import conventions_lora

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
