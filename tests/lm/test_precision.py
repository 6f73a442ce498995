"""Which precision a model runs in, and why."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_fixtures import byte_base, byte_tokenizer

import hf_mass
from hf_mass.errors import ConfigError
from hf_mass.lm import precision


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_base().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("seconds", "told"), [(2.0, "2.0 times as fast as float32 on this CPU"), (1.2, None)])
def test_bfloat16_is_measured_on_a_cpu(seconds: float, told: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    precision.reason_for_bfloat16.cache_clear()
    monkeypatch.setattr(precision, "_product_seconds", lambda dtype: seconds if dtype == torch.float32 else 1.0)
    try:
        assert precision.reason_for_bfloat16("cpu") == told
    finally:
        precision.reason_for_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("faster", "asked", "expected"),
    [
        ("2.0 times as fast", None, ("bfloat16", "2.0 times as fast")),
        (None, None, ("float32", "which this device is not slower at than bfloat16")),
        ("2.0 times as fast", "float32", ("float32", "as asked")),
        (None, torch.bfloat16, ("bfloat16", "as asked")),
        ("2.0 times as fast", "auto", ("float32", "as it is saved")),
    ],
)
def test_the_precision_of_a_large_model(
    faster: str | None, asked: Any, expected: tuple[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "reason_for_bfloat16", lambda device: faster)
    monkeypatch.setattr("hf_mass.engine.models.SMALL", 100)
    lm = hf_mass.load(folder, device="cpu", **({} if asked is None else {"dtype": asked}))
    assert (lm.precision, lm.precision_reason) == expected
    assert repr(lm) == f"LanguageModel({str(folder)!r}, 0.0M parameters, {expected[0]})"
    assert lm.facts() == {"model": str(folder), "parameters": lm.size, "precision": expected[0]}
    assert next(p.dtype for p in lm.starting_lora().start(1).values()) == torch.float32  # whatever the base is in


def test_a_small_one_stays_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "reason_for_bfloat16", lambda device: "faster")
    assert hf_mass.load(folder, device="cpu").precision == "float32"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4-bit bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "4-bit gptq"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_quantised_weights_by_what_their_config_says(settings: dict[str, Any], told: str) -> None:
    assert precision.precision_of(SimpleNamespace(config=SimpleNamespace(quantization_config=settings))) == told


@pytest.mark.parametrize("dtype", ["float8", torch.int8, 16])
def test_other_precisions_are_refused(dtype: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"dtype is .*; choose one of float32, bfloat16, float16, auto"):
        hf_mass.load(folder, dtype=dtype)


def test_an_adapter_is_loaded_on_a_base_in_the_precision_that_it_would_run_in(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = hf_mass.load(folder, device="cpu")
    task = hf_mass.Task.from_pairs([("ab", "b"), ("cd", "d")], "ef")
    hf_mass.adapt(lm, task, hf_mass.TTT(preset="text", max_examples=2)).save(tmp_path / "adapted")
    monkeypatch.setattr(precision, "reason_for_bfloat16", lambda device: "faster")
    monkeypatch.setattr("hf_mass.engine.models.SMALL", 100)
    again = hf_mass.load(tmp_path / "adapted", device="cpu")
    assert (again.precision, again.precision_reason) == ("bfloat16", "faster")
    assert {p.dtype for name, p in again.model.named_parameters() if "lora_" in name} == {torch.float32}
