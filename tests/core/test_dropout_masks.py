"""Masks of dropout against the hash written out in whole numbers of any size."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.core.dropout import LoraDropout

WORD = 2**32 - 1


def mix(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def kept(p: float, seed: int, step: int, site: int, row: int, position: int, feature: int) -> bool:
    """One entry; shifts and products of words without a sign."""
    key = seed & WORD
    for part in (step, site):
        key = mix(key ^ ((part + 1) * 0x9E3779B1 & WORD))
    word = mix(mix(key ^ mix(row)) ^ (position * 0x85EBCA6B & WORD)) ^ mix(feature + 1)
    word = word * 0x7FEB352D & WORD
    word = (word ^ (word >> 15)) * 0x846CA68B & WORD
    return word >> 8 >= int(p * 2**24)


@given(
    probability=st.floats(0, 0.99),
    seed=st.integers(-(2**63), 2**63 - 1),
    step=st.integers(0, 100),
    site=st.integers(0, 500),
    first=st.integers(-5, 40_000),
)
def test_masks_are_the_hash(probability: float, seed: int, step: int, site: int, first: int) -> None:
    positions = first + torch.arange(3).expand(2, 3)
    rows = torch.tensor([0, 2**20])
    mask = LoraDropout(probability, seed, rows, positions, step).mask(site, 5)
    expected = [
        [[kept(probability, seed, step, site, row, first + t, f) for f in range(5)] for t in range(3)]
        for row in rows.tolist()
    ]
    assert torch.equal(mask, torch.tensor(expected).float() / (1 - probability))


def test_the_share_that_is_dropped_and_independence() -> None:
    rows, positions = torch.arange(8), torch.arange(64).expand(8, 64)
    masks = [LoraDropout(0.3, seed, rows, positions).mask(0, 256) == 0 for seed in range(2)]  # 131,072 entries each
    for dropped in masks:  # standard error of the whole .0013, of a row .0036, of a feature .02
        assert abs(dropped.float().mean().item() - 0.3) < 0.006
        assert (dropped.float().mean((1, 2)) - 0.3).abs().max() < 0.02
        assert (dropped.float().mean((0, 1)) - 0.3).abs().max() < 0.1
    assert abs((masks[0] & masks[1]).float().mean().item() - 0.09) < 0.005
