"""Dropout on the low-rank path whose masks are a pure function of what they belong to.

Going back through an inner step means running its forward pass again: row by row, in other microbatches, one layer at a
time, on a recomputation. Each of these must drop the same entries, so a mask is not drawn from a stream of random
numbers but computed, by hashing (seed, inner step, site, row, position, feature). A row's key counts within its task,
and positions count from the first real token, so neither padding nor the other tasks of a batch change a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hf_mass.errors import UnsupportedModelError

_WORD = 0xFFFFFFFF  # 32 bits, held in int64


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every input bit reaches every output bit (xor-shift and multiply)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


@dataclass(frozen=True, eq=False)
class LoraDropout:
    """The masks of one pass.

    Args:
        probability: Share of entries dropped, in [0, 1); the others are scaled by 1 / (1 − probability).
        seed: Any integer.
        row_keys: [rows] int64, the row's number within its task.
        positions: [rows, length] int64, counted from each row's first real token.
        step: Inner step.
    """

    probability: float
    seed: int
    row_keys: Tensor
    positions: Tensor
    step: int = 0

    def at_step(self, step: int) -> LoraDropout:
        """The masks of another inner step."""
        return replace(self, step=step)

    def mask(self, site: int, features: int) -> Tensor:
        """[rows, length, features] float32: 0 or 1 / (1 − probability), independent between sites and inner steps."""
        device = self.row_keys.device
        key = torch.tensor(self.seed & _WORD, device=device)
        for part in (self.step, site):
            key = _mix(key ^ ((part + 1) * 0x9E3779B1 & _WORD))
        rows = _mix(key ^ _mix(self.row_keys & _WORD))
        tokens = _mix(rows[:, None] ^ (self.positions * 0x85EBCA6B & _WORD))  # [rows, length]
        columns = _mix(torch.arange(features, device=device) + 1)
        return self._kept(tokens, columns).float().div_(1 - self.probability)

    def _kept(self, tokens: Tensor, columns: Tensor) -> Tensor:
        """[rows, length, features] bool, from the words of the tokens [rows, length] and of the features [features].

        The last of the mixing is most of the work: in int32, which takes a fifth of the time of int64, and in place.
        Products wrap around as words do; a shift brings in copies of the sign, which are masked away; and the order of
        words is that of numbers with a sign once the first bit is flipped.
        """
        words = _signed(tokens)[..., None] ^ _signed(columns)
        words.mul_(_as_signed(0x7FEB352D))
        words.bitwise_xor_((words >> 15).bitwise_and_(_WORD >> 15)).mul_(_as_signed(0x846CA68B))
        return words.bitwise_xor_(-(2**31)) >= (int(self.probability * 2**24) << 8) - 2**31


def _as_signed(word: int) -> int:
    """The int32 number with the bits of a 32-bit word."""
    return (word + 2**31) % 2**32 - 2**31


def _signed(words: Tensor) -> Tensor:
    """int32 tensor with the bits of 32-bit words that are held in int64."""
    return (((words + 2**31) & _WORD) - 2**31).to(torch.int32)


@contextmanager
def without_noise(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Refuse a forward pass within this context that draws random numbers: another pass would drop other entries.

    Raises:
        UnsupportedModelError: If one does, naming what may have drawn them. The random state is put back.
    """
    accelerator = [] if device.type in ("cpu", "meta") else [torch.get_device_module(device)]
    before = torch.get_rng_state(), *(each.get_rng_state(device) for each in accelerator)
    yield
    after = torch.get_rng_state(), *(each.get_rng_state(device) for each in accelerator)
    if all(map(torch.equal, before, after)):
        return
    torch.set_rng_state(before[0])
    for each, state in zip(accelerator, before[1:], strict=True):
        each.set_rng_state(state, device)
    names = [name or type(model).__name__ for name, module in model.named_modules() if _drops(module)]
    noisy = f"{names[0]} (one of {len(names)})" if names else type(model).__name__
    raise UnsupportedModelError(
        f"A forward pass drew random numbers, so no other pass is its like and gradients would be wrong: {noisy} has "
        "dropout or other noise, and the model is "
        + ("in training mode. Call model.eval() first." if model.training or names else "in evaluation mode.")
        + " For dropout on the inner LoRA use inner_lora_dropout."
    )


def _drops(module: nn.Module) -> bool:
    """Whether a module is in training mode and says of a probability of dropping that it is above 0."""
    values = {name: value for name, value in vars(module).items() if "drop" in name or isinstance(module, nn.Dropout)}
    return module.training and any(isinstance(x, float) and 0 < x <= 1 for x in values.values())
