"""The benchmark of many tasks: all ways end at the same weights and tokens, and times are told apart rightly."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import adapters as bench_adapters
from benchmarks import tasks as bench_tasks
from benchmarks.adapters import (
    ADAPT,
    LOOP,
    Many,
    PeftAdapters,
    Stacked,
    build_rows,
    draw_weights,
    equal_share,
    update_error,
)
from benchmarks.common import MethodUnavailable
from benchmarks.latency import latency_table
from benchmarks.metagrad_methods import Setting
from benchmarks.stages import Stage, Stopwatch, profiled, shares
from benchmarks.trainer import Runner, StepSetting, load_base, mass_runner, solution_length, trainer_tables
from research.conventions.experiment import base_model, load_world

TINY = Many(Setting(hidden=32, layers=2, vocabulary=260, rank=2, sequence=12), tasks=3, samples=2, new_tokens=4)


# -- adapting and generating -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("method", [name for name in ADAPT if name != LOOP])
def test_stacked_tasks_end_where_a_loop_over_peft_adapters_ends(method: str, uneven: bool, trained: bool) -> None:
    many = replace(TINY, uneven=uneven, trained=trained, microbatch=2 if uneven else 0, samples=3 if uneven else 2)
    loop, ours = PeftAdapters(many), ADAPT[method].build(many)
    start = loop.read()
    loop.adapt()
    reference, found = loop.read(), ours.adapt()
    assert found is not None
    assert update_error(found, reference, start) < 1e-5
    assert update_error(start, reference, start) == pytest.approx(1.0)


def test_an_error_in_one_task_shows() -> None:
    loop = PeftAdapters(TINY)
    start = loop.read()
    loop.adapt()
    reference = loop.read()
    wrong = {name: leaf.clone() for name, leaf in reference.items()}
    for name in wrong:
        wrong[name][1] = start[name][1]
    assert update_error(wrong, reference, start) == pytest.approx(1.0)


def test_uneven_rows_differ_in_number_and_length() -> None:
    rows = build_rows(replace(TINY, uneven=True, tasks=6, samples=4))
    counts = {sum(row.task == task for row in rows) for task in range(6)}
    assert len(counts) > 1
    assert len({len(row.prompt_ids) + len(row.answer_ids) for row in rows}) > 2
    assert [row.task for row in rows] == sorted(row.task for row in rows)


def test_all_ways_to_generate_give_the_same_tokens() -> None:
    ours, peers = Stacked(TINY), PeftAdapters(TINY)
    params = draw_weights(ours.adapter.lora.start(), TINY)
    unadapted = peers.complete()
    peers.put(params)
    found = ours.complete(params)
    assert [len(row) for row in found] == [TINY.new_tokens] * TINY.tasks
    assert peers.complete() == found
    assert peers.complete_mixed() == found
    assert unadapted != found  # the adapters say something
    assert equal_share(found, found) == 1.0
    assert equal_share([[1, 2, 3, 4]], [[1, 2, 3, 5]]) == 0.75


def test_peak_memory_comes_from_another_process() -> None:
    """The problem reaches the other process whole; a failure there is a reason, not an end."""
    found = bench_adapters.peak_memory(replace(TINY, uneven=True), "stacked", threads=1)
    assert found["peak_mib"] >= 0 and found["peak_source"].startswith(("VmHWM", "ru_maxrss"))


def test_memory_that_cannot_be_measured_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MethodUnavailable("out of memory")

    monkeypatch.setattr(bench_adapters, "run_in_child", fail)
    assert bench_adapters.peak_memory(TINY, "stacked", threads=1) == {"peak_source": "not measured: out of memory"}


# -- stages ------------------------------------------------------------------------------------------------------------


class Ticking:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_stage_does_not_count_the_stages_inside() -> None:
    clock = Ticking()
    watch = Stopwatch(clock)

    def outer() -> None:
        clock.now += 1
        owner.inner()
        clock.now += 2

    def inner() -> None:
        clock.now += 10
        owner.leaf()

    def leaf() -> None:
        clock.now += 100

    owner = SimpleNamespace(outer=outer, inner=inner, leaf=leaf)
    stages = [Stage("outer", owner, "outer"), Stage("inner", owner, "inner", whole=True), Stage("leaf", owner, "leaf")]
    with watch.watching(stages):
        owner.outer()
        owner.leaf()
        clock.now += 1000  # nobody's
    assert owner.outer is outer and owner.leaf is leaf
    assert dict(watch.seconds) == {"outer": 3.0, "inner": 110.0, "leaf": 100.0}
    assert shares(watch.seconds, 426.0, "rest") == pytest.approx(
        {"outer": 300 / 426, "inner": 11000 / 426, "leaf": 10000 / 426, "rest": 21300 / 426}
    )


def test_a_failing_stage_is_closed_and_put_back() -> None:
    def fail() -> None:
        raise KeyError

    owner, watch = SimpleNamespace(fail=fail), Stopwatch()
    with watch.watching([Stage("fails", owner, "fail")]), pytest.raises(KeyError):
        owner.fail()
    assert owner.fail is fail
    with watch.stage("next"):
        pass
    assert set(watch.seconds) == {"fails", "next"}


def test_a_method_that_is_inherited_is_put_back() -> None:
    class Base:
        def go(self) -> int:
            return 1

    class Child(Base):
        pass

    watch = Stopwatch()
    with watch.watching([Stage("go", Child, "go")]):
        assert Child().go() == 1
    assert "go" not in vars(Child) and "go" in watch.seconds


def test_profile_names_the_costly_function() -> None:
    matrix = torch.randn(300, 300)
    found = profiled(lambda: [matrix @ matrix for _ in range(20)], count=3)
    assert len(found.lines) == 3 and 0 <= found.package <= found.total


# -- trainers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained() -> Any:
    return base_model(0)


@torch.no_grad()
def test_a_grown_base_is_the_same_function(untrained: Any) -> None:
    ids = torch.tensor([[1, 5, 9, 30, 12, 2]])
    small, large = load_base(), load_base(128, 5)
    assert large.num_parameters() > 4 * small.num_parameters()
    assert torch.allclose(small(ids).logits, large(ids).logits, atol=1e-4)


@pytest.fixture(scope="module")
def runner(untrained: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    setting = StepSetting(tasks_per_step=2, steps=2, dropped=1)
    tasks = load_world().tasks("train", 4, seed=0)
    yield mass_runner(setting, tasks, untrained.tokenizer, tmp_path_factory.mktemp("mass"))


def test_generated_tokens_are_counted(runner: Runner) -> None:
    """Two tasks: 8 samples of 5 tokens and 16 solutions of 3 for each, and unadapted solutions for the log."""
    args = runner.trainer.args
    per_task = args.num_generations * 5 + args.num_solutions * 3
    assert runner.generated() == pytest.approx(2 * per_task, rel=0.1)
    assert "generate" not in vars(runner.trainer.model)


def test_a_run_changes_no_weight(runner: Runner) -> None:
    before = {name: value.clone() for name, value in runner.trainer.model.state_dict().items()}
    assert runner.run() > 0
    assert len(runner.clock.steps) == 2
    assert all(torch.equal(value, before[name]) for name, value in runner.trainer.model.state_dict().items())


def test_both_trainers_generate_as_many_tokens(untrained: Any) -> None:
    setting = StepSetting(tasks_per_step=2, steps=2, dropped=1)
    tables = trainer_tables(setting, untrained, repeats=1, profile=True)
    rows = {row["method"]: row for row in tables["trainer"].rows}
    assert rows["mass"]["tokens"] == pytest.approx(rows["solver"]["tokens"], rel=0.05)
    assert rows["solver"]["time_ratio"] == 1.0
    stages = {row["stage"]: row for row in tables["stages"].rows}
    for name in ("meta-gradient", "generate solutions", "inner loop", "verify", "parse", "features for the scorer"):
        assert stages[name]["mass_share"] > 0, name
    assert sum(row.get("mass_share", 0.0) for row in stages.values()) == pytest.approx(100)
    assert sum(row.get("solver_share", 0.0) for row in stages.values()) == pytest.approx(100)
    assert solution_length(untrained, load_world().tasks("train", 8, seed=0)) == pytest.approx(3, abs=0.5)


def test_latency_is_compared_at_equal_sampled_tokens(untrained: Any) -> None:
    table = latency_table(untrained, load_world().tasks("validation", 2, seed=0), repeats=1, clock="wall")
    rows = {row["method"]: row for row in table.rows}
    assert rows["vote"]["tokens"] == pytest.approx(rows["scorer"]["tokens"], rel=0.1)
    assert rows["greedy"]["tokens"] == 3
    for name in ("scorer", "demonstrations", "together"):
        assert sum(rows[name][stage] for stage in ("generate", "score", "adapt", "answer", "rest")) == pytest.approx(
            100
        )
        assert min(rows[name][stage] for stage in ("generate", "score", "adapt", "answer")) > 0


def test_main_writes_what_it_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    output = tmp_path / "tasks.json"
    line = f"bench_tasks.py --preset toy --tables adapt generate --no_memory --uneven --output {output}"
    monkeypatch.setattr(sys, "argv", line.split())
    bench_tasks.main()
    record = json.loads(output.read_text())
    assert set(record["tables"]) == {"adapt", "generate"}
    adapt = {row["method"]: row for row in record["tables"]["adapt"]["rows"]}
    assert adapt["stacked"]["error"] < 1e-5 and len(adapt["stacked"]["seconds"]) == 2
    assert all(row["equal"] == 1.0 for row in record["tables"]["generate"]["rows"])
    assert output.with_suffix(".png").is_file() and output.with_suffix(".md").is_file()
    assert "adapting 3 tasks" in capsys.readouterr().out
