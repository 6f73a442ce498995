"""The files of a saved `MassModel`: which there are, and mass_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_mass import __version__
from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.store.folders import DIGESTS
from hf_mass.store.storage import ADAPTER_FILES, read_json
from hf_mass.tasks.checks import shown

CONFIG_NAME = "mass_config.json"
FORMAT_VERSION = 1
REQUIRED = (CONFIG_NAME, *(f"{adapter}/{file}" for adapter in ("generator", "inner") for file in ADAPTER_FILES))
"""Without these a folder is no saved model. The scorer checks its own files."""


def write_config(config: MassConfig, folder: Path, base: Mapping[str, Any] | None = None) -> None:
    """Write mass_config.json, with what the base is like, so that another one is recognised when it is loaded."""
    values = {"format_version": FORMAT_VERSION, "hf_mass_version": __version__, **config.to_dict()}
    if base is not None:
        values["base_model"] = dict(base)
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def named_targets(config: MassConfig, modules: Sequence[str]) -> MassConfig:
    """The settings with these modules where a pattern stands for them: no pattern of a file is tried on a model."""
    targets = config.inner.target_modules
    if not isinstance(targets, str) or targets == "all-linear":
        return config
    return replace(config, inner=replace(config.inner, target_modules=tuple(modules)))


def read_config(folder: Path) -> MassConfig:
    """Read mass_config.json.

    Raises:
        CheckpointError: If it is no JSON, of an unknown version, or holds unknown settings.
    """
    path = folder / CONFIG_NAME
    values = read_json(path)
    version = values.pop("format_version", None)
    for name in ("hf_mass_version", "base_model", DIGESTS):
        values.pop(name, None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {version!r}; this release reads {FORMAT_VERSION}. Update hf_mass."
        )
    try:
        config = MassConfig.from_dict(values)
        for name, targets in (
            ("inner.target_modules", config.inner.target_modules),
            ("few_shot.lora_target_modules", config.few_shot and config.few_shot.lora_target_modules),
        ):
            if isinstance(targets, str) and targets != "all-linear":
                raise ConfigError(f"{name} is the pattern {targets!r:.60}, not tried on a model. List names.")
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit this release: {error}") from error
    _require_inner(config, folder)
    return config


def _require_inner(config: MassConfig, folder: Path) -> None:
    """Checks that the settings are of the inner adapter that is saved with them: one of another shape is made anew."""
    if not (file := folder / "inner" / ADAPTER_FILES[0]).is_file():
        return
    saved = read_json(file)
    for name, value in (("r", config.inner.lora_rank), ("lora_alpha", config.inner.lora_alpha)):
        if saved.get(name, value) != value:
            raise CheckpointError(
                f"{folder / CONFIG_NAME} is of an inner adapter with {name} {value}, and {file} has "
                f"{shown(saved[name])}. Save or download the model again."
            )


def read_base(folder: Path) -> dict[str, Any]:
    """What mass_config.json says that the base model is like; empty if it does not say."""
    base = read_json(folder / CONFIG_NAME).get("base_model")
    return base if isinstance(base, dict) else {}


def read_saved(folder: Path) -> tuple[MassConfig | None, Path, str | None]:
    """A saved model: (settings, None for a PEFT adapter; its adapter's folder; name of the base).

    Raises:
        CheckpointError: If it holds neither, or a file cannot be read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder. Give the folder of a saved model or adapter.")
    config = read_config(folder) if (folder / CONFIG_NAME).is_file() else None
    adapter = folder if config is None else folder / "generator"
    if not (file := adapter / ADAPTER_FILES[0]).is_file():
        raise CheckpointError(
            f"{file} is missing: {folder} is no saved MassModel and no PEFT adapter. Give a folder that "
            "MassModel.save_pretrained, a trainer's save_model or Adaptation.save wrote."
        )
    base = read_json(file).get("base_model_name_or_path")
    return config, adapter, base if isinstance(base, str) else None
