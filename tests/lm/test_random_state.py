"""Whoever uses this package keeps the random numbers of the program's own: Python's, NumPy's and torch's."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_fixtures import byte_tokenizer, conventions_model
from trainer_fixtures import BASE, make_trainer
from ttt_fixtures import guessing_base
from ttt_fixtures import settings as ttt_settings

import hf_mass
from hf_mass.lm.random_state import RandomState, host_random_state
from hf_mass.methods.mass_model import MassModel
from hf_mass.training.ttt_trainer import TTTTrainer


def drawn() -> tuple[Any, ...]:
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002


def expected() -> tuple[Any, ...]:
    seed()
    return drawn()


def seed() -> None:
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)


def saved_model(folder: Path) -> MassModel:
    conventions_model().save_pretrained(folder / "saved")
    seed()
    return MassModel.from_pretrained(folder / "saved")


USES: dict[str, Callable[[Path], Any]] = {
    "MassModel.from_pretrained": saved_model,
    "load": lambda folder: hf_mass.load(str(BASE), device="cpu"),
    "TTTTrainer": lambda folder: TTTTrainer(guessing_base(), ttt_settings(folder), processing_class=byte_tokenizer()),
    "MetaAdaptTrainer": lambda folder: make_trainer(folder),
    "MetaAdaptTrainer.train": lambda folder: make_trainer(folder, max_steps=1).train(),
}


@pytest.mark.parametrize("use", USES)
def test_the_random_state_of_the_host_stays(use: str, tmp_path: Path) -> None:
    guessing_base()  # made once, with a seed of its own
    seed()
    USES[use](tmp_path)
    assert drawn() == expected()


def test_a_trainer_is_seeded_all_the_same(tmp_path: Path) -> None:
    """What the host draws in between, and where its random state stands, changes nothing."""
    results = []
    for host in (1, 2):
        torch.manual_seed(host)
        trainer = make_trainer(tmp_path / str(host), max_steps=1)
        torch.rand(host)
        trainer.train()
        results.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_B.default" in n})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_it_is_put_back_where_something_fails() -> None:
    seed()
    with pytest.raises(KeyError), host_random_state():
        seed()
        drawn()
        raise KeyError
    assert drawn() == expected()
    seed()
    before = RandomState.now()
    first = drawn()
    before.put_back()
    assert drawn() == first
