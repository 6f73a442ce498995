"""Sampling: from the right distribution, and the same for a row whatever else is in its batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import WORLD, byte_base, byte_tokenizer, conventions_model
from peft import LoraConfig, get_peft_model
from transformers import (
    GenerationConfig,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from hf_mass.core.meter import metered
from hf_mass.errors import UnsupportedModelError
from hf_mass.lm.binding import BoundLora
from hf_mass.lm.generation import GumbelNoise, Sampling, complete, row_seed, watching
from hf_mass.lm.prefix import require_no_state
from hf_mass.methods.mass_model import MassModel

parts = st.lists(st.one_of(st.integers(), st.text(max_size=5)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def mass() -> MassModel:
    return conventions_model(trained=True)


@pytest.fixture(scope="module")
def prompts(mass: MassModel) -> list[list[int]]:
    """Of several lengths."""
    tasks = WORLD.tasks("test_families", 6)
    solving = [mass.encoder.solver_prompt_ids(task)[-4:] for task in tasks[:3]]
    return [mass.encoder.generator_prompt_ids(task) for task in tasks] + solving


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_seeds_are_the_same_in_every_process() -> None:
    assert row_seed("solve", 3, "task", 1.5) == 2890010434272091362  # written down, so also in every release


@given(parts, parts)
def test_seeds_differ_where_their_parts_do(first: list[object], second: list[object]) -> None:
    same = [str(part) for part in first] == [str(part) for part in second]
    assert (row_seed(*first) == row_seed(*second)) == same
    assert 0 <= row_seed(*first) < 2**63


def test_seed_parts_do_not_run_together() -> None:
    assert len({row_seed("ab", "c"), row_seed("a", "bc"), row_seed("abc"), row_seed("a", "b", "c")}) == 4


# -- the distribution --------------------------------------------------------------------------------------------------


def draws(logits: torch.Tensor, sampling: Sampling, rows: int) -> torch.Tensor:
    """Frequencies of the tokens that `rows` rows, each with a seed of its own, choose."""
    chain = sampling.processors([row_seed("distribution", i) for i in range(rows)])
    ids = torch.zeros(rows, 1, dtype=torch.long)
    chosen = chain(ids, logits.expand(rows, -1).clone()).argmax(1)
    return torch.bincount(chosen, minlength=logits.numel()).float()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax(temperature: float) -> None:
    logits, rows = torch.tensor([2.0, 1.0, 0.0, -1.0, -math.inf, 0.5]), 8000
    found = draws(logits, Sampling(1, temperature), rows)
    expected = rows * (logits / temperature).softmax(0)
    possible = expected > 0
    assert found[~possible].sum() == 0
    chi_square = ((found - expected)[possible].square() / expected[possible]).sum().item()
    assert chi_square < 18.5  # the 0.999 quantile at 4 degrees of freedom


def test_the_test_of_the_distribution_can_fail() -> None:
    logits, rows = torch.tensor([2.0, 1.0, 0.0, -1.0]), 8000
    found, expected = draws(logits, Sampling(1, 1.1), rows), rows * logits.softmax(0)
    assert ((found - expected).square() / expected).sum() > 18.5


def test_noise_of_later_steps_is_new_and_right_too() -> None:
    logits, steps = torch.tensor([[1.0, 0.0, -1.0]]), 4000
    noise = GumbelNoise([row_seed("one row")])
    chosen = torch.cat([noise(torch.zeros(1, 1), logits).argmax(1) for _ in range(steps)])
    found = torch.bincount(chosen, minlength=3).float()
    expected = steps * logits[0].softmax(0)
    assert ((found - expected).square() / expected).sum() < 13.8  # 0.999 at 2 degrees of freedom
    # Neighbouring draws are independent: the joint frequencies factorise.
    joint = torch.bincount(3 * chosen[:-1] + chosen[1:], minlength=9).float()
    product = torch.outer(expected, expected).flatten() / steps
    assert ((joint - product).square() / product).sum() < 26.1  # 0.999 at 8 degrees of freedom


def test_truncation_keeps_the_right_tokens() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    assert (draws(logits, Sampling(1, top_k=2), 500) > 0).tolist() == [True, True, False, False]
    assert (draws(logits, Sampling(1, top_p=0.8), 500) > 0).tolist() == [True, True, False, False]
    assert (draws(logits, Sampling(1, top_p=0.5), 500) > 0).tolist() == [True, False, False, False]


def test_completions_follow_the_model(mass: MassModel, prompts: list[list[int]]) -> None:
    """Many rows with one prompt: their first tokens have the model's own probabilities."""
    rows = 1500
    ids = complete(mass.model, mass.tokenizer, [prompts[0]] * rows, Sampling(1), [row_seed(i) for i in range(rows)])
    found = torch.bincount(torch.tensor([row[0] for row in ids]), minlength=len(WORLD.vocabulary)) / rows
    with torch.no_grad():
        expected = mass.model(input_ids=torch.tensor([prompts[0]])).logits[0, -1].softmax(0)
    assert (found - expected).abs().sum() / 2 < 0.05  # total variation


# -- rows are on their own ---------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.data())
def test_a_row_does_not_depend_on_its_batch(mass: MassModel, prompts: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=6))
    seeds = [row_seed("batch", index) for index in range(len(prompts))]
    sampling = Sampling(data.draw(st.integers(1, 6)), data.draw(st.sampled_from([0.7, 1.0, 1.5])))
    together = complete(mass.model, mass.tokenizer, [prompts[i] for i in chosen], sampling, [seeds[i] for i in chosen])
    for index, row in zip(chosen, together, strict=True):
        assert [row] == complete(mass.model, mass.tokenizer, [prompts[index]], sampling, [seeds[index]])


def test_the_global_random_state_is_neither_read_nor_moved(mass: MassModel, prompts: list[list[int]]) -> None:
    seeds = list(range(len(prompts)))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = complete(mass.model, mass.tokenizer, prompts, Sampling(6), seeds)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert complete(mass.model, mass.tokenizer, prompts, Sampling(6), seeds) == first
    assert complete(mass.model, mass.tokenizer, prompts, Sampling(6), [s + 100 for s in seeds]) != first


# -- where completions end ---------------------------------------------------------------------------------------------


def test_greedy_decoding_takes_the_likeliest_tokens(mass: MassModel, prompts: list[list[int]]) -> None:
    found = complete(mass.model, mass.tokenizer, prompts, Sampling(5, temperature=0))
    for prompt, row in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token in row:
            with torch.no_grad():
                assert mass.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax() == token
            ids.append(token)
        assert len(row) == 5 or row[-1] == 2


def test_a_completion_ends_with_its_first_end_token(mass: MassModel, prompts: list[list[int]]) -> None:
    seeds = [row_seed("ends", i) for i in range(40)]
    rows = complete(mass.model, mass.tokenizer, [prompts[0]] * 40, Sampling(6, 1.5), seeds)
    assert len({len(row) for row in rows}) > 1
    for row in rows:
        assert 2 not in row[:-1] and 0 not in row
        assert row[-1] == 2 or len(row) == 6
    assert all(len(row) == 3 for row in complete(mass.model, mass.tokenizer, [prompts[0]] * 9, Sampling(3), seeds[:9]))


def test_every_end_token_of_the_model_ends(mass: MassModel, prompts: list[list[int]]) -> None:
    seeds = [row_seed("ends", i) for i in range(20)]
    rows = complete(mass.model, mass.tokenizer, [prompts[0]] * 20, Sampling(6), seeds)
    second = rows[0][2]
    own = mass.model.generation_config
    try:
        mass.model.generation_config = GenerationConfig(eos_token_id=[2, second])
        cut = complete(mass.model, mass.tokenizer, [prompts[0]] * 20, Sampling(6), seeds)
    finally:
        mass.model.generation_config = own
    assert cut == [row[: row.index(second) + 1] if second in row else row for row in rows] and cut != rows


@pytest.mark.parametrize("padding", ["own", "end"])
def test_a_row_that_a_text_ended_does_not_depend_on_its_batch(padding: str) -> None:
    """Many tokenizers have no padding token: the end of sequence, which fills rows up, was sampled by none of these."""
    model, tokenizer = byte_base(), byte_tokenizer()
    if padding == "end":
        tokenizer.pad_token = tokenizer.eos_token
    asked = [[5 + 7 * i + j for j in range(1 + 9 * i)] for i in range(6)]
    free = complete(model, tokenizer, asked, Sampling(12, 0))
    texts = [text for row in free for token in row[3:9] if "\ufffd" not in (text := tokenizer.decode([token]))]
    for stop in sorted(set(texts))[:6]:
        together = complete(model, tokenizer, asked, Sampling(12, 0), stop=stop)
        assert together == [complete(model, tokenizer, [ids], Sampling(12, 0), stop=stop)[0] for ids in asked]
        assert any(len(row) < 12 for row in together) and all(2 not in row[:-1] for row in together)


SETTINGS = [
    {"repetition_penalty": 5.0},
    {"num_beams": 3},
    {"min_new_tokens": 6},
    {"suppress_tokens": list(range(20))},
    {"no_repeat_ngram_size": 1},
    {"do_sample": True, "top_k": 1},
    {"max_length": 3},
]


@pytest.mark.parametrize("own", SETTINGS, ids=lambda own: ", ".join(own))
@pytest.mark.parametrize("wrapped", [True, False], ids=["peft", "plain"])
def test_the_model_s_generation_settings_change_nothing(
    mass: MassModel, prompts: list[list[int]], own: dict[str, object], wrapped: bool
) -> None:
    model = mass.model if wrapped else mass.model.get_base_model()
    seeds = list(range(len(prompts)))
    free = complete(model, mass.tokenizer, prompts, Sampling(6, 1.2), seeds)
    before = model.generation_config
    try:
        model.generation_config = changed = GenerationConfig(eos_token_id=2, **own)
        assert complete(model, mass.tokenizer, prompts, Sampling(6, 1.2), seeds) == free
        assert model.generation_config is changed and changed.to_diff_dict().items() >= own.items()
    finally:
        model.generation_config = before


def test_sampling_needs_seeds() -> None:
    with pytest.raises(ValueError, match="needs a seed for each row"):
        complete(byte_base(), byte_tokenizer(), [[1, 2]], Sampling(2))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        complete(byte_base(), byte_tokenizer(), [[1, 2]], Sampling(2), [1, 2])


# -- models that keep a state ------------------------------------------------------------------------------------------


def stateful_base(kind: str, width: int = 16) -> Any:
    shape = {"vocab_size": 259, "hidden_size": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3, "intermediate_size": 32}
    torch.manual_seed(0)
    if kind == "rwkv":
        config = RwkvConfig(**shape, num_hidden_layers=2, attention_hidden_size=16, context_length=64)
        model = RwkvForCausalLM(config)
    else:
        config = RecurrentGemmaConfig(**shape, **heads, lru_width=width, attention_window_size=32)
        model = RecurrentGemmaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


@pytest.mark.parametrize("kind", ["rwkv", "recurrent_gemma"])
def test_no_padding_gets_into_a_state(kind: str) -> None:
    """Rows of several lengths, each with updates of its own, are written as each alone; watched as all together."""
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model, tokenizer = get_peft_model(stateful_base(kind), lora).eval(), byte_tokenizer()
    prompts, seeds = [[5, 6, 7, 8, 9, 10], [11, 12], [12, 13, 14], [15, 16, 17], [18, 19]], [1, 2, 3, 4, 5]
    bound, shown = BoundLora(model, "default"), list[list[list[int]]]()
    tree = {name: torch.randn(5, *leaf.shape[1:]).to(leaf) * 0.5 for name, leaf in bound.start(1).items()}
    with metered() as meter, bound.applied(tree, torch.arange(5)), watching(lambda rows, _: shown.append(rows)):
        together = complete(model, tokenizer, prompts, Sampling(5, 1.0), seeds)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        with bound.applied({name: leaf[row : row + 1] for name, leaf in tree.items()}):
            assert complete(model, tokenizer, [prompt], Sampling(5, 1.0), [seed]) == [together[row]]
    assert meter.sampled_tokens == sum(map(len, together))
    assert all(len(rows) == 5 for rows in shown)
    for row, written in enumerate(together):  # a row is shown as it grows, and never as anything else
        assert all(rows[row] == written[: len(rows[row])] for rows in shown)


@pytest.mark.parametrize("width", [16, 24])
def test_a_prompt_of_one_token_is_no_part_of_an_earlier_text(width: int) -> None:
    model, tokenizer = stateful_base("recurrent_gemma", width), byte_tokenizer()
    for prompt in ([5], [7, 8, 9, 10, 11], [5], [12], [5]):
        text = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                text.append(int(model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
        model(input_ids=torch.tensor([[100, 101, 102]]), use_cache=True)
        written = complete(model, tokenizer, [prompt], Sampling(6, 0.0))[0]
        assert written == text[len(prompt) :][: len(written)] and len(written) > 1


@pytest.mark.parametrize("kind", ["rwkv", "recurrent_gemma"])
def test_trainers_that_pad_in_front_refuse_a_state(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"type '{kind}' keeps a state.*pads prompts on the left"):
        require_no_state(stateful_base(kind))
