"""A model on the emulated Hub."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hub_emulator import EmulatedHub, Repo
from hub_fixtures import BASE_ID, behaviour, put_base, trained_on
from huggingface_hub import constants

from hf_mass.store.hub_files import download_snapshot

_PREPARED: list[tuple[dict[str, Repo], dict[str, bytes], dict[str, Any]]] = []


@pytest.fixture
def before(hub: EmulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a model does that lies on the Hub as alice/mass, with its base; and an empty cache."""
    if not _PREPARED:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "maker"))
        put_base(hub)
        mass = trained_on(BASE_ID)
        mass.push_to_hub("alice/mass")
        _PREPARED.append((hub.repos, hub.large, behaviour(mass)))
    repos, large, found = _PREPARED[0]
    hub.repos, hub.large = copy.deepcopy(repos), dict(large)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return found


@pytest.fixture
def folder(before: dict[str, Any]) -> Path:
    """A saved model."""
    return download_snapshot("alice/mass")
