"""Models that ship with the package, called by their bare names wherever it is installed.

A saved adapter names its base. The path of a base that ships would be of no use on another machine, so its bare name
stands there instead ("conventions-base"). No Hub repository can be meant by it: those have an owner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

ASSETS = Path(str(files("hf_mass"))) / "assets"
Reference = TypeVar("Reference")


def shipped_names() -> list[str]:
    """The names of the bases and adapters that ship with the package."""
    return sorted(
        {file.parent.name for name in ("config.json", "mass_config.json") for file in ASSETS.glob(f"*/{name}")}
    )


def shipped_name(reference: object) -> str | None:
    """Returns the name of the shipped model that is referred to, or None if it is none of them.

    A bare name refers to one, and so does a path that ends in hf_mass/assets/<name>, on this machine or another. A
    folder of the caller's with the same name does not, nor anything that is neither text nor path.
    """
    if not isinstance(reference, str | Path):
        return None
    path = Path(reference)
    if path.is_dir():
        is_asset = path.resolve().parent == ASSETS.resolve()
    else:
        is_asset = len(path.parts) == 1 or path.parts[-3:-1] == ("hf_mass", "assets")
    return path.name if is_asset and path.name in shipped_names() else None


def resolve_shipped(reference: Reference) -> Reference | Path:
    """Returns the folder in the package if a model that ships is referred to, else the reference itself."""
    name = shipped_name(reference)
    return reference if name is None else ASSETS / name


def resolve_bases(configs: Mapping[str, Any]) -> None:
    """Replace the bare name of a base that ships by its folder in the settings of loaded adapters, in place.

    PEFT looks for the vocabulary there.
    """
    for config in configs.values():
        if name := shipped_name(config.base_model_name_or_path):
            config.base_model_name_or_path = str(ASSETS / name)


def name_base_portably(adapter: Path) -> None:
    """Let a PEFT adapter name its base as any process finds it: one that ships by its bare name, another folder by its
    whole path. A relative one would be taken for a repository of the Hub elsewhere."""
    file = adapter / "adapter_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    base = values.get("base_model_name_or_path")
    name = shipped_name(base)
    if name is None and isinstance(base, str) and base and not Path(base).is_absolute() and Path(base).is_dir():
        name = str(Path(base).absolute())
    if name:
        values["base_model_name_or_path"] = name
        file.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")
