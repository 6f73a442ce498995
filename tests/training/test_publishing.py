"""What the trainers push to an emulated Hub, after training and during it, and what others make of it."""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hub_emulator import EmulatedHub
from hub_fixtures import folder_files, same_behaviour
from huggingface_hub import snapshot_download
from peft import PeftModel
from trainer_fixtures import BASE, make_trainer
from transformers import AutoModelForCausalLM
from transformers.utils import PushInProgress
from ttt_fixtures import guessing_base, reinforced, strip_task
from ttt_fixtures import make_trainer as make_ttt

from hf_mass.errors import CheckpointError, ConfigError, DataError, HubError
from hf_mass.methods.base import Adaptation
from hf_mass.methods.mass_files import REQUIRED
from hf_mass.methods.mass_model import MassModel

MODEL = {*REQUIRED, "README.md", "scorer/scorer.safetensors", "scorer/scorer_config.json", "tokenizer.json"}
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "push_to_hub": True, "hub_model_id": "alice/mass"}


# -- MASS --------------------------------------------------------------------------------------------------------------


def test_pushing_after_training(hub: EmulatedHub, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", hub_model_id="alice/mass", hub_private_repo=True)
    trainer.train()
    info = trainer.push_to_hub("Done", license="mit", dataset="openai/gsm8k", tags="mine")
    repo = hub.repos["alice/mass"]
    assert info.oid == repo.refs["main"] and repo.private and repo.messages == ["initial commit", "Done"]
    assert set(repo.files()) == {*MODEL, "tokenizer_config.json", ".gitattributes"}
    card = repo.files()["README.md"].decode()
    assert "license: mit" in card and "- openai/gsm8k" in card and "- mine" in card and hub.card_warnings == []
    assert same_behaviour(trainer.mass, MassModel.from_pretrained("alice/mass"))
    base = AutoModelForCausalLM.from_pretrained(BASE)
    alone = PeftModel.from_pretrained(base, "alice/mass", subfolder="generator").state_dict()
    own = trainer.model.state_dict()
    assert all(own[name].equal(value) for name, value in alone.items()) and any("lora_B" in name for name in alone)
    assert trainer.push_to_hub(blocking=False).result().oid == repo.refs["main"]  # nothing is new
    trainer.push_to_hub(revision="next", token="hf_alice")
    assert set(repo.files("next")) == set(repo.files())


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_pushing_during_training(hub: EmulatedHub, tmp_path: Path, strategy: str) -> None:
    trainer = make_trainer(tmp_path / "run", hub_strategy=strategy, hub_always_push=True, **SAVING)
    trainer.train()
    repo = hub.repos["alice/mass"]
    pushed = [message for message in repo.messages[1:] if "checkpoint" not in message]
    assert pushed == ([] if strategy == "end" else [f"Training in progress, step {step}" for step in (1, 2)])
    trainer.push_to_hub()
    folders = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-1", "checkpoint-2"}}
    found = {path.split("/")[0] for path in repo.files() if path not in MODEL}
    assert found == {".gitattributes", "tokenizer_config.json"} | folders.get(strategy, set())
    for number, sha in enumerate(repo.commits):  # at every moment
        if number > 0:
            loaded = MassModel.from_pretrained("alice/mass", revision=sha)
    assert same_behaviour(trainer.mass, loaded)
    pickles = [path for path in repo.files() if path.endswith((".bin", ".pt", ".pth"))]
    assert {path.split("/")[0] for path in pickles} == folders.get(strategy, set())


def test_resuming_from_a_checkpoint_of_the_hub(hub: EmulatedHub, tmp_path: Path) -> None:
    first = make_trainer(tmp_path / "first", hub_strategy="checkpoint", hub_always_push=True, **SAVING)
    first.train()
    pulled = Path(snapshot_download("alice/mass", allow_patterns="last-checkpoint/*", local_dir=tmp_path / "pulled"))
    kept = folder_files(tmp_path / "first" / "checkpoint-2")
    kept.pop("README.md")
    assert folder_files(pulled / "last-checkpoint") == kept
    resumed = []
    for number, checkpoint in enumerate((tmp_path / "first" / "checkpoint-2", pulled / "last-checkpoint")):
        resumed.append(make_trainer(tmp_path / str(number), max_steps=3))
        resumed[-1].train(resume_from_checkpoint=checkpoint)
        assert resumed[-1].state.global_step == 3
    assert same_behaviour(resumed[0].mass, resumed[1].mass)


def test_saving_the_model_pushes_it_where_that_was_asked_for(hub: EmulatedHub, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", **{**SAVING, "save_strategy": "no"})
    trainer.save_model()
    assert hub.repos["alice/mass"].messages[1:] == ["Model save"]
    assert same_behaviour(trainer.mass, MassModel.from_pretrained("alice/mass"))
    assert same_behaviour(trainer.mass, MassModel.from_pretrained(tmp_path / "run"))


def test_a_card_in_the_output_folder_is_pushed(hub: EmulatedHub, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", hub_model_id="alice/mass")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "README.md").write_text("---\nlicense: mit\n---\n\nMeasured: 3 of 4.\n")
    trainer.push_to_hub()
    assert b"Measured: 3 of 4." in hub.repos["alice/mass"].files()["README.md"]


def test_a_push_that_fails_during_training_does_not_end_it(
    hub: EmulatedHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path / "run", hub_always_push=True, **SAVING)
    hub.fail("/commit/", 503)
    with caplog.at_level(logging.WARNING, "hf_mass"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "A push during training failed, and training went on. 'alice/mass' could not be pushed to" in caplog.text
    assert "the Hub answers 503" in caplog.text and caplog.text.count("A push during training failed") == 1
    assert hub.repos["alice/mass"].messages[1:] == ["Training in progress, step 2"]
    assert same_behaviour(trainer.mass, MassModel.from_pretrained("alice/mass"))
    hub.fail("/commit/", 503)
    trainer.mass.scorer.output.weight.data += 1
    with pytest.raises(HubError, match="the Hub answers 503"):
        trainer.push_to_hub()
    trainer.push_to_hub()


def test_a_push_that_fails_while_the_next_one_is_prepared_is_told_of(
    hub: EmulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path / "run", hub_always_push=True, **SAVING)
    stage, earlier = trainer._stage, Future[Any]()
    trainer.push_in_progress = PushInProgress([earlier])

    def failing() -> Path:
        earlier.set_exception(HubError("the Hub is down"))
        return stage()

    monkeypatch.setattr(trainer, "_stage", failing)
    with caplog.at_level(logging.WARNING, "hf_mass"):
        trainer._push_from_checkpoint(str(tmp_path))
        trainer._finish_current_push()
    assert caplog.text.count("A push during training failed, and training went on. the Hub is down") == 1


def test_a_wrong_token_ends_it_before_training(hub: EmulatedHub, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"'alice/mass' \(hub_model_id\) could not be pushed to: the Hub does not know"):
        make_trainer(tmp_path / "run", hub_token="hf_wrong", **SAVING)


# -- test-time training ------------------------------------------------------------------------------------------------

FOUR = strip_task("four")


def test_one_tasks_adapter(hub: EmulatedHub, tmp_path: Path) -> None:
    """Pushed, loaded by another trainer, it gives the same answers; PEFT alone reads it too."""
    trainer = make_ttt(tmp_path / "one")
    record = trainer.adapt(FOUR)
    expected = trainer.predict([FOUR], records=[record])[0]
    info = trainer.push_adapter_to_hub(record, "alice/four", private=True, commit_message="Four", revision="tried")
    repo = hub.repos["alice/four"]
    assert info.oid == repo.refs["tried"] and repo.private and repo.messages[-1] == "Four"
    kept = {"README.md", "adapter_config.json", "adapter_model.safetensors", ".gitattributes"}
    assert set(repo.files("tried")) == kept and hub.card_warnings == []
    other = make_ttt(tmp_path / "two")
    loaded = other.load_adapter("alice/four", FOUR, revision="tried", token="hf_alice")
    assert record.adapted is not None and loaded.adapted is not None
    assert record.adapted.keys() == loaded.adapted.keys()
    assert all(record.adapted[name].equal(loaded.adapted[name]) for name in record.adapted)
    found = other.predict([FOUR], records=[loaded])[0]
    assert (found.answers, found.predictions) == (expected.answers, expected.predictions)
    assert expected.answers != make_ttt(tmp_path / "none").predict([FOUR], adapt=False)[0].answers
    alone = PeftModel.from_pretrained(guessing_base(), "alice/four", revision="tried").state_dict()
    assert all(alone[name].equal(leaf[0]) for name, leaf in record.adapted.items())
    with pytest.raises(HubError, match="does not exist, or is private"):
        other.load_adapter("alice/four", FOUR, token="hf_bob")
    with pytest.raises(HubError, match="it has no revision 'v2'"):
        other.load_adapter("alice/four", FOUR, revision="v2")


def test_an_adapter_from_a_folder(tmp_path: Path) -> None:
    trainer = make_ttt(tmp_path / "run")
    record = trainer.adapt(FOUR)
    trainer.save_adapter(record, tmp_path / "four")
    loaded = trainer.load_adapter(tmp_path / "four", FOUR)
    assert all(leaf.equal(loaded.adapted[name]) for name, leaf in record.adapted.items())
    with pytest.raises(DataError, match=r"has no adapter: too hard"):
        trainer.push_adapter_to_hub(Adaptation(FOUR, reason="too hard"), "alice/four")


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    trainer = make_ttt(tmp_path / "run")
    trainer.save_adapter(trainer.adapt(FOUR), tmp_path / "four")
    cure = "Load it with the base and the LoRA settings that it was trained with"
    with pytest.raises(CheckpointError, match=f"r is 4, and 8 in this model. {cure}"):
        make_ttt(tmp_path / "a", lora_r=8).load_adapter(tmp_path / "four", FOUR)
    with pytest.raises(CheckpointError, match=f"lora_alpha is 8, and 16 in this model. {cure}"):
        make_ttt(tmp_path / "b", lora_alpha=16).load_adapter(tmp_path / "four", FOUR)
    with pytest.raises(CheckpointError, match=f"this model has no .*{cure}"):
        make_ttt(tmp_path / "c", lora_target_modules=["q_proj"]).load_adapter(tmp_path / "four", FOUR)
    few = make_ttt(tmp_path / "d", lora_target_modules=["q_proj"])
    few.save_adapter(few.adapt(FOUR), tmp_path / "few")
    with pytest.raises(CheckpointError, match=f"is missing, and .* in this model. {cure}"):
        trainer.load_adapter(tmp_path / "few", FOUR)
    weights = tmp_path / "four" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors is damaged"):
        trainer.load_adapter(tmp_path / "four", FOUR)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"adapter_model.bin is a pickle.*Only safetensors are loaded"):
        trainer.load_adapter(tmp_path / "four", FOUR)
    with pytest.raises(CheckpointError, match="is no PEFT adapter, or an incomplete one"):
        trainer.load_adapter(tmp_path / "run", FOUR)


def test_the_shared_adapter_is_what_the_trainer_pushes(hub: EmulatedHub, tmp_path: Path) -> None:
    tasks = [FOUR, strip_task("five", "555")]
    trainer = make_ttt(tmp_path / "run", options={"train_dataset": tasks}, adapters="shared", hub_model_id="alice/all")
    with pytest.raises(ConfigError, match=r"no adapter is trained yet; call train\(\) first"):
        trainer.push_to_hub()
    records = trainer.train()
    trainer.push_to_hub("Both")
    assert hub.repos["alice/all"].messages[-1] == "Both"
    loaded = trainer.load_adapter("alice/all", FOUR)
    assert all(leaf.equal(loaded.adapted[name]) for name, leaf in records[0].adapted.items())


def test_adapters_of_single_tasks_are_not_pushed_as_one(hub: EmulatedHub, tmp_path: Path) -> None:
    trainer = make_ttt(tmp_path / "run", options={"train_dataset": [FOUR]}, hub_model_id="alice/four")
    trainer.train()
    with pytest.raises(
        ConfigError, match=r"each task has an adapter of its own.*push_adapter_to_hub\(record, repo_id\)"
    ):
        trainer.push_to_hub()


def test_reinforcement_pushes_no_checkpoint_of_a_tasks_run(hub: EmulatedHub, tmp_path: Path) -> None:
    saving = {**SAVING, "hub_model_id": "alice/four", "max_steps": 2}
    trainer = reinforced(tmp_path / "run", **saving)
    record = trainer.adapt(FOUR)
    assert hub.repos["alice/four"].messages == ["initial commit"]
    trainer.push_adapter_to_hub(record, "alice/four")
    assert json.loads(hub.repos["alice/four"].files()["adapter_config.json"])["peft_type"] == "LORA"
