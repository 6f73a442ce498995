"""Weights in safetensors files: looked at before any model is built from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_mass.errors import CheckpointError
from hf_mass.store.json_files import read_json

LARGEST = 1e6
"""No weight of a working model is larger; what is overflows as soon as it is multiplied."""
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of the matrices in a file, whose content is not read.

    Raises:
        CheckpointError: If it is damaged, or one of them has no floating point numbers.
    """
    header = _header(path)
    _require_floats(path, header)
    return {name: shape for name, (_, shape) in header.items()}


def require_floats(folder: Path, parameters: Iterable[str]) -> None:
    """Checks that a model's parameters are floating point numbers in its files, where loading would convert integers.

    Args:
        folder: The folder of safetensors.
        parameters: Names of the parameters; in the files they may lack a prefix.

    Raises:
        CheckpointError: If one is not.
    """
    endings = {name.split(".", n)[-1] for name in parameters for n in range(name.count(".") + 1)}
    for path in sorted(folder.glob("*.safetensors")):
        _require_floats(path, {name: each for name, each in _header(path).items() if name in endings})


def require_own_shards(folder: Path) -> None:
    """Checks that the index of a folder's safetensors names files of the folder alone.

    Raises:
        CheckpointError: If it names others, or is none.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index} has no weight_map of names and files. Save or download it again.")
    for name, file in shards.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: {name:.100} is in {file!r:.100}, which is no safetensors file of this folder. Save or "
                "download it again."
            )


def _header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → type and shape."""
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Save or download it again.") from error


def _require_floats(path: Path, header: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    for name, (kind, _) in header.items():
        if kind not in _FLOATS:
            raise CheckpointError(
                f"{path}: {name} is of type {kind}, and weights are floating point numbers ({', '.join(_FLOATS)}). "
                "Save or download it again."
            )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name → matrix of a file.

    Raises:
        CheckpointError: If it is damaged, or holds what is no weight: integers, NaN, numbers without measure.
    """
    names = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Save or download it again.") from error
    require_finite(weights.items(), str(path))
    return weights


def require_finite(weights: Iterable[tuple[str, Tensor]], source: str) -> None:
    """Checks that weights are numbers that can be computed with. Kinds of tensors that tell no range are not checked.

    Args:
        weights: Names and tensors.
        source: Where they are from; the beginning of the message.

    Raises:
        CheckpointError: If one is NaN, infinite or larger than `LARGEST`.
    """
    for name, tensor in weights:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_meta or not tensor.numel():
            continue
        if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            continue
        low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
        if not max(-low, high) <= LARGEST or low != low:  # NaN is in no order, and both bounds then
            found = high if high > LARGEST else low
            raise CheckpointError(
                f"{source}: {name} holds {found:g}; a weight is a finite number of at most {LARGEST:g}. The file is "
                "damaged, or its training went wrong: save or download it again."
            )
