"""What the trainers rely on in TRL, transformers and PEFT, most of it private: an update must fail here first.

Names and signatures are compared as they are written; behaviour that no signature shows is tried out.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from model_fixtures import byte_tokenizer
from packaging.version import Version
from peft import PeftModel
from trainer_fixtures import CannedTrainer, M, make_trainer
from transformers import Trainer, TrainerCallback
from transformers.utils import PushInProgress
from trl import GRPOConfig, GRPOTrainer
from trl import __version__ as trl_version
from ttt_fixtures import guessing_base, reinforced, strip_task
from ttt_fixtures import make_trainer as make_ttt

import hf_mass.training.meta_adapt_trainer as module
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from hf_mass.training.publishing_trainer import PublishingTrainer
from hf_mass.training.resumable_trainer import ResumableTrainer
from hf_mass.training.ttt_adapters import AdapterTrainer
from hf_mass.training.ttt_trainer import TTTTrainer

# Method → its parameters, as the overriding or calling code takes them for granted.
SIGNATURES: list[tuple[type, str, list[str]]] = [
    (GRPOTrainer, "compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
    (GRPOTrainer, "_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
    (GRPOTrainer, "_tokenize_prompts", ["self", "prompts"]),
    (
        GRPOTrainer,
        "_generate_single_turn",
        ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
    ),
    (GRPOTrainer, "_log_completion_extra", ["self", "column", "values"]),
    (GRPOTrainer, "_log_metric", ["self", "name", "value"]),
    (GRPOTrainer, "log", ["self", "logs", "start_time"]),
    (Trainer, "create_optimizer", ["self", "model"]),
    (Trainer, "save_model", ["self", "output_dir", "_internal_call"]),
    (Trainer, "train", ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]),
    (Trainer, "evaluate", ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]),
    (Trainer, "predict", ["self", "test_dataset", "ignore_keys", "metric_key_prefix"]),
    (GRPOTrainer, "_get_train_sampler", ["self", "dataset"]),
    (Trainer, "remove_callback", ["self", "callback"]),
    (Trainer, "_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
    (Trainer, "_load_best_model", ["self"]),
    (Trainer, "_save_checkpoint", ["self", "model", "trial"]),
    (Trainer, "_load_optimizer_and_scheduler", ["self", "checkpoint"]),
    (Trainer, "init_hf_repo", ["self", "token", "private"]),
    (Trainer, "push_to_hub", ["self", "commit_message", "blocking", "token", "revision", "private", "kwargs"]),
    (Trainer, "_push_from_checkpoint", ["self", "checkpoint_folder"]),
    (Trainer, "_finish_current_push", ["self"]),
    (PushInProgress, "__init__", ["self", "jobs"]),
    (TrainerCallback, "on_pre_optimizer_step", ["self", "args", "state", "control", "kwargs"]),
    (TrainerCallback, "on_optimizer_step", ["self", "args", "state", "control", "kwargs"]),
]


@pytest.mark.parametrize(("owner", "name", "parameters"), SIGNATURES)
def test_methods_have_the_names_and_parameters_relied_on(owner: type, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_the_constructor_takes_what_is_passed_on() -> None:
    taken = set(inspect.signature(GRPOTrainer.__init__).parameters)
    passed = {"model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class"}
    assert passed | {"peft_config", "callbacks", "optimizers"} <= taken


def test_every_override_overrides_something() -> None:
    """A method that TRL renames would silently become one that nobody calls."""
    kinds = (MetaAdaptTrainer, ResumableTrainer)
    own = {name for kind in kinds for name, value in vars(kind).items() if inspect.isfunction(value)}
    mine = {"_to_tasks", "_eval_tasks", "_check_adapter", "attribution", "_outer", "_load_scorer"}
    mine |= {"_share_metrics", "_share_gradients", "_reduced", "save_published", "published_card"}
    mine |= {"_whole_steps", "_base_digest", "_run_settings"}
    overridden = {name for name in own - mine if hasattr(GRPOTrainer, name)}
    assert overridden == own - mine
    assert not {name for name in mine if hasattr(GRPOTrainer, name)}, "a helper shadows one of TRL's methods"
    mass_only = {"train_tasks", "eval_tasks", "mass", "outer_loop", "columns", "prompt_format"}
    assert not {name for name in mass_only if hasattr(GRPOTrainer, name)}


def test_pushing_overrides_what_it_means_to() -> None:
    mine = {"save_published", "published_card", "_stage", "_upload", "_upload_checkpoint", "_tell_of_failures"}
    mine |= {"save_adapter", "load_adapter", "push_adapter_to_hub", "own_random_state", "_own_adapter"}
    pushing = {"init_hf_repo", "push_to_hub", "_push_from_checkpoint", "_finish_current_push"}
    own = {n for kind in (PublishingTrainer, AdapterTrainer) for n, v in vars(kind).items() if inspect.isfunction(v)}
    training = {"__init__", "train", "_get_train_sampler"}
    assert own == mine | pushing | training
    assert {name for name in own if hasattr(GRPOTrainer, name)} == pushing | training


def test_the_trainer_at_test_time_overrides_what_it_means_to() -> None:
    """`train`, `predict` and `evaluate` take and give other things than transformers' methods of these names do."""
    own = {name for name, value in vars(TTTTrainer).items() if inspect.isfunction(value)}
    overridden = {name for name in own if hasattr(GRPOTrainer, name)} - {"__init__"}
    assert overridden == {"train", "predict", "evaluate", "_tokenize_prompts", "_generate_single_turn"}
    values = {"lm", "method", "train_tasks", "eval_tasks", "trained", "_prompts", "_start"}
    assert not {name for name in values if hasattr(GRPOTrainer, name)}
    assert not hasattr(TTTTrainer, "_step") and not hasattr(GRPOTrainer, "_step")  # set on the instance, see below
    assert {"model", "reward_funcs", "args", "train_dataset", "processing_class", "peft_config", "callbacks"} <= set(
        inspect.signature(GRPOTrainer.__init__).parameters
    )


def test_values_of_the_trainer_at_test_time_hide_none_of_trls(tmp_path: Path) -> None:
    """Compared on a trainer without them, since TRL sets its own in the constructor."""
    trainer = reinforced(tmp_path, max_steps=1)
    plain = GRPOTrainer(
        guessing_base(),
        reward_funcs=lambda prompts, **_: [0.0] * len(prompts),
        args=trainer.args,
        train_dataset=Dataset.from_dict({"prompt": ["a"]}),
        processing_class=byte_tokenizer(),
    )
    own = {"lm", "method", "train_tasks", "eval_tasks", "trained", "_prompts", "_start", "_random_state"}
    assert set(vars(trainer)) - set(vars(plain)) == own
    assert plain._step == 0 and plain._buffered_inputs is None and plain._tokenizer is plain.processing_class
    assert plain.optimizer is None and plain.lr_scheduler is None


def test_leave_one_out_training_never_enters_trls_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the trainer needs no rows for TRL, and TRL's counters stay where they were."""
    tasks = [strip_task("a")]
    trainer = make_ttt(tmp_path, options={"train_dataset": tasks, "eval_dataset": tasks})

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("TRL's loop was entered")

    for name in ("get_train_dataloader", "get_eval_dataloader", "_inner_training_loop", "_prepare_inputs"):
        monkeypatch.setattr(trainer, name, refuse)
    records = trainer.train()
    results = [*trainer.predict(tasks), *trainer.predict(tasks, records=records)]
    assert trainer.evaluate()["eval_failed"] == 0 and [r.reason for r in results] == [None, None]
    assert len(trainer.train_dataset) == 0 and (trainer._step, trainer._buffered_inputs) == (0, None)


def test_training_leaves_behind_what_each_task_takes_away(tmp_path: Path) -> None:
    """Steps and buffered completions outlive TRL's loop; schedule and optimizer are made anew where there are none."""
    trainer = reinforced(tmp_path, max_steps=3, per_device_train_batch_size=4)
    seen: list[tuple[Any, Any, int, Any]] = []
    inner = trainer._inner_training_loop

    def spying(*args: Any, **kwargs: Any) -> Any:
        seen.append((trainer.optimizer, trainer.lr_scheduler, trainer._step, trainer._buffered_inputs))
        return inner(*args, **kwargs)

    trainer._inner_training_loop = spying
    trainer.adapt([strip_task("a"), strip_task("b", "555")])
    assert seen == [(None, None, 0, None)] * 2
    assert trainer._step == 3 and trainer._buffered_inputs is not None
    assert trainer.optimizer is not None and trainer.lr_scheduler is not None


def test_prompts_go_through_the_overridden_methods_in_training(tmp_path: Path, monkeypatch: Any) -> None:
    """The ids that `_tokenize_prompts` gives, each as often as there are answers, and completions as they are cut."""
    trainer = reinforced(tmp_path, max_steps=1)
    calls: dict[str, Any] = {}
    tokenize, generate, reward = trainer._tokenize_prompts, trainer._generate_single_turn, trainer._ttt_reward

    def spy_tokenize(prompts: list[Any]) -> Any:
        calls["prompts"], result = prompts, tokenize(prompts)
        calls["ids"] = result[0]
        return result

    def spy_generate(prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        calls["given"], result = prompt_ids, generate(prompt_ids, *args, **kwargs)
        calls["completions"] = result[0]
        return result

    def spy_reward(**kwargs: Any) -> Any:
        calls["rewarded"], calls["numbers"] = kwargs["completion_ids"], kwargs["prompt_index"]
        return reward(**kwargs)

    monkeypatch.setattr(trainer, "_tokenize_prompts", spy_tokenize)
    monkeypatch.setattr(trainer, "_generate_single_turn", spy_generate)
    monkeypatch.setattr(trainer, "reward_funcs", [spy_reward])
    trainer.adapt(strip_task("a"))
    assert len(calls["prompts"]) == 8 and all(isinstance(prompt, str) for prompt in calls["prompts"])
    assert calls["given"] == calls["ids"] and calls["rewarded"] == calls["completions"]
    assert len(set(calls["numbers"])) == 1 and trainer._prompts[calls["numbers"][0]].ids == calls["ids"][0]


def test_settings_relied_on_exist_with_their_defaults() -> None:
    known = {f.name: f.default for f in fields(GRPOConfig)}
    for name in ("num_generations", "num_generations_eval", "max_completion_length", "temperature", "scale_rewards"):
        assert name in known, name
    for name in ("steps_per_generation", "generation_batch_size", "num_iterations", "beta", "log_completions"):
        assert name in known, name
    assert known["num_iterations"] == 1 and known["scale_rewards"] == "group"


def test_the_installed_minor_version_is_the_one_that_is_pinned(root: Path) -> None:
    pin = next(line for line in (root / "pyproject.toml").read_text().splitlines() if '"trl>' in line)
    version = Version(trl_version)
    assert f"trl>={version.major}.{version.minor}," in pin and f"<{version.major}.{version.minor + 1}" in pin


def test_reward_functions_are_called_as_expected(tmp_path: Path, monkeypatch: Any) -> None:
    """Keyword arguments, all lists of this process's rows; task_index is a column of the dataset that was passed on."""
    seen: dict[str, Any] = {}
    original = MetaAdaptTrainer.attribution

    def attribution(self: MetaAdaptTrainer, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return original(self, **kwargs)

    monkeypatch.setattr(MetaAdaptTrainer, "attribution", attribution)
    trainer = make_trainer(tmp_path, trainer=CannedTrainer, outer_loss="gold", max_steps=1)
    trainer.train()
    assert {"prompts", "completions", "completion_ids", "task_index", "log_extra", "log_metric"} <= seen.keys()
    assert callable(seen["log_extra"]) and callable(seen["log_metric"])
    assert [len(seen[name]) for name in ("prompts", "completions", "completion_ids", "task_index")] == [3 * M] * 4
    assert all(len(set(seen["task_index"][start : start + M])) == 1 for start in range(0, 3 * M, M))
    assert all(isinstance(ids, list) and isinstance(ids[0], int) for ids in seen["completion_ids"])
    assert "rewards/attribution/mean" in trainer.state.log_history[0]  # named after the function


def test_rewards_of_none_are_left_out_of_the_group(tmp_path: Path) -> None:
    """A skipped task's None becomes NaN and then an advantage of zero, and does not touch the other groups."""
    trainer = make_trainer(tmp_path, trainer=CannedTrainer, outer_loss="gold", max_steps=1, scale_rewards="group")
    original = trainer.outer_loop

    def skipping(*args: Any) -> Any:
        step = original(*args)
        step.rewards[1] = torch.nan
        return step

    trainer.outer_loop = skipping  # type: ignore[assignment]
    trainer.train()
    advantages = torch.tensor(list(trainer._logs["advantages"])).view(3, M)
    assert not advantages[1].any() and advantages[0].any() and advantages[2].any()
    assert trainer.seen_rewards[0].view(3, M)[1].isnan().all()


@pytest.mark.parametrize(
    ("accumulation", "per_generation", "generated"),
    [(1, None, [True, True]), (2, None, [True, False, True, False]), (2, 1, [True] * 4), (1, 2, [True, False])],
)
def test_generations_losses_and_optimizer_steps_interleave_as_expected(
    tmp_path: Path, monkeypatch: Any, accumulation: int, per_generation: int | None, generated: list[bool]
) -> None:
    """Rewards are calculated every steps_per_generation losses; the shares of a window's losses add up to one."""
    events: list[str] = []
    shares: list[float] = []
    rewards, loss = GRPOTrainer._calculate_rewards, GRPOTrainer.compute_loss

    def spy_rewards(self: Any, *args: Any) -> Any:
        events.append("generate")
        return rewards(self, *args)

    def spy_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        events.append("loss")
        shares.append(1 / self.current_gradient_accumulation_steps)
        return loss(self, *args, **kwargs)

    class Steps(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events.append("clipped")  # after the Trainer clipped, before it steps
            assert any(p.grad is not None for p in trainer.mass.scorer.parameters())

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            events.append("stepped")

    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", spy_rewards)
    monkeypatch.setattr(GRPOTrainer, "compute_loss", spy_loss)
    trainer = make_trainer(
        tmp_path,
        tasks=2,
        trainer=CannedTrainer,
        options={"callbacks": [Steps()]},
        outer_loss="gold",
        per_device_train_batch_size=M,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=per_generation,
    )
    trainer.train()
    expected: list[str] = []
    for number, new in enumerate(generated, start=1):
        expected += ["generate"] * new + ["loss"] + ["clipped", "stepped"] * (number % accumulation == 0)
    assert events == expected
    assert sum(shares) == trainer.state.global_step == 2


def test_two_losses_of_one_generation_reuse_its_gradients(tmp_path: Path) -> None:
    """With two optimizer steps per generation each gets the whole mean gradient, as it does of the policy loss."""
    given: list[torch.Tensor] = []

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            given.append(trainer.mass.scorer.output.weight.grad.clone())

    trainer = make_trainer(
        tmp_path,
        tasks=2,
        trainer=CannedTrainer,
        options={"callbacks": [Spy()]},
        outer_loss="gold",
        per_device_train_batch_size=M,
        gradient_accumulation_steps=1,
        steps_per_generation=2,
        max_grad_norm=0.0,
    )
    trainer.train()
    assert len(given) == 2 and torch.equal(given[0], given[1])


def test_log_takes_the_metrics_of_the_mode_that_the_model_is_in(tmp_path: Path) -> None:
    """Why `evaluate` logs in evaluation mode: in training mode TRL would put its training metrics into the entry."""
    trainer = make_trainer(tmp_path)
    trainer._metrics["train"]["reward"].append(0.5)
    trainer.model.eval()
    trainer.log({"eval_x": 1.0})
    assert "reward" not in trainer.state.log_history[-1] and trainer._metrics["train"]["reward"] == [0.5]
    trainer.model.train()
    trainer.log({"x": 1.0})
    assert trainer.state.log_history[-1]["reward"] == 0.5


def test_the_trainers_state_is_the_last_file_of_a_checkpoint(tmp_path: Path) -> None:
    """By its presence a checkpoint is known to be whole."""
    trainer = make_trainer(tmp_path, outer_loss="gold", max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    times = {
        str(path.relative_to(tmp_path)): path.stat().st_mtime_ns
        for path in (tmp_path / "checkpoint-1").rglob("*")
        if path.is_file()
    }
    state = times.pop("checkpoint-1/trainer_state.json")
    assert len(times) > 5 and all(state >= time for time in times.values())


def test_peft_keeps_adapters_apart(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert isinstance(trainer.model, PeftModel) and trainer.model.active_adapter == "default"
    assert set(trainer.model.peft_config) == {"default", "inner"}
    assert module.GENERATOR == "default"
    assert list(inspect.signature(PeftModel.save_pretrained).parameters)[:4] == [
        *("self", "save_directory", "safe_serialization", "selected_adapters")
    ]
