"""`examples/ttt.py` and BIG-Bench Hard: command lines, a user's files, and the whole pipeline on a random model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from model_fixtures import byte_base, byte_tokenizer
from repository import ROOT

import ttt
from hf_mass import Task, TTTConfig, TTTTrainer, load_bbh
from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.answers import mean_scores, rank_answers
from hf_mass.tasks.verifiers import VERIFIERS, verify_batch
from hf_mass.tasks.voting import Prediction
from hf_mass.training.ttt_results import TaskResult

BBH = ROOT.parent / "shared" / "data" / "bbh"


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    byte_base().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_the_preset_is_the_ground_and_options_stand_on_it() -> None:
    script, config = ttt.parse(["--preset", "bbh", "--lora_r", "8", "--chat", "True"])
    assert script.preset == "bbh"
    assert (config.lora_r, config.lora_alpha, config.max_examples, config.chat) == (8, 64, 40, True)
    _, grids = ttt.parse([])
    assert grids.few_shot_format == "compact" and grids.predict_recolour
    with pytest.raises(ConfigError, match="--preset 'arcs' is unknown; choose one of"):
        ttt.parse(["--preset=arcs"])


def test_what_a_table_does_not_say_is_an_option(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_bytes("Bär;Bären\nTür;Türen\nKuh;Kühe\n".encode("cp850"))
    words = ["--tasks", str(file), "--demonstrations", "2", "--encoding", "cp850", "--delimiter", ";", "--no_header"]
    (task,) = ttt.load(ttt.parse(words)[0])
    pairs = {(task.problem, task.answer), *((pair.question, pair.answer) for pair in task.demonstrations)}
    assert pairs == {("Bär", "Bären"), ("Tür", "Türen"), ("Kuh", "Kühe")}


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["ttt.py", *words, "--disable_tqdm", "True"])
    ttt.main()
    return capsys.readouterr().out


def test_the_job_without_a_file_answers_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = str(ROOT / "hf_mass" / "assets" / "grids-small")
    words = ["--model_name_or_path", small, "--limit", "2", "--max_examples", "4", "--output_dir", str(tmp_path)]
    text = run(monkeypatch, capsys, *words)
    assert text.count("before") == 3 and text.count("gold") == 2 and "after  pass@1" in text
    assert len(list((tmp_path / "tasks").iterdir())) == 2


def test_a_file_of_ones_own(
    tmp_path: Path, byte_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"{n} + 1", "reply": str(n + 1)} for n in range(8)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--model_name_or_path", str(byte_folder), "--preset", "text", "--tasks", str(tmp_path / "sums.jsonl")]
    words += ["--input_column", "question", "--output_column", "reply", "--demonstrations", "5", "--lora_r", "4"]
    words += ["--max_completion_length", "4", "--output_dir", str(tmp_path / "out")]
    text = run(monkeypatch, capsys, *words)
    assert text.count("examples,") == 3 and "after  pass@1" in text
    (run_settings,) = (tmp_path / "out").glob("ttt_run.json")
    assert json.loads(run_settings.read_text())["few_shot_format"] == "plain"
    with pytest.raises(DataError, match="no column 'input'"):
        run(monkeypatch, capsys, "--preset", "text", "--tasks", str(tmp_path / "sums.jsonl"))


@pytest.mark.skipif(not BBH.is_dir(), reason="the BIG-Bench Hard files are not beside the checkout")
def test_big_bench_hard_from_draw_to_score(tmp_path: Path) -> None:
    """Random weights: the accuracies are those of the answers given, by the benchmark's own scoring."""
    sets = load_bbh(BBH, ["boolean_expressions", "dyck_languages"])
    tasks = [task for queries in sets.values() for task in queries[:3]]
    config = TTTConfig.preset(
        "bbh", output_dir=str(tmp_path), use_cpu=True, lora_r=4, max_examples=10, max_completion_length=4
    )
    base = byte_base()
    base.config.max_position_embeddings = 4096
    trainer = TTTTrainer(base, config, processing_class=byte_tokenizer())
    results = trainer.predict(tasks)
    assert [r.reason for r in results] == [None] * 6 and all(r.examples == 10 and len(r.losses) == 2 for r in results)
    judged = verify_batch(tasks, [r.answer or "" for r in results])
    assert sum(judged) / 6 == mean_scores([r.score() for r in results])["pass@1"]
    assert all(rank_answers(r.predictions, "flat") == list(r.answers) for r in results)


def raises_on_five(task: Task, text: str) -> float:
    if task.answer == "five":
        raise ValueError("no such file")
    return float(text == task.answer)


def test_a_verifier_that_raises_leaves_its_tasks_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERIFIERS, "mine", raises_on_five)
    tasks = [Task("q", id=word, answer=word, verifier="mine") for word in ("four", "five")]
    lines = ttt.report(None, [TaskResult(task, ("four",), (Prediction("four"),)) for task in tasks]).splitlines()
    assert lines[-2].startswith("after  1 tasks are left out, which could not be judged: The verifier 'mine' raised")
    assert lines[-1] == "after  pass@1 1.000, pass@2 1.000, oracle 1.000"
