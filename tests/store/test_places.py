"""Where models are saved: a folder is of one model, and a base is found from anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import byte_base, byte_tokenizer, conventions_model, text_task
from ttt_fixtures import make_trainer, strip_task

import hf_mass
from hf_mass import TTT, Adaptation
from hf_mass.errors import CheckpointError, DataError

QUICK: dict[str, Any] = {"lora_r": 2, "learning_rate": 0.05, "max_examples": 4, "max_completion_length": 4}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    byte_base().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def adapted(model: str | Path) -> Adaptation:
    return hf_mass.adapt(hf_mass.load(model, device="cpu"), text_task(), TTT(**QUICK), guard=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_folder_is_of_one_model(base: Path, tmp_path: Path) -> None:
    """Files of two kinds of model have the same names: the second would leave neither whole."""
    adaptation, mass, trainer = adapted(base), conventions_model(), make_trainer(tmp_path / "run")
    record = trainer.adapt(strip_task("four"))
    adaptation.save(tmp_path / "adaptation")
    mass.save_pretrained(tmp_path / "mass")
    shutil.copytree(base, tmp_path / "base")  # with an adapter in it transformers would take that for a part of it
    kinds = {"adaptation": adaptation.save, "mass": mass.save_pretrained}
    for place in ("adaptation", "mass", "base"):
        before = contents(tmp_path / place)
        for save in [save for kind, save in kinds.items() if kind != place]:
            with pytest.raises(CheckpointError, match=rf"{place} holds another model \(.*json\)"):
                save(tmp_path / place)
        with pytest.raises(CheckpointError, match=f"{place} holds another model"):
            trainer.save_adapter(record, tmp_path / place)
        assert contents(tmp_path / place) == before
    adaptation.save(tmp_path / "adaptation")  # once more
    mass.save_pretrained(tmp_path / "mass")


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_no_folder_is_called(base: Path, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(tmp_path / "run")
    saves = [adapted(base).save, conventions_model().save_pretrained]
    saves.append(lambda place: trainer.save_adapter(trainer.adapt(strip_task("four")), place))
    for save in saves:
        with pytest.raises(DataError, match=r"path is .*, which no file or folder is called"):
            save(path)
    assert not any(file.suffix == ".json" for file in tmp_path.iterdir())


def test_a_base_of_a_relative_path_is_found_from_elsewhere(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere its name may be that of a repository of the Hub, or of another folder."""
    monkeypatch.chdir(base.parent)
    adaptation = adapted("base")
    assert adaptation.lm is not None and adaptation.lm.name == "base"
    answer = adaptation.answer().text
    monkeypatch.chdir(tmp_path)
    adaptation.save("saved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = hf_mass.load("../saved", device="cpu")
    assert hf_mass.solve(again, text_task(), "none").before[0].text == answer
