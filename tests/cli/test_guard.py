"""`--guard` and `--no-guard`: solve, adapt and evaluate, what they show, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_fixtures import run, write
from model_fixtures import byte_base, byte_tokenizer

RULE = {"abc": "cba", "hello": "olleh", "stone": "enots", "plant": "tnalp", "lamp": "pmal", "ink": "kni"}
WORDS = [*(f"{word} -> {answer}" for word, answer in RULE.items()), "river"]
QUICK = ("--max_examples", "12", "--num_train_epochs", "2")
SHIPPED = ("--model", "strings-base", *QUICK)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that does not ship."""
    folder = tmp_path_factory.mktemp("own")
    byte_base().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_solve_shows_what_the_guard_did() -> None:
    text = run("solve", *WORDS, *SHIPPED, "--guard").stdout
    assert "on left-out examples" in text and text.count("chosen") == 1
    assert "the rate" in text and "of 6" in text and "guard (" in text
    assert "adapted at" in text and "nats per answer token" in text and "not all went well" not in text


def test_a_guard_that_is_off_says_why() -> None:
    text = run("solve", *WORDS[:3], WORDS[-1], *SHIPPED, "--guard").stdout
    assert "off: 3 demonstrations, and the guard needs 4; adapted at the default strength" in text
    assert "on left-out examples" not in text


def test_a_model_that_ships_is_not_guarded_and_another_is(own: str) -> None:
    def guard(*words: str) -> list[dict[str, object]]:
        return list(json.loads(run("solve", *WORDS, *words, *QUICK, "--json").stdout)["guard"])

    assert guard("--model", "strings-base") == [] == guard("--model", own, "--no-guard")
    for words in (("--model", "strings-base", "--guard"), ("--model", own)):
        (measured,) = guard(*words)
        assert measured["queries"] == [0] and len(measured["entries"]) in (2, 4)  # type: ignore[arg-type]
        assert {"strength", "share", "gain", "error", "right", "left_out", "chosen"} <= set(measured["entries"][0])  # type: ignore[index]


def test_nothing_to_save_is_told_in_the_guards_words(tmp_path: Path) -> None:
    noise = [f"{word} -> {answer}" for word, answer in zip(RULE, ("b", "zz", "q", "r", "u", "w"), strict=True)]
    refused = run(
        "adapt", *noise, "river", *SHIPPED, "--learning_rate", "5e-3", "--guard", "--output", tmp_path / "out", code=1
    )
    assert "no adapted weights to save: not adapted: at most left-out gain" in " ".join(refused.stderr.split())
    run("adapt", *noise, "river", *SHIPPED, "--no-guard", "--output", tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_what_cannot_be_guarded_is_refused() -> None:
    refused = run("solve", *WORDS, *SHIPPED, "--guard", "--method", "vote", code=1)
    assert "method 'vote' has no strengths to choose from" in " ".join(refused.stderr.split())


def test_evaluate_guards_the_methods_that_adapt(own: str, tmp_path: Path) -> None:
    lines = [{"input": word, "output": answer} for word, answer in [*RULE.items(), ("river", "revir"), ("tea", "aet")]]
    file = write(tmp_path / "rows.json", lines)
    words = ["evaluate", str(file), "--demonstrations", "6", "--methods", "few-shot,ttt", *QUICK, "--json"]

    def rows(*more: str) -> dict[str, object]:
        return dict(json.loads(run(*words, *more).stdout))

    guarded = rows("--model", own, "--output", str(tmp_path / "out"))
    assert [row["method"] for row in guarded["rows"]] == ["base, few-shot prompt", "TTT, guarded"]  # type: ignore[attr-defined]
    assert any(note.startswith("TTT, guarded: ") and note.endswith(" 2 times") for note in guarded["notes"])  # type: ignore[attr-defined]
    outcomes = json.loads((tmp_path / "out" / "outcomes.json").read_text())["methods"]
    assert all(row["guard"] for row in outcomes["ttt"]["0"]) and all(
        "guard" not in r for r in outcomes["few-shot"]["0"]
    )
    bare = rows("--model", own, "--no-guard")
    assert [row["method"] for row in bare["rows"]] == ["base, few-shot prompt", "TTT"]  # type: ignore[attr-defined]
    alone = ("evaluate", file, "--demonstrations", "6", "--methods", "few-shot", "--model", "strings-base", "--guard")
    refused = run(*alone, code=1)
    assert "none of ['few-shot'] can be guarded" in " ".join(refused.stderr.split())
