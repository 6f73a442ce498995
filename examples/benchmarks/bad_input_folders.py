"""Bad folders: saved adapters, adaptations and MassModels whose files or settings are damaged or made to do harm."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import hf_mass
from benchmarks.bad_input_case import Case, Wrong, shown
from benchmarks.bad_input_files import DEEP, DIGITS
from benchmarks.bad_input_settings import PATTERNS, SECONDS, require_sound, strings, task
from hf_mass.store.folders import DIGESTS
from hf_mass.store.shipped import ASSETS


def _instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """What makes something else in the place of a file."""

    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


WHOLE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "missing": lambda path: path.unlink(),
    "a folder": _instead(lambda path: path.mkdir()),
    "a link to itself": _instead(lambda path: path.symlink_to(path.name)),
    "a link to nothing": _instead(lambda path: path.symlink_to("nowhere")),
    "a link to /dev/zero": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a pipe": _instead(lambda path: os.mkfifo(path)),
    "random bytes": lambda path: path.write_bytes(bytes(range(256)) * 50),
    "zero bytes": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
}
"""What may become of any file."""
TEXTS = {
    "nested": "[" * DEEP + "]" * DEEP,
    "objects nested": '{"r":' * DEEP + "1" + "}" * DEEP,
    "a list": "[]",
    "null": "null",
    "a number": "3",
    "400 digits": DIGITS,
    "empty object": "{}",
    "NaN": "NaN",
    "no UTF-8": "\udcff{",
}
"""What a file of JSON may hold instead."""
VALUES: tuple[tuple[str, Any], ...] = (
    ("null", None),
    ("NaN", float("nan")),
    ("infinite", float("inf")),
    ("negative", -1),
    ("zero", 0),
    ("huge", 10**9),
    ("400 digits", 10**400),
    ("a switch", True),
    ("a text", "x"),
    ("a text", ""),
    ("a list", []),
    ("a list", [None]),
    ("an object", {}),
    ("a pattern", "(.*)*x"),
    ("a pattern", ["(a+)+$"]),
    ("nested", [[[[[[[[1]]]]]]]]),
    ("long", "y" * 100_000),
)
"""What any of its values may be."""
HARMLESS = ("hf_mass_version", "auto_mapping", "runtime_config", "revision", "inference_mode", "peft_version")


def _use(folder: Path) -> None:
    """Load a saved model, adapt it and answer with it."""
    lm = hf_mass.load(folder)
    if any(bool((~each.isfinite()).any()) for name, each in lm.model.named_parameters() if "lora_" in name):
        raise Wrong("weights that are not finite were loaded")
    fields = {"family": "fruit"} if hasattr(lm, "scorer") else {}
    problem = task() if not fields else hf_mass.Task("kiwi", task().demonstrations, fields=fields)
    require_sound(hf_mass.adapt(lm, problem, "mass" if fields else "ttt", time_limit=SECONDS))


def _damaged(saved: Path, damage: Callable[[Path], object], name: str, folder: Path, sealed: bool = False) -> None:
    copy = folder / "saved"
    shutil.copytree(saved, copy)
    if not sealed:
        for seal in ("adaptation.json", "mass_config.json"):
            if (copy / seal).is_file():
                _write(copy / seal, {k: v for k, v in json.loads((copy / seal).read_text()).items() if k != DIGESTS})
    damage(copy / name)
    _use(copy)


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values).replace('"HUGE"', DIGITS))


def _set(place: tuple[Any, ...], value: Any, path: Path) -> None:
    """Put a value at a place within a JSON file."""
    values = json.loads(path.read_text())
    inside = values
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = "HUGE" if value == 10**400 else value
    _write(path, values)


def _places(values: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in values.items():
        yield (*before, key)
        if isinstance(value, dict):
            yield from _places(value, (*before, key))


def _weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], path: Path) -> None:
    save_file(change(load_file(path)), path)


def _each(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda weights: {name: change(each).contiguous() for name, each in weights.items()}


WEIGHTS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "NaN": _each(lambda each: each * float("nan")),
    "infinite": _each(lambda each: each + float("inf")),
    "without measure": _each(lambda each: each + 1e30),
    "integers": _each(lambda each: each.long()),
    "complex": _each(lambda each: each.to(torch.complex64)),
    "transposed": _each(lambda each: each.T),
    "flat": _each(lambda each: each.flatten()),
    "of no row": _each(lambda each: each[:0]),
    "of another rank": _each(lambda each: torch.cat([each, each])),
    "none": lambda weights: {},
    "half of them": lambda weights: dict(list(weights.items())[::2]),
    "other names": lambda weights: {f"x.{name}": each for name, each in weights.items()},
    "one more": lambda weights: {**weights, "more.lora_A.weight": torch.zeros(2, 2)},
}
FORMAT = ("sample_pattern", "solution_pattern")


def _settings_cases(kind: str, saved: Path, name: str) -> Iterator[Case]:
    for place in _places(json.loads((saved / name).read_text())):
        if place[0] == DIGESTS or place[-1] in HARMLESS:
            continue
        for what, value in VALUES:
            run = partial(_damaged, saved, partial(_set, place, value), name)
            yield Case(kind, what, f"{name}: {'.'.join(map(str, place))}={shown(value)}", run)


def folder_cases(made: Path) -> list[Case]:
    """All of them; `made` gets the folders that are damaged."""
    adaptation, mass = made / "adaptation", made / "mass"
    hf_mass.adapt(strings(), task()).save(adaptation)
    shutil.copytree(ASSETS / "conventions-mass", mass)
    hf_mass.load(adaptation), hf_mass.load(mass)
    cases = list[Case]()
    for kind, saved in (("adaptation folders", adaptation), ("MassModel folders", mass)):
        for file in sorted(saved.rglob("*")):
            name = str(file.relative_to(saved))
            if file.is_dir() or file.suffix == ".md":
                continue
            for what, damage in WHOLE.items():
                refused = what != "missing" and (file.name != "tokenizer_config.json" or "bytes" in what)
                cases.append(Case(kind, what, f"{name} is {what}", partial(_damaged, saved, damage, name), refused))
            if file.suffix == ".json" and "tokenizer" not in name:
                for what, text in TEXTS.items():
                    write = partial(lambda text, path: path.write_bytes(text.encode(errors="surrogateescape")), text)
                    refused = (what, file.name) != ("empty object", "adaptation.json")
                    cases.append(
                        Case(kind, what, f"{name} holds {what}", partial(_damaged, saved, write, name), refused)
                    )
                cases += _settings_cases(kind, saved, name)
            if file.suffix == ".safetensors":
                for what, change in WEIGHTS.items():
                    run = partial(_damaged, saved, partial(_weights, change), name)
                    cases.append(Case(kind, f"weights {what}", f"{name}: weights {what}", run, True))
    for pattern in PATTERNS:
        for name in FORMAT:
            run = partial(_damaged, mass, partial(_set, ("format", name), pattern), "mass_config.json")
            cases.append(Case("MassModel folders", "a pattern that backtracks", f"{name}={shown(pattern)}", run))
    for place, value in _planted():
        run = partial(_damaged, adaptation, partial(_set, place, value), "adaptation.json")
        cases.append(Case("adaptation folders", "planted settings", f"{'.'.join(place)}={shown(value)}", run))
    for rank in (1, 7, 16, 65_536):
        run = partial(_damaged, mass, partial(_set, ("inner", "lora_rank"), rank), "mass_config.json")
        cases.append(Case("MassModel folders", "another rank", f"inner.lora_rank={rank}", run, True))
    return cases


def _planted() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Settings that adaptation.json does not have by itself."""
    texts = ("defaults", "ttt", "texts")
    for pattern in ("(.*)*x", "(a+)+$", r".*\.q_proj", "all-linear", "q_proj"):
        yield (*texts, "lora_target_modules"), pattern
    for name, value in (
        ("lora_r", 65_536),
        ("max_examples", 1_000_000),
        ("permutations", 10_000),
        ("predict_permutations", 10_000),
        ("num_train_epochs", 10_000),
        ("transformations", ["no-such-thing"]),
        ("no_such_setting", 1),
        ("max_completion_length", 1_000_000),
        ("learning_rate", 1e300),
    ):
        yield (*texts, name), value
    others: tuple[tuple[str, Any], ...] = (
        ("chat", True),
        ("chat_template_kwargs", {"chat_template": "{{ 1/0 }}"}),
        ("chat_template_kwargs", {"no_such_thing": 1}),
        ("method", "os:system"),
    )
    yield from (((name,), value) for name, value in others)
