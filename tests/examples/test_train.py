"""The example scripts on real data: every stage runs, reasons are logged, gold loss falls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import HfArgumentParser

import train
from benchmarks import byte_model
from hf_mass.errors import ConfigError
from hf_mass.methods.base import Adaptation, Answer
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.tasks.task import Task
from hf_mass.training import meta_adapt_trainer
from hf_mass.training.adaptation_eval import AdaptationEvalPrediction
from hf_mass.training.meta_adapt_config import MetaAdaptConfig
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer

COMMON = (
    "--num_generations 4 --per_device_train_batch_size 8 --max_completion_length 24 --max_solution_length 24 "
    "--max_length 768 --inference_samples 2 --learning_rate 3e-3 --logging_steps 1 --use_cpu True --bf16 False "
    "--gradient_checkpointing False --report_to none --save_strategy no --eval_tasks 2 --disable_tqdm True"
)


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte-model")
    tokenizer = byte_model.build_tokenizer()
    torch.manual_seed(0)
    byte_model.build_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Everything that a trainer logs."""
    seen: list[dict[str, Any]] = []
    plain = MetaAdaptTrainer.log

    def log(self: MetaAdaptTrainer, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        plain(self, logs, *args, **kwargs)
        seen.append(dict(logs))

    monkeypatch.setattr(MetaAdaptTrainer, "log", log)
    return seen


@pytest.fixture
def half_well_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with random weights writes nothing that parses: let every other sample say something all the same."""
    plain = meta_adapt_trainer.read_sample
    count = iter(range(10**9))

    def read(text: str, ids: Any, fmt: Any) -> AuxiliarySample:
        if next(count) % 2:
            return AuxiliarySample(text, tuple(ids), "What is two and two?", "2 + 2 = 4\n#### 4")
        return plain(text, ids, fmt)

    monkeypatch.setattr(meta_adapt_trainer, "read_sample", read)


def run(command: str, folder: Path, output: Path) -> None:
    line = f"--model_name_or_path {folder} --output_dir {output} {COMMON} {command}"
    script, args = HfArgumentParser((train.ScriptArguments, MetaAdaptConfig)).parse_args_into_dataclasses(line.split())
    train.run_own(script, args)


def test_gsm8k_in_gold_mode(
    byte_folder: Path,
    shared_data: Path,
    tmp_path: Path,
    logged: list[dict[str, Any]],
    half_well_formed: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The gold loss falls, the inner loop runs on what parses, the rest has its reason; the result can be loaded."""
    run(
        f"--dataset_name {shared_data / 'gsm8k-train.jsonl'} --problem_column question --solution_column answer "
        "--answer_column answer --prompt_format gsm8k --verifier numeric --outer_loss gold --solve_coefficient 1.0 "
        "--max_train_tasks 40 --max_steps 12 --inner_learning_rate 0.5",
        byte_folder,
        tmp_path / "out",
    )
    losses = [entry["outer_loss"] for entry in logged if "outer_loss" in entry]
    assert len(losses) == 12
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.05  # batches differ by about .02
    first = logged[0]
    assert first["samples/parse_rate"] == pytest.approx(0.5)
    assert first["samples/no_match"] == pytest.approx(0.5)
    assert first["inner_loss/after"] < first["inner_loss/before"]
    assert "MASS, adapted" in capsys.readouterr().out
    for name in ("results.json", "training.png", "mass_config.json", "scorer/scorer.safetensors"):
        assert (tmp_path / "out" / name).is_file(), name
    assert MassModel.from_pretrained(tmp_path / "out").config.format.to_dict() == train.FORMATS["gsm8k"].to_dict()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert [result.metric_name for result in card.data.eval_results] == ["MASS, no adaptation", "MASS, adapted"]
    assert str(tmp_path) not in card.text.replace(" ".join(sys.argv), "")


def test_math_500_in_verifier_mode(
    byte_folder: Path, shared_data: Path, tmp_path: Path, logged: list[dict[str, Any]], half_well_formed: None
) -> None:
    """Verified by math-verify; a model of random weights is always wrong, so that every task's solutions agree."""
    run(
        f"--dataset_name {shared_data / 'math-500.json'} --domain_column subject --prompt_format math --verifier math "
        "--outer_loss verifier --num_solutions 2 --max_train_tasks 20 --max_steps 2",
        byte_folder,
        tmp_path / "out",
    )
    steps = [entry for entry in logged if "tasks/agreeing" in entry]
    assert len(steps) == 2
    assert all(entry["tasks/agreeing"] == 1.0 and entry["reward/adapted"] == 0.0 for entry in steps)


def test_1d_arc(byte_folder: Path, shared_data: Path, tmp_path: Path, logged: list[dict[str, Any]]) -> None:
    """A hundred tasks of a folder of ARC files, which bring demonstrations, in gold mode."""
    run(
        f"--dataset_name {shared_data / '1d-arc'} --prompt_format grid --outer_loss gold --max_train_tasks 100 "
        "--solve_coefficient 1.0 --max_steps 8",
        byte_folder,
        tmp_path / "out",
    )
    losses = [entry["outer_loss"] for entry in logged if "outer_loss" in entry]
    assert losses[-1] < losses[0]
    reasons = {key for entry in logged for key, value in entry.items() if key.startswith("samples/") and value}
    assert reasons - {"samples/parse_rate"}


def own(line: str) -> tuple[train.ScriptArguments, MetaAdaptConfig]:
    common = f"--output_dir unused {COMMON.replace('--eval_tasks 2', '')} {line}"
    return HfArgumentParser((train.ScriptArguments, MetaAdaptConfig)).parse_args_into_dataclasses(common.split())


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ("--max_train_tasks 20 --eval_tasks 10", (20, 10)),
        ("--max_train_tasks 4 --eval_tasks 2", (4, 2)),
        ("--eval_tasks 5", (35, 5)),
        ("--eval_tasks 100", (32, 8)),
    ],
)
def test_the_numbers_of_tasks_are_those_asked_for(options: str, counts: tuple[int, int], tmp_path: Path) -> None:
    rows = [{"problem": f"{i} + 1?", "answer": i + 1} for i in range(40)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    script, args = own(f"--model_name_or_path unused --dataset_name {tmp_path / 'data.json'} {options}")
    found, held_out = train.own_tasks(script, args)
    assert (len(found), len(held_out)) == counts
    assert not {task.problem for task in found} & {task.problem for task in held_out}


@pytest.mark.parametrize("given", ["model_name_or_path", "dataset_name"])
def test_model_and_data_go_together(given: str) -> None:
    script, args = own(f"--{given} something")
    missing = {"model_name_or_path": "dataset_name", "dataset_name": "model_name_or_path"}[given]
    with pytest.raises(ConfigError, match=f"--{missing} is missing"):
        train.run_own(script, args)


def test_answers_that_could_not_be_judged_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    task = Task("q", answer="a")
    raised = Answer(task, "b", None, reason="The verifier 'mine' raised")
    some, none = [Answer(task, "a", 1.0), raised, Answer(task, "c", 0.0)], [raised] * 3
    found = AdaptationEvalPrediction([task] * 3, [Adaptation(task)] * 3, some, none, [True] * 3)
    rows = list(train.own_table(found, found))
    assert (rows[0].accuracy["held out"].mean, rows[0].accuracy["held out"].n) == (0.5, 2)  # not 1/3 of 3
    assert rows[1].accuracy == {} and rows[1].extra == {"not judged": 3}
    assert "base: 1 of 3 tasks are left out, which could not be judged: The verifier 'mine'" in capsys.readouterr().out
    assert train.not_judged(some, none, all_of_them=True) == [] != train.not_judged(none, all_of_them=True)
