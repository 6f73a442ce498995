"""Tasks from files, folders and rows, and the errors for data that is no use."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_mass.errors import ConfigError, DataError, VerifierError
from hf_mass.tasks.arc import load_grid_tasks
from hf_mass.tasks.formats import FORMATS, PromptFormat
from hf_mass.tasks.hub_datasets import plain_rows
from hf_mass.tasks.sources import Columns, load_tasks, task_from_row, validate_tasks
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.verifiers import verify_batch

ROWS = [{"problem": f"{n}+1?", "solution": f"{n}+1={n + 1}\n#### {n + 1}", "answer": n + 1} for n in range(20)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def arc_task(tests: int = 1) -> dict[str, Any]:
    pair = {"input": [[0, 1], [2, 3]], "output": [[3, 2], [1, 0]]}
    return {"train": [pair, pair], "test": [{"input": [[n, 5]], "output": [[5, n]]} for n in range(tests)]}


@pytest.fixture(params=["rows.json", "lines.json", "rows.jsonl", "rows.csv", "folder"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same rows as a JSON file, JSON lines under either ending, a CSV file and a folder."""
    if request.param == "rows.csv":
        with (tmp_path / "rows.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
        return tmp_path / "rows.csv"
    if request.param == "rows.json":
        return write_json(tmp_path / "rows.json", ROWS)
    if request.param == "lines.json":
        return write_jsonl(tmp_path / "lines.json", ROWS)
    path = write_jsonl(tmp_path / "folder" / "train.jsonl", ROWS)
    return path if request.param == "rows.jsonl" else path.parent


def test_every_source_gives_the_same_tasks(source: Path) -> None:
    tasks = load_tasks(source, verifier="numeric")
    assert [task.problem for task in tasks] == [row["problem"] for row in ROWS]
    assert [task.answer for task in tasks] == [str(row["answer"]) for row in ROWS]
    assert [task.id for task in tasks] == [str(n) for n in range(20)]
    assert tasks[3].solution == ROWS[3]["solution"]
    assert not tasks[3].conversational
    validate_tasks(tasks, need_gold=True, need_demonstrations=False)
    assert set(verify_batch(tasks, [task.solution or "" for task in tasks])) == {1.0}


def test_a_limit_takes_a_seeded_choice_in_order(source: Path) -> None:
    def ids(seed: int) -> list[int]:
        return [int(task.id) for task in load_tasks(source, limit=7, seed=seed)]

    assert ids(0) == ids(0) == sorted(ids(0))
    assert len(set(ids(0))) == 7
    assert len({tuple(ids(seed)) for seed in range(5)}) > 1
    assert len(load_tasks(source, limit=99)) == 20


def test_splits(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "test.jsonl", ROWS[:3])
    assert len(load_tasks(tmp_path, split="test")) == 3
    assert len(load_tasks(tmp_path / "train.jsonl", split="test")) == 20
    with pytest.raises(DataError, match="split 'validation'"):
        load_tasks(tmp_path, split="validation")


def test_the_answer_is_read_from_the_solution() -> None:
    row = {"question": "2+2?", "answer": "2+2=4\n#### 4"}
    task = task_from_row(row, Columns(problem="question", solution="answer"), "numeric", FORMATS["gsm8k"])
    assert (task.problem, task.solution, task.answer) == ("2+2?", row["answer"], "4")
    task = task_from_row({"problem": "p", "solution": r"so \boxed{\frac12}"}, Columns(), "math", FORMATS["math"])
    assert task.answer == r"\frac12"
    assert task_from_row({"problem": "p", "solution": "s", "answer": "a"}).answer == "a"


@pytest.mark.parametrize(
    ("value", "text"), [(18, "18"), (18.0, "18"), (0.5, "0.5"), (10**20, "1" + "0" * 20), ("x", "x"), (True, "True")]
)
def test_values_become_text(value: object, text: str) -> None:
    assert task_from_row({"problem": "p", "answer": value}).answer == text


def test_null_gold_is_unknown() -> None:
    task = task_from_row({"problem": "p", "answer": None, "solution": float("nan"), "demonstrations": None})
    assert (task.answer, task.solution, task.demonstrations) == (None, None, ())
    assert task_from_row({"problem": "p", "solution": "x"}, Columns(solution=None)).solution is None


@pytest.mark.parametrize(
    "value",
    [
        {"input": ["q"], "output": [1]},
        [{"question": "q", "answer": 1}],
        [{"input": "q", "output": "1"}],
        [["q", "1"]],
        [("q", 1)],
    ],
)
def test_demonstrations(value: object) -> None:
    task = task_from_row({"problem": "p", "shots": value}, Columns(demonstrations="shots"))
    assert task.demonstrations == (Demonstration("q", "1"),)


def test_conversations(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "the problem"},
    ]
    path = write_jsonl(tmp_path / "chat.jsonl", [{"prompt": messages, "answer": "x"}])
    (task,) = load_tasks(path, columns=Columns(problem="prompt"))
    assert task.problem == "the problem"
    assert task.history == (("system", "s"), ("user", "u"), ("assistant", "a"))
    assert task.conversational
    sent = PromptFormat().messages(task, "the problem")
    assert sent == messages


def test_columns_that_the_prompts_name_become_fields() -> None:
    fmt = PromptFormat(solver_template="{level}: {problem}")
    task = task_from_row({"problem": "p", "level": 3}, fmt=fmt)
    assert fmt.solver_prompt(task) == "3: p"
    with pytest.raises(DataError, match=r"Missing column 'level'.*'problem'.*placeholder"):
        task_from_row({"problem": "p"}, fmt=fmt)


def test_domain_and_id() -> None:
    task = task_from_row({"problem": "p", "subject": "Algebra", "n": 7}, Columns(domain="subject", id="n"))
    assert (task.domain, task.id) == ("Algebra", "7")


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"question": "p"}, Columns(), "Missing column 'problem'.*'question'.*Columns.problem"),
        ({"problem": "p"}, Columns(solution="gold"), "Missing column 'gold'.*'problem'.*Columns.solution"),
        ({"problem": "p"}, Columns(answer="gold"), "Missing column 'gold'.*Columns.answer"),
        ({"problem": "p"}, Columns(demonstrations="shots"), "Missing column 'shots'.*Columns.demonstrations"),
        ({"problem": "p"}, Columns(domain="subject"), "Missing column 'subject'.*Columns.domain"),
        ({"problem": " "}, Columns(), "Row 5 .*'problem'.*empty"),
        ({"problem": None}, Columns(), "Row 5 .*'problem'.*empty"),
        ({"problem": "p", "answer": ""}, Columns(), "Row 5 .*'answer'.*empty.*Columns.answer"),
        ({"problem": "p", "solution": "\n"}, Columns(), "Row 5 .*'solution'.*empty"),
        ({"problem": {"x": 1}}, Columns(), "Row 5 .*'problem'.*expected text or a number, found dict"),
        ({"problem": "p", "answer": ["a"]}, Columns(), "Row 5 .*'answer'.*found list"),
        ({"problem": []}, Columns(), "Row 5 .*must end with the user's message.*no message"),
        ({"problem": [{"role": "user"}]}, Columns(), "Row 5 .*text role and content"),
        ({"problem": ["hello"]}, Columns(), "Row 5 .*text role and content"),
        ({"problem": [{"role": "user", "content": " "}]}, Columns(), "Row 5 .*empty"),
        (
            {"problem": [{"role": "assistant", "content": "p"}, {"role": "assistant", "content": "a"}]},
            Columns(),
            "Row 5 .*must end with the user's message.*'assistant'",
        ),
        ({"problem": "p", "demonstrations": "d"}, Columns(), "Row 5 .*list of demonstrations, found str"),
        ({"problem": "p", "demonstrations": {"input": "ab", "output": "cd"}}, Columns(), "Row 5 .*list of demon"),
        ({"problem": "p", "demonstrations": [{"q": "a"}]}, Columns(), "Row 5 .*a demonstration must be"),
        ({"problem": "p", "demonstrations": [["a", ""]]}, Columns(), "Row 5 .*a demonstration must be"),
    ],
)
def test_rows_that_are_refused(row: dict[str, Any], columns: Columns, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_from_row(row, columns, number=5)


def test_the_bad_row_of_a_file_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, {"problem": "", "solution": "s", "answer": 1}])
    with pytest.raises(DataError, match=r"Row 20 .*'problem'"):
        load_tasks(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.json", "{not json", "could not be read"),
        ("bad.jsonl", '{"problem": "p"}\n{oops\n', "could not be read"),
        ("empty.json", "[]", "has no rows"),
        ("empty.jsonl", "", "has no rows"),
        ("rows.txt", "problem\np\n", "unknown kind '.txt'. Convert it"),
        ("rows.json", '{"problem": "p"}', "holds an object.*Expected a list"),
        ("rows.json", '[{"problem": "p"}, 3]', "row 1 .*is int 3. Expected an object"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_tasks(tmp_path / name)
    assert name in str(caught.value)


def test_names_that_are_refused(tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", tmp_path / "nowhere.jsonl", "nowhere.json"):
        with pytest.raises(DataError, match=r"There is no file or folder.*nowhere"):
            load_tasks(missing)
    with pytest.raises(DataError, match="'nobody/nothing' is no local file or folder, and could not be loaded"):
        load_tasks("nobody/nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder.*could not be read"):
        load_tasks(tmp_path / "folder")


def test_settings_that_are_refused(source: Path) -> None:
    with pytest.raises(VerifierError, match="Unknown verifier 'exact'"):
        load_tasks(source, verifier="exact")
    with pytest.raises(ConfigError, match="limit must be a whole number of at least 1"):
        load_tasks(source, limit=0)
    with pytest.raises(ConfigError, match=r"Columns\.problem"):
        Columns(problem="")


def test_what_a_row_leaves_out_is_null(tmp_path: Path) -> None:
    tasks = load_tasks(
        write_json(tmp_path / "rows.json", [ROWS[0], {"problem": "p"}]), columns=Columns(answer="answer")
    )
    assert [(task.solution, task.answer) for task in tasks] == [(ROWS[0]["solution"], "1"), (None, None)]


def test_arc_folders(tmp_path: Path) -> None:
    write_json(tmp_path / "b_family" / "t1.json", arc_task())
    write_json(tmp_path / "a_family" / "deep" / "t2.json", arc_task(tests=2))
    (tmp_path / "LICENSE.md").write_text("free")
    tasks = load_tasks(tmp_path, verifier="numeric")
    assert [(task.domain, task.id) for task in tasks] == [("deep", "t2_0"), ("deep", "t2_1"), ("b_family", "t1")]
    assert {task.verifier for task in tasks} == {"numeric"}
    assert tasks[1].problem == "1 5"
    assert tasks[1].answer == "5 1"
    assert tasks[1].demonstrations == (Demonstration("0 1\n2 3", "3 2\n1 0"),) * 2
    assert load_tasks(tmp_path) == load_grid_tasks(tmp_path)
    assert len(load_tasks(tmp_path, limit=2)) == 2
    assert [task.id for task in load_tasks(tmp_path, split="b_family")] == ["t1"]
    assert [task.id for task in load_tasks(tmp_path / "b_family" / "t1.json", split="any")] == ["t1"]
    with pytest.raises(DataError, match="no sub-folder for the split 'test'"):
        load_tasks(tmp_path, split="test")
    with pytest.raises(DataError, match=r"no value 'level'.*placeholder \{level\}"):
        load_tasks(tmp_path, fmt=PromptFormat(solver_template="{level}: {problem}"))


def test_a_kaggle_pair_is_read_as_well(tmp_path: Path) -> None:
    write_json(tmp_path / "arc_evaluation_challenges.json", {"a": arc_task(2)})
    for path in (tmp_path, tmp_path / "arc_evaluation_challenges.json"):
        assert [(task.id, task.domain) for task in load_tasks(path)] == [("a_0", "evaluation"), ("a_1", "evaluation")]


def test_arc_outputs_may_be_left_out(tmp_path: Path) -> None:
    task = arc_task()
    del task["test"][0]["output"]
    (loaded,) = load_tasks(write_json(tmp_path / "t.json", task))
    assert loaded.answer is None
    with pytest.raises(DataError, match="neither solution nor answer"):
        validate_tasks([loaded], need_gold=True, need_demonstrations=True)


def test_bad_files_of_arc_tasks_are_named(tmp_path: Path) -> None:
    task = arc_task()
    task["train"][0]["output"] = [[1], [1, 2]]
    with pytest.raises(DataError, match=r"t\.json: train\[0\] output is ragged"):
        load_tasks(write_json(tmp_path / "t.json", task))
    write_json(tmp_path / "a.json", arc_task())
    write_json(tmp_path / "t.json", {"train": []})
    with pytest.raises(DataError, match=r"t\.json.*is no grid puzzle"):
        load_tasks(tmp_path)


def test_files_are_read_without_the_library_of_datasets(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("input,output\n1,2\n2,3\n")
    write_json(tmp_path / "t.json", arc_task())
    write_json(tmp_path / "rows.json", ROWS)
    program = f"""
import sys
from hf_mass.tasks.reading import read_one, read_set
from hf_mass.tasks.sources import load_tasks
read_set({str(tmp_path / "rows.csv")!r}, demonstrations=1)
read_one([{str(tmp_path / "t.json")!r}])
for name in ("t.json", "rows.json"):
    load_tasks({str(tmp_path)!r} + "/" + name)
sys.exit(", ".join({{"datasets", "numpy", "math_verify", "torch"}} & sys.modules.keys()) or None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_validate_tasks() -> None:
    gold = Task("p", answer="a", id="one")
    with pytest.raises(DataError, match="no tasks"):
        validate_tasks([], need_gold=False, need_demonstrations=False)
    with pytest.raises(DataError, match=r"Task 1 \(id 'two'\).*neither solution nor answer"):
        validate_tasks([gold, Task("p", id="two")], need_gold=True, need_demonstrations=False)
    with pytest.raises(DataError, match=r"Task 0 \(id 'one'\).*no demonstrations"):
        validate_tasks([gold], need_gold=True, need_demonstrations=True)
    with pytest.raises(VerifierError, match="'nope'"):
        validate_tasks([Task("p", verifier="nope")], need_gold=False, need_demonstrations=False)
    validate_tasks([Task("p"), gold], need_gold=False, need_demonstrations=False)


def test_gsm8k(shared_data: Path) -> None:
    columns = Columns(problem="question", solution="answer")
    path = shared_data / "gsm8k-train.jsonl"
    tasks = load_tasks(path, columns=columns, verifier="numeric", fmt=FORMATS["gsm8k"])
    assert len(tasks) == 7473
    validate_tasks(tasks, need_gold=True, need_demonstrations=False)
    answers = [task.answer or "" for task in tasks]
    assert all(answer.replace(",", "").lstrip("-").isdigit() for answer in answers)
    assert set(verify_batch(tasks, answers)) == {1.0}
    assert set(verify_batch(tasks, [task.solution or "" for task in tasks])) == {1.0}
    assert set(verify_batch(tasks, [answer + "1" for answer in answers])) == {0.0}


def test_math_500(shared_data: Path) -> None:
    columns = Columns(domain="subject", id="unique_id")
    tasks = load_tasks(shared_data / "math-500.json", columns=columns, verifier="math", fmt=FORMATS["math"])
    assert len(tasks) == 500
    assert tasks[0].domain == "Precalculus"
    assert tasks[0].id == "test/precalculus/807.json"
    assert set(verify_batch(tasks, [task.answer or "" for task in tasks])) == {1.0}
    assert set(verify_batch(tasks, [task.solution or "" for task in tasks])) == {1.0}
    assert set(verify_batch(tasks, [f"{task.answer}+1" for task in tasks])) == {0.0}


@pytest.mark.parametrize("name", ["1d-arc", "mini-arc", "arc-agi-1"])
def test_arc_benchmarks(shared_data: Path, name: str) -> None:
    tasks = load_tasks(shared_data / name, fmt=FORMATS["grid"])
    validate_tasks(tasks, need_gold=True, need_demonstrations=True)
    answers = [task.answer or "" for task in tasks]
    files = sorted(path.stem for path in (shared_data / name).rglob("*.json"))
    assert sorted({Path(task.fields["file"]).stem for task in tasks}) == files
    assert set(verify_batch(tasks, answers)) == {1.0}
    assert set(verify_batch(tasks, [answer + " 0" for answer in answers])) == {0.0}
    changed = [str((int(answer[0]) + 1) % 10) + answer[1:] for answer in answers]
    assert set(verify_batch(tasks, changed)) == {0.0}
    if name == "1d-arc":
        assert len({task.domain for task in tasks}) == 18


def test_rows_of_a_dataset_are_as_they_are_meant() -> None:
    datasets = pytest.importorskip("datasets")
    label, single = datasets.ClassLabel(names=["no", "yes"]), datasets.Value("float32")
    features = datasets.Features({"problem": datasets.Value("string"), "answer": label, "score": single})
    rows = {"problem": ["p", "q", "r"], "answer": [1, -1, None], "score": [0.1, 16777216.0, float("inf")]}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    for form in (None, "numpy", "pandas"):
        found = plain_rows(dataset.with_format(form))
        assert [row["answer"] for row in found] == ["yes", None, None]
        assert [row["score"] for row in found] == [0.1, 16777216.0, float("inf")]


def test_nested_values_of_a_dataset_are_as_they_are_meant() -> None:
    datasets = pytest.importorskip("datasets")
    pair = {"input": datasets.Value("float32"), "output": datasets.ClassLabel(names=["no", "yes"])}
    features = datasets.Features({"problem": datasets.Value("string"), "demonstrations": [pair]})
    row = {"problem": "p", "demonstrations": [{"input": 0.1, "output": 1}, {"input": 2.5, "output": 0}]}
    (found,) = plain_rows(datasets.Dataset.from_list([row], features=features))
    assert task_from_row(found).demonstrations == (Demonstration("0.1", "yes"), Demonstration("2.5", "no"))
