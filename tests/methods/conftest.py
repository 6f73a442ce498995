"""A model that was meta-trained, or says so, and tasks of its world."""

from __future__ import annotations

import pytest
from model_fixtures import WORLD, conventions_model

from hf_mass.methods.mass_model import MassModel
from hf_mass.tasks.task import Task


@pytest.fixture(scope="module")
def mass() -> MassModel:
    return conventions_model(trained=True)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return WORLD.tasks("test_conventions", 6)
