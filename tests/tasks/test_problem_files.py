"""Files with problems: what is read, and what is refused before it is, by name and without its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import DataError
from hf_mass.tasks.problems import KINDS, read_problem, read_problem_file
from hf_mass.tasks.reading import read_set
from hf_mass.tasks.rows import load_few_shot_file
from hf_mass.tasks.sources import load_tasks
from hf_mass.tasks.tables import TableForm


def test_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "big.json"
    with file.open("wb") as stream:
        stream.truncate(10_000_000)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    with pytest.raises(DataError, match=r"'big\.json' has 10,000,000 bytes; at most 500,000 are read. Give a smaller"):
        read_problem_file(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"\x89PNG\r\n\x1a\n\0\0", r"'a\.json' is no text, but a picture\. Unpack or convert it"),
        ("a.csv", b"PK\x03\x04" + b"\0" * 20, r"'a\.csv' is no text, but a zip file or a workbook of Excel"),
        ("a.csv", "input,output\nкошка,1".encode("cp1251"), "no text in UTF-8.*--encoding"),
        ("a.json", b"", "'a' is empty"),
        ("a.pkl", b"x", r"'a\.pkl' is of unknown kind '\.pkl'. Convert it to \.json"),
        ("noending", b"x", "unknown kind ''"),
        ("a.json", b"{", "'a' could not be read as JSON"),
        ("a.tsv", b"input\toutput\tinput\na\tb\tc", "two columns called 'input'"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_problem_file(tmp_path / name)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("path", ["nowhere.json", "~nobody-of-this-name/a.json", "/" + "a" * 300 + ".json", "a\0.json"])
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"There is no file .*Correct the path"):
        read_problem_file(path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"'a\.json' could not be read: Permission denied") as caught:
        read_problem_file(tmp_path / "a.json")
    assert str(tmp_path) not in str(caught.value)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff.txt")
    try:
        file.write_text("a -> b\nc")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    assert read_problem_file(file).name.encode()


@given(content=st.binary() | st.text().map(str.encode), kind=st.sampled_from(KINDS))
def test_any_file(tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str) -> None:
    file = tmp_path_factory.getbasetemp() / f"mine{kind}"
    file.write_bytes(content)
    try:
        assert read_problem_file(file).tasks
    except DataError as error:
        assert "mine" in str(error) and str(file.parent) not in str(error)


def test_true_and_false_of_json_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = '[{"input": "a", "output": true}, {"input": false, "output": "b"}]'
    (task,) = read_problem(rows).tasks
    assert (task.demonstrations[0].answer, task.problem) == ("true", "false")
    (tmp_path / "a.json").write_text('[{"problem": "p", "answer": true}]')
    assert load_tasks(tmp_path / "a.json")[0].answer == "true"


def test_what_is_no_plain_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    (tmp_path / "broken.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("loop.csv", "broken.json", "pipe.csv", "folder.csv"):
        told = "is a folder" if name == "folder.csv" else "is a pipe, a device or a link to nothing"
        for read in (read_problem_file, load_few_shot_file):
            with pytest.raises(DataError, match=told):
                read(tmp_path / name)
    for name in ("loop.csv", "pipe.csv"):
        with pytest.raises(DataError, match="is a pipe, a device or a link to nothing"):
            read_set(str(tmp_path / name))
    with pytest.raises(DataError, match="is '', which no file or folder is called"):
        read_set("")


@pytest.mark.parametrize("start", ["\x1f\x8b", "PAR1", "%PDF-1.4"])
def test_other_kinds_of_files_are_named(start: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(start.encode("latin-1") + b"input,output")
    with pytest.raises(DataError, match=r"'a\.csv' is no text, but .*\. Unpack or convert it"):
        read_problem_file(tmp_path / "a.csv")


def test_a_table_of_problems_is_a_set_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,problem,answer\n000aaa,What?,0052\n111bbb,Why?,\n222,"x\ny",7.50\n')
    tasks = read_set(str(tmp_path / "a.csv"), verifier="numeric").tasks
    assert [(task.id, task.problem, task.answer) for task in tasks] == [
        ("000aaa", "What?", "0052"),
        ("222", "x\ny", "7.50"),
    ]
    assert not any(task.demonstrations for task in tasks) and {task.verifier for task in tasks} == {"numeric"}
    named = TableForm(input_column="problem", output_column="id")
    assert [task.answer for task in read_set(str(tmp_path / "a.csv"), demonstrations=1, form=named).tasks] == [
        *("111bbb", "222"),
    ]


def test_columns_about_problems_are_left_out(tmp_path: Path, shared_data: Path) -> None:
    tasks = read_set(str(shared_data / "math-500.json"), verifier="math").tasks
    assert len(tasks) == 500 and tasks[0].answer == r"\left( 3, \frac{\pi}{2} \right)"
    (tmp_path / "a.jsonl").write_text('{"problem": "p", "answer": "1", "level": 5, "hint": "h"}')
    with pytest.raises(DataError, match="unknown key 'hint'"):
        read_set(str(tmp_path / "a.jsonl"))
    (tmp_path / "a.jsonl").write_text('{"problem": "p", "answer": ""}')
    with pytest.raises(DataError, match=r"answer is ''.* or null"):
        read_set(str(tmp_path / "a.jsonl"))
