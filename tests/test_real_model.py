"""A real language model out of the box: the first example of README, its answers, its files, the command line.

The model is SmolLM2-135M-Instruct, dequantised from Q4_1. What is adapted to costs some fifteen CPU seconds, so it is
done once for all tests.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from cli_fixtures import run, write
from model_fixtures import snapshot
from repository import ROOT

import hf_mass
from hf_mass import LanguageModel, Task
from hf_mass.methods.base import Adaptation
from hf_mass.methods.guard import Guard
from hf_mass.methods.ttt import TTT

pytestmark = pytest.mark.real

QUERIES = {"river, spoon, gold": "spoon", "pen, tiger, salt": "tiger"}


def readme_examples() -> list[tuple[str, str]]:
    """The pairs of the first block of README: the word in the middle."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```python")[1].split("```")[0]
    return re.findall(r'\("(.+?)", "(.+?)"\),', block)


@pytest.fixture(scope="module")
def weights(real_model: LanguageModel) -> dict[str, torch.Tensor]:
    """The model's weights before anything was done."""
    return snapshot(real_model.model)


@pytest.fixture(scope="module")
def adaptation(real_model: LanguageModel, weights: dict[str, torch.Tensor]) -> Adaptation:
    torch.manual_seed(0)
    return hf_mass.adapt(real_model, Task.from_pairs(readme_examples(), "river, spoon, gold"))


def test_readme_s_first_example_is_answered_rightly_after_adapting(adaptation: Adaptation) -> None:
    assert len(readme_examples()) == 5
    assert str(adaptation.before()) != "spoon" and str(adaptation.before("pen, tiger, salt")) != "tiger"
    assert {query: str(adaptation.answer(query)) for query in QUERIES} == QUERIES
    assert adaptation.losses[-1] < 0.1 < 1 < adaptation.losses[0]
    assert max(entry.gain for entry in adaptation.guard) > 0.3  # nats per answer token


def test_adapting_and_answering_leave_the_weights_bit_for_bit(
    real_model: LanguageModel, weights: dict[str, torch.Tensor], adaptation: Adaptation
) -> None:
    assert adaptation.parts and str(adaptation.answer()) == "spoon"
    after = snapshot(real_model.model)
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_a_saved_adaptation_answers_as_before_it_was_saved(adaptation: Adaptation, tmp_path: Path) -> None:
    adaptation.save(tmp_path / "middle")
    again = hf_mass.load(tmp_path / "middle")
    method = TTT()
    tasks = [Task.from_pairs(readme_examples(), query) for query in QUERIES]
    answers = [str(answer) for answer in method.answer(again, tasks, None, 0)]
    assert answers == [str(adaptation.answer(query)) for query in QUERIES]


def test_the_guard_does_not_adapt_where_training_harms(real_model: LanguageModel, shared_data: Path) -> None:
    """A task that loses accuracy by training; a step at a high rate makes the harm plain at a small cost."""
    file = shared_data / "function-vectors" / "extractive" / "alphabetically_first_3.jsonl"
    if not file.is_file():
        pytest.skip(f"no {file}")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    *shown, asked = [(row["input"], row["output"]) for row in random.Random(0).sample(rows, 9)]
    method = TTT(max_examples=10, learning_rate=3e-3)
    guarded = hf_mass.adapt(real_model, Task.from_pairs(shown, asked[0]), Guard(method, [method]))
    assert guarded.parts == () and "not adapted: at most left-out gain" in str(guarded.guard_note)
    assert str(guarded.answer()) == str(guarded.before())


def test_the_command_line_solves_a_file_of_rows(real_folder: Path, tmp_path: Path) -> None:
    rows = [{"input": question, "output": answer} for question, answer in readme_examples()]
    file = write(tmp_path / "middle.json", [*rows, {"input": "river, spoon, gold"}])
    result = run("solve", file, "--model", real_folder, "--set", "max_examples=10", "--json")
    solution = json.loads(result.stdout)
    assert [answer["answer"] for answer in solution["after"]] == ["spoon"]
    assert solution["before"][0]["answer"] != "spoon" and solution["model"] == str(real_folder)
    assert f"Loading {real_folder}" in result.stderr and re.search(r"step \d+ of \d+, loss \d", result.stderr)
