"""Bad files: rows, workbooks, puzzles, BIG-Bench Hard, in what is wrong with bytes, structure and values."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hf_mass
from benchmarks.bad_input_case import Case, Wrong
from hf_mass.tasks import reading
from hf_mass.tasks.problems import read_problem_file
from hf_mass.tasks.task import Task

DIGITS = "9" * 400
ROWS = [{"input": f"word{n}", "output": f"WORD{n}"} for n in range(4)]
LINES = "".join(f"word{n},WORD{n}\n" for n in range(4))
DEEP = 100_000

BYTES: dict[str, tuple[bytes, bool]] = {
    "empty": (b"", True),
    "a mark of byte order alone": (b"\xef\xbb\xbf", True),
    "zero bytes": (b"\0" * 1000, True),
    "no UTF-8": (b"\xff\xfe\xfd" * 100, True),
    "half a character": ("input,output\ncafé".encode()[:-1], False),
    "space alone": (b" \n\t\n" * 100, True),
    "random": (bytes(range(256)) * 20, True),
    "a program": (b"\x7fELF\x02\x01\x01" + b"\0" * 500, True),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(200)), True),
    "half of UTF-16": ("input,output\na,b\n".encode("utf-16")[:-1], False),
}
"""What any file may hold → its bytes, and whether no reader can mean it."""

JSONS: dict[str, tuple[str, bool]] = {
    "cut off": (json.dumps(ROWS)[:-20], True),
    "nested": ("[" * DEEP + "]" * DEEP, True),
    "objects nested": ('{"a":' * DEEP + "1" + "}" * DEEP, True),
    "400 digits": (json.dumps([*ROWS, {"input": "x", "output": 0}]).replace(": 0}", f": {DIGITS}}}"), False),
    "5000 digits": (json.dumps([*ROWS, {"input": "x", "output": 0}]).replace(": 0}", f": {DIGITS * 13}}}"), False),
    "NaN": ('[{"input": NaN, "output": "b"}, {"input": "c", "output": "d"}]', False),
    "infinite": ('[{"input": 1e999, "output": "b"}, {"input": "c", "output": "d"}]', False),
    "a number": ("3", True),
    "null": ("null", True),
    "a text": ('"text"', True),
    "a switch": ("true", True),
    "list of null": ("[null, null]", True),
    "list of lists": ("[[1, 2], [3, 4]]", True),
    "empty list": ("[]", True),
    "empty object": ("{}", True),
    "a name twice": ('[{"input": "a", "input": "b", "output": "c"}]', True),
    "null values": (json.dumps([{"input": None, "output": "b"}] * 3), True),
    "lists as values": (json.dumps([{"input": [[1, [2]]], "output": [["a"]]}] * 3), True),
    "objects as values": (json.dumps([{"input": {}, "output": {"a": 1}}] * 3), True),
    "switches as values": (json.dumps([{"input": True, "output": False}] * 3), False),
    "half a surrogate": ('[{"input": "\\ud800", "output": "b"}, {"input": "c", "output": "d"}]', True),
    "zero byte": ('[{"input": "a\\u0000", "output": "b"}, {"input": "c", "output": "d"}]', True),
    "other columns": (json.dumps([{"foo": "a", "bar": "b"}] * 3), True),
    "columns that differ": (json.dumps([{"input": "a", "output": "b"}, {"question": "c", "answer": "d"}] * 3), True),
    "grids and texts": (json.dumps([{"input": [[1]], "output": "b"}, {"input": "c", "output": [[2]]}] * 3), True),
    "messages of no use": (json.dumps([{"messages": [{"role": 3, "content": []}]}] * 3), True),
    "messages as text": (json.dumps([{"messages": "hello"}] * 3), True),
}

TABLES: dict[str, tuple[str, bool]] = {
    "header alone": ("input,output\n", True),
    "no header that is known": ("foo,bar\n" + LINES, True),
    "ragged": ("input,output\na,b,c\nd\n", True),
    "a quote that stays open": ('input,output\n"a,b\nc,d\n', True),
    "columns twice": ("input,input,output\na,b,c\n", True),
    "many columns": (",".join(f"c{n}" for n in range(5000)) + "\n", True),
    "many empty cells": ("input,output\n" + "," * 100_000 + "\n", True),
    "a field of a megabyte": ("input,output\n" + "x" * 1_000_000 + ",b\n", True),
    "empty inputs": ("input,output\n,b\n,c\n", True),
    "zero byte": ("input,output\na\0,b\nc,d\n", True),
    "only commas": (",,,\n" * 100, True),
    "carriage returns": ("input,output\ra,b\rc,d\r", False),
    "sep of a quote": ('sep="\ninput"output\na"b\n', True),
    "400 digits": (f"input,output\n1,{DIGITS}\n2,{DIGITS}\n3,4\n", False),
    "formulas": ("input,output\n=cmd|' /C calc'!A0,b\nc,d\n", False),
}


def _puzzle(train: Any, test: Any) -> str:
    return json.dumps({"train": train, "test": test}).replace('"HUGE"', DIGITS)


def _pair(cell: Any) -> list[dict[str, Any]]:
    return [{"input": [[cell, 1]], "output": [[1, cell]]}] * 2


TEST = [{"input": [[1, 2]]}]
_CELLS: tuple[Any, ...] = (10, -1, 1.5, "a", None, True, [], {}, "HUGE", "", 1e308)
PUZZLES: dict[str, tuple[str, bool]] = {
    **{f"cell {json.dumps(cell)}": (_puzzle(_pair(cell), TEST), True) for cell in _CELLS},
    "ragged": (_puzzle([{"input": [[1], [1, 2]], "output": [[1]]}], TEST), True),
    "empty grid": (_puzzle([{"input": [], "output": [[1]]}], TEST), True),
    "empty row": (_puzzle([{"input": [[]], "output": [[1]]}], TEST), True),
    "no test": ('{"train": []}', True),
    "no train": (_puzzle([], TEST), True),
    "empty test": (_puzzle(_pair(1), []), True),
    "train of texts": (_puzzle(["a", "b"], TEST), True),
    "test of null": (_puzzle(_pair(1), [None]), True),
    "an object for a list": (_puzzle({"a": 1}, {"b": 2}), True),
    "no output": (_puzzle([{"input": [[1]]}], TEST), True),
    "a wide grid": (_puzzle([{"input": [[1] * 100_000], "output": [[1]]}], TEST), False),
    "a high grid": (_puzzle([{"input": [[1]] * 100_000, "output": [[1]]}], TEST), False),
    "a grid as text": (_puzzle([{"input": "1 2", "output": "2 1"}], TEST), True),
    "nested": (_puzzle([{"input": json.loads("[" * 500 + "]" * 500), "output": [[1]]}], TEST), True),
}

_ODD: dict[str, tuple[Any, ...]] = {
    "problem": (None, [], {}, "", 1.5, True),
    "demonstrations": ("a", 3, {"a": 1}, [None], [[1]], [{"input": "a"}], [{}]),
    "answer": ([], {}, True),
    "fields": ("a", [1], {"a": 1}, {"a": None}),
    "id": ([], {}, True),
    "verifier": (3,),
    "unknown": (1,),
}
OBJECTS: dict[str, tuple[str, bool]] = {
    f"{name}={value!r:.30}": (json.dumps({"problem": "a", "demonstrations": [ROWS[0]], name: value}), True)
    for name, values in _ODD.items()
    for value in values
}


def _workbook(sheet: str, extra: bytes = b"") -> bytes:
    """A workbook with the XML of one sheet; the other parts are as Excel writes them."""
    packed = io.BytesIO()
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr(
            "[Content_Types].xml", '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'
        )
        book.writestr("xl/workbook.xml", f'<workbook xmlns="{main}"><sheets/></workbook>')
        book.writestr("xl/worksheets/sheet1.xml", sheet)
        if extra:
            book.writestr("xl/media/image.bin", extra)
    return packed.getvalue()


BOMB = "<!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'>" + "".join(
    f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(9)
)
WORKBOOKS: dict[str, bytes] = {
    "no zip": b"PK\x03\x04 no zip",
    "a zip of nothing": b"PK\x05\x06" + bytes(18),
    "no sheets": _workbook("<worksheet/>"),
    "no XML": _workbook("<<<<"),
    "entities that grow": _workbook(BOMB + "]><worksheet>&j;</worksheet>"),
    "a gigabyte of zeros": _workbook("<worksheet/>", b"\0" * 300_000_000),
    "a table": LINES.encode(),
    "cut off": _workbook("<worksheet/>")[:200],
}


READERS: dict[str, Callable[[Path], Any]] = {
    "load_few_shot_file": partial(hf_mass.load_few_shot_file, demonstrations=1),
    "load_tasks": hf_mass.load_tasks,
    "load_grid_tasks": hf_mass.load_grid_tasks,
    "read_problem_file": read_problem_file,
    "read_many": lambda path: reading.read_many(str(path)),
    "read_set": lambda path: reading.read_set(str(path), demonstrations=1),
}


def _sound(found: Any) -> None:
    """Raises `Wrong` if tasks that were read hold no texts."""
    problems = found if isinstance(found, list) else getattr(found, "tasks", [])
    tasks = [task for each in problems for task in (getattr(each, "tasks", None) or [each])]
    if not tasks:
        raise Wrong("no task was read, and nothing says why")
    for task in tasks:
        pairs = [text for each in task.demonstrations for text in (each.question, each.answer)]
        for text in (task.problem, *pairs):
            if not isinstance(task, Task) or not isinstance(text, str) or text.strip() in ("", "None", "nan", "null"):
                raise Wrong(f"a task holds {text!r:.60}")


def _read(reader: Callable[[Path], Any], name: str, content: bytes, folder: Path) -> None:
    file = folder / name
    file.write_bytes(content)
    _sound(reader(file))


def _contents() -> Iterator[tuple[str, str, bytes, bool]]:
    """(ending, what, content, whether no reader can mean it)."""
    endings = (".json", ".jsonl", ".csv", ".tsv", ".xlsx", ".txt")
    for what, (content, refused) in BYTES.items():
        yield from ((ending, what, content, refused and ending != ".txt") for ending in endings)
    for what, (text, refused) in (JSONS | PUZZLES | OBJECTS).items():
        yield ".json", what, text.encode(), refused
        yield ".jsonl", what, text.encode(), refused
    for what, (text, refused) in TABLES.items():
        yield ".csv", what, text.encode(), refused
        yield ".tsv", what, text.replace(",", "\t").encode(), refused
    yield from ((".xlsx", what, content, True) for what, content in WORKBOOKS.items())


def _bbh_cases() -> Iterator[Case]:
    for what, text, refused in (
        *((what, text, refused) for what, (text, refused) in JSONS.items()),
        ("no target", json.dumps({"examples": [{"input": "a"}] * 30}), True),
        ("examples of null", json.dumps({"examples": [None] * 30}), True),
        ("few examples", json.dumps({"examples": [{"input": "a", "target": "b"}] * 3}), True),
        ("numbers", json.dumps({"examples": [{"input": 1, "target": 2}] * 30}), True),
    ):

        def run(folder: Path, text: str = text) -> None:
            (folder / "boolean_expressions.json").write_text(text)
            hf_mass.load_bbh(folder, ["boolean_expressions"])

        yield Case("BIG-Bench Hard", "values" if refused else "odd", what, run, True)


def _place_cases() -> Iterator[Case]:
    """What stands where a file should."""
    places: dict[str, Callable[[Path], object]] = {
        "a folder": lambda path: path.mkdir(),
        "a link to itself": lambda path: path.symlink_to(path),
        "a link to nothing": lambda path: path.symlink_to("nowhere"),
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a pipe": lambda path: os.mkfifo(path),
        "a link to the folder above": lambda path: path.symlink_to(".."),
        "nothing": lambda path: None,
    }
    for name, reader in READERS.items():
        for what, make in places.items():
            for ending in (".json", ".csv", ".xlsx"):

                def run(folder: Path, reader: Any = reader, make: Any = make, ending: str = ending) -> None:
                    make(folder / f"rows{ending}")
                    _sound(reader(folder / f"rows{ending}"))

                yield Case(f"files: {name}", "no file", f"{what} at rows{ending}", run, True)


def file_cases() -> list[Case]:
    """All of them."""
    cases = []
    for ending, what, content, refused in _contents():
        for name, reader in READERS.items():
            if name == "load_grid_tasks" and ending not in (".json", ".jsonl"):
                continue
            run = partial(_read, reader, f"rows{ending}", content)
            refused = refused and not (name == "load_tasks" and what in OBJECTS)  # which has other columns
            cases.append(Case(f"files: {name}", f"{ending} {what}", f"{what} as {ending}", run, refused))
    return [*cases, *_bbh_cases(), *_place_cases()]
