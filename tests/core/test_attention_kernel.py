"""Which attention kernel a training pass runs on: the fused one, but where that is slower."""

from __future__ import annotations

import pytest
import torch
from tiny_models import lora_model, random_batch
from torch.profiler import ProfilerActivity, profile

from hf_mass.core import trees
from hf_mass.core.kernels import SHORT
from hf_mass.core.losses import weighted_gradient
from hf_mass.core.token_loss import TokenLoss
from hf_mass.core.trees import Tree
from hf_mass.lm.binding import BoundLora


def gradient(dtype: torch.dtype, length: int) -> tuple[Tree, bool]:
    """(gradient of the losses of two rows, whether the fused kernel ran)."""
    model = lora_model("llama", dtype=dtype, hidden=32)
    lora = BoundLora(model, "inner")
    batch = random_batch([0, 0], torch.Generator().manual_seed(0), shortest=length, longest=length)
    params = trees.tree_map(lambda x: x.float(), lora.start())
    with lora.inactive(), profile(activities=[ProfilerActivity.CPU]) as ran:
        _, found, _ = weighted_gradient(TokenLoss(model, lora.function, batch), params, torch.ones(2))
    return found, any("flash_attention" in event.key and "backward" in event.key for event in ran.key_averages())


@pytest.mark.parametrize(
    ("dtype", "length", "fused"),
    [
        (torch.bfloat16, 24, False),
        (torch.bfloat16, SHORT, False),
        (torch.bfloat16, SHORT + 1, True),
        (torch.float32, 24, True),
    ],
)
def test_short_rows_in_half_precision_leave_the_fused_kernel_aside(
    dtype: torch.dtype, length: int, fused: bool
) -> None:
    assert gradient(dtype, length)[1] is fused


def test_the_gradient_is_the_same() -> None:
    plain, exact = gradient(torch.bfloat16, 24)[0], gradient(torch.float32, 24)[0]
    scale = max(float(leaf.abs().max()) for leaf in exact.values())
    assert max(float((plain[name] - exact[name]).abs().max()) for name in exact) < 0.05 * scale
