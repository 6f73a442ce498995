"""What a model answers with, as a digest: another base of the same name has another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakIdRef
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mass.core.trees import Tree
from hf_mass.lm.binding import BoundLora

_NO_PART = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "_attn_implementation")
_ADAPTERS = ("lora_", "modules_to_save")
_KNOWN: WeakKeyDictionary[PreTrainedModel, tuple[Any, str]] = WeakKeyDictionary()
"""What a model's weights were when they were read, and their digest."""


def base_digest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """A digest of a base: weights, buffers and settings of the model, without adapters, and of its tokenizer.

    Where the weights were read from and on which device they are is no part of it. Weights that nobody wrote to since
    are not read again.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name not in _NO_PART}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    if tokenizer is not None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else _of_backend(backend)
        template = getattr(tokenizer, "chat_template", None)
        digest.update(repr((vocabulary, template, sorted(map(str, tokenizer.special_tokens_map.items())))).encode())
    named = [*model.named_parameters(), *model.named_buffers()]
    tensors = {_plain(name): list(_parts(x)) for name, x in named if not any(part in name for part in _ADAPTERS)}
    key = digest.digest(), [(name, *map(_state, tensors[name])) for name in sorted(tensors)]
    known = _KNOWN.get(model)
    if known is None or known[0] != key:
        for name in sorted(tensors):
            digest.update(name.encode())
            for part in tensors[name]:
                digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
                if not part.is_meta:
                    digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        known = _KNOWN[model] = key, digest.hexdigest()[:16]
    return known[1]


def _state(tensor: Tensor) -> object:
    """Equal as long as a tensor is the same and nobody wrote to it; of one that does not count that, never."""
    return object() if tensor.is_inference() else (WeakIdRef(tensor), tensor.data_ptr(), tensor._version)


def weights_digest(tree: Tree) -> str:
    """A digest of matrices: equal ones have the same."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(tree):
        digest.update(name.encode() + tree[name].detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def lora_digest(lora: BoundLora, start: Tree | None = None) -> str:
    """A digest of what an adapter adds to its base: its matrices (or those of `start`) and their scales."""
    scales = {f"scale of {name}": torch.tensor(site.scaling) for name, site in lora.function.sites.items()}
    return weights_digest({**(lora.start(1) if start is None else start), **scales})


def _of_backend(backend: Any) -> str:
    """A fast tokenizer, without how it was last asked to pad and cut."""
    values = json.loads(backend.to_str())
    return json.dumps({name: each for name, each in values.items() if name not in ("padding", "truncation")})


def _plain(name: str) -> str:
    """The name of a parameter in the base, whether adapters are around it or not."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that one of a kind of its own, such as a quantised one, is made of."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    if not names:
        yield tensor
    for name in names:
        yield from _parts(getattr(tensor, name))
