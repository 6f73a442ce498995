"""Settings of test-time training: the papers' values, what reaches the engine, and what is refused with which words."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser
from trl import GRPOConfig

from hf_mass.errors import ConfigError
from hf_mass.lm.shapes import LoraShape
from hf_mass.methods.ttt_settings import TTT_PRESETS, TTTSettings
from hf_mass.tasks.few_shot_format import FEW_SHOT_FORMATS
from hf_mass.tasks.grid_transformations import FlipRows, Rotate
from hf_mass.tasks.leave_one_out import DataConfig, training_examples
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.training.ttt_config import TTTConfig
from hf_mass.training.without_effect import GRPO


def config(**changes: Any) -> TTTConfig:
    return TTTConfig(**{"output_dir": "unused", "use_cpu": True, "report_to": "none", **changes})


def preset(name: str, **changes: Any) -> TTTConfig:
    return TTTConfig.preset(name, output_dir="unused", use_cpu=True, **changes)


# -- presets -----------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_engine() -> None:
    assert config().settings() == TTTSettings() and config().objective == "sft"


@pytest.mark.parametrize("name", sorted(TTT_PRESETS))
def test_a_preset_is_the_same_for_the_trainer_as_for_the_engine(name: str) -> None:
    assert preset(name).settings() == TTTSettings.preset(name)


@pytest.mark.parametrize("name", sorted(TTT_PRESETS))
def test_presets_are_valid_and_can_be_changed(name: str) -> None:
    args = preset(name, lora_r=3, seed=7)
    assert (args.lora_r, args.seed, args.settings().lora_r) == (3, 7, 3)
    for setting, value in TTT_PRESETS[name].items():
        if setting != "lora_r":
            assert getattr(args, setting) == value, setting


def test_a_preset_of_texts_makes_examples_of_texts() -> None:
    task = Task("c?", (Demonstration("a?", "a"), Demonstration("b?", "b"), Demonstration("d?", "d")), id="text")
    examples = training_examples(task, preset("text").settings().data())
    assert {example.query.answer for example in examples} == {"a", "b", "d"}


# -- what reaches the engine -------------------------------------------------------------------------------------------


# None is a default.
CHANGED: dict[str, Any] = {
    "learning_rate": 0.25,
    "num_train_epochs": 7,
    "per_device_train_batch_size": 6,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.25,
    "weight_decay": 0.125,
    "adam_beta1": 0.5,
    "adam_beta2": 0.75,
    "adam_epsilon": 1e-3,
    "max_grad_norm": 2.0,
    "max_completion_length": 33,
    "adapters": "shared",
    "lora_r": 3,
    "lora_alpha": 5,
    "lora_dropout": 0.1,
    "lora_target_modules": ["q_proj", "up_proj"],
    "few_shot_format": "compact",
    "chat": True,
    "loss_on": "all",
    "leave_two_out": False,
    "direct": True,
    "permutations": 4,
    "transformations": ["flip rows", "rotate 90"],
    "colour_permutations": 2,
    "random_shift": 2,
    "keep_background": False,
    "recolour_to_unused": True,
    "reorder_recoloured": True,
    "max_examples": 9,
    "max_grid_side": 8,
    "max_length": 77,
    "single_demonstration": "refuse",
    "predict_transformations": ["rotate 90"],
    "predict_permutations": 3,
    "predict_recolour": True,
    "predict_samples": 4,
    "predict_temperature": 0.5,
    "predict_length_factor": 1.5,
    "predict_batch_size": 11,
    "vote": "flat",
    "vote_within": 2,
}


def test_every_setting_arrives() -> None:
    settings, defaults = config(**CHANGED).settings(), TTTSettings()
    assert CHANGED.keys() == {f.name for f in fields(TTTSettings)}
    for name, value in CHANGED.items():
        assert getattr(settings, name) == (tuple(value) if isinstance(value, list) else value), name
        assert getattr(settings, name) != getattr(defaults, name), f"{name} is at its default, so it could be lost"
    assert settings.data() == DataConfig(
        *(False, True, 4, (FlipRows(), Rotate(1)), 2, False, True, True, 2, 9, 8, 77, "refuse")
    )
    assert settings.views() == (Rotate(1),)
    assert settings.lora == LoraShape(3, 5, ("q_proj", "up_proj"))


def test_of_reinforcement_learning_everything_but_the_schedule_arrives() -> None:
    """Epochs, warmup and schedule are those of TRL's loop there."""
    changed = {name: value for name, value in CHANGED.items() if name not in GRPO}
    settings = config(**changed, objective="grpo").settings()
    different = {f.name for f in fields(settings) if getattr(settings, f.name) == getattr(TTTSettings(), f.name)}
    assert different == {"warmup_steps", *GRPO}
    assert (settings.num_train_epochs, settings.lr_scheduler_type) == (1, "constant")


def test_no_limit_and_no_transformation_can_be_asked_for() -> None:
    assert config(max_grad_norm=0.0).settings().max_grad_norm is None
    for names in ([], ["none"]):
        assert config(transformations=names, colour_permutations=0).settings().data().transformations == ()


def test_chat_formats_keep_everything_but_the_flag() -> None:
    plain, chat = (config(few_shot_format="arc", chat=flag).settings().format for flag in (False, True))
    assert plain == FEW_SHOT_FORMATS["arc"] and chat.chat and chat.stop() is None
    assert (chat.instruction, chat.grid_form) == (plain.instruction, plain.grid_form)


# -- what is refused ---------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"objective": "dpo"}, r"TTTConfig\.objective is 'dpo'; choose one of \['sft', 'grpo'\]"),
    ({"ttt_reward": "length"}, r"TTTConfig\.ttt_reward is 'length'; choose one of \['exact_match', 'majority'\]"),
    ({"adapters": "none"}, r"TTTConfig\.adapters is 'none'; choose one of \['per_task', 'shared'\]"),
    ({"vote": "mean"}, r"TTTConfig\.vote is 'mean'; choose one of \['hierarchical', 'flat', .*'first'\]"),
    ({"few_shot_format": "xml"}, r"TTTConfig\.few_shot_format is 'xml'; choose one of \['arc', 'compact', .*\]"),
    ({"tasks_per_pass": 0}, r"TTTConfig\.tasks_per_pass is 0; choose a whole number of at least 1"),
    ({"vote_within": 0}, r"TTTConfig\.vote_within is 0; choose a whole number of at least 1"),
    ({"num_generations": 1}, r"TTTConfig\.num_generations is 1; choose a whole number of at least 2"),
    ({"num_generations": None}, r"TTTConfig\.num_generations is None; choose a whole number of at least 2"),
    ({"max_completion_length": 0}, r"TTTConfig\.max_completion_length is 0; choose from 1 to"),
    ({"max_completion_length": None}, r"TTTConfig\.max_completion_length is None; choose at least 1"),
    ({"num_train_epochs": 1.5}, r"TTTConfig\.num_train_epochs is 1\.5; objective='sft' takes whole passes"),
    ({"warmup_steps": 10}, r"TTTConfig\.warmup_steps is 10; objective='sft' takes a share of the steps in \[0, 1\)"),
    ({"gradient_accumulation_steps": 2}, r"TTTConfig\.gradient_accumulation_steps is 2.*per_device_train_batch_size"),
    ({"max_steps": 5}, r"TTTConfig\.max_steps is 5, .*objective='sft': it counts num_train_epochs over max_examples"),
    ({"lora_r": 0}, r"TTTConfig\.lora_r is 0; choose a whole number of at least 1"),
    ({"num_train_epochs": 0}, r"num_train_epochs is 0; choose a whole number of at least 1"),
    ({"loss_on": "inputs"}, r"loss_on is 'inputs'; choose one of \['query', 'demonstrations', 'outputs', 'all'\]"),
    ({"lr_scheduler_type": "polynomial"}, r"lr_scheduler_type is 'polynomial'; choose one of"),
    ({"learning_rate": -1.0}, r"learning_rate is -1\.0; choose from 0 to"),
    ({"transformations": ["spin"]}, r"transformations: 'spin' is unknown\. Known sets"),
    ({"predict_transformations": []}, r"transformations: got \(\), which names none"),
    ({"permutations": 0}, r"TTTConfig\.permutations is 0; choose a whole number of at least 1"),
    (
        {"single_demonstration": "skip"},
        r"TTTConfig\.single_demonstration is 'skip'; choose one of \['direct', 're",
    ),
    ({"predict_permutations": 0}, r"TTTConfig\.predict_permutations is 0; choose a whole number of at least 1"),
    ({"predict_samples": 2}, r"predict_samples is 2 at predict_temperature 0.*Set a temperature"),
    ({"predict_temperature": -0.5}, r"TTTConfig\.predict_temperature is -0\.5; choose a finite number of at least 0"),
]


@pytest.mark.parametrize(
    ("changes", "message"), REFUSED, ids=[next(iter(c)) + str(n) for n, (c, _) in enumerate(REFUSED)]
)
def test_wrong_settings_are_refused_by_name_value_and_cure(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_unknown_presets_and_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"preset 'mnist' is unknown; choose one of \['arc', 'bbh'"):
        TTTConfig.preset("mnist")
    with pytest.raises(ConfigError, match=r"^TTT has no setting 'lora_rank'\. Did you mean .*'lora_r'.{,30}$"):
        TTTConfig.preset("arc", lora_rank=3)
    with pytest.raises(ConfigError, match=r"^TTT has no setting 'wobble'\. TTTSettings lists and describes them\.$"):
        TTTSettings.preset("arc", wobble=3)


def test_what_only_sft_refuses_is_taken_for_reinforcement_learning() -> None:
    args = config(
        objective="grpo", num_train_epochs=1.5, warmup_steps=10, max_steps=5, lr_scheduler_type="constant_with_warmup"
    )
    assert (args.num_train_epochs, args.warmup_steps, args.max_steps) == (1.5, 10, 5)


# -- TRL and transformers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "group"), [(1, 8), (2, 8), (3, 8), (5, 4), (7, 2), (8, 8), (12, 8), (16, 8)])
def test_any_batch_size_makes_whole_groups(batch: int, group: int) -> None:
    args = config(per_device_train_batch_size=batch, num_generations=group, objective="grpo")
    assert args.generation_batch_size is not None and args.generation_batch_size % group == 0
    assert args.generation_batch_size == batch * args.steps_per_generation
    smallest = next(n for n in range(1, group + 1) if batch * n % group == 0)
    assert args.steps_per_generation == smallest


def test_own_numbers_of_generation_steps_are_kept() -> None:
    assert config(objective="grpo", num_generations=4, steps_per_generation=6).generation_batch_size == 12
    assert config(objective="grpo", num_generations=4, generation_batch_size=8).steps_per_generation == 4


def test_a_machine_without_an_accelerator_needs_no_more_than_use_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_mass.training.ttt_config.is_torch_bf16_gpu_available", lambda: False)
    args = TTTConfig(output_dir="unused", use_cpu=True)
    assert args.bf16 is False and args.device.type == "cpu"
    assert config(objective="grpo", bf16=True).bf16 is True  # asked for


def test_settings_can_be_given_on_a_command_line() -> None:
    line = [
        "--output_dir",
        "x",
        "--use_cpu",
        "True",
        "--objective",
        "grpo",
        "--lora_target_modules",
        "q_proj",
        "v_proj",
    ]
    (args,) = HfArgumentParser(TTTConfig).parse_args_into_dataclasses([*line, "--transformations", "none"])
    assert (args.objective, args.lora_target_modules, args.transformations) == ("grpo", ["q_proj", "v_proj"], ["none"])


def test_lists_are_not_shared_between_configs() -> None:
    first, second = config(), config()
    first.transformations.append("transpose")
    assert second.transformations == ["geometric"]


# Of each group one or two, at values that people set.
UNHEARD = {
    "sft": {
        "bf16": True,
        "fp16": True,
        "gradient_checkpointing": True,
        "optim": "sgd",
        "gradient_accumulation_steps": 2,
        "eval_strategy": "steps",
        "temperature": 0.5,
        "beta": 0.1,
        "ttt_reward": "majority",
        "label_smoothing_factor": 0.1,
        "torch_compile": True,
    },
    "grpo": {"lora_dropout": 0.1, "loss_on": "all"},
}


@pytest.mark.parametrize(("objective", "name"), [(each, name) for each in UNHEARD for name in UNHEARD[each]])
def test_what_has_no_effect_is_refused_by_name(objective: str, name: str) -> None:
    value = UNHEARD[objective][name]
    said = rf"TTTConfig\.{name} is {re.escape(repr(value))}, which has no effect with objective='{objective}': \w+"
    with pytest.raises(ConfigError, match=said):
        config(objective=objective, **{name: value})


@pytest.mark.parametrize("objective", ["sft", "grpo"])
def test_a_config_can_be_made_again_from_its_values(objective: str) -> None:
    """What TRL fills in is not taken for something that was asked for."""
    args = config(objective=objective)
    derived = {"generation_batch_size"}  # of steps_per_generation; TRL takes only one of them
    again = TTTConfig(**{f.name: getattr(args, f.name) for f in fields(args) if f.init and f.name not in derived})
    assert again.result_settings() == args.result_settings()


@pytest.mark.parametrize("preset", sorted(TTT_PRESETS))
def test_a_preset_serves_both_objectives(preset: str) -> None:
    args = TTTConfig.preset(preset, objective="grpo", output_dir="unused", use_cpu=True, report_to="none")
    assert args.lora_dropout == 0 and args.lora_r == TTT_PRESETS[preset]["lora_r"]
    with pytest.raises(ConfigError, match="lora_dropout"):
        TTTConfig.preset(preset, objective="grpo", lora_dropout=0.1, output_dir="unused", use_cpu=True)


# -- resuming ----------------------------------------------------------------------------------------------------------

WITHOUT_EFFECT: dict[str, Any] = {
    "output_dir": "elsewhere",
    "tasks_per_pass": 3,
    "predict_batch_size": 5,
    "keep_adapters": True,
    "logging_steps": 3,
    "disable_tqdm": True,
}
WITH_EFFECT: dict[str, Any] = {
    "seed": 1,
    "lora_r": 4,
    "learning_rate": 1e-3,
    "max_examples": 3,
    "transformations": ["none"],
    "vote": "flat",
    "predict_permutations": 1,
    "max_completion_length": 9,
    "weight_decay": 0.5,
    "chat": True,
    "guard": True,
    "adapters": "shared",
    "lr_scheduler_type": "constant",
    "chat_template_kwargs": {"enable_thinking": False},
}


@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_settings_without_effect_on_results_do_not_count(name: str) -> None:
    assert config(**{name: WITHOUT_EFFECT[name]}).result_settings() == config().result_settings()


@pytest.mark.parametrize("name", sorted(WITH_EFFECT))
def test_settings_with_an_effect_on_results_count_by_their_name(name: str) -> None:
    one, other = config(**{name: WITH_EFFECT[name]}).result_settings(), config().result_settings()
    assert {key for key in one if one[key] != other[key]} == {name}


@pytest.mark.parametrize(
    "name",
    [
        *("temperature", "beta", "num_generations", "ttt_reward", "num_iterations", "epsilon", "delta", "optim"),
        *("importance_sampling_level", "generation_kwargs", "mask_truncated_completions", "data_seed"),
    ],
)
def test_settings_of_trls_loop_count_where_it_is_used(name: str) -> None:
    values = {"num_generations": 4, "ttt_reward": "majority", "num_iterations": 2, "optim": "sgd", "data_seed": 3}
    values |= {"importance_sampling_level": "sequence", "mask_truncated_completions": True}
    value = {**values, "generation_kwargs": {"num_beams": 2}}.get(name, 0.5)
    shared = {"objective": "grpo", "per_device_train_batch_size": 8, "steps_per_generation": 1}
    one, other = (config(**{**shared, **change}).result_settings() for change in ({name: value}, {}))
    assert {key for key in one if one[key] != other[key]} == {name}
    assert name not in config().result_settings()


def test_settings_that_results_depend_on_are_json_and_survive_a_file(tmp_path: Path) -> None:
    for objective in ("sft", "grpo"):
        values = config(objective=objective, lora_target_modules=["q_proj"]).result_settings()
        path = tmp_path / "settings.json"
        path.write_text(json.dumps(values))
        assert json.loads(path.read_text()) == values and values["lr_scheduler_type"] == "cosine"


def test_every_setting_of_its_own_either_counts_or_is_known_not_to() -> None:
    own = {f.name for f in fields(TTTConfig)} - {f.name for f in fields(GRPOConfig)}
    counted = set(config(objective="grpo").result_settings())
    assert own - counted == {"tasks_per_pass", "predict_batch_size", "keep_adapters"}
