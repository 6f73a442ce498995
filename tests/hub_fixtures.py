"""What tests on the emulated Hub share: a base on it, a trained model, and whether two models behave alike."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from hub_emulator import EmulatedHub
from model_fixtures import WORLD, as_tuples, byte_base, byte_tokenizer, equal_trees, pair, pretend_training, text_task

from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import InnerConfig, MassConfig, ScorerConfig

BASE_ID = "maker/tiny-base"


def folder_files(folder: Path) -> dict[str, bytes]:
    """Content by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put_base(hub: EmulatedHub, name: str = BASE_ID, kind: str = "llama", **options: Any) -> None:
    """A base of tests/model_fixtures.py with its tokenizer as a repository."""
    with tempfile.TemporaryDirectory() as folder:
        byte_base(kind).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        hub.add(name, folder_files(Path(folder)), **options)


def trained_on(base: str, scale: float = 0.02) -> MassModel:
    """A model on a base of the Hub, its adapter and scorer filled with noise."""
    config = MassConfig(
        samples=2,
        max_sample_tokens=5,
        max_answer_tokens=5,
        max_length=512,
        inner=InnerConfig(learning_rate=1.0, lora_rank=2, lora_alpha=2),
        scorer=ScorerConfig(width=4),
    )
    mass = MassModel.from_base(base, config)
    pretend_training(mass, scale)
    return mass


def behaviour(mass: MassModel) -> dict[str, Any]:
    """What a model writes, how it weighs, what adapting comes to, and what it answers."""
    conventions = mass.config.format == CONVENTIONS_FORMAT
    tasks = WORLD.tasks("test_conventions", 3) if conventions else [text_task(0), text_task(1)]
    written = mass.generate_auxiliary(tasks, seed=3)
    usable = written if conventions else [[pair("1 + 2 = ?", "3"), pair("2 + 2 = ?", "4")] for _ in tasks]
    records = mass.adapt(tasks, "scorer", usable)
    assert any(record.adapted is not None for record in records)
    return {
        "samples": as_tuples(written),
        "weights": {str(n): record.weights for n, record in enumerate(records)},
        "adapted": [record.adapted for record in records],
        "answers": [solution.text for solution in mass.solve(tasks, records)],
    }


def same_behaviour(first: dict[str, Any] | MassModel, second: dict[str, Any] | MassModel) -> bool:
    """Bit for bit."""
    one, other = (behaviour(each) if isinstance(each, MassModel) else each for each in (first, second))
    adapted = all(equal_trees(a, b) for a, b in zip(one["adapted"], other["adapted"], strict=True))
    said = all(one[name] == other[name] for name in ("samples", "answers"))
    return adapted and said and all(torch.equal(w, other["weights"][n]) for n, w in one["weights"].items())
