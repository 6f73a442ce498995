"""A pass ends where whoever asks says so, at any layer, forward and back; and is the same where nobody does."""

from __future__ import annotations

import pytest
import torch
from more_architectures import further_model
from peft import PeftModel
from tiny_models import lora_model
from torch import nn
from unrolled import PLANS, solve

from hf_mass.errors import Stopped
from hf_mass.lm.generation import Sampling, complete
from hf_mass.lm.stopping import asked_at_every_layer


class Halt:
    """Asks to stop at one of its calls."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise Stopped("stopped")


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("plan", PLANS)
def test_any_layer_of_a_meta_gradient(plan: str) -> None:
    model, never = lora_model("llama"), Halt(0)
    expected, gradient = solve(model, PLANS[plan])
    with asked_at_every_layer(model, Halt(0)):
        solve(model, PLANS[plan])  # whether second derivatives are whole is looked at once
    with asked_at_every_layer(model, never):
        adapted, found = solve(model, PLANS[plan])
    assert all(torch.equal(adapted[name], leaf) for name, leaf in expected.items())
    assert torch.equal(found.attributions, gradient.attributions)
    assert never.calls >= 2 * 2 * 3  # two layers, there and back, in two steps and the outer pass
    before = hooks(model)
    for at in (1, 4, never.calls // 2, never.calls):
        halt = Halt(at)
        with pytest.raises(Stopped), asked_at_every_layer(model, halt):
            solve(model, PLANS[plan])
        assert halt.calls == at and hooks(model) == before
    adapted, _ = solve(model, PLANS[plan])
    assert all(torch.equal(adapted[name], leaf) for name, leaf in expected.items())


@pytest.mark.parametrize("model", [lora_model("llama", torch.float32), further_model("rwkv")])
def test_a_prompt_that_is_read(model: PeftModel) -> None:
    class Tokenizer:
        pad_token_id, eos_token_id, all_special_tokens = 0, 2, ()

    for at in (1, 2, 3):
        halt = Halt(at)
        with pytest.raises(Stopped), asked_at_every_layer(model, halt):
            complete(model, Tokenizer(), [[3, 4, 5]], Sampling(2, 0.0))  # type: ignore[arg-type]
        assert halt.calls == at
