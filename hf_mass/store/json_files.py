"""JSON files of settings, which may be anybody's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_mass.errors import CheckpointError

MOST_BYTES = 16_000_000
"""No file of settings is larger."""


def read_json(path: Path, cure: str = "Save the model again.") -> dict[str, Any]:
    """Read a JSON file of names and values.

    Args:
        path: The file.
        cure: What helps if it cannot be read; the end of the message.

    Raises:
        CheckpointError: If it cannot be read, or holds anything else.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{size} bytes are no settings")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{path} is no JSON that can be read: {reason}. {cure}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, no settings. {cure}")
    return values
