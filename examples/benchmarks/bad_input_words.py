"""Bad words: the command line of each subcommand, and what the app's handlers are given."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from benchmarks.bad_input_case import HUGE, Case, Wrong, shown
from benchmarks.bad_input_files import BYTES, JSONS, OBJECTS, PUZZLES, TABLES, WORKBOOKS
from benchmarks.bad_input_settings import strings
from hf_mass.app import handlers
from hf_mass.app.controls import OPTIONS
from hf_mass.app.handlers import Handlers
from hf_mass.app.visitors import Visitors
from hf_mass.app.workshop import Workshop
from hf_mass.cli.groups import SETTINGS
from hf_mass.cli.main import main
from hf_mass.errors import HFMassError
from hf_mass.tasks.problems import read_problem

PROBLEM = ("abc -> cba", "hello -> olleh", "stone -> enots", "river")
WORDS: tuple[tuple[str, str], ...] = (
    ("empty", ""),
    ("NaN", "nan"),
    ("infinite", "inf"),
    ("400 digits", "9" * 400),
    ("5000 digits", "9" * 5000),
    ("negative", "-1"),
    ("a text", "no-such-thing"),
    ("a switch", "true"),
    ("null", "null"),
    ("a list", "[1, 2]"),
    ("an object", '{"a": 1}'),
    ("nested", "[" * 20_000),
    ("long", "x" * 100_000),
    ("no UTF-8", "\udcff"),
    ("lines", "a\nb"),
    ("a path", "/dev/zero"),
    ("a path", "../" * 100),
    ("large", "1e300"),
)
OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "solve": (
        *("--model", "--device", "--dtype", "--chat_template_kwargs", "--method", "--seed", "--samples"),
        *("--inner_steps", "--inner_learning_rate", "--weigh_by", "--max_examples", "--num_train_epochs"),
        *("--learning_rate", "--set", "--encoding", "--delimiter", "--input_column", "--revision", "--no_such_option"),
    ),
    "adapt": ("--output", "--model", "--seed", "--set", "--method"),
    "evaluate": (
        *("--methods", "--seeds", "--limit", "--demonstrations", "--verifier", "--batch_size", "--token_budget"),
        *("--output", "--model", "--set"),
    ),
    "push": ("--revision", "--commit_message"),
    "card": ("--results", "--output", "--repo_id"),
    "demo": ("--port", "--host", "--model"),
}
ALWAYS_WRONG = ("empty", "NaN", "infinite", "400 digits", "5000 digits", "a text", "nested", "no UTF-8", "lines")


def _run(arguments: list[str], folder: Path) -> None:
    """A command line, whose end is turned into an exception of its kind."""
    out, err = io.StringIO(), io.StringIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(b""))  # whoever asks a question gets no answer
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    words = err.getvalue()
    if code == 0:
        return
    if "Traceback" in words or code not in (1, 2):
        raise RuntimeError(f"exit code {code}: {words[-300:]}")
    if code == 1 and "hf-mass: " in words:
        raise HFMassError(words[words.rindex("hf-mass: ") :].strip())
    if code == 1:
        raise RuntimeError(f"exit code 1 without a reason: {words[-300:]}")
    raise HFMassError(" ".join(words.split())[-900:])


def _command_cases(made: Path) -> Iterator[Case]:
    rows = made / "rows.csv"
    rows.write_text("input,output\n" + "".join(f"abc{n},cba{n}\n" for n in range(14)))
    ends = {
        "solve": PROBLEM,
        "adapt": (*PROBLEM, "--output", "there"),
        "evaluate": (str(rows), "--limit", "1", "--methods", "none"),
        "push": (str(made / "adaptation"), "user/name"),
        "card": (str(made / "adaptation"),),
        "demo": ("--model", "no-such-model"),
    }
    for command, options in OPTIONS_OF.items():
        for option in options:
            for what, word in WORDS:
                line = [command, *ends[command], option, word, *(["--quiet"] if command in ("solve", "adapt") else [])]
                yield Case(f"hf-mass {command}", what, f"{option} {word!r:.40}", partial(_run, line))
        for what, word in WORDS:
            refused = command in ("push", "card", "evaluate")
            yield Case(f"hf-mass {command}", what, f"argument {word!r:.40}", partial(_run, [command, word]), refused)
    for name in SETTINGS:
        for what, word in WORDS:
            line = ["solve", *PROBLEM, "--quiet", "--set", f"{name}={word}"]
            refused = what in ALWAYS_WRONG and "target_modules" not in name
            yield Case("hf-mass --set", what, f"--set {name}={word!r:.40}", partial(_run, line), refused)


class _Request:
    session_hash = "visitor"


REQUEST: Any = _Request()
LINES = "\n".join(PROBLEM)
ODD: tuple[tuple[str, Any], ...] = (
    *(("none", None), ("a number", 3), ("a list", []), ("an object", {}), ("NaN", float("nan"))),
    *(("400 digits", HUGE), ("zero byte", "\0"), ("long", "x" * 100_000), ("a path", "../../etc/passwd")),
    *(("a module", "os:system"), ("a switch", True), ("nested", [[[[]]]])),
)


def _shown(name: str, *arguments: Any, folder: Path) -> None:
    """What the page shows of a problem; raises what it says where it refuses one."""
    do = Handlers(Workshop([strings()]), Visitors(folder / "visitors"))
    found = getattr(do, name)(*arguments)
    if isinstance(found[0], str):
        raise HFMassError(found[0])


def _solved(*arguments: Any, folder: Path) -> None:
    try:
        *_, last = Handlers(Workshop([strings()]), Visitors(folder / "visitors")).solve(*arguments)
    except gr.Error as error:
        raise HFMassError(str(error.message)) from error
    if not last["done"]:
        raise Wrong("it ended without a result")


def _adapted(problem: Any, model: Any, method: Any, settings: Any, folder: Path) -> None:
    problem = read_problem(LINES) if problem is LINES else problem
    do = Handlers(Workshop([strings()]), Visitors(folder / "visitors"))
    *_, last = do.adapt(problem, model, method, settings, REQUEST)
    if handlers.BROKEN in last[0]:
        raise RuntimeError(last[0])


def _uploaded(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    _shown("show_file", str(folder / name), None, REQUEST, folder=folder)


def _given(
    boundary: str, kind: str, what: str, call: Any, *arguments: Any, refused: bool = False, names: str = ""
) -> Case:
    return Case(boundary, kind, what, lambda folder: call(*arguments, folder=folder), refused, names)


def _content_cases() -> Iterator[Case]:
    """Problems as text and as files."""
    texts = {what: content.decode("latin-1") for what, (content, _) in BYTES.items()}
    texts |= {what: text for what, (text, _) in (JSONS | TABLES | PUZZLES | OBJECTS).items()}
    for what, text in texts.items():
        yield _given("app: text", what, what, _shown, "show_text", text, None)
        yield _given("app: solve", what, what, _solved, text, "none")
        for ending in (".json", ".csv", ".xlsx"):
            data = text.encode("latin-1" if what in BYTES else "utf-8")
            yield _given("app: file", what, f"{what} as {ending}", _uploaded, f"rows{ending}", data)
    for what, data in WORKBOOKS.items():
        yield _given("app: file", what, f"workbook: {what}", _uploaded, "rows.xlsx", data, refused=True)


def _app_cases() -> Iterator[Case]:
    """Arguments of handlers, which anybody can send without the page."""
    for what, value in ODD:
        name, given = shown(value), bool(value)
        yield _given("app: text", what, f"text {name}", _shown, "show_text", value, None)
        yield _given("app: text", what, f"model {name}", _shown, "show_text", LINES, value)
        yield _given("app: file", what, f"file {name}", _shown, "show_file", value, None, REQUEST)
        yield _given("app: example", what, name, _shown, "show_example", value, None)
        yield _given("app: solve", what, f"problem {name}", _solved, value, refused=not isinstance(value, str))
        yield _given("app: solve", what, f"method {name}", _solved, LINES, value, refused=True, names="method")
        yield _given("app: solve", what, f"model {name}", _solved, LINES, "ttt", value, refused=given)
        yield _given("app: solve", what, f"settings {name}", _solved, LINES, "none", "", value, refused=given)
        yield _given("app: adapt", what, f"problem {name}", _adapted, value, "", "ttt", {})
        yield _given("app: adapt", what, f"model {name}", _adapted, LINES, value, "ttt", {})
        yield _given("app: adapt", what, f"method {name}", _adapted, LINES, "", value, {})
        yield _given("app: adapt", what, f"settings {name}", _adapted, LINES, "", "none", value)
        for setting, option in OPTIONS.items():
            meant = value is None or (what, option.kind) == ("a switch", bool)
            meant = meant or (what == "a number" and option.kind in (int, float))
            arguments = (LINES, "ttt", "", {setting: value})
            yield _given(
                "app: settings", what, f"{setting}={name}", _solved, *arguments, refused=not meant, names=setting
            )


def word_cases(made: Path) -> list[Case]:
    """All of them; `made` holds a saved adaptation."""
    return [*_command_cases(made), *_content_cases(), *_app_cases()]
