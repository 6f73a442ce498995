"""Checkpoints that cannot be written: no failure takes an earlier one, and a full disk does not end training."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors import SafetensorError
from trainer_fixtures import largest_difference, make_trainer, trained_values

from hf_mass.methods.scorer import Scorer
from hf_mass.training.checkpoints import last_whole_checkpoint, problem_of
from hf_mass.training.meta_adapt_trainer import MetaAdaptTrainer

RUN = {"outer_loss": "gold", "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MetaAdaptTrainer:
    """Four steps, with checkpoints after two and four."""
    trainer = make_trainer(tmp_path_factory.mktemp("run"), **RUN)
    trainer.train()
    return trainer


class Killed(BaseException):
    """Stands for a signal: no handler of ordinary errors sees it."""


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_at_step_four(trainer: MetaAdaptTrainer, where: str, failure: BaseException, patch: pytest.MonkeyPatch) -> None:
    """Let a part of the second checkpoint fail."""

    def failing(original: Any) -> Any:
        def writer(*args: Any, **kwargs: Any) -> Any:
            if trainer.state.global_step < 4:
                return original(*args, **kwargs)
            raise failure

        return writer

    owner, name = {
        "card": (trainer, "create_model_card"),
        "adapters": (PeftModel, "save_pretrained"),
        "scorer": (Scorer, "save"),
        "optimizer": (trainer, "_save_optimizer_and_scheduler"),
        "state": (trainer, "_save_rng_state"),
    }[where]
    patch.setattr(owner, name, failing(getattr(owner, name)))


@pytest.mark.parametrize("where", ["adapters", "scorer", "optimizer", "state"])
def test_a_kill_while_saving_leaves_the_earlier_checkpoint_whole(
    run: MetaAdaptTrainer, tmp_path: Path, monkeypatch: Any, where: str
) -> None:
    trainer = make_trainer(tmp_path, **RUN)
    fail_at_step_four(trainer, where, Killed(), monkeypatch)
    with pytest.raises(Killed):
        trainer.train()
    assert problem_of(tmp_path / "checkpoint-4") is not None
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    monkeypatch.undo()
    if where == "state":
        resumed = make_trainer(tmp_path, **RUN)
        resumed.train(resume_from_checkpoint=True)
        assert largest_difference(trained_values(run), trained_values(resumed)) == 0
        assert problem_of(tmp_path / "checkpoint-4") is None


TORCH_WRITER = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


@pytest.mark.parametrize(
    ("where", "failure"),
    [
        ("card", full_disk()),
        ("adapters", SafetensorError("I/O error: No space left on device (os error 28)")),
        ("optimizer", TORCH_WRITER),
        ("state", full_disk()),
    ],
)
def test_a_full_disk_does_not_end_training(
    run: MetaAdaptTrainer, tmp_path: Path, monkeypatch: Any, caplog: Any, where: str, failure: Exception
) -> None:
    """One line says so; what was half written goes, and the earlier checkpoint stays though only one is kept."""
    trainer = make_trainer(tmp_path, **{**RUN, "save_total_limit": 1})
    fail_at_step_four(trainer, where, failure, monkeypatch)
    trainer.train()
    told = [record.getMessage() for record in caplog.records if "Training goes on" in record.getMessage()]
    assert len(told) == 1 and "checkpoint-4 could not be written" in told[0] and "\n" not in told[0]
    assert largest_difference(trained_values(run), trained_values(trainer)) == 0
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert problem_of(tmp_path / "checkpoint-2") is None


def test_other_failures_while_saving_end_training(tmp_path: Path, monkeypatch: Any) -> None:
    trainer = make_trainer(tmp_path, **RUN)
    fail_at_step_four(trainer, "scorer", RuntimeError("of another kind"), monkeypatch)
    with pytest.raises(RuntimeError, match="of another kind"):
        trainer.train()
