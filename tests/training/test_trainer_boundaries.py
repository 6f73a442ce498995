"""What the trainer refuses before it starts, and says why."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from trainer_fixtures import BASE, make_trainer, settings, world
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

from hf_mass.errors import CheckpointError, ConfigError, DataError, HFMassError
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.tasks.task import Task
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from hf_mass.training.trl_settings import CHOICES
from hf_mass.training.ttt_config import TTTConfig
from hf_mass.training.ttt_trainer import TTTTrainer


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


@pytest.mark.parametrize("config", [MetaAdaptConfig, TTTConfig])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("loss_type", "x", "choose one of"),
        ("importance_sampling_level", "x", "choose one of"),
        ("scale_rewards", "x", "choose one of"),
        ("multi_objective_aggregation", "", "choose one of"),
        ("cache_implementation", "x", "choose one of"),
        ("train_sampling_strategy", "x", "choose one of"),
        ("log_level", "x", "choose one of"),
        ("seed", 2**32, "to 4294967295"),
        ("beta", -0.1, "from 0"),
        ("beta", 1e300, "from 0"),
        ("top_p", 1.5, "to 1"),
        ("temperature", 0.0, "is 0.0"),
        ("eval_steps", 1e300, "is 1e+300"),
        ("gradient_accumulation_steps", 0, "from 1"),
        ("dataloader_num_workers", None, "a whole number"),
        ("learning_rate", float("nan"), "finite number"),
        ("learning_rate", 10**400, "learning_rate is"),
    ],
)
def test_what_trl_would_meet_while_it_trains(config: Any, name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(output_dir="unused", use_cpu=True, **{name: value})
    text = str(caught.value)
    assert name in text and words in text and "\n" not in text and len(text) < 1000


def test_the_choices_are_those_of_trl() -> None:
    """Every text that is let through stands in TRL's own code, and nothing that is compared with there is left out."""
    source = Path(inspect.getfile(GRPOTrainer)).read_text()
    for name in ("loss_type", "importance_sampling_level", "multi_objective_aggregation", "scale_rewards"):
        texts = {each for each in CHOICES[name] if isinstance(each, str)}
        assert all(f'"{each}"' in source for each in texts), name
        assert set(re.findall(rf'self\.{name} == "(\w+)"', source)) <= texts, name


@pytest.mark.parametrize("value", [3, "", [], {}, b"x", Task])
@pytest.mark.parametrize("name", ["args", "peft_config"])
def test_arguments_of_trainers(tmp_path: Path, name: str, value: Any) -> None:
    for trainer in (MetaAdaptTrainer, TTTTrainer):
        with pytest.raises(ConfigError, match=rf"{trainer.__name__}\.{name} is .*; give "):
            trainer(str(BASE), train_dataset=world().tasks("train", 3), **{name: value})


@pytest.mark.parametrize("model", [3, None, [], {}, Task])
def test_models_of_trainers(model: Any) -> None:
    for trainer in (MetaAdaptTrainer, TTTTrainer):
        with pytest.raises(ConfigError, match=r"\.model is .*; give a name"):
            trainer(model, train_dataset=world().tasks("train", 3))


@pytest.mark.parametrize("model", ["no such thing", "x" * 10_000, "a\0b"])
def test_names_of_models_of_trainers(tmp_path: Path, model: str) -> None:
    config = TTTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(HFMassError) as caught:
        TTTTrainer(model, config, world().tasks("train", 3))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
