"""The benchmark of BIG-Bench Hard on a language model: rows by the published settings, kept at once, and a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from model_fixtures import byte_base, byte_tokenizer

import hf_mass
from benchmarks import real_models_bbh as bench

LM = hf_mass.load(byte_base(), byte_tokenizer())


def folder(path: Path) -> Path:
    """Two tasks of short questions."""
    for name, target in (("snarks", "(B)"), ("object_counting", "12345")):
        examples = [{"input": f"{n}?", "target": target} for n in range(14)]
        (path / f"{name}.json").write_text(json.dumps({"examples": examples}))
    return path


def test_the_longest_answer_is_the_published_one_or_what_the_demonstrations_need(tmp_path: Path) -> None:
    drawn = hf_mass.load_bbh(folder(tmp_path), ["snarks", "object_counting"])
    lengths = {name: bench.answer_tokens(LM, name, tasks[0]) for name, tasks in drawn.items()}
    assert lengths == {"snarks": 4, "object_counting": 6}  # a byte is a token here: " (B)", " 12345"


def test_rows_are_kept_told_and_not_run_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_mass, "load", lambda model, dtype: LM)
    words = ["--model", "a/tiny", "--data", str(folder(tmp_path)), "--output", str(tmp_path / "out"), "--queries", "2"]
    bench.main([*words, "--tasks", "snarks", "--rows", "base", "ttt"])
    assert "bbh/snarks seed 0 base: 0.000, n = 2" in capsys.readouterr().err
    outcomes = json.loads((tmp_path / "out/outcomes.json").read_text())
    rows = outcomes["tasks"]["bbh/snarks"]["0"]
    assert len(rows["ttt"]["losses"]) == 8 and rows["base"]["losses"] == [] and len(rows["ttt"]["right"]) == 2
    monkeypatch.setattr(bench, "run", lambda *_: {**rows["ttt"], "right": [1, 1]})
    bench.main([*words, "--tasks", "snarks", "object_counting", "--rows", "base", "ttt"])
    told = capsys.readouterr()
    assert "snarks" not in told.err and "bbh/object_counting seed 0 ttt: 1.000" in told.err
    text = (tmp_path / "out/results.md").read_text()
    assert text.strip() == told.out.strip() and "| bbh/object_counting | 1.00 | 1.00 |" in text
    bench.main(["--report", "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == text.strip()
