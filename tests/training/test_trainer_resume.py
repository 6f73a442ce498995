"""Checkpoints: an interrupted run goes on as if nothing had happened, and no failure takes an earlier checkpoint."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from trainer_fixtures import BASE, CannedTrainer, M, largest_difference, logged, make_trainer, trained_values, world
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from hf_mass.errors import CheckpointError
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.scorer import Scorer
from hf_mass.training.checkpoints import last_whole_checkpoint, problem_of, require_whole
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer

RUN = {"outer_loss": "gold", "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MetaAdaptTrainer:
    """Four steps, with checkpoints after two and four."""
    trainer = make_trainer(tmp_path_factory.mktemp("run"), **RUN)
    trainer.train()
    return trainer


@pytest.fixture
def copied(run: MetaAdaptTrainer, tmp_path: Path) -> Path:
    """A copy of the run's folder that a test may damage."""
    return shutil.copytree(run.args.output_dir, tmp_path / "copy")


def optimizer_tensors(trainer: MetaAdaptTrainer) -> dict[str, torch.Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(v) for i, values in state.items() for name, v in values.items()}


# -- resuming --------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_shares_the_trajectory_of_a_straight_one(run: MetaAdaptTrainer, tmp_path: Path) -> None:
    resumed = make_trainer(tmp_path, **RUN)
    resumed.train(resume_from_checkpoint=str(Path(run.args.output_dir) / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for name in ("loss", "outer_loss", "grad_norm", "learning_rate", "attribution/mean", "weights/entropy"):
        assert logged(resumed, name) == logged(run, name), name
    assert largest_difference(trained_values(run), trained_values(resumed)) == 0
    groups = [trainer.optimizer.param_groups for trainer in (run, resumed)]
    assert [g["lr"] for g in groups[0]] == [g["lr"] for g in groups[1]] and len(groups[0]) == 3
    states = [optimizer_tensors(trainer) for trainer in (run, resumed)]
    assert largest_difference(*states) == 0
    scorer = {id(p) for p in resumed.mass.scorer.parameters()}
    assert {id(p) for p in resumed.optimizer.param_groups[-1]["params"]} == scorer
    assert all(float(resumed.optimizer.state[p]["step"]) == 4 for p in resumed.mass.scorer.parameters())


def test_resuming_restores_what_was_trained_and_the_inner_adapter(run: MetaAdaptTrainer, tmp_path: Path) -> None:
    """Nothing is left to train, so what is loaded is what is there at the end."""
    resumed = make_trainer(tmp_path, **RUN)
    assert largest_difference(trained_values(run), trained_values(resumed)) > 0
    resumed.train(resume_from_checkpoint=Path(run.args.output_dir) / "checkpoint-4")
    assert largest_difference(trained_values(run), trained_values(resumed)) == 0
    inner = [{n: p for n, p in t.model.named_parameters() if ".inner." in n} for t in (run, resumed)]
    assert largest_difference(*inner) == 0 and not any(p.requires_grad for p in inner[1].values())
    assert resumed.model.active_adapter == "default"


def test_a_checkpoint_of_another_base_is_refused(run: MetaAdaptTrainer, tmp_path: Path) -> None:
    """The same architecture, path and adapters; one weight of the base is another."""
    other = make_trainer(tmp_path, **RUN)
    with torch.no_grad():
        next(other.model.get_base_model().parameters())[0, 0] += 1.0
    with pytest.raises(CheckpointError, match=r"trained on another base.*Resume with the model"):
        other.train(resume_from_checkpoint=Path(run.args.output_dir) / "checkpoint-2")


def test_the_last_checkpoint_is_taken_where_none_is_named(copied: Path) -> None:
    resumed = make_trainer(copied, **{**RUN, "max_steps": 5})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 5 and len(logged(resumed, "outer_loss")) == 5


def test_a_run_that_is_at_its_end_is_trained_no_further(tmp_path: Path) -> None:
    """Also in the middle of an epoch, where the Trainer takes one more step before it looks."""
    options = {"train_dataset": world().tasks("train", 6)}
    run = {**RUN, "tasks": 2, "trainer": CannedTrainer, "options": options}  # three steps an epoch
    ended = make_trainer(tmp_path, **run)
    ended.train()
    for steps in (4, 3):
        resumed = make_trainer(tmp_path, **{**run, "max_steps": steps})
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 4
        assert largest_difference(trained_values(ended), trained_values(resumed)) == 0


# -- the order of tasks ----------------------------------------------------------------------------------------------


EPOCHS = {**RUN, "max_steps": -1, "num_train_epochs": 3, "save_steps": 1, "trainer": CannedTrainer, "seed": 7}


def epochs_trainer(folder: Path, **changes: Any) -> MetaAdaptTrainer:
    """Seven tasks, two of them a step: an epoch of three steps, which leaves one out."""
    options = {"train_dataset": world().tasks("train", 7)}
    return make_trainer(folder, tasks=2, options=options, **{**EPOCHS, **changes})


@pytest.fixture(scope="module")
def epochs(tmp_path_factory: pytest.TempPathFactory) -> MetaAdaptTrainer:
    """Three epochs of three steps, with a checkpoint after each step."""
    trainer = epochs_trainer(tmp_path_factory.mktemp("epochs"))
    trainer.train()
    return trainer


@pytest.mark.parametrize("step", range(1, 9))
def test_a_run_resumed_at_any_step_of_three_epochs_is_the_same_run(
    epochs: MetaAdaptTrainer, tmp_path: Path, step: int
) -> None:
    resumed = epochs_trainer(tmp_path, save_strategy="no")
    resumed.train(resume_from_checkpoint=Path(epochs.args.output_dir) / f"checkpoint-{step}")
    assert resumed.state.global_step == 9
    assert largest_difference(trained_values(epochs), trained_values(resumed)) == 0


def test_the_epochs_have_the_orders_that_trl_gives_them(epochs: MetaAdaptTrainer) -> None:
    """Not resumed, nothing differs from TRL; the orders differ from each other, or resuming would show nothing."""
    plain = GRPOTrainer._get_train_sampler(epochs)
    expected = [list(plain) for _ in range(3)]
    assert expected[0] != expected[1] != expected[2]
    own = epochs._get_train_sampler()
    for epoch in range(3):
        epochs.state.epoch = float(epoch)
        assert list(own) == expected[epoch]


def test_a_checkpoint_between_steps_that_share_samples_is_refused(tmp_path: Path) -> None:
    shared = {"save_steps": 1, "steps_per_generation": 2, "num_train_epochs": 1, "trainer": CannedTrainer}
    trainer = make_trainer(tmp_path, tasks=2, **{**RUN, **shared, "max_steps": 3, "per_device_train_batch_size": M})
    trainer.train()
    with pytest.raises(CheckpointError, match=r"checkpoint-3.*share their samples.*save_steps.*multiple of 2"):
        trainer.train(resume_from_checkpoint=tmp_path / "checkpoint-3")
    assert last_whole_checkpoint(tmp_path, 2) == str(tmp_path / "checkpoint-2")


def test_a_run_with_several_losses_per_generation_resumes(tmp_path: Path) -> None:
    shared = {**RUN, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 2, "trainer": CannedTrainer}
    straight, resumed = (make_trainer(tmp_path / name, **shared) for name in "ab")
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert largest_difference(trained_values(straight), trained_values(resumed)) < 1e-6


def test_the_best_checkpoint_is_loaded_with_its_scorer(tmp_path: Path) -> None:
    scores = iter([2.0, 1.0, 0.0])
    trainer = make_trainer(
        tmp_path,
        outer_loss="gold",
        max_steps=3,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_adapted_accuracy",
        options={
            "eval_dataset": world().tasks("validation", 2),
            "compute_metrics": lambda _: {"adapted_accuracy": next(scores)},
        },
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    best, last = (Scorer.load(tmp_path / f"checkpoint-{step}" / "scorer").state_dict() for step in (1, 3))
    found = dict(trainer.mass.scorer.state_dict())
    assert largest_difference(found, best) == 0 < largest_difference(found, last)
    saved = load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors")
    now = {name: value for name, value in trained_values(trainer).items() if "lora_" in name}
    assert largest_difference({name.replace(".default", ""): value for name, value in now.items()}, saved) == 0


# -- damaged checkpoints ---------------------------------------------------------------------------------------------

DAMAGED = [
    "adapter_model.safetensors",
    "inner/adapter_model.safetensors",
    "scorer/scorer.safetensors",
    "scorer/scorer_config.json",
    "base.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
]


# Without optimizer state a checkpoint is whole: save_only_model writes it so.
DAMAGES = [
    (name, how) for name in DAMAGED for how in ("truncated", "missing") if how == "truncated" or ".pt" not in name
]


@pytest.mark.parametrize(("name", "how"), DAMAGES)
def test_a_damaged_checkpoint_is_recognised_by_every_file(copied: Path, name: str, how: str) -> None:
    file = copied / "checkpoint-4" / name
    assert problem_of(copied / "checkpoint-4") is None
    if how == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    assert name in str(problem_of(copied / "checkpoint-4"))
    with pytest.raises(CheckpointError) as caught:
        require_whole(copied / "checkpoint-4")
    assert "checkpoint-4" in str(caught.value) and name in str(caught.value)
    assert last_whole_checkpoint(copied) == str(copied / "checkpoint-2")


def test_a_truncated_checkpoint_is_skipped_or_refused_by_name(run: MetaAdaptTrainer, copied: Path) -> None:
    file = copied / "checkpoint-4" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    named = make_trainer(copied, **RUN)
    for name in (str(copied / "checkpoint-4"), copied / "checkpoint-4"):
        with pytest.raises(CheckpointError, match=r"checkpoint-4 is incomplete: adapter_model\.safetensors"):
            named.train(resume_from_checkpoint=name)
    resumed = make_trainer(copied, **RUN)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(trained_values(run), trained_values(resumed)) == 0  # from checkpoint-2, to the same end


def test_without_a_whole_checkpoint_there_is_an_error_that_says_why(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        make_trainer(tmp_path / "new", **RUN).train(resume_from_checkpoint=True)
    for step in (2, 4):
        (copied / f"checkpoint-{step}" / "trainer_state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoint-4: trainer_state\.json.*checkpoint-2"):
        last_whole_checkpoint(copied)
    with pytest.raises(CheckpointError, match="checkpoint-7"):
        make_trainer(tmp_path, **RUN).train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


def test_checkpoints_are_compared_as_numbers(copied: Path) -> None:
    shutil.copytree(copied / "checkpoint-4", copied / "checkpoint-10")
    (copied / "checkpoint-old").mkdir()
    assert last_whole_checkpoint(copied) == str(copied / "checkpoint-10")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- the saved model -------------------------------------------------------------------------------------------------


def test_a_saved_model_loads_and_answers_alike(run: MetaAdaptTrainer, tmp_path: Path) -> None:
    run.save_model(str(tmp_path / "saved"))
    loaded = MassModel.from_pretrained(tmp_path / "saved")
    tasks = world().tasks("validation", 4)
    assert loaded.config == run.mass.config
    one, other = run.mass.adapt(tasks, seed=3), loaded.adapt(tasks, seed=3)
    for first, second in zip(one, other, strict=True):
        assert first.samples == second.samples
        torch.testing.assert_close(first.weights, second.weights)
    assert [s.text for s in run.mass.solve(tasks, one)] == [s.text for s in loaded.solve(tasks, other)]


def test_the_generator_loads_with_peft_alone(run: MetaAdaptTrainer, tmp_path: Path) -> None:
    run.save_model(str(tmp_path / "saved"))
    alone = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(BASE), str(tmp_path / "saved"), subfolder="generator"
    )
    ids = torch.arange(3, 23)[None]
    run.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(input_ids=ids).logits, run.model(input_ids=ids).logits)
        with alone.disable_adapter():
            assert not torch.allclose(alone(input_ids=ids).logits, run.model(input_ids=ids).logits, atol=1e-2)
    assert set(alone.peft_config) == {"default"}


def test_saving_into_the_folder_of_the_run_keeps_its_checkpoints(copied: Path) -> None:
    trainer = make_trainer(copied, **RUN)
    before = files(copied / "checkpoint-4")
    (copied / "README.md").write_text("mine")
    trainer.save_model()
    trainer.save_model()
    assert files(copied / "checkpoint-4") == before and (copied / "README.md").read_text() == "mine"
    assert MassModel.from_pretrained(copied).config == trainer.mass.config
    assert sorted(path.name for path in copied.parent.iterdir()) == ["copy"]  # no temporary folder is left


@pytest.mark.parametrize("into", ["fresh", "run"])
def test_a_full_disk_leaves_the_earlier_saved_model_whole(
    run: MetaAdaptTrainer, copied: Path, tmp_path: Path, monkeypatch: Any, into: str
) -> None:
    target = copied if into == "run" else tmp_path / "saved"
    run.save_model(str(target))
    before = files(target)
    monkeypatch.setattr(
        run.mass.scorer, "save", lambda folder: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
    )
    with pytest.raises(CheckpointError, match="No space left"):
        run.save_model(str(target))
    assert files(target) == before
    assert MassModel.from_pretrained(target).config == run.mass.config


def test_a_process_killed_while_saving_leaves_the_earlier_saved_model_whole(
    run: MetaAdaptTrainer, tmp_path: Path, monkeypatch: Any
) -> None:
    run.save_model(str(tmp_path / "saved"))
    before = files(tmp_path / "saved")
    child = os.fork()
    if child == 0:
        run.mass.scorer.save = lambda folder: os._exit(9)  # type: ignore[assignment, misc]
        run.save_model(str(tmp_path / "saved"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert files(tmp_path / "saved") == before


def test_a_checkpoint_names_its_settings(run: MetaAdaptTrainer) -> None:
    settings = json.loads((Path(run.args.output_dir) / "checkpoint-4" / "mass_config.json").read_text())
    assert settings["format_version"] == 1 and settings["samples"] == run.args.inference_samples


@pytest.mark.parametrize(("spelled", "expected"), [("True", "checkpoint-4"), ("true", "checkpoint-4"), ("False", None)])
def test_resuming_may_be_spelled_as_on_a_command_line(
    run: MetaAdaptTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str, expected: str | None
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(GRPOTrainer, "train", lambda self, resume=None, *args, **kwargs: seen.append(resume))
    trainer = make_trainer(tmp_path, **RUN)
    trainer.args.output_dir = run.args.output_dir
    trainer.train(resume_from_checkpoint=spelled)
    assert [Path(seen[0]).name if seen[0] else None] == [expected]


def test_the_card_names_no_model_that_is_not_there(run: MetaAdaptTrainer) -> None:
    card = (Path(run.args.output_dir) / "README.md").read_text()
    assert "MassModel.from_pretrained" in card and "None" not in card
