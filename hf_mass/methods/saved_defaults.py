"""Settings that travel with a saved adaptation, which may be anybody's: checked before a method goes by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.methods.mass_settings import MassConfig
from hf_mass.methods.settings import build, flat
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.tasks.checks import require_one_of, shown
from hf_mass.tasks.formats import FORMATS
from hf_mass.tasks.kinds import KINDS
from hf_mass.tasks.prompt_format import PromptFormat


def checked_defaults(defaults: Any, file: Path) -> dict[str, Any]:
    """The settings of methods, by name, that a file holds.

    Raises:
        CheckpointError: If they are of another type, unknown, out of range, or a pattern to try on a model.
    """
    try:
        if not isinstance(defaults, dict):
            raise ConfigError(f"defaults is {shown(defaults)}, and no settings of methods by name")
        for kind, settings in _dict("ttt", defaults.get("ttt", {})).items():
            require_one_of("defaults.ttt: the kind of problem", kind, KINDS)
            _require_ttt(f"ttt.{kind}", settings)
        _require_mass(_dict("mass", defaults.get("mass", {})))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{file}: {error} Save the adaptation again.") from error
    return defaults


def _require_ttt(name: str, settings: Any) -> None:
    values = {"preset": "text", **_dict(name, settings)}
    TTTSettings.preset(values.pop("preset"), **values)
    _require_names(f"{name}.lora_target_modules", values.get("lora_target_modules", "all-linear"))


def _require_mass(settings: dict[str, Any]) -> None:
    values = dict(settings)
    name, written = values.pop("prompt_format", "default"), values.pop("format", None)
    if not isinstance(name, str) or name not in FORMATS:
        raise ConfigError(f"mass.prompt_format is {shown(name)}; choose one of {sorted(FORMATS)}.")
    if written is not None:
        PromptFormat.from_dict(_dict("mass.format", written))
    if unknown := sorted(set(values) - set(flat(MassConfig))):
        raise ConfigError(f"mass has no setting {unknown[0]!r:.60}.")
    build(MassConfig, values)
    _require_names("mass.inner_target_modules", values.get("inner_target_modules", "all-linear"))


def _dict(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"defaults.{name} is {shown(value)}, and no settings by name.")
    return value


def _require_names(name: str, targets: Any) -> None:
    if isinstance(targets, str) and targets != "all-linear":
        raise ConfigError(f"defaults.{name} is the pattern {targets!r:.60}, not tried on a model. List names.")
