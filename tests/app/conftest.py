"""The handlers of the app's page, on the models that ship."""

from __future__ import annotations

from pathlib import Path

import pytest
from page_fixtures import Visitor

from hf_mass.app.handlers import Handlers
from hf_mass.app.visitors import Visitors
from hf_mass.app.workshop import MODEL_VARIABLE, Workshop


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(MODEL_VARIABLE, raising=False)
        return Workshop.load(device="cpu")


@pytest.fixture
def do(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Handlers:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # below which Gradio copies nothing
    return Handlers(workshop, Visitors(tmp_path / "sessions"))


@pytest.fixture
def visitor(do: Handlers) -> Visitor:
    return Visitor(do, "one")
