"""The names of the package's face."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hf_mass
from hf_mass.cli.deferred import deferred
from hf_mass.errors import ConfigError


@pytest.mark.parametrize("name", [name for name in hf_mass.__all__ if name != "__version__"])
def test_public_name_is_the_thing_itself(name: str) -> None:
    thing = getattr(hf_mass, name)
    assert name in dir(hf_mass)
    assert name == "FORMATS" or thing.__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Mass'"):
        _ = hf_mass.Mass


def test_the_package_alone_is_light() -> None:
    code = "import sys, hf_mass; print({'torch', 'transformers', 'peft', 'trl', 'gradio', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_tasks_do_not_load_torch() -> None:
    code = "import sys, hf_mass.lab.conventions, hf_mass.tasks.verifiers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_needs_an_extra_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'trl'", name="trl")

    monkeypatch.setattr(hf_mass, "import_module", missing)
    with pytest.raises(ImportError, match=r'hf_mass\.TTTTrainer needs trl\. Run: pip install "hf_mass\[train\]"'):
        hf_mass.TTTTrainer  # noqa: B018
    monkeypatch.setattr("hf_mass.cli.deferred.import_module", missing)
    with pytest.raises(ConfigError, match=r'This command needs trl\. Run: pip install "hf_mass\[train\]"'):
        deferred("hf_mass.app.app", "launch")()
