"""What a console that is not UTF-8 gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CODE = """
from hf_mass.cli.main import write_what_can_be_written
from hf_mass.cli.streams import json_text
write_what_can_be_written()
print("1 − 2 → … ✓ é")
print(json_text({"text": "é → 😀"}))
"""


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("utf-8", "1 − 2 → … ✓ é"), ("ascii", r"1 - 2 -> ... + \xe9"), ("cp1252", "1 - 2 -> … + é")],
)
def test_signs_and_json_on_any_console(encoding: str, line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=True
    )
    first, second = done.stdout.decode(encoding).splitlines()
    assert first == line and json.loads(second) == {"text": "é → 😀"}


def test_help_on_an_ascii_console() -> None:
    for words in (["--help"], ["solve", "--help"], ["solve", "/nowhere/é.csv"]):
        done = subprocess.run(
            [sys.executable, "-m", "hf_mass", *words],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=False,
        )
        assert b"Traceback" not in done.stderr and done.returncode == ("--help" not in words)


@pytest.mark.skipif(os.name != "posix", reason="a shell's way of closing streams")
@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("solve - <&-", 1, "'stdin' is empty"),
        ("--version >&-", 1, "stdout is closed. Leave it open"),
        ("--version 2>&-", 0, "hf-mass"),
        ("solve /nowhere/at/all.json <&- 2>&-", 1, ""),
    ],
)
def test_streams_that_a_shell_has_closed(words: str, code: int, line: str) -> None:
    command = f'"$0" -m hf_mass {words}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, text=True, check=False)
    assert line in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert done.returncode == code
