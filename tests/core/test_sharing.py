"""Rows that share a sequence against the same rows apart: values, gradients, products of every order, in every plan."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from more_architectures import CONFIGS, WIDENED, further_model
from peft import PeftModel
from tiny_models import VOCABULARY, lora_model, random_tree, relative_error, tree_error
from torch import Tensor
from unrolled import PLANS

from hf_mass.core.inner_loop import InnerLoop
from hf_mass.core.losses import WeightedLoss, row_values, sample_gradients, weighted_gradient
from hf_mass.core.memory import FAST, MemoryPlan
from hf_mass.core.meta_gradients import get_rule
from hf_mass.core.meter import metered
from hf_mass.core.optimizers import make_optimizer
from hf_mass.core.second_order import hessian_product, row_products
from hf_mass.core.sharing import LONGEST, NO_SHARING, Sequences, Sharing, sequence_numbers
from hf_mass.core.token_loss import IGNORED, TokenBatch, TokenLoss
from hf_mass.lm.binding import BoundLora
from hf_mass.lm.sharing import sharing_of

EXACT = ("llama", "qwen2", "gpt2", "phi3", "qwen3")
TASKS = [0, 1, 0, 1, 1, 2]
ALONE = ("bloom", "falcon_alibi", "lfm2", "mamba2", "recurrent_gemma", "rwkv")
"""Which count positions by themselves, or keep a state."""
SLIDING = ("cohere2", "gemma2", "gpt_oss")
EVERYTHING = Sharing(LONGEST, gain=1.0)


@functools.cache
def model_of(kind: str) -> PeftModel:
    return lora_model(kind)


def batch_of(tasks: Sequence[int], prefix: int = 12, rests: Sequence[int] = (3, 5, 2, 4, 3, 5)) -> TokenBatch:
    """Rows that begin with their task's prefix; the answer begins within the rest, or with it, or in the prefix."""
    generator = torch.Generator().manual_seed(7)
    heads = torch.randint(3, VOCABULARY, (max(tasks) + 1, prefix), generator=generator)
    drawn = [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in rests[: len(tasks)]]
    rows = [torch.cat((heads[task], rest)) for task, rest in zip(tasks, drawn, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    starts = torch.tensor([max(1, min(len(row) - 1, prefix + r % 3 - 1)) for r, row in enumerate(rows)])[:, None]
    order = torch.arange(ids.shape[1])
    labels = ids.masked_fill((order < starts) | (mask == 0), IGNORED)
    return TokenBatch(ids, mask, labels, torch.tensor(list(tasks)))


def losses_of(kind: str, plan: MemoryPlan = FAST) -> tuple[TokenLoss, TokenLoss, BoundLora]:
    """(rows that share, rows apart, the LoRA)."""
    model, batch = model_of(kind), batch_of(TASKS)
    lora = BoundLora(model, "inner")
    apart, together = (
        TokenLoss(model, lora.function, batch, memory=plan, sharing=sharing) for sharing in (NO_SHARING, EVERYTHING)
    )
    assert together.shares and not apart.shares
    return together, apart, lora


def points(lora: BoundLora) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    start = lora.start(3)
    generator = torch.Generator().manual_seed(5)
    return random_tree(start, generator, 0.3), random_tree(start, generator, 1.0)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", EXACT)
def test_derivatives_of_weighted_sums_are_those_of_the_rows_apart(kind: str, plan: str) -> None:
    together, apart, lora = losses_of(kind, PLANS[plan])
    point, direction = points(lora)
    weights = torch.tensor([0.9, 0.2, 0.6, 0.4, 0.0, 1.3], dtype=torch.float64)
    with lora.inactive():
        found, expected = ([row_values(x, point), weighted_gradient(x, point, weights)] for x in (together, apart))
        assert relative_error(found[0], expected[0]) < 1e-10
        assert tree_error(found[1][1], expected[1][1]) < 1e-9
        products = [row_products(x, point, direction) for x in (together, apart)]
        assert relative_error(*products) < 1e-9
        curved = [hessian_product(x, point, weights, direction) for x in (together, apart)]
    assert tree_error(curved[0][0], curved[1][0]) < 1e-9
    assert relative_error(curved[0][1], curved[1][1]) < 1e-9


@pytest.mark.parametrize("rule", ["adjoint", "unrolled"])
@pytest.mark.parametrize("steps", [1, 2])
def test_meta_gradients_are_those_of_the_rows_apart(steps: int, rule: str) -> None:
    together, apart, lora = losses_of("llama")
    weights = torch.tensor([0.9, 0.2, 0.6, 0.4, 0.0, 1.3], dtype=torch.float64)
    results = []
    with lora.inactive():
        for loss in (together, apart):
            trajectory = InnerLoop(steps, make_optimizer("sgd", 0.2)).run(loss, points(lora)[0], weights)
            outer = WeightedLoss(loss, torch.linspace(-1, 1, len(TASKS), dtype=torch.float64))
            results.append((trajectory, get_rule(rule)(trajectory, outer, start_gradient=True)))
    (one, found), (other, expected) = results
    assert one.first is None and other.first is not None
    assert tree_error(one.adapted, other.adapted) < 1e-9
    assert relative_error(found.attributions, expected.attributions) < 1e-9
    assert found.start_gradient is not None and expected.start_gradient is not None
    assert tree_error(found.start_gradient, expected.start_gradient) < 1e-9


def test_rows_at_parameters_of_their_own_stay_apart() -> None:
    together, apart, lora = losses_of("llama")
    with lora.inactive():
        found, expected = (sample_gradients(x, points(lora)[0]) for x in (together, apart))
    assert relative_error(found[0], expected[0]) < 1e-12
    assert tree_error(found[1], expected[1]) < 1e-12


def test_what_is_shared_goes_through_the_model_once() -> None:
    together, apart, lora = losses_of("llama")
    tokens = []
    with lora.inactive():
        for loss in (together, apart):
            with metered() as meter:
                weighted_gradient(loss, points(lora)[0], torch.ones(len(TASKS), dtype=torch.float64))
            tokens.append(meter.trained_tokens)
    assert tokens == [3 * (12 + 5 + 4 + 3), 6 * (12 + 5)]


def test_dropout_keeps_rows_apart() -> None:
    model = model_of("llama")
    loss = TokenLoss(model, BoundLora(model, "inner").function, batch_of(TASKS), dropout=0.5, sharing=EVERYTHING)
    assert not loss.shares


@given(
    tasks=st.lists(st.integers(0, 2), min_size=1, max_size=7),
    rests=st.lists(st.integers(1, 6), min_size=7, max_size=7),
    prefix=st.integers(1, 8),
    gain=st.sampled_from([1.0, 1.5, 3.0]),
)
def test_sequences_hold_every_row(tasks: list[int], rests: list[int], prefix: int, gain: float) -> None:
    """Each row's tokens, read along its places, with its positions; of one task alone; no more pairs than apart."""
    batch = batch_of(tasks, prefix, rests)
    numbers = sequence_numbers(batch.input_ids, batch.lengths, batch.row_task, Sharing(LONGEST, gain))
    groups = [(numbers == n).nonzero()[:, 0].tolist() for n in numbers.unique()]
    assert all(len({tasks[r] for r in group}) == 1 for group in groups)
    made = Sequences.of(batch.input_ids, batch.lengths, groups)
    sizes = (made.parts >= 0).sum(1)
    for n, group in enumerate(groups):
        assert int(sizes[n]) ** 2 <= int((batch.lengths[group] ** 2).sum())
        assert int(made.first[n]) == group[0]
    for r, length in enumerate(batch.lengths.tolist()):
        place = made.place[r, :length]
        assert torch.equal(made.input_ids.flatten()[place], batch.input_ids[r, :length])
        assert torch.equal(made.positions.flatten()[place], torch.arange(length))


def test_longer_rows_than_may_share_stay_apart() -> None:
    batch = batch_of([0, 0, 1, 1, 2], rests=(3, 5, 2, 4, 1))
    numbers = sequence_numbers(batch.input_ids, batch.lengths, batch.row_task, Sharing(16, 1.0))
    assert numbers[2] == numbers[3]
    assert len(numbers.unique()) == 4


# -- which models can --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXACT)
def test_models_that_take_a_mask_and_positions_share(kind: str) -> None:
    with BoundLora(model_of(kind), "inner").inactive():
        assert sharing_of(model_of(kind)) == Sharing(LONGEST)


def test_rows_beyond_a_sliding_window_stay_apart() -> None:
    assert sharing_of(further_model("gemma2")) == NO_SHARING
    assert sharing_of(further_model("gemma2", sliding_window=20)) == Sharing(19)


@pytest.mark.parametrize("kind", CONFIGS)
def test_further_models_share_rightly_or_not_at_all(kind: str) -> None:
    """What is tried with a few tokens holds for rows that are longer, padded, and under updates; also where a sequence,
    but no row, is longer than a sliding window."""
    model = further_model(kind, **({"sliding_window": 20} if kind in SLIDING else {}))
    lora, batch = BoundLora(model, "inner"), batch_of(TASKS)
    with lora.inactive():
        sharing = sharing_of(model)._replace(gain=1.0)
        apart, together = (TokenLoss(model, lora.function, batch, sharing=each) for each in (NO_SHARING, sharing))
        assert together.shares == (kind not in ALONE)
        point = random_tree(lora.start(3), torch.Generator().manual_seed(5), 0.3)
        found, expected = (
            weighted_gradient(x, point, torch.ones(len(TASKS), dtype=torch.float64)) for x in (together, apart)
        )
    bound = 1e-9 if kind in WIDENED else 2e-5
    assert relative_error(found[0], expected[0]) < bound
    assert tree_error(found[1], expected[1]) < bound


@pytest.mark.parametrize("forgotten", ["attention_mask", "position_ids"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_does_not_heed_mask_or_positions_is_found_out(forgotten: str, dtype: torch.dtype) -> None:
    model = lora_model("llama", dtype)
    with BoundLora(model, "inner").inactive():
        assert sharing_of(model) == Sharing(LONGEST)
        inner = model.get_base_model().model
        forward = inner.forward
        inner.forward = lambda *a, **k: forward(*a, **{**k, forgotten: None})
        assert sharing_of(model) == NO_SHARING
        inner.forward = forward
        assert sharing_of(model) == Sharing(LONGEST)


def test_kernels_that_make_their_own_mask_keep_rows_apart() -> None:
    model = lora_model("llama")
    model.get_base_model().config._attn_implementation = "flash_attention_2"
    assert sharing_of(model) == NO_SHARING
