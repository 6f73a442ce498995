"""Results of test-time training on disk: killed runs that go on, other settings, damage, and adapters that are kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import byte_tokenizer
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from ttt_fixtures import guessing_base, make_trainer, reinforced, start_adapter, strip_task

from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.lm.language_model import LanguageModel
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.voting import Prediction
from hf_mass.training.reinforcement import Reinforcement
from hf_mass.training.ttt_results import ResultStore, TaskResult
from hf_mass.training.ttt_trainer import TTTTrainer

TASKS = [
    strip_task("four", "444"),
    strip_task("five", "555"),
    strip_task("mixed", "454"),
    strip_task("four-2", "444", query="3 0"),
    strip_task("rows", "44", ("1 0", "0 2")),
]


def outcome(results: Sequence[TaskResult]) -> list[TaskResult]:
    """Results apart from the time that they took."""
    return [replace(result, seconds=0.0) for result in results]


def counted(trainer: TTTTrainer, monkeypatch: pytest.MonkeyPatch, kill_at: int | None = None) -> list[str]:
    """Notes which tasks are trained on; the run is killed when it comes to the one of this number."""
    seen: list[str] = []
    begin = trainer.method.begin

    def counting(lm: LanguageModel, tasks: Sequence[Task], seed: int) -> Any:
        if kill_at is not None and len(seen) >= kill_at:
            raise KeyboardInterrupt
        seen.extend(task.id for task in tasks)
        return begin(lm, tasks, seed)

    monkeypatch.setattr(trainer.method, "begin", counting)
    return seen


def test_another_base_of_the_same_path_is_not_resumed_with(tmp_path: Path) -> None:
    make_trainer(tmp_path).predict(TASKS[:1])
    base = guessing_base()
    with torch.no_grad():
        next(base.parameters()).view(-1)[0] += 0.5
    with pytest.raises(ConfigError, match=r"is of a run with base_weights = .*Use the same settings to resume"):
        make_trainer(tmp_path, base).predict(TASKS[:1], resume=True)


def test_an_occupied_output_dir_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CheckpointError, match=r"could not be written.*A file is in the way"):
        make_trainer(tmp_path / "run")


# -- killed runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    changes = {"tasks_per_pass": 1, "keep_adapters": keep}
    whole = make_trainer(tmp_path / "whole", **changes).predict(TASKS)
    killed = make_trainer(tmp_path / "killed", **changes)
    begun = counted(killed, monkeypatch, kill_at=3)
    with pytest.raises(KeyboardInterrupt):
        killed.predict(TASKS)
    assert begun == ["four", "four-2", "five"]
    again = make_trainer(tmp_path / "killed", **changes)
    trained = counted(again, monkeypatch)
    results = again.predict(TASKS, resume=True)
    assert trained == ["mixed", "rows"]
    assert outcome(results) == outcome(whole) and [r.task for r in results] == TASKS
    for one, same in zip(whole, results, strict=True):
        assert (one.adapter is not None) == (same.adapter is not None) == keep
    once_more = counted(again, monkeypatch)
    assert again.predict(TASKS, resume=True) == results and once_more == []
    assert again.predict([*TASKS, strip_task("new", "555")], resume=True)[:5] == results and once_more == ["new"]


def test_without_resume_everything_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    first = trainer.predict(TASKS[:2])
    trained = counted(trainer, monkeypatch)
    assert outcome(trainer.predict(TASKS[:2])) == outcome(first) and trained == ["four", "five"]


def test_resuming_where_nothing_is_there_is_a_new_run(tmp_path: Path) -> None:
    assert outcome(make_trainer(tmp_path / "a").predict(TASKS[:2], resume=True)) == outcome(
        make_trainer(tmp_path / "b").predict(TASKS[:2])
    )


def test_evaluation_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_trainer(tmp_path).evaluate(TASKS[:3])
    trainer = make_trainer(tmp_path)
    trained = counted(trainer, monkeypatch)
    assert trainer.evaluate(TASKS[:3], resume=True) == first and trained == []


def test_a_killed_run_of_reinforcement_learning_goes_on(tmp_path: Path) -> None:
    whole = reinforced(tmp_path / "whole", max_steps=4).predict(TASKS[:2])
    trainer = reinforced(tmp_path / "killed", max_steps=4)
    method, reinforce, calls = trainer.method, trainer._reinforce, list[int]()

    def killing(prompts: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return reinforce(prompts)

    assert isinstance(method, Reinforcement)
    method.reinforce = killing
    with pytest.raises(KeyboardInterrupt):
        trainer.predict(TASKS[:2])
    assert outcome(trainer.predict(TASKS[:2], resume=True)) == outcome(whole) and len(calls) == 3


# -- other settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "found", "own"),
    [("learning_rate", 0.5, "0.02", "0.5"), ("seed", 1, "42", "1"), ("vote", "first", "'flat'", "'first'")],
)
def test_a_run_with_other_settings_is_not_resumed(tmp_path: Path, name: str, value: Any, found: str, own: str) -> None:
    make_trainer(tmp_path).predict(TASKS[:1])
    message = rf"ttt_run\.json is of a run with {name} = {found}, and this one has {own}\. Use the same settings"
    with pytest.raises(ConfigError, match=message):
        make_trainer(tmp_path, **{name: value}).predict(TASKS[:1], resume=True)
    make_trainer(tmp_path, tasks_per_pass=2, predict_batch_size=3).predict(TASKS[:1], resume=True)


def test_another_model_or_purpose_is_not_resumed(tmp_path: Path) -> None:
    make_trainer(tmp_path, start_adapter(0.05)).predict(TASKS[:1])
    with pytest.raises(ConfigError, match="of a run with start = "):
        make_trainer(tmp_path, start_adapter(0.1)).predict(TASKS[:1], resume=True)
    with pytest.raises(ConfigError, match="of a run with adapt = True, and this one has False"):
        make_trainer(tmp_path, start_adapter(0.05)).predict(TASKS[:1], resume=True, adapt=False)
    scaled = start_adapter(0.05)
    scaled.peft_config["default"].lora_alpha *= 8
    for module in scaled.modules():
        if isinstance(module, LoraLayer):  # the same matrices add more
            module.lora_alpha["default"] *= 8
            module.scaling["default"] *= 8
    with pytest.raises(ConfigError, match="of a run with start = "):
        make_trainer(tmp_path, scaled).predict(TASKS[:1], resume=True)
    renamed = start_adapter(0.05)
    renamed.get_base_model().config.name_or_path = "other/base"
    with pytest.raises(ConfigError, match=r"of a run with base = .* and this one has 'other/base'"):
        make_trainer(tmp_path, renamed).predict(TASKS[:1], resume=True)


@pytest.mark.parametrize("switch", [{"resume": "no"}, {"adapt": 0}])
def test_switches_are_true_or_false(switch: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"predict: (resume|adapt) is .*; choose True or False\."):
        make_trainer(tmp_path).predict(TASKS[:1], **switch)
    assert not any(tmp_path.rglob("*.json"))


def test_an_adapter_that_other_tasks_shared_is_not_resumed_from(tmp_path: Path) -> None:
    make_trainer(tmp_path, adapters="shared").predict(TASKS[:2])
    with pytest.raises(ConfigError, match="of a run with tasks = "):
        make_trainer(tmp_path, adapters="shared").predict(TASKS[:3], resume=True)
    results = make_trainer(tmp_path, adapters="shared").predict(TASKS[:2], resume=True)
    assert [r.task for r in results] == TASKS[:2]


def test_what_an_earlier_run_with_other_settings_left_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begun anew in the same folder is killed before it comes to tasks that the earlier one had finished."""
    make_trainer(tmp_path, num_train_epochs=1).predict(TASKS[:2])
    killed = make_trainer(tmp_path, tasks_per_pass=1)
    counted(killed, monkeypatch, kill_at=1)
    with pytest.raises(KeyboardInterrupt):
        killed.predict(TASKS[:2])
    again = make_trainer(tmp_path, tasks_per_pass=1)
    trained = counted(again, monkeypatch)
    results = again.predict(TASKS[:2], resume=True)
    assert trained == ["five"] and [len(r.losses) for r in results] == [4, 4]


# -- damage ------------------------------------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    path = folder / "result.json"
    path.write_text(path.read_text()[:40])


def empty(folder: Path) -> None:
    (folder / "result.json").write_text("[]")


def drop_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def drop_result(folder: Path) -> None:
    (folder / "result.json").unlink()


def write(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**values, **changes}))

    return change


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("cut", cut, r"result\.json is no JSON that can be read: .* Remove .*, and resume"),
    ("no weights", drop_weights, r"adapter_model\.safetensors is missing: .* resume=True to train it again"),
    ("no result", drop_result, r"result\.json is no JSON that can be read"),
    ("version", write(format_version=99), r"is of another format version"),
    ("prediction", write(predictions=[{"colour": 1}]), r"does not hold a result \(.*colour"),
    ("no list", write(losses=None), r"does not hold a result"),
    ("a text for a list", write(answers="444"), r"does not hold a result \(answers is '444'\)"),
    ("no text", write(answers=[4]), r"does not hold a result \(answers is 4\)"),
    ("no number", write(losses=["x"]), r"does not hold a result \(losses is 'x'\)"),
    ("no reason", write(reason=5), r"does not hold a result \(reason and guard is 5\)"),
    ("no prediction", write(predictions=[{"answer": 5}]), r"\(an answer of predictions is 5\)"),
    ("a list", empty, r"holds a list, no settings.* Remove"),
]


@pytest.mark.parametrize(("damage", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_a_damaged_task_is_named_and_done_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    trainer = make_trainer(tmp_path, keep_adapters=True, tasks_per_pass=1)
    first = trainer.predict(TASKS[:2])
    assert first[1].adapter is not None
    damage(first[1].adapter)
    store = ResultStore(tmp_path, json.loads((tmp_path / "ttt_run.json").read_text()))
    assert store.load(TASKS[0]) == first[0]
    with pytest.raises(CheckpointError, match=message):
        store.load(TASKS[1])
    trained = counted(trainer, monkeypatch)
    with caplog.at_level(logging.WARNING):
        again = trainer.predict(TASKS[:2], resume=True)
    assert trained == ["five"] and "The task is done again." in caplog.text
    assert outcome(again) == outcome(first) and store.load(TASKS[1]) == again[1]


def test_settings_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.predict(TASKS[:1])
    (tmp_path / "ttt_run.json").write_text('{"seed": ')
    with pytest.raises(CheckpointError, match=r"ttt_run\.json is no JSON that can be read"):
        trainer.predict(TASKS[:1], resume=True)


# -- the store itself --------------------------------------------------------------------------------------------------


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    predictions = (Prediction("0 1"), Prediction(None, "flip rows", 2), Prediction("ü\n", log_prob=-1.5))
    result = TaskResult(TASKS[0], ("0 1", "2"), predictions, "not « trained »", 7, (1.5, 0.1 + 0.2), 3.25)
    store, config = ResultStore(tmp_path, {"seed": 1}), LoraConfig()
    assert store.load(TASKS[0]) is None
    assert store.save(result, None, config) == result == store.load(TASKS[0])
    assert ResultStore(tmp_path, {"seed": 2}).load(TASKS[0]) is None


def test_tasks_that_differ_have_folders_that_differ(tmp_path: Path) -> None:
    store, task = ResultStore(tmp_path, {}), TASKS[0]
    other = [
        replace(task, id="x/../four"),
        replace(task, id="."),
        replace(task, id="x" * 500),
        replace(task, id=""),
        replace(task, problem="1 1"),
        replace(task, demonstrations=(*task.demonstrations, Demonstration("1", "2"))),
        replace(task, fields={"instruction": "Copy."}),
    ]
    places = [store.place(each) for each in (task, *other)]
    assert len(set(places)) == len(places) and all(place.parent == tmp_path / "tasks" for place in places)
    assert all(len(place.name) < 100 and not place.name.startswith(".") for place in places)
    assert (
        store.place(replace(task, answer=None, solution="?")) == places[0]
    )  # what is known of the answer is no matter


def test_only_the_best_answer_is_the_answer() -> None:
    assert TaskResult(TASKS[0], ("4", "5")).answer == "4" and TaskResult(TASKS[0]).answer is None
    score = TaskResult(TASKS[0], ("5", "4"), (Prediction("4"),)).score()
    assert score is not None and (score.pass_1, score.pass_2, score.oracle) == (False, True, True)
    assert TaskResult(replace(TASKS[0], answer=None), ("4",)).score() is None


# -- adapters that are kept --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
def test_kept_adapters_are_those_that_answered(tmp_path: Path, given: bool) -> None:
    trainer = make_trainer(tmp_path, start_adapter() if given else None, keep_adapters=True)
    results = trainer.predict(TASKS[:2])
    records = trainer.adapt(TASKS[:2])
    ids = torch.tensor([byte_tokenizer()("10>4;33>4;04>", add_special_tokens=False)["input_ids"]])
    logits = []
    for result, record in zip(results, records, strict=True):
        assert result.adapter is not None and result.adapter.parent == tmp_path / "tasks"
        loaded = PeftModel.from_pretrained(guessing_base(), str(result.adapter))
        with torch.no_grad(), record.applied():
            expected = trainer.model(input_ids=ids).logits
        with torch.no_grad():
            logits.append(loaded(input_ids=ids).logits)
        torch.testing.assert_close(logits[-1], expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits[0], logits[1], atol=0.1)


def test_adapters_are_thrown_away_by_default(tmp_path: Path) -> None:
    results = make_trainer(tmp_path).predict(TASKS[:2])
    assert all(result.adapter is None for result in results)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"ttt_run.json", "result.json"}
