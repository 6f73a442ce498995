"""Settings and bad input: what is refused, where, and what the message says."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, get_peft_model
from trainer_fixtures import BASE, M, chat_model, chat_tokenizer, make_trainer, settings
from transformers import AutoModelForCausalLM, HfArgumentParser
from trl import GRPOConfig

from hf_mass.errors import ConfigError, DataError, VerifierError
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.settings import flat
from hf_mass.tasks.formats import PromptFormat
from hf_mass.tasks.sources import Columns
from hf_mass.tasks.task import Task
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer
from research.conventions.settings import conventions_lora, conventions_settings


def config(**changes: Any) -> MetaAdaptConfig:
    base = {"output_dir": "unused", "use_cpu": True, "bf16": False, "report_to": "none"}
    return MetaAdaptConfig(**{**base, **changes})


# -- settings --------------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_paper_and_fit_together() -> None:
    args = config()
    training, inference = args.mass_config(PromptFormat(), training=True), args.mass_config(PromptFormat())
    assert (training.samples, training.inner.steps) == (12, 2)
    assert (inference.samples, inference.inner.steps) == (6, 1)
    assert args.outer_loss == "verifier" and args.generation_batch_size % 12 == 0
    assert args.learning_rate == 5e-5 and args.scorer_learning_rate == 1e-3


def test_settings_reach_the_model(tmp_path: Path) -> None:
    args = config(
        inner_target_modules=["q_proj"],
        inner_lora_r=3,
        inner_optimizer="momentum",
        inner_momentum=0.5,
        inner_microbatch=7,
        meta_gradient="unrolled",
        scorer_features=["overlap"],
        scorer_width=0,
        temperature=0.7,
        weigh_by="uniform",
        attribution_rounds=3,
    )
    mass = args.mass_config(CONVENTIONS_FORMAT)
    inner = mass.inner
    assert (inner.target_modules, inner.lora_rank, inner.microbatch) == (("q_proj",), 3, 7)
    assert (inner.optimizer, inner.momentum, inner.rule) == ("momentum", 0.5, "unrolled")
    assert (mass.scorer.features, mass.scorer.width) == (("overlap",), 0)
    assert (mass.temperature, mass.weigh_by, mass.attribution.rounds) == (0.7, "uniform", 3)
    assert mass.format is CONVENTIONS_FORMAT


@pytest.mark.parametrize("changes", [{"inner_steps": 2}, {"inner_steps": 1, "solve_gradient": "full"}])
def test_fused_kernels_where_second_order_is_used(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"use_liger_kernel is True.*Set use_liger_kernel=False, or inner_steps=1"):
        config(use_liger_kernel=True, **changes)
    config(use_liger_kernel=True, inner_steps=1, solve_gradient="direct")
    config(use_liger_kernel=False, **changes)


def test_the_preset_is_valid_and_can_be_changed() -> None:
    args = MetaAdaptConfig(output_dir="unused", **conventions_settings(num_solutions=5))
    assert args.num_solutions == 5 and args.inner_steps == 1 and conventions_settings()["num_solutions"] == 16
    restated = {name for name, value in conventions_settings().items() if getattr(config(), name) == value}
    assert restated <= {f.name for f in fields(GRPOConfig)}, (
        "defaults of this package's own stand where they are declared"
    )


REFUSED = [
    ({"num_generations": 1}, "num_generations is 1"),
    ({"num_generations": None}, "num_generations is None"),
    ({"inner_steps": 0}, "MetaAdaptConfig.inner_steps is 0"),
    ({"inner_steps": -1}, "MetaAdaptConfig.inner_steps is -1"),
    ({"inference_steps": 0}, "MetaAdaptConfig.inference_steps is 0"),
    ({"inference_samples": 0}, "MetaAdaptConfig.inference_samples is 0"),
    ({"inner_learning_rate": 0.0}, "inner_learning_rate is 0.0"),
    ({"inner_learning_rate": -0.1}, "inner_learning_rate is -0.1"),
    ({"inner_learning_rate": math.nan}, "inner_learning_rate is nan"),
    ({"inner_learning_rate": math.inf}, "inner_learning_rate is inf"),
    ({"inner_optimizer": "adam"}, "inner_optimizer is 'adam'"),
    ({"inner_optimizer": "momentum", "inner_momentum": 1.0}, "momentum is 1.0"),
    ({"inner_lora_r": 0}, "inner_lora_r is 0"),
    ({"inner_microbatch": 0}, "inner_microbatch is 0"),
    ({"meta_gradient": "exact"}, "meta_gradient is 'exact'"),
    ({"outer_loss": "silver"}, "outer_loss is 'silver'"),
    ({"num_solutions": 1}, "num_solutions is 1"),
    ({"solution_temperature": 0.0}, "solution_temperature is 0.0"),
    ({"solution_temperature": math.nan}, "solution_temperature is nan"),
    ({"solve_coefficient": -0.1}, "solve_coefficient is -0.1"),
    ({"solve_coefficient": math.nan}, "solve_coefficient is nan"),
    ({"solve_gradient": "half"}, "solve_gradient is 'half'"),
    ({"generator_reward": "plain"}, "generator_reward is 'plain'"),
    ({"score_normalization": "sigmoid"}, "generator_reward='sample'"),
    ({"score_normalization": "max", "generator_reward": "sample"}, "score_normalization is 'max'"),
    ({"scorer_features": ["entropy"]}, "entropy"),
    ({"scorer_features": []}, "at least one"),
    ({"scorer_width": -1}, "scorer_width is -1"),
    ({"scorer_learning_rate": -1.0}, "scorer_learning_rate is -1.0"),
    ({"temperature": 0.0}, "temperature is 0.0"),
    ({"weigh_by": "votes"}, "weigh_by is 'votes'"),
    ({"attribution_temperature": 0.0}, "attribution_temperature is 0.0"),
    ({"attribution_rounds": 0}, "attribution_rounds is 0"),
    ({"prompt_format": "haiku"}, "prompt_format is 'haiku'"),
    ({"max_length": 1}, "max_length is 1"),
    ({"inner_steps": 1.5}, "inner_steps is 1.5; choose a whole number of at least 1"),
    ({"inner_adam_beta2": 1.0}, "inner_adam_beta2 is 1.0; choose a finite number of at least 0 and below 1."),
    ({"num_solutions": "many"}, "num_solutions is 'many'; choose a whole number of at least 1"),
    ({"logging_strategy": 1}, "MetaAdaptConfig.logging_strategy is 1; choose one of ['no', 'steps', 'epoch']."),
    ({"optim": "adamx"}, "MetaAdaptConfig.optim is 'adamx'; choose one of ['adamw_torch', "),
    ({"lr_scheduler_type": None}, "MetaAdaptConfig.lr_scheduler_type is None; choose one of ['linear', "),
    ({"parallelism_config": "x"}, "parallelism_config is 'x'; choose a ParallelismConfig."),
    ({"reward_weights": np.ones(2)}, "reward_weights is array([1., 1.]); choose a list."),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs is 'x'; choose a dict."),
    ({"train_scorer": "no"}, "train_scorer is 'no'; choose True or False."),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_settings_out_of_range_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert message in str(caught.value) and isinstance(caught.value, ValueError)


def test_a_whole_number_of_numpy_is_one() -> None:
    args = config(max_completion_length=np.int64(33))
    assert args.mass_config(PromptFormat()).max_sample_tokens == 33


@given(st.one_of(st.integers(max_value=0), st.integers(1, 5)), st.floats())
def test_exactly_the_possible_inner_loops_are_accepted(steps: int, rate: float) -> None:
    if steps >= 1 and 0 < rate <= 1e300:
        assert config(inner_steps=steps, inner_learning_rate=rate).inner_steps == steps
    else:
        with pytest.raises(ConfigError, match=r"inner_steps|inner_learning_rate"):
            config(inner_steps=steps, inner_learning_rate=rate)


def test_every_setting_of_its_own_has_a_help_text() -> None:
    inherited = {f.name for f in fields(GRPOConfig)}
    own = [f for f in fields(MetaAdaptConfig) if f.name not in inherited]
    assert len(own) > 20
    for f in own:
        assert f.metadata.get("help"), f.name


def test_settings_of_mass_are_those_of_its_config() -> None:
    """Each once: what the trainer declares itself is none of them."""
    options = flat(MassConfig)
    offered = {f.name: f for f in fields(MetaAdaptConfig) if f.name in options}
    assert set(options) - set(offered) == {"samples", "max_sample_tokens", "max_answer_tokens"}
    of_trl = {"temperature", "top_p", "top_k"}
    assert {name for name, f in offered.items() if f.metadata["help"] != options[name].help} == of_trl
    same, built = config(inner_steps=1), MassConfig()
    assert same.mass_config(PromptFormat()) == built
    assert replace(same.mass_config(PromptFormat(), training=True), samples=built.samples) == built


def test_settings_are_read_from_a_command_line(capsys: Any) -> None:
    parser = HfArgumentParser(MetaAdaptConfig)
    words = "--output_dir x --use_cpu True --bf16 False --outer_loss gold --inner_steps 3 --inner_learning_rate 0.5"
    words += " --scorer_features hidden overlap --inner_target_modules q_proj v_proj --train_scorer False"
    (args,) = parser.parse_args_into_dataclasses(words.split())
    assert (args.outer_loss, args.inner_steps, args.inner_learning_rate) == ("gold", 3, 0.5)
    assert args.scorer_features == ["hidden", "overlap"] and args.inner_target_modules == ["q_proj", "v_proj"]
    assert args.train_scorer is False
    with pytest.raises(SystemExit):
        parser.parse_args_into_dataclasses(["--help"])
    assert "--solve_coefficient" in capsys.readouterr().out


def test_settings_are_logged_as_json() -> None:
    assert json.loads(config(outer_loss="gold").to_json_string())["outer_loss"] == "gold"


# -- data and models -------------------------------------------------------------------------------------------------


def rows(**columns: list[Any]) -> dict[str, Any]:
    return {"train_dataset": Dataset.from_dict(columns), "prompt_format": PromptFormat()}


BAD_DATA: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"train_dataset": None}, {}, ["train_dataset is None"]),
    ({"train_dataset": []}, {}, ["non-empty", "list", "0 items"]),
    ({"train_dataset": ["a problem"]}, {}, ["Tasks", "1 items"]),
    (rows(problem=[]), {}, ["non-empty", "0 items"]),
    (rows(question=["1+1?"], answer=["2"]), {}, ["'problem'", "'question'", "'answer'", "Columns.problem"]),
    (rows(problem=["1+1?", " "], answer=["2", "3"]), {}, ["Row 1", "'problem'", "empty"]),
    (rows(problem=["1+1?"], answer=[""]), {}, ["Row 0", "'answer'", "empty"]),
    (
        {**rows(problem=["1+1?"], answer=["2"]), "columns": Columns(solution="worked")},
        {},
        ["'worked'", "'problem'", "'answer'", "Columns.solution"],
    ),
    (rows(problem=["1+1?"]), {"outer_loss": "gold"}, ["neither solution nor answer"]),
    (
        {"train_dataset": [Task("p", answer="a"), Task("q", id="seventh")], "prompt_format": PromptFormat()},
        {"outer_loss": "gold"},
        ["seventh", "neither solution nor answer"],
    ),
    (
        {"train_dataset": [Task("p", answer="a")], "prompt_format": PromptFormat()},
        {"scorer_features": ["attribution"]},
        ["no demonstrations"],
    ),
    (
        {"train_dataset": [Task("p"), Task("q", conversational=True)], "prompt_format": PromptFormat()},
        {},
        ["conversational and plain"],
    ),
    ({"train_dataset": [Task("p")]}, {}, ["family"]),
    ({"eval_dataset": []}, {}, ["non-empty", "0 items"]),
    (
        {"eval_dataset": {"a": [Task("p", fields={"family": "ada"})]}},
        {"weigh_by": "demonstrations"},
        ["demonstrations"],
    ),
]


@pytest.mark.parametrize(("options", "changes", "messages"), BAD_DATA)
def test_bad_data_is_refused_before_anything_is_loaded(
    tmp_path: Path, options: dict[str, Any], changes: dict[str, Any], messages: list[str]
) -> None:
    plain = {"scorer_features": ["overlap"], **changes}
    with pytest.raises(DataError) as caught:
        make_trainer(tmp_path, options={"model": "no-such-model", **options}, **plain)
    for message in messages:
        assert message in str(caught.value)


def test_an_unknown_verifier_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match="oracle"):
        make_trainer(tmp_path, options={"model": "no-such-model"}, verifier="oracle")
    tasks = [Task("p", verifier="jury", fields={"family": "ada"})]
    with pytest.raises(VerifierError, match="jury"):
        make_trainer(tmp_path, options={"model": "no-such-model", "train_dataset": tasks}, scorer_features=["overlap"])


def test_conversations_need_a_chat_template(tmp_path: Path) -> None:
    def build(template: str | None) -> MetaAdaptTrainer:
        options = {
            "model": chat_model(),
            "processing_class": chat_tokenizer(template),
            "train_dataset": [Task("1+1?", answer="2", conversational=True, id="sum")],
            "prompt_format": PromptFormat(),
            "peft_config": None,
        }
        return make_trainer(tmp_path, options=options, scorer_features=["overlap"], max_length=512)

    with pytest.raises(DataError, match=r"'sum' is conversational.*chat_template"):
        build(None)
    assert build("{{ messages }}").train_tasks[0].conversational


@pytest.mark.parametrize("model", [str(BASE), None])
def test_lora_targets_of_the_generator_that_match_nothing(tmp_path: Path, model: str | None) -> None:
    targets = LoraConfig(target_modules=["query", "value"], task_type="CAUSAL_LM")
    options = {"model": model or AutoModelForCausalLM.from_pretrained(BASE), "peft_config": targets}
    with pytest.raises(ConfigError) as caught:
        make_trainer(tmp_path, options=options)
    assert "peft_config.target_modules" in str(caught.value) and "'query'" in str(caught.value)
    assert "all-linear" in str(caught.value)


def test_lora_targets_of_the_inner_adapter_that_match_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_trainer(tmp_path, inner_target_modules=["query"])
    assert "'query'" in str(caught.value) and "q_proj" in str(caught.value)


def test_the_adapter_of_a_peft_model_must_have_the_generators_name(tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(BASE)
    named = get_peft_model(base, conventions_lora(), adapter_name="mine")
    with pytest.raises(ConfigError, match=r"\['mine'\].*'default'"):
        make_trainer(tmp_path, options={"model": named, "peft_config": None})


def test_groups_must_fill_a_batch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generation_batch_size"):
        settings(tmp_path, per_device_train_batch_size=M + 1)


# -- the generator's adapter -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1]},
        {"use_dora": True},
        {"lora_bias": True},
        {"lora_dropout": 0.1},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"layer_replication": [(0, 1), (0, 1)]},
        {"target_parameters": ["weight"]},
        {"alora_invocation_tokens": [1]},
    ],
    ids=lambda field: next(iter(field)),
)
def test_what_the_generator_cannot_hold_is_refused_before_training(field: dict[str, Any], tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **field)
    name = next(iter(field))
    with pytest.raises(ConfigError, match=rf"peft_config\.{name} is "):
        make_trainer(tmp_path, options={"peft_config": lora})


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match="peft_config is of type IA3; only LoRA"):
        make_trainer(tmp_path, options={"peft_config": other})
