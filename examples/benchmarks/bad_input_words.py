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
    ("a path", "../" * 1000),
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


def _handlers(folder: Path) -> Handlers:
    return Handlers(Workshop([strings()]), Visitors(folder / "visitors"))


def _shown_page(found: tuple[Any, ...]) -> None:
    """Raises what the page says where it refuses a problem."""
    if isinstance(found[0], str):
        raise HFMassError(found[0])


def _solved(folder: Path, *arguments: Any, **more: Any) -> None:
    try:
        *_, last = _handlers(folder).solve(*arguments, **more)
    except gr.Error as error:
        raise HFMassError(str(error.message)) from error
    if not last["done"]:
        raise Wrong("it ended without a result")


def _adapted(folder: Path, problem: Any, model: Any, method: Any, settings: Any) -> None:
    *_, last = _handlers(folder).adapt(problem, model, method, settings, _Request())  # type: ignore[arg-type]
    if handlers.BROKEN in last[0]:
        raise RuntimeError(last[0])


def _app_cases() -> Iterator[Case]:
    texts = {**BYTES, **JSONS, **TABLES, **PUZZLES, **OBJECTS}
    for what, (content, _) in texts.items():
        text = content.decode("latin-1") if isinstance(content, bytes) else content
        yield Case("app: text", what, what, lambda f, text=text: _shown_page(_handlers(f).show_text(text, None)))
        yield Case("app: solve", what, what, lambda f, text=text: _solved(f, text, "none"))
        data = content if isinstance(content, bytes) else content.encode()
        for ending in (".json", ".csv", ".xlsx"):
            yield Case("app: file", what, f"{what} as {ending}", partial(_uploaded, f"rows{ending}", data))
    for what, data in WORKBOOKS.items():
        yield Case("app: file", what, f"workbook: {what}", partial(_uploaded, "rows.xlsx", data), True)
    odd: tuple[tuple[str, Any], ...] = (
        *(("none", None), ("a number", 3), ("a list", []), ("an object", {}), ("NaN", float("nan"))),
        *(("400 digits", HUGE), ("zero byte", "\0"), ("long", "x" * 100_000), ("a path", "../../etc/passwd")),
        *(("a module", "os:system"), ("a switch", True), ("nested", [[[[]]]])),
    )
    lines = "\n".join(PROBLEM)
    for what, value in odd:
        name = shown(value)
        made = lambda: read_problem(lines)  # noqa: E731
        yield Case("app: text", what, f"text {name}", lambda f, v=value: _shown_page(_handlers(f).show_text(v, None)))
        yield Case("app: text", what, f"model {name}", lambda f, v=value: _shown_page(_handlers(f).show_text(lines, v)))
        yield Case(
            "app: file",
            what,
            f"file {name}",
            lambda f, v=value: _shown_page(_handlers(f).show_file(v, None, _Request())),
        )
        yield Case("app: example", what, name, lambda f, v=value: _shown_page(_handlers(f).show_example(v, None)))
        yield Case("app: solve", what, f"problem {name}", lambda f, v=value: _solved(f, v), True)
        yield Case("app: solve", what, f"method {name}", lambda f, v=value: _solved(f, lines, v), True, "method")
        yield Case("app: solve", what, f"model {name}", lambda f, v=value: _solved(f, lines, "ttt", v), bool(value))
        yield Case(
            "app: solve", what, f"settings {name}", lambda f, v=value: _solved(f, lines, "none", "", v), bool(value)
        )
        yield Case("app: adapt", what, f"problem {name}", lambda f, v=value: _adapted(f, v, "", "ttt", {}))
        yield Case("app: adapt", what, f"model {name}", lambda f, v=value, m=made: _adapted(f, m(), v, "ttt", {}))
        yield Case("app: adapt", what, f"method {name}", lambda f, v=value, m=made: _adapted(f, m(), "", v, {}))
        yield Case("app: adapt", what, f"settings {name}", lambda f, v=value, m=made: _adapted(f, m(), "", "none", v))
        for setting in OPTIONS:
            run = lambda f, v=value, s=setting: _solved(f, lines, "ttt", "", {s: v})  # noqa: E731
            meant = (
                value is None
                or (value is True and OPTIONS[setting].kind is bool)
                or (what == "a number" and OPTIONS[setting].kind in (int, float))
            )
            yield Case("app: settings", what, f"{setting}={name}", run, not meant, setting)


def _uploaded(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    _shown_page(_handlers(folder).show_file(str(folder / name), None, _Request()))


def word_cases(made: Path) -> list[Case]:
    """All of them; `made` holds a saved adaptation."""
    return [*_command_cases(made), *_app_cases()]
