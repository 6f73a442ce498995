"""Weights and settings of adapters and bases that are none: refused when they are loaded, before anything is made."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_mass
from hf_mass.errors import CheckpointError, UnsupportedModelError
from hf_mass.lm.base_models import load_base
from hf_mass.store.adapters import ADAPTER_FILES, require_adapter
from hf_mass.store.shipped import ASSETS

SHIPPED = ASSETS / "conventions-mass"
BASE = ASSETS / "conventions-base"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED / "generator", tmp_path / "adapter")
    return tmp_path / "adapter"


BAD_WEIGHTS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "NaN": (lambda w: w.index_fill(0, torch.tensor([0]), torch.nan), "holds nan"),
    "infinite": (lambda w: w.index_fill(0, torch.tensor([0]), -torch.inf), "holds -inf"),
    "1e38": (lambda w: w.index_fill(0, torch.tensor([0]), 1e38), "holds 1e\\+38"),
    "-1e20": (lambda w: w.index_fill(0, torch.tensor([0]), -1e20), "holds -1e\\+20"),
    "int8": (lambda w: w.to(torch.int8), "is of type I8"),
    "int64": (lambda w: w.to(torch.int64), "is of type I64"),
    "bool": (lambda w: w.to(torch.bool), "is of type BOOL"),
}


def spoil(file: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(file)
    name = next(name for name, each in weights.items() if each.dim() == 2)
    weights[name] = change(weights[name].float()).contiguous()
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("case", BAD_WEIGHTS)
@pytest.mark.parametrize("file", ["generator/adapter_model", "inner/adapter_model", "scorer/scorer"])
def test_a_saved_model_with_weights_that_are_none_is_refused(file: str, case: str, tmp_path: Path) -> None:
    change, message = BAD_WEIGHTS[case]
    shutil.copytree(SHIPPED, tmp_path / "mass")
    spoil(tmp_path / "mass" / f"{file}.safetensors", change)
    with pytest.raises(CheckpointError, match=message) as caught:
        hf_mass.load(tmp_path / "mass")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_a_lora_with_weights_that_are_none_is_refused(case: str, adapter: Path) -> None:
    change, message = BAD_WEIGHTS[case]
    spoil(adapter / ADAPTER_FILES[1], change)
    with pytest.raises(CheckpointError, match=message):
        hf_mass.load(adapter)


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_a_base_with_weights_that_are_none_is_refused(case: str, tmp_path: Path) -> None:
    change, message = BAD_WEIGHTS[case]
    shutil.copytree(BASE, tmp_path / "base")
    spoil(tmp_path / "base" / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        load_base(tmp_path / "base")


EVIL = r"^(([a-z._0-9])+)+$x"
BAD_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": EVIL}, "target_modules is the pattern"),
    ({"target_modules": ".*"}, "target_modules is the pattern.*List names, such as"),
    ({"target_modules": "(("}, "target_modules is the pattern"),
    ({"target_modules": ["(("]}, "no list of names"),
    ({"target_modules": [5]}, "no list of names"),
    ({"target_modules": 5}, "no list of names"),
    ({"target_modules": ["q_proj"] * 100_000}, "lists 100000 names"),
    ({"exclude_modules": EVIL}, "exclude_modules is the pattern"),
    ({"layers_pattern": EVIL}, "layers_pattern"),
    ({"rank_pattern": {EVIL: 4}}, "rank_pattern has the pattern"),
    ({"alpha_pattern": {EVIL: 4}}, "alpha_pattern has the pattern"),
    ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern gives 'x'"),
    ({"rank_pattern": {"q_proj": 10**9}}, "at most 1000000"),
    ({"rank_pattern": {"q_proj": 999_999}, "r": 7}, "the weights have"),
    ({"rank_pattern": [1]}, "no numbers by module"),
    ({"rank_pattern": {f"a{n}": 4 for n in range(5000)}}, "5000 entries"),
    ({"r": 1_000_000}, "r is 1000000, and the weights have"),
    ({"r": 10**400}, "at most 1000000"),
    ({"r": "x"}, "r is 'x'"),
    ({"r": 1.5}, "r is 1.5"),
    ({"r": True}, "r is True"),
    ({"r": None}, "r is None"),
    ({"r": float("nan")}, "r is nan"),
    ({"r": -1}, "r is -1"),
    ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"lora_alpha": 1e300}, "lora_alpha is 1e"),
    ({"lora_dropout": 2}, "lora_dropout is 2"),
    ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5"),
    ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path is"),
    ({"init_lora_weights": "pissa_niter_1000000000"}, "init_lora_weights is"),
    ({"init_lora_weights": 5}, "init_lora_weights is 5"),
    *(({"init_lora_weights": kind}, "changes the base as it loads") for kind in ("pissa", "olora", "corda", "loftq")),
    *(({name: "false"}, f"{name} is 'false'") for name in ("use_rslora", "fan_in_fan_out", "inference_mode")),
    ({"use_rslora": 1}, "use_rslora is 1"),
    ({"base_model_name_or_path": "x" * 5000}, "base_model_name_or_path is 'xxx"),
    ({"base_model_name_or_path": "a/" * 5000}, "base_model_name_or_path is 'a/a"),
    ({"layer_replication": [[0, 9], [0, 9]]}, "layer_replication"),
    ({"layers_to_transform": [10**9]}, "layers_to_transform.0 is"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS, ids=lambda value: str(value)[:40])
def test_settings_of_an_adapter_are_checked_before_peft_reads_them(
    changes: dict[str, Any], message: str, adapter: Path
) -> None:
    file = adapter / ADAPTER_FILES[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=message) as caught:
        hf_mass.load(adapter)
    assert time.monotonic() - begun < 5 and "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"r": ' * 200_000, "{", "", "[]", "\x00", '{"r": ' + "9" * 5000 + "}"]
)
@pytest.mark.parametrize("place", ["adapter", "generator"])
def test_files_that_are_no_settings(text: str, place: str, adapter: Path, tmp_path: Path) -> None:
    folder = adapter
    if place == "generator":
        folder = tmp_path / "mass"
        shutil.copytree(SHIPPED, folder)
        adapter = folder / "generator"
    (adapter / ADAPTER_FILES[0]).write_text(text)
    with pytest.raises(CheckpointError, match=ADAPTER_FILES[0]):
        hf_mass.load(folder)


def test_other_kinds_of_adapters_are_named(adapter: Path) -> None:
    file = adapter / ADAPTER_FILES[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_type": "LOHA"}))
    with pytest.raises(UnsupportedModelError, match="peft_type is 'LOHA'"):
        hf_mass.load(adapter)


def test_what_ships_passes() -> None:
    for name in ("generator", "inner"):
        assert require_adapter(SHIPPED / name)["peft_type"] == "LORA"
