"""Files with one small problem."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_fixtures import FLIPS, FRUIT, write


@pytest.fixture
def puzzle(tmp_path: Path) -> Path:
    return write(tmp_path / "flips.json", FLIPS)


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    return write(tmp_path / "fruit.json", FRUIT)
