"""`TTTTrainer` with leave-one-out training: adapting, answering, and what may go wrong with one task."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import byte_tokenizer, equal_trees, largest_difference, snapshot
from peft import LoraConfig, PeftModel
from ttt_fixtures import FIVE, FOUR, RAGGED, SINGLE, by_hand, guessing_base, make_trainer, start_adapter, strip_task

from hf_mass.errors import CheckpointError, ConfigError, DataError
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.base import Adaptation
from hf_mass.methods.few_shot_answers import RESCORED
from hf_mass.tasks.task import Task
from hf_mass.tasks.voting import Prediction
from hf_mass.training.ttt_trainer import TTTTrainer


def outcome(results: Sequence[Any]) -> list[Any]:
    """Results apart from the time that they took."""
    return [replace(result, seconds=0.0) for result in results]


def log_probs(model: Any, text: str) -> torch.Tensor:
    """Of every next token after each byte of a text."""
    ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


# -- adapting ----------------------------------------------------------------------------------------------------------


def test_each_task_is_answered_by_its_own_adapter(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    tasks = [FOUR, FIVE]
    before = trainer.predict(tasks, adapt=False)
    assert before[0].answer != "4" or before[1].answer != "5"  # the base cannot tell
    after = trainer.predict(tasks)
    assert [r.answers for r in after] == [("4",), ("5",)] and [r.task for r in after] == tasks
    assert all(r.reason is None and r.examples == 3 and len(r.losses) == 4 and r.seconds > 0 for r in after)
    assert all(r.losses[-1] < r.losses[0] for r in after)
    assert [r.predictions for r in after] == [(Prediction("4"),), (Prediction("5"),)]
    assert all(r.losses == () and r.examples == 0 and r.reason is None for r in before)


def test_one_task_gives_one_record_and_a_list_a_list(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    one = trainer.adapt(FOUR)
    listed = trainer.adapt([FOUR])
    assert isinstance(one, Adaptation) and isinstance(listed, list) and len(listed) == 1
    assert equal_trees(one.adapted, listed[0].adapted)


def test_one_adapter_for_all_tasks(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, adapters="shared", tasks_per_pass=1)
    first, second = trainer.adapt([FOUR, FIVE])
    assert first.adapted is second.adapted and first.losses == second.losses
    alone = make_trainer(tmp_path).adapt(FOUR)
    assert not equal_trees(first.adapted, alone.adapted)
    expected = by_hand(trainer).predict([FOUR, FIVE], [first, second])
    assert [list(r.predictions) for r in trainer.predict([FOUR, FIVE])] == expected


@pytest.mark.parametrize("given", [False, True])
def test_the_model_is_bit_for_bit_what_it_was(tmp_path: Path, given: bool) -> None:
    trainer = make_trainer(tmp_path, start_adapter() if given else None)
    before, training = snapshot(trainer.model), trainer.model.training
    trainer.adapt([FOUR, FIVE])
    trainer.predict([FOUR, SINGLE], adapt=True)
    trainer.evaluate([FOUR])
    after = trainer.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert trainer.model.training == training and trainer.model.active_adapter == "default"


@pytest.mark.parametrize("given", [False, True])
def test_each_task_starts_from_the_same_state(tmp_path: Path, given: bool) -> None:
    """The given adapter, or a fresh one: a task that comes second ends where it ends alone in another trainer."""
    first, second = (make_trainer(tmp_path, start_adapter() if given else None) for _ in range(2))
    first.adapt(FOUR)
    late, alone = first.adapt(FIVE), second.adapt(FIVE)
    assert equal_trees(late.adapted, alone.adapted)


def test_a_given_adapter_is_where_training_starts(tmp_path: Path) -> None:
    model = start_adapter()
    own = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    trainer = make_trainer(tmp_path, model, learning_rate=1e-5, lora_r=64)
    record = trainer.adapt(FOUR)
    assert record.adapted is not None
    assert record.adapted.keys() == own.keys()  # its own rank and targets
    for name, leaf in record.adapted.items():
        assert 0 < float((leaf[0] - own[name]).abs().max()) < 5e-5
    (unadapted,) = by_hand(trainer).score([FOUR], [["4"]])
    expected = log_probs(model, "10>4;02>4;33>4;04>4;")
    ids = byte_tokenizer()("4;")["input_ids"]
    summed = float(expected[-3, ids[0]] + expected[-2, ids[1]])
    assert unadapted["4"] == pytest.approx([summed], abs=1e-4)
    bare = log_probs(model.get_base_model(), "10>4;02>4;33>4;04>4;")  # PEFT's layers are in place, so still adapted
    assert torch.allclose(bare, expected)
    assert not torch.allclose(log_probs(guessing_base(), "10>4;02>4;33>4;04>4;"), expected, atol=1e-2)


def test_own_lora_settings_are_used(tmp_path: Path) -> None:
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=["v_proj"], task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path, options={"peft_config": lora})
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trainer._start} == {"v_proj"}
    assert {leaf.shape[1] for name, leaf in trainer._start.items() if "lora_A" in name} == {3}
    targets = make_trainer(tmp_path, lora_target_modules=["up_proj"])._start
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in targets} == {"up_proj"}
    with pytest.raises(ConfigError, match=r"TTTConfig\.lora_target_modules.*'nowhere'"):
        make_trainer(tmp_path, lora_target_modules=["nowhere"])


# -- answering ---------------------------------------------------------------------------------------------------------


def test_passes_do_not_change_results_and_equal_demonstrations_are_trained_on_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [FOUR, FIVE, strip_task("four-2", "444", query="3 0"), strip_task("text", "454")]
    passes: list[list[str]] = []
    found = []
    for size in (1, 2, 8):
        trainer = make_trainer(tmp_path, tasks_per_pass=size)
        begin = trainer.method.begin

        def counting(lm: LanguageModel, part: Sequence[Task], seed: int, begin: Any = begin) -> Any:
            passes.append([task.id for task in part])
            return begin(lm, part, seed)

        monkeypatch.setattr(trainer.method, "begin", counting)
        found.append(trainer.predict(tasks))
    assert passes == [
        *(["four", "four-2"], ["five"], ["text"]),
        *(["four", "four-2", "five"], ["text"]),
        ["four", "four-2", "five", "text"],
    ]
    for other in found[1:]:
        assert [r.predictions for r in other] == [r.predictions for r in found[0]]
        for one, same in zip(found[0], other, strict=True):
            assert one.losses == pytest.approx(same.losses, rel=1e-3) and one.examples == same.examples


def test_records_are_answered_with_as_they_are_and_nothing_is_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    four, five = trainer.adapt([FOUR, FIVE])
    results = trainer.predict([FOUR, FOUR, FIVE, FOUR], records=[four, five, four, Adaptation(FOUR)])
    expected = [by_hand(trainer).predict([FOUR], [r])[0][0].answer for r in (four, five)]
    assert [r.answer for r in results[:2]] == expected == ["4", "5"]  # the same task with another's adapter
    assert results[2].answer == "4" and results[3].answer == trainer.predict([FOUR], adapt=False)[0].answer
    assert results[0].losses == four.losses and results[0].examples == 3
    assert outcome(trainer.predict([FOUR], records=[four])) == outcome(trainer.predict([FOUR]))
    fresh = make_trainer(tmp_path / "fresh")
    fresh.predict([FOUR], records=[fresh.adapt(FOUR)])
    assert not (tmp_path / "fresh" / "tasks").exists()


def test_rescoring_ranks_by_the_models_own_log_probabilities(tmp_path: Path) -> None:
    changes = {"predict_samples": 12, "predict_temperature": 1.0, "learning_rate": 1e-4}
    trainer = make_trainer(tmp_path, vote="rescore", **changes)
    (result,) = trainer.predict([FOUR])
    counts = Counter(p.answer for p in result.predictions if p.answer is not None)
    answers = [answer for answer, _ in counts.most_common(RESCORED)]
    assert len(result.predictions) == 12 and len(answers) >= 2
    text = "10>4;02>4;33>4;04>"
    record = trainer.adapt(FOUR)
    assert record.adapted is not None
    with record.applied():
        likely = {}
        for answer in answers:
            written = answer.replace(" ", "") + ";"
            rows, ids = log_probs(trainer.model, text + written), byte_tokenizer()(written)["input_ids"]
            likely[answer] = sum(float(rows[len(text) - 1 + n, token]) for n, token in enumerate(ids))
    assert result.answers == tuple(sorted(answers, key=lambda answer: -likely[answer])[:2])


# -- one task's failure ------------------------------------------------------------------------------------------------


def test_a_task_that_cannot_be_trained_on_is_answered_by_the_model_as_it_is(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, single_demonstration="refuse")
    single, four = trainer.predict([SINGLE, FOUR])
    assert single.reason is not None and "one demonstration only" in single.reason and single.examples == 0
    assert single.predictions == trainer.predict([SINGLE], adapt=False)[0].predictions
    assert (four.answer, four.reason) == ("4", None)
    record = make_trainer(tmp_path).adapt(SINGLE)  # by default it is trained on directly
    assert record.examples == 1


def test_a_task_that_is_no_grid_fails_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path)
    with caplog.at_level(logging.WARNING):
        four, ragged, five = trainer.predict([FOUR, RAGGED, FIVE])
    assert (four.answer, five.answer) == ("4", "5")
    assert ragged.answer is None and ragged.reason is not None and "no grid" in ragged.reason
    assert ragged.score() is not None and not ragged.score().oracle  # type: ignore[union-attr]
    assert "1 of 3 tasks failed" in caplog.text and "'ragged'" in caplog.text


def test_an_exception_in_training_ends_the_task_that_it_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path)
    begin = trainer.method.begin

    def failing(lm: LanguageModel, tasks: Sequence[Task], seed: int) -> Any:
        if any(task.id == "four" for task in tasks):
            raise RuntimeError("out of memory")
        return begin(lm, tasks, seed)

    monkeypatch.setattr(trainer.method, "begin", failing)
    four, five = trainer.predict([FOUR, FIVE])
    assert (four.reason, four.predictions, four.answer) == ("RuntimeError: out of memory", (), None)
    assert (five.answer, five.reason) == ("5", None)
    monkeypatch.undo()
    again = trainer.predict([FOUR, FIVE], resume=True)  # what was not answered is not finished
    assert [r.answer for r in again] == ["4", "5"] and again[0].reason is None


def test_wrong_settings_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)

    def refusing(*_: Any) -> Any:
        raise ConfigError("no such setting")

    monkeypatch.setattr(trainer.method, "begin", refusing)
    with pytest.raises(ConfigError, match="no such setting"):
        trainer.predict([FOUR, FIVE])


def test_a_task_without_room_says_so(tmp_path: Path) -> None:
    base = guessing_base()
    base.config.max_position_embeddings = 18  # so many tokens has the prompt; an example with two demonstrations 14
    trainer = make_trainer(tmp_path, base)
    (result,) = trainer.predict([FOUR])
    assert result.reason is not None and "has 18 tokens, and the model's context 18" in result.reason
    assert result.examples == 3 and result.predictions == (Prediction(None),)


# -- saving by hand, and bad arguments ---------------------------------------------------------------------------------


def test_train_keeps_an_adapter_for_each_train_task(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, single_demonstration="refuse", options={"train_dataset": [FOUR, SINGLE, FIVE]})
    records = trainer.train()
    assert [r.task.id for r in records] == ["four", "single", "five"]
    assert equal_trees(records[0].adapted, trainer.adapt([FOUR, SINGLE, FIVE])[0].adapted)
    folders = {path.name.split("-")[0]: path for path in (tmp_path / "tasks").iterdir()}
    assert json.loads((folders["single"] / "result.json").read_text())["reason"] == records[1].reason
    assert not (folders["single"] / "adapter_model.safetensors").exists()
    for name, record in (("four", records[0]), ("five", records[2])):
        loaded = PeftModel.from_pretrained(guessing_base(), str(folders[name]))
        own = {k: v for k, v in loaded.named_parameters() if "lora_" in k}
        assert (
            record.adapted is not None and largest_difference({k: v[None] for k, v in own.items()}, record.adapted) == 0
        )
    # They have been trained on, not answered.
    assert [r.answer for r in trainer.predict([FOUR, FIVE], resume=True)] == ["4", "5"]


def test_an_adapter_is_saved_where_it_is_wanted(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    record = trainer.adapt(FOUR)
    assert record.adapted is not None
    trainer.save_adapter(record, tmp_path / "mine" / "four")
    loaded = PeftModel.from_pretrained(guessing_base(), str(tmp_path / "mine" / "four"))
    with record.applied():
        expected = log_probs(trainer.model, "10>4;33>")
    torch.testing.assert_close(log_probs(loaded, "10>4;33>"), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(log_probs(guessing_base(), "10>4;33>"), expected, atol=0.1)
    with pytest.raises(DataError, match=r"record of task 'four' has no adapter: too hard"):
        trainer.save_adapter(Adaptation(FOUR, reason="too hard"), tmp_path / "none")


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    for name in ("train_dataset", "eval_dataset"):
        with pytest.raises(DataError, match=f"TTTTrainer.{name} must be a non-empty list"):
            make_trainer(tmp_path, options={name: [{"prompt": "x"}]})
    trainer = make_trainer(tmp_path)
    for call in (trainer.predict, trainer.adapt, trainer.evaluate):
        for wrong in ([], ["text"], [FOUR, None]):
            with pytest.raises(DataError, match="must be a non-empty list of hf_mass Tasks"):
                call(wrong)  # type: ignore[operator]
    with pytest.raises(DataError, match="2 records for 1 tasks; give one each"):
        trainer.predict([FOUR], records=trainer.adapt([FOUR, FIVE]))
    with pytest.raises(DataError, match="there is no train_dataset"):
        trainer.train()
    with pytest.raises(DataError, match="there is no eval_dataset"):
        trainer.evaluate()
    with pytest.raises(DataError, match="none of 1 tasks has an answer"):
        trainer.evaluate([replace(FOUR, answer=None)])


@pytest.mark.parametrize(
    ("missing", "objective", "error", "told"),
    [
        (("eos", "pad"), "sft", CheckpointError, "no pad_token and no eos_token.*Set tokenizer.eos_token"),
        (("eos",), "grpo", DataError, r"eos_token is None, up to which objective='grpo' samples.*Set it"),
    ],
)
def test_a_tokenizer_without_an_end_is_refused_before_any_task(
    tmp_path: Path, missing: tuple[str, ...], objective: str, error: type[Exception], told: str
) -> None:
    tokenizer = byte_tokenizer()
    for name in missing:
        setattr(tokenizer, f"{name}_token", None)
    with pytest.raises(error, match=told):
        make_trainer(tmp_path, options={"processing_class": tokenizer}, objective=objective)


def test_defaults_are_made_where_no_settings_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = TTTTrainer(guessing_base(), processing_class=byte_tokenizer())
    assert trainer.args.output_dir == "outputs/ttt" and trainer.model.peft_config["default"].r == 128


# -- the guard ---------------------------------------------------------------------------------------------------------


def test_tasks_are_guarded_where_it_is_asked_for(tmp_path: Path) -> None:
    """One answer for all rows is learned from any half of them; answers at odds with each other gain nothing."""
    rows = ("1 0", "0 2", "3 3", "0 5", "2 2", "5 1")
    rule, noise = strip_task("rule", "444444", rows), strip_task("noise", "545454", rows)
    trainer = make_trainer(tmp_path, guard=True)
    first, second = trainer.predict([rule, noise])
    assert first.answer == "4" and str(first.guard).startswith("adapted at") and len(first.losses) > 0
    assert str(second.guard).startswith("not adapted: at most left-out gain") and second.losses == ()
    assert first.reason is None is second.reason  # not adapting is no failure
    assert outcome(make_trainer(tmp_path, guard=True).predict([rule, noise], resume=True)) == outcome([first, second])
    with pytest.raises(ConfigError, match="guard"):
        make_trainer(tmp_path).predict([rule, noise], resume=True)
    bare = make_trainer(tmp_path / "bare").predict([rule, noise])
    assert [result.guard for result in bare] == [None, None] and all(result.losses for result in bare)


def test_reinforcement_cannot_be_guarded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="guard is True, and objective='grpo' has no strengths"):
        make_trainer(tmp_path, guard=True, objective="grpo")
