"""MASS on grids: prompts are those of few-shot training, answers are judged as grids, every row of the study runs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mass.errors import DataError
from hf_mass.lm.few_shot_encoding import FewShotEncoder
from hf_mass.methods import sampling
from hf_mass.methods.judging import judge
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.tasks.few_shot_format import resolve_format
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.training import meta_adapt_trainer
from research.grids import mass as grid_mass
from research.grids import mass_study as grid_mass_study
from research.grids.mass_study import FORMAT, ROWS, Setting, Study, as_lists, recoloured_samples, world_tasks
from research.grids.pretrain import build_tokenizer
from research.grids.rule_check import explaining, follows
from research.grids.world import HELD_OUT, Sizes, draw_task

SMALL = Sizes(strip=(6, 8), side=(2, 3), composed=0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights with the tokenizer of the grids' base."""
    folder, tokenizer = tmp_path_factory.mktemp("grids"), build_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=1,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random weights writes hardly any grids: let every other sample be one."""
    plain, numbers = sampling.read_sample, iter(range(10**9))

    def read(text: str, ids: Any, fmt: Any) -> AuxiliarySample:
        number = next(numbers)
        pair = AuxiliarySample(text, tuple(ids), f"0 {number % 7} 1", f"1 {number % 5} 0")
        return pair if number % 2 else plain(text, ids, fmt)

    monkeypatch.setattr(sampling, "read_sample", read)
    monkeypatch.setattr(meta_adapt_trainer, "read_sample", read)


@pytest.fixture
def study(base: Path) -> Study:
    return Study(base, ttt={"max_examples": 4, "num_train_epochs": 1})


def small_tasks(count: int = 2) -> list[Task]:
    return world_tasks(1, "test", HELD_OUT[:count], SMALL)


def test_prompts_are_those_of_few_shot_training(study: Study) -> None:
    encoder, few_shot = study.mass.encoder, FewShotEncoder(study.mass.tokenizer, resolve_format("compact"))
    for task in world_tasks(1, "tokens", sizes=SMALL):
        assert encoder.solver_prompt_ids(task) == few_shot.prompt(task)
        ids, learned = few_shot.answered(task, str(task.answer))
        assert [i for i, flag in zip(ids, learned, strict=True) if flag] == encoder.answer_ids(str(task.answer))
        asked = replace(task, problem="1 2\n3 4")
        assert encoder.prompt_ids(task, FORMAT.inner_prompt("1 2\n3 4", task)) == few_shot.prompt(asked)
        left_out = task.leave_one_out(1)
        prompt = FORMAT.demonstration_prompt(left_out.problem, left_out)
        assert encoder.prompt_ids(left_out, prompt) == few_shot.prompt(left_out)
        loss = study.mass.adapter.demonstration_loss([task], [[""]]).loss
        row, mask = loss.batch.input_ids[1], loss.batch.attention_mask[1].bool()  # type: ignore[attr-defined]
        assert row[mask].tolist() == few_shot.answered(left_out, str(left_out.answer))[0][:-1]
        # The generator goes on where the demonstrations end.
        assert encoder.generator_prompt_ids(task) == few_shot.prompt(task)[: len(encoder.generator_prompt_ids(task))]
        assert few_shot.format.prompt(task).startswith(FORMAT.generator_prompt(task))


@pytest.mark.parametrize(
    ("text", "reward"),
    [("012\n345;", 1.0), ("0 1 2\n3 4 5", 1.0), ("012\n345", 1.0), ("012345;", 0.0), ("012\n34;", 0.0), (">012", 0.0)],
)
def test_answers_are_judged_as_grids(study: Study, text: str, reward: float) -> None:
    task = Task("0 1", (Demonstration("0", "1"),), answer="0 1 2\n3 4 5")
    (answer,) = judge(study.mass.config.format, [task], [text])
    assert answer.score == reward
    assert answer.text in (task.answer, None if "\n34;" in text or ">" in text else "0 1 2 3 4 5")


def test_solve_reads_compact_answers(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = small_tasks()
    ids = [study.mass.encoder.answer_ids(str(task.answer)) for task in tasks]
    monkeypatch.setattr("hf_mass.methods.mass_model.complete", lambda *args, **kwargs: ids)
    answers = study.mass.solve(tasks)
    assert [a.score for a in answers] == [1.0, 1.0]  # type: ignore[union-attr]
    assert [a.text for a in answers] == [task.answer for task in tasks]  # type: ignore[union-attr]


@pytest.mark.parametrize("family", HELD_OUT)
def test_rules_explain_what_the_world_draws(family: str) -> None:
    draw, explained = random.Random(family), 0
    for _ in range(20):
        pairs = draw_task(draw, Sizes(composed=0.0), [family]).pairs
        rules = explaining(family, pairs)
        if rules:  # one task in twenty has another ground, which the rules do not know
            explained += 1
            grid, output = pairs[-1]
            wrong = [[9 - c for c in row] for row in output]
            assert follows(rules, (grid, output)) and not follows(rules, (grid, wrong))
    assert explained >= 17
    assert explaining("strip/fill", pairs) == []


def test_recoloured_samples_ask_what_demonstrations_ask(study: Study) -> None:
    (task,) = small_tasks(1)
    group = recoloured_samples(study.mass, task, 6, seed=0)
    shapes = {tuple(len(row.split()) for row in pair.question.split("\n")) for pair in task.demonstrations}
    assert len(group) == 6 and len({sample.text.partition(">")[0] for sample in group}) > 3
    for sample in group:
        if sample.usable:
            assert sample.text.startswith(FORMAT.written(sample.question) + ">")
            assert tuple(len(row.split()) for row in sample.question.split("\n")) in shapes
    again = recoloured_samples(study.mass, task, 6, seed=0)
    assert [s.text for s in again] == [s.text for s in group]


def test_the_adapter_is_the_tasks_own_within_and_put_back(study: Study, readable: None) -> None:
    task, other = small_tasks()
    row = next(row for row in ROWS if row.trained and row.weigh_by == "demonstrations")
    before = {name: p.detach().clone() for name, p in study.mass.model.named_parameters()}

    def changed() -> set[str]:
        now = study.mass.model.named_parameters()
        return {name.split("lora_")[1][2:9] for name, p in now if not torch.equal(p, before[name])}

    with study.at_adapter(task):
        assert changed() == {"default"}
        inside = study.mass.solve([task])
    assert not changed()
    with pytest.raises(DataError), study.at_adapter(other):
        raise DataError("interrupted")
    assert not changed()
    (outcome,) = study.answer(next(row for row in ROWS if row.name == "TTT"), Setting(1.0, 1.0), [task])
    assert outcome["right"] == inside[0].score  # type: ignore[index]
    study.answer(row, Setting(1.0, 1.0), [task, other])
    assert not changed()


def test_fewer_samples_are_the_first_of_more(study: Study) -> None:
    tasks, eight = small_tasks(), next(row for row in ROWS if row.count == 8)
    mass = study.model(tasks, Setting(1.0, 1.0), eight)
    more = study.samples(mass, tasks, replace(eight, count=12))
    drawn = mass.generate_auxiliary(tasks, 8, study.seed)
    assert study.samples(mass, tasks, eight) == [group[:8] for group in more]
    assert [[s.text for s in group] for group in drawn] == [[s.text for s in group[:8]] for group in more]


def test_every_row_runs(
    base: Path, tmp_path: Path, readable: None, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both kinds of set; a second run takes what the first one wrote."""
    drawn: Callable[..., list[Task]] = grid_mass_study.world_tasks

    def small(per_family: int, name: str, families: Sequence[str] = HELD_OUT[:1]) -> list[Task]:
        return drawn(per_family, name, families, SMALL)

    monkeypatch.setattr(grid_mass_study, "world_tasks", small)
    monkeypatch.setattr(grid_mass, "world_tasks", small)
    line = (
        f"--base {base} --output {tmp_path} --data {shared_data} --sets world 1d-arc --tasks_per_type 1 --limit 2 "
        "--validation_per_family 1 --rates 0.5 1 --scorer_steps 1 --ttt max_examples=2 num_train_epochs=1"
    )
    found = grid_mass.main(line.split())
    assert json.loads((tmp_path / "results.json").read_text())["outcomes"] == found["outcomes"]
    assert set(found["outcomes"]["world"]) == set(found["outcomes"]["1d-arc"]) == {row.name for row in ROWS}
    for row in ROWS:
        for outcome in found["outcomes"]["1d-arc"][row.name]:
            assert outcome["right"] in (0, 1) and outcome["loss"] > 0
            assert len(outcome.get("samples", ())) == row.count
            weights = [sample["weight"] for sample in outcome.get("samples", ())]
            assert sum(weights) == pytest.approx(1.0 if row.count else 0.0, abs=0.01)
    assert "MASS attribution, m = 24" in (tmp_path / "results.md").read_text()
    assert len(found["settings"]["MASS uniform, m = 8"]["trials"]) == 2
    monkeypatch.setattr(Study, "answer", None)
    assert grid_mass.main(line.split())["outcomes"] == found["outcomes"]


def test_the_report_on_samples_compares_within_tasks() -> None:
    def sample(weight: float, right: bool | None, read: bool = True) -> dict[str, Any]:
        return {"weight": weight, "read": read} | ({} if right is None else {"follows": right, "copied": False})

    results = [
        {"samples": [sample(0.6, True), sample(0.4, False), sample(0.0, None, False)]},
        {"samples": [sample(0.1, True), sample(0.5, False), sample(0.2, False), sample(0.2, True)]},
        {"samples": [sample(1.0, True)]},
        {},
    ]
    report = grid_mass.sample_report(results)
    assert report["read"] == pytest.approx(7 / 8)
    assert report["mixed tasks"] == 2
    assert report["auc"] == pytest.approx((1 + 0.125) / 2)
    assert report["follow"] == pytest.approx(0.5)
    assert report["weight"] == pytest.approx((0.6 + 0.3) / 2)
    assert grid_mass.sample_report([{}]) == {}


def test_pairs_become_the_worlds_grids() -> None:
    assert as_lists("0 1\n2 3", "4") == ([[0, 1], [2, 3]], [[4]])
