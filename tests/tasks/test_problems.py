"""Problems as users have them: every form that is read, and every bad one refused in words, whatever it holds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import DataError
from hf_mass.tasks.answers import score_answers
from hf_mass.tasks.problems import KINDS, Limits, Problem, read_problem, read_problem_file
from hf_mass.tasks.task import Demonstration

PAIR = {"input": [[0, 1], [2, 3]], "output": [[3, 2], [1, 0]]}
PUZZLE = {"train": [PAIR, PAIR], "test": [PAIR, {"input": [[4]]}]}
SHOWN = (("cat", "CAT"), ("a, b", "A, B"))
ROWS = [{"input": q, "output": a} for q, a in SHOWN] + [{"input": "dog", "output": ""}]


def parts(problem: Problem) -> tuple[Any, ...]:
    """(kind, demonstrations, queries, answers)."""
    (shown,) = {task.demonstrations for task in problem.tasks}
    return (
        problem.kind,
        tuple((d.question, d.answer) for d in shown),
        [task.problem for task in problem.tasks],
        [task.answer for task in problem.tasks],
    )


def table(mark: str, end: str, names: tuple[str, str] = ("input", "output"), quote: str = '"') -> str:
    """`ROWS` with a header."""
    rows = [names, *((row["input"], row["output"]) for row in ROWS)]
    return end.join(mark.join(f"{quote}{value}{quote}" for value in row) for row in rows) + end


TEXTS = ("texts", SHOWN, ["dog"], [None])
JSONL = "\n".join(map(json.dumps, ROWS))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (json.dumps(ROWS), ".json"),
        (json.dumps(ROWS, indent=1), ".json"),
        (json.dumps([*ROWS[:2], {"input": "dog"}]), ".json"),
        (json.dumps([*ROWS[:2], {"input": "dog", "output": None}]), ".json"),
        (json.dumps([*ROWS[:2], {"input": "dog", "output": " "}]), ".json"),
        (json.dumps([{"INPUT ": row["input"], "Output": row["output"], "note": 1} for row in ROWS]), ".json"),
        (json.dumps([{"question": row["input"], "answer": row["output"]} for row in ROWS]), ".json"),
        (JSONL, ".jsonl"),
        (JSONL, ".json"),
        (JSONL.replace("\n", "\r\n\r\n") + "\n", ".jsonl"),
        (table(",", "\n"), ".csv"),
        (table(",", "\r\n"), ".csv"),
        (table(",", "\n", ("Input", " OUTPUT")), ".csv"),
        (table(",", "\n", ("Prompt", "Completion")), ".csv"),
        (table("\t", "\r\n"), ".tsv"),
        (table("\t", "\n", quote=""), ".tsv"),
        (table("\t", "\n", ("x", "Y"), quote=""), ".tsv"),
        ("cat -> CAT\na, b => A, B\ndog ->", ".txt"),
        ("\n  cat→CAT  \n\n a, b \t\t A, B\r\ndog\n", ".txt"),
        ("Input -> Output\ncat->CAT\na, b->A, B\ndog", ".txt"),
    ],
)
def test_every_form_of_examples(tmp_path: Path, text: str, kind: str) -> None:
    assert parts(read_problem(text)) == TEXTS
    assert parts(read_problem("\ufeff" + text)) == TEXTS
    for mark in ("", "\ufeff"):
        file = tmp_path / f"mine{kind.upper() if mark else kind}"
        file.write_bytes((mark + text).encode())
        found = read_problem_file(file)
        assert parts(found) == TEXTS and found.name == found.tasks[0].id == "mine"


def test_a_puzzle(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"name": "x", "__proto__": {"a": 1}, **PUZZLE}))
    for problem in (read_problem(json.dumps(PUZZLE, indent=2), "p"), read_problem_file(tmp_path / "p.json")):
        shown = ("0 1\n2 3", "3 2\n1 0")
        assert parts(problem) == ("grids", (shown, shown), ["0 1\n2 3", "4"], ["3 2\n1 0", None])
        assert [task.id for task in problem.tasks] == ["p_0", "p_1"]


@pytest.mark.parametrize("lines", [False, True])
def test_rows_of_grids(lines: bool) -> None:
    rows = [PAIR, {**PAIR, "output": [[1]]}, {"Input": [[5, 5]]}]
    problem = read_problem("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    assert parts(problem) == ("grids", (("0 1\n2 3", "3 2\n1 0"), ("0 1\n2 3", "1")), ["5 5"], [None])


def test_a_task() -> None:
    values = {
        "problem": "peach",
        "demonstrations": [{"input": "lime", "output": "gold"}, {"question": "pear", "answer": 7}],
        "answer": "red",
        "solution": None,
        "fields": {"family": "sue", "__proto__": "x", "constructor": "y"},
        "id": "mine",
    }
    (task,) = read_problem(json.dumps(values)).tasks
    assert (task.problem, task.answer, task.solution, task.id) == ("peach", "red", None, "mine")
    assert task.demonstrations == (Demonstration("lime", "gold"), Demonstration("pear", "7"))
    assert task.fields == values["fields"]
    assert read_problem('{"problem": "x"}', "named").tasks[0].id == "named"


@pytest.mark.parametrize(
    "text",
    [
        "What is 1 + 1?",
        "Two lines\nof text, input and output",
        "<script>alert(1)</script>${7*7}{{7*7}}",
        "x, y = 1, 2; what is x?",
        "0 1 2\n2 1 0",
        "12",
        "->",
    ],
)
def test_a_text_alone(text: str) -> None:
    problem = read_problem(text)
    assert parts(problem) == ("texts", (), [text], [None])


def test_lists_before_an_arrow_are_no_json() -> None:
    assert parts(read_problem("[1, 2] -> [2, 1]\n[3] -> [3]\n[4, 5] ->"))[2] == ["[4, 5]"]
    assert parts(read_problem('[{"input": "a -> b", "output": "c"}, {"input": "d -> e"}]'))[2] == ["d -> e"]


def test_which_rows_are_asked() -> None:
    assert parts(read_problem("a -> 1\nb -> 2\nc -> 3"))[1:] == ((("a", "1"), ("b", "2")), ["c"], ["3"])
    assert parts(read_problem("a ->\nb -> 2\nc\nd -> 4"))[1:] == ((("b", "2"), ("d", "4")), ["a", "c"], [None, None])
    assert parts(read_problem("a -> b -> c\nd ->"))[1] == (("a", "b -> c"),)
    for arrow in ("-->", "==>", "⇒", "⟶", "<->"):
        assert parts(read_problem(f"a {arrow} b\nc {arrow} d\ne {arrow}"))[1] == (("a", "b"), ("c", "d"))
    (first, second) = read_problem("a ->\nb -> 2\nc", "n").tasks
    assert (first.id, second.id) == ("n_0", "n_1")


def test_a_script_stays_text() -> None:
    script = "<script>alert('x')</script>"
    assert parts(read_problem(json.dumps([{"input": script, "output": script}, {"input": script}])))[1:3] == (
        ((script, script),),
        [script],
    )


def nested(depth: int, inner: str = "") -> str:
    return "[" * depth + inner + "]" * depth


REFUSED = [
    ("", None, "is empty. Give a problem"),
    (" \n\t", None, "is empty"),
    ("\ufeff", None, "is empty"),
    ("a\0b", None, "zero byte. Give a file"),
    ("x" * 4001, None, r"4,001 characters; at most 4,000 are taken. Shorten"),
    ("x" * 500_001, None, "longer than 500,000 bytes. Give a smaller"),
    ("é" * 250_001, None, "longer than 500,000 bytes"),
    ("a -> \ud800\nb", None, r"'\\ud800', which is no character.*Remove"),
    ('{"problem": "a\\u0000"}', None, r"'\\x00', which is no character"),
    ('{"problem": "a", "fields": {"b": "\\udfff"}}', None, r"'\\udfff'"),
    ("{half", None, "could not be read as JSON.*Correct it, or give it as .txt"),
    ("[1, 2", None, "could not be read as JSON"),
    ('{"input": 1}\n{oops}', None, r"could not be read as JSON: line 2, column 2: .*{oops}"),
    ("NaN", ".json", "no grid puzzle, found float nan. Expected"),
    ("1" * 5000, ".json", "no grid puzzle, found str '111.*Expected"),
    (nested(400_00), None, "nested too deeply|recursion"),
    (nested(990), None, "."),
    ('{"train": 1}', None, r"no grid puzzle, found an object with 1 keys, \['train'\]"),
    (json.dumps({"a": PUZZLE, "b": PUZZLE}), None, r"2 keys, \['a', 'b'\].*Expected one of these puzzles"),
    (json.dumps({**PUZZLE, "train": []}), None, "'train' is empty. Give at least one pair"),
    (json.dumps({**PUZZLE, "test": [5]}), None, r"test\[0\] has no 'input', found 5. Give it"),
    (json.dumps({**PUZZLE, "test": [{"input": [[1], [1, 2]]}]}), None, r"test\[0\] input is ragged.*equal length"),
    (json.dumps({**PUZZLE, "test": [{"input": [[1], []]}]}), None, r"row 1 is empty. Give"),
    (json.dumps({**PUZZLE, "test": [{"input": [[10**400]]}]}), None, "holds 10+, which is no colour"),
    (json.dumps({**PUZZLE, "test": [{"input": [[float("nan")]]}]}), None, "holds nan, which is no colour"),
    (json.dumps({**PUZZLE, "test": [{"input": "<script>"}]}), None, "no list of rows: '<script>'. Give"),
    (json.dumps({**PUZZLE, "test": [{"input": [[1] * 1000]}]}), None, "1 × 1000 cells; at most .*one row of 100"),
    (json.dumps({**PUZZLE, "test": [{"input": [[1]] * 31}]}), None, "31 × 1 cells.*Give smaller"),
    (json.dumps({**PUZZLE, "train": [PAIR] * 51}), None, "has 51 demonstrations; at most 50 are taken. Leave"),
    (json.dumps({**PUZZLE, "test": [PAIR] * 11}), None, "has 11 queries; at most 10 are taken. Leave"),
    ("[]", None, "no solved example beside its query. Give"),
    ("[1]", None, "row 0 .*is int 1. Expected an object"),
    (json.dumps(ROWS[2:]), None, "no solved example"),
    ('[{"input": 1}, {"a": 2}]', None, r"row 1 .*no column 'input', found \['a'\]. Call the columns"),
    ('[{"input": "a", "output": {}}, {"input": "b"}]', None, "row 0 .*'output'.*found {}. Fill it"),
    ('[{"input": "a", "output": NaN}, {"input": "b"}]', None, "found nan. Fill it"),
    ('[{"input": Infinity, "output": 1}, {"input": "b"}]', None, "found inf. Fill it"),
    ('[{"input": null, "output": 1}, {"input": "b"}]', None, "'input'.*found None. Fill it"),
    ('[{"Input": 1, "input ": 2}]', None, "two columns called 'input'. Give"),
    (json.dumps([PAIR, {"input": "text"}]), None, "mixes grids and texts. Give"),
    ("input,output\na\n", None, "no solved example"),
    ("input,output\na,b,c\n", None, r"row 0 .*more values than the header.*\['c'\]. Put the header"),
    ("input,output\n" + "a,b,c" * 9999, None, "more values than the header"),
    ('input,output\n"a,b\n', None, "could not be read.*header and rows"),
    ("input,input,output\na,b,c\n", ".csv", "two columns called 'input'. Give"),
    ("Input,input,output\na,b,c\n", ".csv", "two columns called 'input'. Give"),
    ("input;output\na;b\n", ".csv", "no solved example"),
    ("Wort;Plural\nHund;Hunde\n", ".csv", r"no column 'input', found \['plural', 'wort'\]. Call.*--input_column"),
    ("Wort\tPlural\nHund\tHunde\n", ".tsv", r"no column 'input', found \['plural', 'wort'\].*--no_header"),
    ("a,b\nc,d\n", ".csv", r"no column 'input', found \['a', 'b'\]"),
    ("a" * 140_000, ".csv", "no solved example|field larger"),
    ("a -> b\n\n-> c", None, "line 3: nothing stands before the arrow. Write"),
    ("a -> b", None, "no solved example"),
    ('{"problem": null}', None, "problem is None. Give a text"),
    ('{"problem": " "}', None, "problem is ' '. Give a text"),
    ('{"problem": [[1]]}', None, r"problem is \[\[1\]\]. Give a text"),
    ('{"problem": "a", "answer": [5]}', None, r"answer is \[5\]. Give a text"),
    ('{"problem": "a", "answer": ""}', None, "answer is ''. Give a text, or null"),
    ('{"problem": "a", "verifier": "x"}', None, "unknown key 'verifier'. Known"),
    ('{"problem": "a", "__class__": "x"}', None, "unknown key '__class__'. Known"),
    ('{"problem": "a", "fields": {"b": 1}}', None, "fields is {'b': 1}. Give an object of texts"),
    ('{"problem": "a", "fields": ["b"]}', None, r"fields is \['b'\]. Give an object"),
    ('{"problem": "a", "demonstrations": {"b": 1}}', None, "demonstrations is {'b': 1}. Give a list"),
    ('{"problem": "a", "demonstrations": ["b"]}', None, "row 0 .*is str 'b'. Expected an object"),
    ('{"problem": "a", "demonstrations": [{"input": [[1]], "output": [[2]]}]}', None, "demonstration 0 is a grid"),
    ("x", ".exe", "unknown kind '.exe'. Choose one of"),
]


@pytest.mark.parametrize(("text", "kind", "message"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_what_is_refused(text: str, kind: str | None, message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        read_problem(text, "mine", kind)
    assert "'mine'" in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        '[{"' + "k" * 100_000 + '": 1}]',
        '{"' + "k" * 100_000 + '": 1}',
        '{"problem": "x", "' + "k" * 100_000 + '": 1}',
        '{"problem": "x", "fields": {"' + "k" * 100_000 + '": "v"}}',
        '[{"input": {"a": "' + "k" * 100_000 + '"}, "output": 1}]',
        '{"train": [{"' + "k" * 100_000 + '": 1}], "test": [1]}',
        "input,output\na" + ",b" * 100_000,
        "input," + "b" * 100_000 + "," + "b" * 100_000 + "\na,b,c",
    ],
)
def test_an_error_is_short_whatever_is_wrong(text: str) -> None:
    with pytest.raises(DataError) as caught:
        read_problem(text)
    assert len(str(caught.value)) < 500


def test_nesting_at_the_edge_of_what_can_be_parsed() -> None:
    for depth in range(900, 1000, 3):
        for text in (nested(depth), f'{{"problem": {nested(depth)}}}', f'[{{"input": {nested(depth)}, "output": 1}}]'):
            with pytest.raises(DataError):
                read_problem(text)


@pytest.mark.parametrize("text", ["a" + " " * 200_000 + "b\nx -> y", "[" * 3 + " \t" * 90_000, "a,b" + "," * 200_000])
def test_long_lines_take_no_time(text: str) -> None:
    start = time.process_time()
    with pytest.raises(DataError):
        read_problem(text)
    assert time.process_time() - start < 2


def test_limits_are_inclusive() -> None:
    limits = Limits(bytes=200, demonstrations=2, queries=2, side=2, strip=3, characters=5)
    assert len(read_problem("12345 -> 1\na -> b\nc\nd", limits=limits).tasks) == 2
    assert read_problem(
        json.dumps([{"input": [[1, 1, 1]], "output": [[1, 1], [1, 1]]}, {"input": [[1]]}]), limits=limits
    )
    for text in ("123456 -> 1\nb", "a -> b\nc -> d\ne -> f\ng", "a -> b\nc\nd\ne", "a -> b\nc" + " " * 200):
        with pytest.raises(DataError):
            read_problem(text, limits=limits)


# -- whatever ----------------------------------------------------------------------------------------------------------


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just([[1, 2], [3, 4]]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["train", "test", "input", "output", "problem", "demonstrations", "fields", "answer", "id", "Input"]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
SCRAPS = st.sampled_from(["->", "=>", "→", "\t", "\n", ",", '"', "input", "output", "{", "}", "[", "]", ":", "\ufeff"])


def read_or_refuse(text: str, kind: str | None = None) -> None:
    """Either a problem whose texts can be encoded, or a DataError that says what is wrong."""
    try:
        problem = read_problem(text, "mine", kind)
    except DataError as error:
        assert "mine" in str(error) and len(str(error)) < 1000 and str(error)[-1] in ".'}"
        return
    assert problem.tasks and problem.kind in ("grids", "texts")
    for task in problem.tasks:
        for text in (
            task.problem,
            task.answer or "",
            *(t for d in task.demonstrations for t in (d.question, d.answer)),
        ):
            text.encode()


@given(st.text() | st.lists(SCRAPS | st.text(max_size=5)).map("".join), st.sampled_from([None, *KINDS]))
def test_any_text(text: str, kind: str | None) -> None:
    read_or_refuse(text, kind)


@given(VALUES | st.lists(VALUES, min_size=1, max_size=4), st.sampled_from([None, ".json", ".jsonl"]))
def test_any_json(value: object, kind: str | None) -> None:
    read_or_refuse(json.dumps(value), kind)


def test_texts_are_right_to_the_letter() -> None:
    (task,) = read_problem("hello -> HELLO\ncat -> CAT\nbird -> BIRD").tasks
    for answer, right in (("BIRD", True), (" BIRD ", True), ("bird", False), ("BIRDS", False)):
        score = score_answers(task, [answer], ())
        assert score is not None and score.pass_1 is right


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x1c", "\x0b", "\x0c"])
def test_lines_end_where_lines_end(mark: str) -> None:
    (task,) = read_problem(f"a{mark}b -> c\rd -> e\r\nf{mark}g").tasks
    assert [(pair.question, pair.answer) for pair in task.demonstrations] == [(f"a{mark}b", "c"), ("d", "e")]
    assert task.problem == f"f{mark}g"


@pytest.mark.parametrize(
    ("text", "queries"),
    [
        ("a -> A\nb -> B\nc -> ?", [("c", None)]),
        ("a -> A\nb -> B\nc -> ???\nd -> ?", [("c", None), ("d", None)]),
        ("input,output\na,A\nb,B\nc,?\n", [("c", None)]),
        ('[{"input": "a", "output": "A"}, {"input": "b", "output": "?"}]', [("b", None)]),
        ("a -> A\nb ->\nc -> ?", [("b", None), ("c", None)]),
        ("Go -> !\nStop -> .\nWhy -> ?", [("Why", "?")]),  # signs are what is asked for
        ("Why -> ?\nHow -> ?\nGo -> go", [("Go", "go")]),
        ("a -> A\nb -> ?\nc -> C", [("c", "C")]),  # an answer like any other, amid them
    ],
)
def test_a_question_mark_at_the_end_is_no_answer(text: str, queries: list[tuple[str, str | None]]) -> None:
    assert [(task.problem, task.answer) for task in read_problem(text).tasks] == queries
