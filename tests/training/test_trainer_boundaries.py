"""What the trainer refuses before it starts, and says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel
from trainer_fixtures import BASE, make_trainer, settings, world
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_mass.errors import CheckpointError, ConfigError, DataError
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.tasks.task import Task
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer


def test_long_prompts_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = world().tasks("train", 4)
    long = replace(tasks[1], problem="apple " * 80)

    def trainer(given: list[Task]) -> MetaAdaptTrainer:
        return MetaAdaptTrainer(
            str(BASE),
            settings(tmp_path, max_steps=2),
            given,
            processing_class=AutoTokenizer.from_pretrained(BASE),
            prompt_format=CONVENTIONS_FORMAT,
        )

    mixed = trainer([tasks[0], long, tasks[2], tasks[3]])
    assert "1 of 4 tasks are left out" in caplog.text
    assert mixed.train_dataset["task_index"] == [0, 2, 3]
    mixed.train()
    assert mixed.state.global_step == 2
    with pytest.raises(DataError, match="All 2 generator prompts are longer than 58 tokens"):
        trainer([long, long])


def test_an_adapter_that_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.save_model(str(tmp_path / "saved"))
    base = AutoModelForCausalLM.from_pretrained(BASE)
    frozen = PeftModel.from_pretrained(base, tmp_path / "saved", subfolder="generator")
    with pytest.raises(ConfigError, match="is_trainable=True"):
        MetaAdaptTrainer(
            frozen,
            settings(tmp_path),
            world().tasks("train", 3),
            processing_class=trainer.processing_class,
            prompt_format=CONVENTIONS_FORMAT,
        )


def test_float16_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp16 is True"):
        MetaAdaptConfig(output_dir="unused", fp16=True)


def test_the_defaults_hold_on_a_machine_without_an_accelerator() -> None:
    config = MetaAdaptConfig(output_dir="unused")
    assert config.num_generations == 12 and config.inner_steps == 2 and config.inference_samples == 6
    assert config.bf16 in (True, False)


@pytest.mark.parametrize(("tasks", "changes"), [(3, {"gradient_accumulation_steps": 2}), (2, {}), (1, {})])
def test_a_run_that_would_train_nothing_is_refused(tmp_path: Path, tasks: int, changes: dict[str, int]) -> None:
    """TRL leaves out what does not fill a batch, and ends such a run as if all had gone well."""
    trainer = make_trainer(tmp_path, tasks=3, options={"train_dataset": world().tasks("train", tasks)}, **changes)
    said = rf"Nothing would be trained: there are {tasks} prompts, .*generation_batch_size is \d+.*num_generations 4"
    with pytest.raises(DataError, match=said):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("flag", ["true", "1"])
def test_a_sharded_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", flag)
    with pytest.raises(ConfigError, match=r"launched with FSDP, which shards the model.*plain data parallelism"):
        make_trainer(tmp_path)


def test_an_output_dir_that_is_a_file_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(CheckpointError, match="taken"):
        make_trainer(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
