"""Weights that can be none: wherever files are read they are refused by name, and nothing is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import BASE, byte_base, byte_tokenizer, conventions_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import hf_mass
from hf_mass.errors import CheckpointError
from hf_mass.lm.adapters import read_adapter
from hf_mass.lm.base_models import load_base
from hf_mass.lm.binding import BoundLora
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.scorer import Scorer
from hf_mass.store.weights import LARGEST, read_header, read_weights, require_finite, weights_digest
from hf_mass.training.checkpoints import problem_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved `MassModel`, a plain LoRA with its base, by name."""
    folder = tmp_path_factory.mktemp("saved")
    conventions_model(trained=True).save_pretrained(folder / "mass")
    byte_base().save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    base = load_base(folder / "base")
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        folder / "lora"
    )
    return folder


def first_entry(value: float) -> Callable[[Tensor], Tensor]:
    def change(weight: Tensor) -> Tensor:
        changed = weight.clone()
        changed.view(-1)[0] = value
        return changed

    return change


IMPOSSIBLE: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": first_entry(float("nan")),
    "inf": first_entry(float("inf")),
    "-inf": first_entry(float("-inf")),
    "1e38": first_entry(1e38),
    "-1e30": first_entry(-1e30),
    "all nan": lambda weight: torch.full_like(weight, float("nan")),
    "int64": lambda weight: torch.ones_like(weight, dtype=torch.int64),
    "uint8": lambda weight: torch.ones_like(weight, dtype=torch.uint8),
    "bool": lambda weight: torch.ones_like(weight, dtype=torch.bool),
}
LOADERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "generator": ("mass/generator/adapter_model.safetensors", lambda f: MassModel.from_pretrained(f / "mass")),
    "inner": ("mass/inner/adapter_model.safetensors", lambda f: MassModel.from_pretrained(f / "mass")),
    "scorer": ("mass/scorer/scorer.safetensors", lambda f: Scorer.load(f / "mass" / "scorer")),
    "lora": ("lora/adapter_model.safetensors", lambda f: hf_mass.load(f / "lora")),
    "base": ("base/model.safetensors", lambda f: hf_mass.load(f / "base")),
    "a base of one's own": (
        "base/model.safetensors",
        lambda f: MassModel.from_pretrained(f / "mass", base=f / "base"),
    ),
}


@pytest.mark.parametrize("where", LOADERS)
@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_weights_are_refused(where: str, what: str, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    name, load = LOADERS[where]
    weights = load_file(tmp_path / name)
    matrix = next(key for key, weight in weights.items() if weight.dim() == 2)
    save_file({**weights, matrix: IMPOSSIBLE[what](weights[matrix])}, tmp_path / name, {"format": "pt"})
    if where == "lora":
        point_at(tmp_path / "lora", tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"which is no weight|weights are in one of") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def point_at(adapter: Path, base: Path) -> None:
    file = adapter / "adapter_config.json"
    before = next(line for line in file.read_text().splitlines() if "base_model_name_or_path" in line)
    file.write_text(file.read_text().replace(before, f'  "base_model_name_or_path": "{base}",'))


def test_the_files_as_they_were_saved_load(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    point_at(tmp_path / "lora", tmp_path / "base")
    for where in ("generator", "scorer", "lora", "base"):
        LOADERS[where][1](tmp_path)


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_one_tasks_adapter_and_a_checkpoint(what: str, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "mass", tmp_path, dirs_exist_ok=True)
    mass, file = conventions_model(), tmp_path / "generator" / "adapter_model.safetensors"
    lora = BoundLora(mass.model, "default")
    read_adapter(tmp_path / "generator", lora)
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file({**weights, name: IMPOSSIBLE[what](weights[name])}, file)
    with pytest.raises(CheckpointError, match=r"which is no weight|weights are in one of"):
        read_adapter(tmp_path / "generator", lora)
    for part in file.parent.iterdir():  # a checkpoint has the generator beside the others
        shutil.copy(part, tmp_path)
    (tmp_path / "trainer_state.json").write_text("{}")
    assert name in str(problem_of(tmp_path))


@given(st.floats(width=32) | st.just(LARGEST) | st.just(2 * LARGEST), st.integers(0, 5))
def test_exactly_the_finite_and_believable_pass(value: float, place: int) -> None:
    weight = torch.zeros(2, 3)
    weight.view(-1)[place] = value
    if abs(value) <= LARGEST:
        require_finite([("w", weight)], "here")
    else:
        with pytest.raises(CheckpointError, match="here: w holds"):
            require_finite([("w", weight)], "here")


def test_quantised_and_empty_weights_pass() -> None:
    require_finite([("bits", torch.full((3,), 255, dtype=torch.uint8)), ("none", torch.empty(0, 4))], "here")


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{}", bytes([0] * 8)])
def test_what_is_no_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    for read in (read_header, read_weights):
        with pytest.raises(CheckpointError, match="is damaged"):
            read(tmp_path / "w.safetensors")


def test_a_digest_tells_every_bit_name_shape_and_kind_apart() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    alike = weights_digest({"a": weight})
    assert alike == weights_digest({"a": weight.clone()}) == weights_digest({"a": weight.T.contiguous().T})
    changed = weight.clone()
    changed[1, 2] += 1e-6 * changed[1, 2]
    others = [{"b": weight}, {"a": weight.reshape(3, 2)}, {"a": weight.double()}, {"a": changed}, {}]
    assert len({alike, *map(weights_digest, others)}) == 6
    assert weights_digest({"a": weight.bfloat16(), "n": torch.tensor(3)})


def test_shipped_models_are_believed() -> None:
    for file in BASE.parent.glob("*/**/*.safetensors"):
        assert read_weights(file)
