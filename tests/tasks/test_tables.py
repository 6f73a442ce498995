"""Tables as people have them: every usual way of writing one is read to the letter, or refused with the cure."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.problems import read_problem, read_problem_file
from hf_mass.tasks.reading import read_set
from hf_mass.tasks.rows import KNOWN, load_few_shot_file, parse_rows
from hf_mass.tasks.sources import Columns, load_tasks
from hf_mass.tasks.tables import TableForm

ROWS = [("007", "2024-01-31"), ("1.50", "a, b"), ("1e3", 'say "no"'), (" x", "1;2"), ("NA", "true")]
WANTED = [{"input": a, "output": b} for a, b in ROWS]


def written(mark: str, end: str = "\n", header: tuple[str, ...] = ("input", "output"), quoting: int = 0) -> str:
    """`ROWS` as a table."""
    stream = io.StringIO()
    csv.writer(stream, delimiter=mark, lineterminator=end, quoting=quoting).writerows([header, *ROWS])
    return stream.getvalue()


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("kind", [".csv", ".tsv"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_every_mark_is_told_and_cells_stay_to_the_letter(mark: str, end: str, kind: str, quoting: int) -> None:
    assert parse_rows(written(mark, end, quoting=quoting), kind, "'f'") == WANTED
    assert parse_rows(f"sep={mark}{end}" + written(mark, end, quoting=quoting), kind, "'f'") == WANTED
    other = written(mark, end, ("Wort", "Plural"), quoting)
    form = TableForm(delimiter="tab" if mark == "\t" else mark)
    assert [tuple(row.values()) for row in parse_rows(other, kind, "'f'", form)] == ROWS


@pytest.mark.parametrize("content", [written(";").encode("utf-16"), written(",").encode("utf-8-sig")])
def test_encodings_of_a_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    problem = read_problem_file(tmp_path / "a.csv")
    assert [(d.question, d.answer) for d in problem.tasks[0].demonstrations] == ROWS[:-1]
    assert len(load_few_shot_file(tmp_path / "a.csv", demonstrations=2)) == 3
    (tmp_path / "b.csv").write_bytes("input;output\né;1\nà;2\nd;3".encode("cp1252"))
    tasks = load_few_shot_file(tmp_path / "b.csv", demonstrations=1, form=TableForm(encoding="cp1252"))
    assert {tasks[0].problem, tasks[1].problem, tasks[0].demonstrations[0].question} == {"é", "à", "d"}


def test_spaces_behind_commas() -> None:
    rows = parse_rows('"input", "output"\n"a, b", "c"\n', ".csv", "'f'")
    assert rows == [{"input": "a, b", "output": "c"}]


def test_names_of_other_columns(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("Wort;Plural;Nr\nHund;Hunde;1\nKatze;Katzen;2\nMaus;Mäuse;3\n")
    with pytest.raises(DataError, match=r"Columns found: \['Nr', 'Plural', 'Wort'\].*--input_column"):
        read_set(str(file), demonstrations=2)
    with pytest.raises(DataError, match=r"no column 'input', found \['nr', 'plural', 'wort'\].*--input_column"):
        read_problem_file(file)
    form = TableForm(input_column="wort", output_column="Plural")
    assert len(read_set(str(file), demonstrations=2, form=form).tasks) == 1
    task = read_problem_file(file, form=form).tasks[0]
    assert (task.problem, task.answer, len(task.demonstrations)) == ("Maus", "Mäuse", 2)
    with pytest.raises(DataError, match=r"no column 'Wrt'\. Columns found: .*Set input_column"):
        read_problem_file(file, form=TableForm(input_column="Wrt"))
    tasks = load_tasks(file, columns=Columns(problem="Wort", answer="Plural"))
    assert (tasks[0].problem, tasks[0].answer) == ("Hund", "Hunde")


def test_a_column_is_named_beside_its_usual_other() -> None:
    form = TableForm(input_column="Wort")
    (task,) = read_problem("Wort,label\nHund,Hunde\nMaus,Mäuse\n", kind=".csv", form=form).tasks
    assert (task.problem, task.answer) == ("Maus", "Mäuse")


def test_no_header() -> None:
    form = TableForm(header=False)
    (task,) = read_problem("Hund;Hunde\nKatze;Katzen\nMaus;\n", kind=".csv", form=form).tasks
    assert [d.question for d in task.demonstrations] == ["Hund", "Katze"] and task.problem == "Maus"
    three = TableForm(header=False, input_column="1", output_column="3")
    (task,) = read_problem("Hund,x,Hunde\nKatze,y,Katzen\n", kind=".csv", form=three).tasks
    assert (task.demonstrations[0].answer, task.problem) == ("Hunde", "Katze")
    with pytest.raises(DataError, match=r"a comma or a semicolon may separate its cells.*--delimiter"):
        read_problem("a,b;c\nd,e;f\n", kind=".csv", form=form)


def test_source_is_no_input_beside_text_and_label() -> None:
    rows = '{"source": "web", "text": "a", "label": "b"}\n{"source": "web", "text": "c"}\n'
    (task,) = read_problem(rows).tasks
    assert (task.problem, task.demonstrations[0].question) == ("c", "a")
    with pytest.raises(DataError, match="no column 'input', found"):
        read_problem('{"source": "web", "text": "a"}\n{"source": "web", "text": "c"}\n')


def test_what_stands_at_the_ends_of_a_spreadsheet() -> None:
    text = "input;output;;\na;b;;\nc;d;;\n;;;\n\n"
    assert parse_rows(text, ".csv", "'f'") == [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\0b", "zero byte"),
        ("input,output\na,b,c\n", r"row 0 .*more values than.*\['c'\].*--delimiter"),
        ('input,output\n"a,b\n', "could not be read"),
        ("a," * 100_000, "100,001 columns; at most 1,000"),
        ("input" + "".join(f",n{n}" for n in range(900)) + "\n" + "a\n" * 3000, "fewer values than"),
        (",".join(f"n{n // 2}" for n in range(900)), "two columns called 'n0'"),
    ],
)
def test_tables_that_are_refused(text: str, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        parse_rows(text, ".csv", "'f'")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("mark", ["", "ab", "\n", '"'])
def test_delimiters_that_are_refused(mark: str) -> None:
    with pytest.raises(ConfigError, match="delimiter is"):
        TableForm(delimiter=mark)


@pytest.mark.parametrize(
    "text",
    [
        "c" * 192_000,
        ",".join(f"c{n}" for n in range(30_000)),
        ";".join("c" for _ in range(96_000)),
        "input,output\n" + '"' * 190_000,
        "input,output\n" + "a,b\n" * 48_000,
        "sep=" * 48_000,
        ",".join(f"c{n}" for n in range(990)) + "\n" + "a\n" * 90_000,
    ],
)
def test_no_table_of_192_kb_takes_long(text: str) -> None:
    start = time.process_time()
    with contextlib.suppress(DataError):
        parse_rows(text, ".csv", "'f'")
    assert time.process_time() - start < 3


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), st.sampled_from(",;\t|"))
def test_any_cells_come_back(rows: list[tuple[str, str]], mark: str) -> None:
    stream = io.StringIO()
    csv.writer(stream, delimiter=mark, quoting=csv.QUOTE_ALL).writerows([("input", "output"), *rows])
    while rows and not any(rows[-1]):
        rows = rows[:-1]
    found = parse_rows(stream.getvalue(), ".csv", "'f'")
    assert [(row["input"], row["output"]) for row in found] == rows


@given(st.text(), st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_any_text_is_rows_or_refused(text: str, kind: str) -> None:
    try:
        rows: list[dict[str, Any]] = parse_rows(text, kind, "'f'")
    except DataError:
        return
    assert all(isinstance(row, dict) for row in rows) and KNOWN


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("SEP=;\ninput;output\na;b\n", [("a", "b")]),
        ('"sep=;"\r\ninput;output\r\na;b\r\n', [("a", "b")]),
        ('input,output\n"x, ""y""",b\nc, d\n', [('x, "y"', "b"), ("c", " d")]),
        ('input,output\n5" pipe,c\na"b,"d\r\ne"\n', [('5" pipe', "c"), ('a"b', "d\r\ne")]),
        ("input,output\na\u2028b,c\x85d\x0c\n", [("a\u2028b", "c\x85d\x0c")]),
        ("input,output\na,b\nc\nd\n", [("a", "b"), ("c", None), ("d", None)]),
        ("input,output\na,\nc,d\n", [("a", ""), ("c", "d")]),
    ],
)
def test_odd_tables_are_read_to_the_letter(text: str, rows: list[tuple[str, str | None]]) -> None:
    assert [(row["input"], row["output"]) for row in parse_rows(text, ".csv", "'f'")] == rows


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("input,output\na,b\n# a comment\nc,d\n", r"row 1 .*has one value, '# a comment', among rows of several"),
        ("input;output\na\nc;d\n", r"row 0 .*has one value, 'a'.*end it with what separates values"),
        ("a title\ninput,output\na,b\n", r"than the header \['a title'\] names.*Put the header into the first line"),
        ("| input | output |\n|---|:--:|\n| a | b |\n", "is a table in Markdown. Write it as CSV"),
    ],
)
def test_lines_that_are_no_rows_are_refused(text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        parse_rows(text, ".csv", "'f'")


def test_an_instruction_beside_the_examples() -> None:
    rows = "instruction,input,output\nAdd,1,2\n{},2,3\n"
    (task,) = read_problem(rows.format("Add")).tasks
    assert task.fields == {"instruction": "Add"} and task.answer == "3"
    with pytest.raises(DataError, match=r"rows with different instructions, .*\['Add', 'Double'\]"):
        read_problem(rows.format("Double"))
    form = TableForm(input_column="instruction")
    (task,) = read_problem("instruction,output\nAdd,2\nDouble,3\n", kind=".csv", form=form).tasks
    assert task.fields == {} and task.problem == "Double"
