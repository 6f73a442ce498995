"""Exit codes of `hf-mass`, and the one line that says what went wrong."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from cli_fixtures import GRIDS, WORDS, plain, run

from hf_mass.cli import solving


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing"], "No such command"),
        (["solve", "a", "--nothing"], "No such option"),
        (["solve", "a", "--samples", "0"], "--samples"),
        (["solve", "a", "--method", "magic"], "--method"),
        (["solve", "a", "--samples", "[" * 20_000], "choose a whole number"),
        (["solve", "a", "--chat_template_kwargs", "[" * 20_000], "is no JSON"),
        (["solve", "a", "--model", ""], "is empty"),
        (["demo", "--port", "-1"], "--port"),
        (["demo", "--port", "9" * 400], "--port"),
        (["evaluate", "conventions:test_families", "--seeds", "9" * 5000], "--seeds"),
        (["solve", "a", "--samples", "many"], "'many'; choose a whole number of at least 1"),
        (["solve", "a", "--weigh_by", "magic"], "--weigh_by"),
        (["adapt", "a"], "--output"),
        (["evaluate", "conventions:test_families", "--methods", "magic"], "magic"),
        (["evaluate", "conventions:test_families", "--seeds", "one"], "one"),
        (["evaluate", "conventions:test_families", "--resume"], "--output"),
        (["push", "folder"], "REPO_ID"),
    ],
)
def test_a_wrong_command_line_is_2(words: list[str], told: str) -> None:
    assert told in plain(run(*words, code=2).stderr)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["solve", "a -> b", "c", "--set", "lora_r=" + "[" * 20_000], "lora_r is"),
        (["solve", "missing.json"], "There is no file 'missing.json'"),
        (["solve", "."], "is a folder"),
        (["solve", " "], "is empty"),
        (["solve", "pyproject.toml", "x -> y"], "a file among 2 words"),
        (["solve", "a", "b", "--each"], "takes one file or folder"),
        (["solve", "nowhere", "--each"], "There is no file or folder"),
        (
            ["solve", "a -> b", "c", "--learning_rate", "-1"],
            "learning_rate is -1; choose a finite number above 0 and of at most 1e+300.",
        ),
        (
            ["solve", "a -> b", "c", "--set", "lora_r=0"],
            "lora_r is 0; choose a whole number of at least 1 and of at most 4096.",
        ),
        (["solve", "a -> b", "c", "--set", "lora_r"], "--set is 'lora_r'; give NAME=VALUE"),
        (["solve", "a -> b", "c", "--set", "magic=1"], "--set has no setting 'magic'; choose some of"),
        (["solve", "a -> b", "c", "--method", "nowhere:Method"], "method 'nowhere:Method' cannot be imported"),
        (["solve", "peach", *WORDS, "--method", "ttt"], "no solved examples"),
        (["card", "nowhere"], "is no folder"),
        (["push", "nowhere", "user/name"], "is no folder"),
        (["push", "nowhere", "user/na me"], "no name of a repository"),
        (["evaluate", "nowhere"], "There is no file or folder"),
        (["evaluate", "conventions:nowhere"], "split is 'nowhere'"),
    ],
)
def test_what_cannot_be_done_is_1_and_one_line(words: list[str], told: str) -> None:
    result = run(*words, code=1)
    assert result.stdout == ""
    *progress_lines, last = result.stderr.splitlines()
    assert re.fullmatch(rf"hf-mass: .*{re.escape(told)}.*", last), result.stderr
    introduced = ["Loading conventions-mass", "conventions-mass: 0.1M parameters, float32"]
    assert progress_lines in ([], introduced[:1], introduced)


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\0", b"{", b"", b'{"train": []}', b'[{"input": [[1, 2], [3]]}]'])
def test_bad_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    result = run("solve", tmp_path / "bad.json", code=1)
    assert result.stdout == "" and result.stderr.count("\n") == 1 and "bad" in result.stderr


def test_debug_shows_where(tmp_path: Path) -> None:
    for words in (["--debug", "solve", "missing.json"], ["solve", "missing.json", "--debug"]):
        result = run(*words, code=1)
        assert isinstance(result.exception, FileNotFoundError | ValueError)
        assert "hf-mass:" not in result.stderr


def test_ctrl_c_while_libraries_are_imported_is_130_too(puzzle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers turns whatever ends an import of its own into a ModuleNotFoundError."""

    def importing(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ModuleNotFoundError("Could not import module 'BloomPreTrainedModel'.") from error

    monkeypatch.setattr(solving, "solve", importing)
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        assert "hf-mass: stopped" in run("solve", puzzle, *GRIDS, code=130).stderr
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, ours)


def test_ctrl_c_is_130(puzzle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(solving, "solve", stopped)
    result = run("solve", puzzle, *GRIDS, code=130)
    assert "stopped" in result.stderr and result.stdout == ""


def test_a_request_to_end_is_143_and_a_line(puzzle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "solve", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    result = run("solve", puzzle, *GRIDS, code=143)
    assert "hf-mass: stopped" in result.stderr and result.stdout == ""
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_folder_that_is_gone_is_a_line(puzzle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    told = run("solve", puzzle, *GRIDS, code=1).stderr
    assert told == "hf-mass: The folder that this was started in was removed. Start it in another one (cd).\n"
