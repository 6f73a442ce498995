"""Every way to adapt, on models that ship."""

from __future__ import annotations

import pytest
from session_fixtures import RULE, Case, quick, strips

from hf_mass.engine.models import load
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.mass import MASS


@pytest.fixture(scope="module")
def grids() -> LanguageModel:
    lm = load("grids-small", device="cpu")
    MASS().resolved(lm, strips().tasks)  # adds its inner adapter, which is not active
    return lm


@pytest.fixture(scope="module")
def texts() -> LanguageModel:
    return load("conventions-mass", device="cpu")


@pytest.fixture(params=["ttt", "mass", "both", "rule"])
def case(request: pytest.FixtureRequest, grids: LanguageModel, texts: LanguageModel) -> Case:
    """Every way to adapt: three on grids, and MASS on the world that it was trained for."""
    if request.param == "rule":
        return texts, RULE, quick("mass", samples=12)
    return grids, strips(), quick(request.param)
