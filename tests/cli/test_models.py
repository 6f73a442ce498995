"""Where a model is named: options for which and how, what answers is told, and a toy warns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_fixtures import FRUIT, run, write
from model_fixtures import byte_base, byte_tokenizer
from model_forms import tiny_llama, write_gguf

import hf_mass
from hf_mass import TTT, Task
from hf_mass.cli import options, solving
from hf_mass.lm import precision

LINES = ("1 -> 2", "2 -> 3", "3 -> 4", "4")
TASK = Task.from_pairs([("1", "2"), ("2", "3"), ("3", "4")], "4")
QUICK = {"max_examples": 2, "max_completion_length": 4}
WORDS = ("--max_examples", "2", "--set", "max_completion_length=4", "--json")
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking %}<think>{% endif %}{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a chat template."""
    byte_base().save_pretrained(tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_precisions_are_those_of_the_library() -> None:
    assert (*precision.DTYPES, "auto") == options.DTYPES


@pytest.mark.parametrize("command", ["solve", "adapt", "evaluate", "demo"])
def test_every_command_that_names_a_model_takes_the_same_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = run(command, "--help").stdout
    for name in ("--model", "--revision", "--token", "--device", "--dtype", "--chat", "--chat_template_kwargs"):
        assert name in text


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--dtype", "float8"], 2, "'float8' is none of float32, bfloat16, float16, auto"),
        (["--chat_template_kwargs", "thinking"], 2, "'thinking' is no JSON"),
        (["--chat_template_kwargs", "[1]"], 2, "'[1]' is no JSON object"),
        (["--device", "gpu"], 1, "device is 'gpu'; choose one such as cpu, cuda"),
        (["--revision", "v1"], 1, "revision is 'v1', but strings-base ships with the package"),
        (["--chat"], 1, "chat is True, but the tokenizer has no chat template"),
        (
            ["--chat_template_kwargs", '{"a": 1}'],
            1,
            "chat_template_kwargs has 'a', but the tokenizer has no chat template",
        ),
    ],
)
def test_wrong_values_are_told(words: list[str], code: int, told: str) -> None:
    result = run("solve", *LINES, "--model", "strings-base", *words, code=code)
    assert told in " ".join(result.stderr.replace("│", " ").split()) and result.stdout == ""


def test_a_cuda_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = run("solve", *LINES, "--device", "cuda:1", code=1).stderr
    assert "device is 'cuda:1', but torch finds none here. Choose cpu." in told


def solved(folder: Path, *words: str) -> dict[str, Any]:
    return json.loads(
        run("solve", *LINES, "--model", folder, "--device", "cpu", "--method", "ttt", *WORDS, *words).stdout
    )


def test_options_take_effect_and_json_says_what_answered(folder: Path) -> None:
    plain, chat = solved(folder), solved(folder, "--chat")
    for found, flag in ((plain, None), (chat, True)):
        lm = hf_mass.load(folder, device="cpu", chat=flag)
        expected = hf_mass.solve(lm, TASK, hf_mass.Guard(TTT(**QUICK)))
        assert [x["loss"] for x in found["losses"]] == pytest.approx([x.value for x in expected.losses], rel=1e-4)
        assert (found["model"], found["parameters"], found["precision"]) == (str(folder), lm.size, "float32")
        assert found["note"] is None
    assert plain["losses"] != chat["losses"]
    assert solved(folder, "--dtype", "bfloat16")["precision"] == "bfloat16"
    told = run(
        "solve", *LINES, "--model", folder, "--chat", "--chat_template_kwargs", '{"enable_thinking": true}', code=1
    )
    assert "answers of few-shot examples have no thoughts" in told.stderr


def test_precision_and_its_reason_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_mass.engine.models.SMALL", 100)
    monkeypatch.setattr(precision, "reason_for_bfloat16", lambda device: "2.1 times as fast as float32 on this CPU")
    words = ("--model", folder, "--device", "cpu", "--method", "none")
    result = run("solve", *LINES, *words)
    what = "0.0M parameters, bfloat16 (2.1 times as fast as float32 on this CPU)"
    assert f"{folder}: {what}; method none" in " ".join(result.stdout.split())
    assert run("solve", *LINES, *words, "--quiet").stderr == ""
    monkeypatch.setattr(precision, "reason_for_bfloat16", lambda device: None)
    assert "float32 (which this device is not slower at than bfloat16)" in " ".join(
        run("solve", *LINES, *words).stdout.split()
    )
    assert solving.introduction(hf_mass.load(folder, dtype="float32", device="cpu")).endswith("float32 (as asked)")


def test_evaluate_says_what_answered(tmp_path: Path) -> None:
    rows = [{"input": str(n), "output": str(n + 1)} for n in range(6)]
    file, output = write(tmp_path / "rows.json", rows), tmp_path / "out"
    words = ("--demonstrations", "4", "--methods", "few-shot", "--output", output)
    assert "answered by strings-base, 1.3M parameters, float32" in run("evaluate", file, *words).stdout
    assert "Answered by strings-base, 1.3M parameters, float32." in (output / "results.md").read_text()
    meta = json.loads((output / "results.json").read_text())["meta"]
    assert (meta["model"], meta["parameters"], meta["precision"]) == ("strings-base", 1293824, "float32")


def test_a_toy_warns_when_it_is_asked_for_something_else(tmp_path: Path) -> None:
    question = ("solve", "What is the capital of France?", "--samples", "1", "--set", "max_sample_tokens=4")
    for model in ((), ("--model", "strings-base")):
        result = run(*question, *model)
        assert "hf-mass: strings-base is a toy (1.3M parameters, pretrained on made-up rules" in result.stderr
        assert "this problem has no solved examples: its answers mean little. Name a language model" in result.stderr
    assert run(*question, "--quiet").stderr == ""
    assert "is a toy" in json.loads(run(*question, "--json").stdout)["note"]
    assert "toy" not in run("solve", *LINES, "--method", "none").stderr
    fruit = write(tmp_path / "fruit.json", FRUIT)
    told = run("solve", fruit, "--model", "grids-base", code=1).stderr
    assert "grids-base is made for grids, and this problem is of texts" in told
    sentence = "How would you say that in French -> Comment"
    rows = write(tmp_path / "rows.json", [{"input": sentence, "output": "x"}] * 3)
    told = run("evaluate", rows, "--demonstrations", "2", "--methods", "few-shot")
    assert "has 9 words, where it knows texts of 5 at most" in told.stderr


def test_an_adapter_on_a_gguf_file_is_loaded_by_the_code_that_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed (hf_mass[gguf])")
    file = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    text = run("adapt", *LINES, "--model", file, "--output", tmp_path / "out", *WORDS[:-1]).stdout
    names: dict[str, Any] = {}
    exec(text.split("load it by")[1], names)
    assert torch.equal(names["base"].get_input_embeddings().weight, tiny_llama().get_input_embeddings().weight)
    assert type(names["model"]).__name__ == "PeftModelForCausalLM"
