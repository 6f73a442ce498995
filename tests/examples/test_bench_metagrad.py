"""The benchmarks: every method gives the same attributions, absent peers are named, files hold what is documented."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from repository import python_path

from benchmarks import common as bench_common
from benchmarks import metagrad as bench_metagrad
from benchmarks.bars import Bar, bar_plot
from benchmarks.common import MethodUnavailable, Peak, Table, show, time_interleaved
from benchmarks.metagrad_methods import (
    BASELINE,
    METHODS,
    Problem,
    Setting,
    build_problem,
    by_rule,
    create_graph,
    inner_steps,
    restored,
    row_losses,
    token_loss,
    warm_up_problem,
)
from hf_mass.core.inner_loop import InnerLoop
from hf_mass.core.optimizers import SGD

TINY = Setting(hidden=32, layers=2, vocabulary=60, rank=2, rows=5, outer_rows=3, sequence=12, learning_rate=0.5)
OURS_AND_PEERS = [name for name in METHODS if name not in (BASELINE, "baseline-checkpointed", "create-graph")]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return build_problem(TINY)


@pytest.fixture(scope="module", params=[1, 3])
def steps(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def reference(problem: Problem, steps: int) -> torch.Tensor:
    return create_graph(problem, steps)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found_error = bench_metagrad.relative_error(found.tolist(), expected.tolist())
    assert found_error is not None
    return found_error


def snapshot(problem: Problem) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in problem.trainable.items()}


@pytest.mark.parametrize("method", OURS_AND_PEERS)
def test_every_method_finds_the_same_attributions(
    problem: Problem, steps: int, reference: torch.Tensor, method: str
) -> None:
    """Exact ones to rounding; finite differences near enough to tell that the reference itself is right."""
    before = snapshot(problem)
    try:
        found = METHODS[method].run(problem, steps)
    except (MethodUnavailable, TypeError) as reason:
        # `higher` is not maintained: where it loads, it may fail on the modules of today's PyTorch
        assert method in ("torchopt", "higher"), reason
        pytest.skip(f"{method}: {reason}")
    assert found is not None and found.shape == (TINY.rows,)
    assert error(found, reference) < (1e-2 if method == "finite-difference" else 1e-5)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(problem).items())


@pytest.mark.parametrize("method", [BASELINE, "baseline-checkpointed"])
def test_the_baselines_change_nothing_in_the_end(problem: Problem, method: str) -> None:
    before = snapshot(problem)
    assert METHODS[method].run(problem, 2) is None
    assert all(torch.equal(value, before[name]) for name, value in snapshot(problem).items())
    assert not problem.model.training


def test_the_baseline_takes_the_steps_of_the_inner_loop(problem: Problem) -> None:
    params = list(problem.trainable.values())
    with restored(params):
        inner_steps(problem, 2, params)
        plain = snapshot(problem)
    with problem.lora.inactive():
        loss = token_loss(problem, problem.inner, "fast")
        trajectory = InnerLoop(2, SGD(TINY.learning_rate)).run(loss, problem.lora.start(), problem.weights)
    start = snapshot(problem)
    for name, leaf in trajectory.adapted.items():
        moved = plain[f"{name}"] - start[name]
        assert moved.norm() > 0
        assert torch.allclose(leaf[0], plain[name], atol=1e-6 + 1e-4 * moved.abs().max().item())


def test_microbatches_change_no_result(problem: Problem) -> None:
    small = replace(problem, setting=replace(TINY, microbatch=2))
    expected = create_graph(problem, 2)
    for memory in ("fast", "lean"):
        assert error(by_rule(small, 2, "adjoint", memory), expected) < 1e-5
    found = METHODS["finite-difference"].run(small, 2)
    assert found is not None and error(found, expected) < 1e-2


def test_a_bfloat16_base_is_compared_with_the_same_weights_in_float32() -> None:
    narrow = build_problem(replace(TINY, dtype="bfloat16"))
    wide = build_problem(replace(TINY, dtype="bfloat16", upcast=True))
    for (name, x), (_, y) in zip(narrow.model.named_parameters(), wide.model.named_parameters(), strict=True):
        assert y.dtype == torch.float32 and torch.equal(x.float(), y), name
    assert {p.dtype for p in narrow.model.parameters()} == {torch.bfloat16, torch.float32}  # LoRA stays wide
    assert 1e-5 < error(by_rule(narrow, 1, "adjoint", "fast"), create_graph(wide, 1)) < 0.2


def test_rows_are_uneven_and_answers_are_the_last_two_thirds() -> None:
    batch = build_problem(replace(TINY, sequence=30, rows=12)).inner
    lengths = batch.attention_mask.sum(1)
    assert lengths[0] == 30 and lengths.min() >= 20 and len(lengths.unique()) > 3
    answers = (batch.labels != -100).sum(1)
    assert torch.equal(answers, lengths - lengths // 3)
    assert ((batch.labels == batch.input_ids) | (batch.labels == -100)).all()


def test_the_warm_up_shares_the_model_and_is_short(problem: Problem) -> None:
    long = build_problem(replace(TINY, sequence=40), problem.model)
    small = warm_up_problem(long)
    assert small.model is problem.model and small.inner.input_ids.shape == (TINY.rows, 16)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Children answer in this process, through JSON as they would: nothing to load again."""

    def answer(script: Path, request: dict[str, Any], threads: int) -> Any:
        try:
            return json.loads(json.dumps(bench_metagrad.measure(json.loads(json.dumps(request)))))
        except Exception as failure:
            raise MethodUnavailable(f"{type(failure).__name__}: {failure}") from failure

    def measure_peak(work: Callable[[], object], device: str) -> Peak:
        work()
        return Peak(4.0, "made up")

    monkeypatch.setattr(bench_metagrad, "run_in_child", answer)
    monkeypatch.setattr(bench_metagrad, "measure_peak", measure_peak)
    bench_metagrad.ask.cache_clear()
    yield
    bench_metagrad.ask.cache_clear()


def run_script(monkeypatch: pytest.MonkeyPatch, output: Path, options: str) -> dict[str, Any]:
    shape = "--hidden 32 --layers 1 --vocabulary 60 --rank 2 --rows 4 --outer_rows 2 --sequence 12 --deep_layers 2"
    line = f"metagrad.py {shape} {options} --output {output}"
    monkeypatch.setattr(sys, "argv", line.split())
    bench_metagrad.main()
    return json.loads(output.read_text(encoding="utf-8"))


def test_the_report_holds_what_is_documented_and_names_absent_peers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    monkeypatch.setitem(sys.modules, "torchopt", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "higher", None)
    record = run_script(monkeypatch, tmp_path / "out" / "m.json", "--steps 1 2 --repeats 2")
    assert record["format"] == bench_common.FORMAT_VERSION
    assert {"cpu", "cores", "threads", "torch", "transformers", "peft"} <= record["machine"].keys()
    assert record["command"].startswith("python -m benchmarks.metagrad --hidden 32")
    assert record["settings"]["rows"] == 4
    assert set(record["tables"]) == {"cost_1", "cost_2", "steps", "layers"}
    for steps in (1, 2):
        rows = {row["method"]: row for row in record["tables"][f"cost_{steps}"]["rows"]}
        assert list(rows) == list(METHODS)
        for name, row in rows.items():
            assert row["steps"] == steps and row["label"] == METHODS[name].label
            if name in ("torchopt", "higher"):
                assert row["status"] == "absent" and name in row["reason"] and "seconds" not in row
                continue
            assert row["status"] == "measured" and row["reason"] is None
            assert len(row["seconds"]) == 2 and (row["peak_mib"], row["memory_ratio"]) == (4.0, 1.0)
            low, high = row["time_ratio_range"]
            assert low <= row["time_ratio"] <= high
            assert (row["error"] is None) == name.startswith("baseline")
            limit = 1e-2 if name == "finite-difference" else 1e-5
            assert row["error"] is None or row["error"] < limit
        assert rows[BASELINE]["time_ratio_range"] == [1.0, 1.0]
    assert {row["method"] for row in record["tables"]["layers"]["rows"]} == {BASELINE, "adjoint-fast", "adjoint-lean"}
    assert len(record["tables"]["layers"]["rows"]) == 6
    printed, written = capsys.readouterr().out, (tmp_path / "out" / "m.md").read_text(encoding="utf-8")
    for text in (printed, written):
        assert "import torchopt fails" in text and "import higher fails" in text
    assert (tmp_path / "out" / "m.png").stat().st_size > 10_000


def test_a_method_that_fails_and_a_missing_baseline_leave_no_ratio(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_process: None
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    broken = replace(METHODS["adjoint-lean"], run=fail)
    monkeypatch.setitem(bench_metagrad.METHODS, "adjoint-lean", broken)
    options = "--steps 1 --repeats 1 --methods adjoint-fast adjoint-lean --reference none --tables cost"
    record = run_script(monkeypatch, tmp_path / "m.json", options)
    fast, lean = record["tables"]["cost_1"]["rows"]
    assert fast["status"] == "measured" and fast["error"] is None and "time_ratio" not in fast
    assert fast["memory_ratio"] is None
    assert lean["status"] == "absent" and lean["reason"] == "RuntimeError: out of luck"


def test_a_preset_changes_defaults_and_options_overrule_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_metagrad.py", "--preset", "llama-3.1-8b", "--sequence", "512"])
    found = bench_metagrad.parse_arguments()
    assert (found.hidden, found.layers, found.vocabulary, found.dtype) == (4096, 32, 128256, "bfloat16")
    assert (found.sequence, found.steps, found.device) == (512, [2], "cuda")


def test_methods_take_turns_and_ratios_stay_within_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of our own: the machine is twice as slow in the second turn, and no ratio shows it."""
    now, calls = [0.0], []
    monkeypatch.setitem(bench_common.CLOCKS, "wall", lambda: now[0])

    def method(name: str, cost: float) -> Any:
        def work() -> None:
            now[0] += cost * (2.0 if len(calls) in (4, 5) else 1.0)
            calls.append(name)

        return work

    found = time_interleaved({"a": method("a", 1.0), "b": method("b", 3.0)}, 3, baseline="a")
    assert calls == ["a", "b"] * 4  # one turn to warm up
    assert found["a"].seconds == [1.0, 2.0, 1.0] and found["b"].seconds == [3.0, 6.0, 3.0]
    assert found["b"].ratios == [3.0, 3.0, 3.0]
    assert found["b"].fields["seconds_range"] == [3.0, 6.0] and found["b"].fields["time_ratio"] == 3.0
    assert time_interleaved({"a": method("a", 1.0)}, 1)["a"].ratios is None


CHILD = """
from benchmarks.common import answer_child, measure_peak

def answer(request):
    kept = bytearray(96 << 20)  # what is held before does not count
    peak = measure_peak(lambda: [bytearray(48 << 20), bytearray(16 << 20)] and None)
    return {"mib": peak.mib, "source": peak.source, "threads": __import__("torch").get_num_threads(), **request}

assert answer_child(answer)
"""


@pytest.fixture
def make_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module that child processes can run, and returns its name."""
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path))

    def make(code: str) -> str:
        (tmp_path / "child_of_a_test.py").write_text(code, encoding="utf-8")
        return "child_of_a_test"

    return make


def test_peak_memory_is_measured_in_a_fresh_process(make_child: Callable[[str], str]) -> None:
    found = bench_common.run_in_child(make_child(CHILD), {"asked": [1, 2]}, threads=2)
    assert found["threads"] == 2 and found["asked"] == [1, 2]
    if found["source"] == "VmHWM":
        assert 63 < found["mib"] < 72


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; print('warning', file=sys.stderr); sys.exit('the reason')", "^the reason$"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("import time; time.sleep(60)", "longer than 1 s"),
    ],
)
def test_the_reason_of_a_child_that_fails_is_kept(make_child: Callable[[str], str], code: str, reason: str) -> None:
    with pytest.raises(MethodUnavailable, match=reason):
        bench_common.run_in_child(make_child(code), {}, timeout=1)


def test_a_child_gives_its_error_as_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(request: dict[str, str]) -> None:
        raise (MethodUnavailable if request["kind"] == "absent" else ValueError)("two\nlines")

    for kind, text in (("absent", "two\nlines"), ("broken", "ValueError: two lines")):
        monkeypatch.setattr(sys, "argv", ["script.py", bench_common.CHILD_OPTION, json.dumps({"kind": kind})])
        with pytest.raises(SystemExit) as ended:
            bench_common.answer_child(answer)
        assert ended.value.code == text
    monkeypatch.setattr(sys, "argv", ["script.py", "--threads", "1"])
    assert not bench_common.answer_child(answer)


def test_a_peak_that_cannot_be_reset_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> int:
        raise PermissionError(str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    peak = bench_common.measure_peak(lambda: None)
    assert "upper bound" in peak.source and "PermissionError" in peak.source and peak.mib >= 0


def test_cells_and_tables() -> None:
    shown = [show(value) for value in (None, 1.234, 0.0012, 0.0, 123.4, [0.5, 2.0], "x|y", 3)]
    assert shown == ["–", "1.23", "1.2e-03", "0.00", "123", "0.50–2.00", "x|y", "3"]
    table = Table("title", {"a": "A", "b": "B"}, [{"a": 1.0}, {"a": "x|y", "b": None}], ["a note"])
    assert table.to_markdown().splitlines() == [
        *("### title", "", "| A | B |", "| --- | --- |", "| 1.00 | – |", "| x\\|y | – |", "", "a note")
    ]
    assert table.to_text().splitlines()[1].split() == ["A", "B"]


def test_the_plot_takes_bars_without_a_value(tmp_path: Path) -> None:
    bars = {"one": Bar(1.5, (1.2, 1.9)), "two": Bar(None, reason="absent here")}
    path = bar_plot([[("left", bars), ("right", bars)]], tmp_path / "p.svg", title="t", highlight=["one"])
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<?xml") and text.count("absent here") == 2


def test_forward_losses_are_those_of_the_engine(problem: Problem) -> None:
    loss = token_loss(problem, problem.inner, "fast")
    rows = torch.arange(TINY.rows)
    with problem.lora.inactive(), loss.evaluate(problem.lora.start(), rows, loss.row_task, False) as values:
        assert torch.allclose(values, row_losses(problem.model, problem.inner), atol=1e-5)
