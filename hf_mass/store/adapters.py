"""Adapters as PEFT writes them: one folder that `PeftModel.from_pretrained` reads without this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from hf_mass.store.shipped import name_base_portably
from hf_mass.store.storage import ADAPTER_FILES


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
    name_base_portably(folder)
    save_file({name: leaf.detach().cpu().contiguous() for name, leaf in weights.items()}, folder / ADAPTER_FILES[1])
