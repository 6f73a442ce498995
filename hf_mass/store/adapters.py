"""Adapters as PEFT writes them: one folder that `PeftModel.from_pretrained` reads without this package.

PEFT takes an adapter_config.json at its word: it tries patterns on every module, and makes matrices of any rank, before
it looks at the weights. So a folder is checked here first, its settings against the header of its weights.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from hf_mass.errors import CheckpointError, UnsupportedModelError
from hf_mass.store.json_files import read_json
from hf_mass.store.shipped import name_base_portably
from hf_mass.store.weights import read_header, read_weights

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MOST = 1_000_000
"""No number in an adapter's settings is larger."""
_NAME = re.compile(r"\^?[\w./-]+\$?")  # of a module; a point is the only sign that is special in a pattern
_INITIAL = re.compile(r"gaussian|orthogonal|olora|pissa|pissa_niter_\d{1,2}|eva|corda|loftq|lora_ga")
_LEAVING_THE_BASE = ("gaussian", "orthogonal", "eva")


def write_adapter(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a PEFT adapter; a base that ships with the package is named as every machine knows it.

    Args:
        folder: Where it is written; made if it is not there.
        weights: The matrices under PEFT's names.
        config: PEFT's settings by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    (folder / ADAPTER_FILES[0]).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    save_file({name: leaf.detach().cpu().contiguous() for name, leaf in weights.items()}, folder / ADAPTER_FILES[1])
    make_portable(folder)


def make_portable(folder: Path) -> list[str]:
    """Let the settings of an adapter say by names what no other machine, or no reader, would take otherwise.

    A base that ships is named as every machine knows it, and a pattern becomes the modules that it stood for.

    Returns:
        The names of these modules.
    """
    name_base_portably(folder)
    file = folder / ADAPTER_FILES[0]
    settings = read_json(file)
    modules = {
        name.split(".lora_")[0].removeprefix("base_model.model.") for name in read_header(folder / ADAPTER_FILES[1])
    }
    if isinstance(settings.get("target_modules"), str) and settings["target_modules"] != "all-linear":
        settings["target_modules"] = sorted(modules)
        file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
    return sorted(modules)


def require_adapter(folder: Path) -> dict[str, Any]:
    """Check an adapter before PEFT reads it; its settings. Raises as `read_checked` does."""
    return read_checked(folder)[0]


def read_checked(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the weights of an adapter.

    Raises:
        CheckpointError: If a setting is of another type, out of bounds, a pattern, or not what the weights are like; or
            the weights are damaged or none.
        UnsupportedModelError: If it is another kind of adapter than LoRA.
    """
    path = folder / ADAPTER_FILES[0]
    settings = read_json(path)
    if (kind := settings.get("peft_type")) != "LORA":
        raise UnsupportedModelError(f"{path}: peft_type is {kind!r:.60}; only LoRA is loaded. Train a LoRA instead.")
    shapes = read_header(folder / ADAPTER_FILES[1])
    problem = next(_problems(settings, shapes), None)
    if problem is not None:
        raise CheckpointError(f"{path}: {problem}. Save or download the adapter again.")
    return settings, read_weights(folder / ADAPTER_FILES[1])


def _problems(settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What is wrong with an adapter's settings, in words."""
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str | None) or _too_long(base):
        yield f"base_model_name_or_path is {base!r:.60}, and names no model"
    for name, number in _numbers(settings):
        if not abs(number) <= MOST:  # nor NaN
            yield f"{name} is {number!r:.60}; a number there is at most {MOST}"
    rank, alpha, dropout = settings.get("r"), settings.get("lora_alpha", 8), settings.get("lora_dropout", 0.0)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        yield f"r is {rank!r:.60}, and no whole number of at least 1"
    if not _is_number(alpha):
        yield f"lora_alpha is {alpha!r:.60}, and no number"
    if not _is_number(dropout) or not 0 <= dropout < 1:
        yield f"lora_dropout is {dropout!r:.60}, and no number from 0 to below 1"
    initial = settings.get("init_lora_weights", True)
    if not isinstance(initial, bool | None) and not (isinstance(initial, str) and _INITIAL.fullmatch(initial)):
        yield f"init_lora_weights is {initial!r:.60}, and no way to begin that is known"
    elif isinstance(initial, str) and initial not in _LEAVING_THE_BASE:
        yield (
            f"init_lora_weights is {initial!r}, with which PEFT changes the base as it loads, and what is saved later "
            "would name the base that it was. Convert it to a plain LoRA (path_initial_model_for_weight_conversion)"
        )
    for name in ("use_rslora", "fan_in_fan_out", "use_dora", "lora_bias", "inference_mode"):
        if not isinstance(value := settings.get(name), bool | None):
            yield f"{name} is {value!r:.60}, and neither true nor false"
    if settings.get("megatron_config") or settings.get("layer_replication"):
        yield "megatron_config or layer_replication is given, and neither is supported"
    pairs = [name for name in shapes if ".lora_A." in name or ".lora_embedding_A" in name]
    yield from _targets(settings, pairs)
    ranks = settings.get("rank_pattern") or {}
    yield from _pattern("rank_pattern", ranks, pairs, _is_whole)
    yield from _pattern("alpha_pattern", settings.get("alpha_pattern") or {}, pairs, _is_number)
    allowed = {rank, *ranks.values()}
    for name in pairs:
        if len(shapes[name]) < 2 or shapes[name][0] not in allowed:
            yield f"r is {rank}, and the weights have {name} of shape {list(shapes[name])}"


def _targets(settings: Mapping[str, Any], pairs: list[str]) -> Iterator[str]:
    """What is wrong with the names of modules."""
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "target_parameters"):
        value = settings.get(name)
        if value is None or (name == "target_modules" and value == "all-linear"):
            continue
        # A single word as layers_pattern is a name; as target_modules it would be tried as a pattern on every module.
        if isinstance(value, str) and name == "layers_pattern":
            value = [value]
        if isinstance(value, str):
            inside = sorted({each.split(".lora_")[0].rpartition(".")[2] for each in pairs})
            yield f"{name} is the pattern {value!r:.60}, not tried on a model. List names, such as {inside[:9]}"
        elif not isinstance(value, list) or not all(isinstance(each, str) and _NAME.fullmatch(each) for each in value):
            yield f"{name} is {value!r:.60}, and no list of names of modules"
        elif len(value) > 1000 + len(pairs):
            yield f"{name} lists {len(value)} names, and the weights are of {len(pairs)} modules"


def _pattern(name: str, value: Any, pairs: list[str], fits: Any) -> Iterator[str]:
    """What is wrong with numbers by module."""
    if not isinstance(value, dict):
        yield f"{name} is {value!r:.60}, and no numbers by module"
        return
    if len(value) > max(1000, len(pairs)):
        yield f"{name} has {len(value)} entries, and the weights are of {len(pairs)} modules"
    for key, number in value.items():
        if not _NAME.fullmatch(key):
            yield f"{name} has the pattern {key!r:.60}, which is not tried on a model. Name modules in full"
        if not fits(number) or number <= 0:
            yield f"{name} gives {number!r:.60} for {key!r:.60}, and no number above 0"


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """All numbers within a JSON value, under their names."""
    if _is_number(value) or isinstance(value, float):
        yield name, value
    elif isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in entries:
            yield from _numbers(each, f"{name}.{key}" if name else str(key))


def _too_long(base: str | None) -> bool:
    """Whether no file can have this name, which even asking for it tells."""
    try:
        os.stat(base or "")
    except (OSError, ValueError) as error:
        return getattr(error, "errno", None) == errno.ENAMETOOLONG
    return False


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))
