"""The files of a saved `MassModel`: which there are, and mass_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_mass import __version__
from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.store.storage import read_json

CONFIG_NAME = "mass_config.json"
FORMAT_VERSION = 1
REQUIRED = (
    CONFIG_NAME,
    "generator/adapter_config.json",
    "generator/adapter_model.safetensors",
    "inner/adapter_config.json",
    "inner/adapter_model.safetensors",
)
"""Without these a folder is no saved model. The scorer checks its own files."""


def write_config(config: MassConfig, folder: Path, base: Mapping[str, Any] | None = None) -> None:
    """Write mass_config.json, with what the base is like, so that another one is recognised when it is loaded."""
    values = {"format_version": FORMAT_VERSION, "hf_mass_version": __version__, **config.to_dict()}
    if base is not None:
        values["base_model"] = dict(base)
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(folder: Path) -> MassConfig:
    """Read mass_config.json.

    Raises:
        CheckpointError: If it is no JSON, of an unknown version, or holds unknown settings.
    """
    path = folder / CONFIG_NAME
    values = read_json(path)
    version = values.pop("format_version", None)
    for name in ("hf_mass_version", "base_model"):
        values.pop(name, None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {version!r}; this release reads {FORMAT_VERSION}. Update hf_mass."
        )
    try:
        return MassConfig.from_dict(values)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path} does not fit this release: {error}") from error


def read_base(folder: Path) -> dict[str, Any]:
    """What mass_config.json says that the base model is like; empty if it does not say."""
    base = read_json(folder / CONFIG_NAME).get("base_model")
    return base if isinstance(base, dict) else {}
