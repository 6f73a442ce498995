"""Models that ship inside the package, found by their bare names wherever the package is installed.

A saved adapter names its base. A base that ships would be named by a path that no other machine has, so it is named by
its bare name instead ("conventions-base"), which can be no Hub repository of anybody: those have an owner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

ASSETS = Path(str(files("hf_mass"))) / "assets"
Named = TypeVar("Named")


def shipped_names() -> list[str]:
    """The names of the bases and adapters that ship with the package."""
    return sorted(
        {file.parent.name for name in ("config.json", "mass_config.json") for file in ASSETS.glob(f"*/{name}")}
    )


def shipped_name(named: object) -> str | None:
    """The name of the shipped model that is meant, or None if it is none of them.

    Meant is a bare name, or a path that ends in hf_mass/assets/<name>, of this machine or of another. A folder of the
    caller's own that is called alike is not.

    Args:
        named: What names a model: a Hub id, a path, or a model, which is never a shipped name.
    """
    if not isinstance(named, str | Path):
        return None
    path = Path(named)
    if path.is_dir():
        meant = path.resolve().parent == ASSETS.resolve()
    else:
        meant = len(path.parts) == 1 or path.parts[-3:-1] == ("hf_mass", "assets")
    return path.name if meant and path.name in shipped_names() else None


def resolve_shipped(named: Named) -> Named | Path:
    """The packaged folder where a model that ships is meant; anything else as it is.

    Args:
        named: A Hub id, a path, a bare name, a model or None.
    """
    name = shipped_name(named)
    return named if name is None else ASSETS / name


def resolve_bases(configs: Mapping[str, Any]) -> None:
    """Let adapters that were loaded name the folder of a base that ships, where PEFT looks for its vocabulary.

    Args:
        configs: PEFT's configurations by adapter name.
    """
    for config in configs.values():
        if name := shipped_name(config.base_model_name_or_path):
            config.base_model_name_or_path = str(ASSETS / name)


def name_base_portably(adapter: Path) -> None:
    """Let a saved PEFT adapter name a base that ships by its bare name, not by this machine's path.

    Args:
        adapter: The folder of its adapter_config.json.
    """
    file = adapter / "adapter_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    name = shipped_name(values.get("base_model_name_or_path"))
    if name is not None:
        values["base_model_name_or_path"] = name
        file.write_text(json.dumps(values, indent=2, sort_keys=True), encoding="utf-8")
