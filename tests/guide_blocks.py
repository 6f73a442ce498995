"""The guides' fenced blocks: what each is for, running them in turn, and checking those that are not run.

    ```python            run; the blocks of one guide share their names and a folder of their own
    ```text output       what the block before it prints, numbers up to rounding
    ```csv file=a.csv    the file a.csv, which later blocks read
    ```python no-run     not run: for a real model. Names, arguments and settings are checked
    ```bash no-run       not run: the options are checked against the script's or program's own

After a change that alters what guides print, `python tests/guide_blocks.py examples/guides/NAME.md` writes the new
output into the guide, to be read before it is committed.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, what stands behind it in the info string, its text, its line in the guide."""

    language: str
    mark: str
    code: str
    line: int

    @property
    def file(self) -> str | None:
        return self.mark.removeprefix("file=") if self.mark.startswith("file=") else None


def blocks(guide: Path) -> list[Block]:
    text = guide.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, _, mark = match["info"].strip().partition(" ")
        found.append(Block(language, mark, match["code"], text.count("\n", 0, match.start()) + 2))
    return found


# -- running -----------------------------------------------------------------------------------------------------------


def run(guide: Path) -> Iterator[tuple[Block, str, str]]:
    """Run a guide in the working directory; yields (block, printed, shown) for each block whose output is shown."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(guide):
        if block.file is not None:
            Path(block.file).write_text(block.code, encoding="utf-8")
        elif (block.language, block.mark) == ("python", ""):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                # As many line breaks as stand before it, so that a traceback tells the guide's own line.
                exec(compile("\n" * (block.line - 1) + block.code, str(guide), "exec"), names)
            printed = out.getvalue()
        elif (block.language, block.mark) == ("text", "output"):
            yield block, printed, block.code


def same_output(printed: str, shown: str) -> bool:
    """Whether two texts are equal but for the rounding of their numbers."""
    if _NUMBER.sub("#", printed.strip()) != _NUMBER.sub("#", shown.strip()):
        return False
    pairs = zip(_NUMBER.findall(printed.strip()), _NUMBER.findall(shown.strip()), strict=True)
    return all(_close(one, other) for one, other in pairs)


def _close(one: str, other: str) -> bool:
    """Whether two numbers differ by a thousandth, or by one in the last place of two or more decimals."""
    if "." not in one + other and "e" not in one + other:
        return one == other
    mantissa, _, exponent = other.partition("e")
    decimals = len(mantissa.partition(".")[2])
    last_place = 1.01 * 10.0 ** (int(exponent or 0) - decimals) if decimals > 1 else 0.0
    return abs(float(one) - float(other)) <= max(1e-3 * abs(float(other)), last_place)


# -- checking what is not run ------------------------------------------------------------------------------------------


def wrong_calls(code: str, known: dict[str, Any] | None = None) -> list[str]:
    """What is wrong with the calls of a block that is not run.

    Imported names must exist; every call of one, of a method of one, or of a method of what one makes must fit its
    signature; and settings (dataclasses of literals alone) are made in earnest, so that their values are checked too.
    """
    tree = ast.parse(code)
    names: dict[str, Any] = dict(known or {})
    wrong: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):  # breadth first: statements in their order
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = _made_by(node.value, names)
            names |= {target.id: made for target in node.targets if isinstance(target, ast.Name) and made is not None}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            wrong += _wrong_call(node, names)
    return wrong


class _Instance:
    """Stands for an instance of a class that is not made."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


def _resolve(node: ast.expr, names: dict[str, Any]) -> Any:
    """What an expression names; None where that is not known."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _resolve(node.value, names)) is not None:
        if isinstance(owner, _Instance):
            method = getattr(owner.kind, node.attr, None)
            return method if method is None else _Bound(method)
        return getattr(owner, node.attr)
    return None


@dataclass(frozen=True)
class _Bound:
    """A method that is called on an instance that is not made."""

    method: Callable[..., Any]


def _made_by(call: ast.Call, names: dict[str, Any]) -> _Instance | None:
    """What a call makes, where it is a class or says what it returns."""
    called = _resolve(call.func, names)
    if isinstance(called, type):
        return _Instance(called)
    if inspect.ismethod(called) and isinstance(
        called.__self__, type
    ):  # a constructor: its class, whatever is annotated
        return _Instance(called.__self__)
    function = called.method if isinstance(called, _Bound) else called
    returned = get_type_hints(function).get("return") if inspect.isfunction(function) else None
    return _Instance(returned) if isinstance(returned, type) else None


def _wrong_call(call: ast.Call, names: dict[str, Any]) -> list[str]:
    called = _resolve(call.func, names)
    if called is None or not callable(called if not isinstance(called, _Bound) else called.method):
        return []
    keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
    given: list[Any] = [None] * len(call.args)
    if isinstance(called, _Bound):
        called, given = called.method, [None, *given]
    try:
        inspect.signature(called).bind(*given, **keywords)
        if (isinstance(called, type) and is_dataclass(called)) or getattr(called, "__name__", "") == "preset":
            values = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
            called(*[ast.literal_eval(each) for each in call.args], **_on_this_machine(called, values))
    except (TypeError, ValueError) as error:
        if "malformed node" not in str(error):  # a setting that is no literal cannot be made here
            return [f"{ast.unparse(call.func)}: {error}"]
    return []


def _on_this_machine(called: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Settings that a machine without an accelerator refuses, put right for it."""
    return values | ({"use_cpu": True} if "use_cpu" in inspect.signature(called).parameters else {})


# -- writing -----------------------------------------------------------------------------------------------------------


def write_outputs(guide: Path) -> None:
    """Put what the blocks print now into a guide."""
    guide, lines = guide.resolve(), guide.read_text(encoding="utf-8").split("\n")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        found = list(run(guide))
    for block, printed, shown in reversed(found):
        lines[block.line - 1 : block.line - 1 + shown.count("\n")] = printed.rstrip().split("\n")
    guide.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in sys.argv[1:]:
        write_outputs(Path(name))
