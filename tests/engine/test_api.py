"""`hf_mass.load`, `adapt` and `solve`: every form of model, one record, and models that stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import byte_base, byte_tokenizer, snapshot
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

import hf_mass
from hf_mass import MASS, TTT, Adaptation, LanguageModel, MajorityVote, Task
from hf_mass.errors import AdaptationError, ConfigError, DataError, Stopped, UnsupportedModelError
from hf_mass.methods.sequence import TTTThenMASS
from hf_mass.store.shipped import ASSETS

PAIRS = [("abc", "cba"), ("hello", "olleh"), ("stone", "enots"), ("plant", "tnalp"), ("lamp", "pmal")]
QUICK: dict[str, Any] = {"lora_r": 4, "lora_alpha": 8, "learning_rate": 0.02, "max_examples": 6, "num_train_epochs": 4}
QUICK["max_completion_length"] = 8


def task(query: str = "river", answer: str | None = "revir") -> Task:
    return Task.from_pairs(PAIRS, query, answer)


@pytest.fixture(scope="module")
def strings() -> LanguageModel:
    return hf_mass.load("strings-base", device="cpu")


# -- one call ----------------------------------------------------------------------------------------------------------


def test_one_call_adapts_and_the_record_answers_explains_applies_and_saves(
    strings: LanguageModel, tmp_path: Path
) -> None:
    before = snapshot(strings.model)
    adaptation = hf_mass.adapt(strings, task())
    assert isinstance(adaptation, Adaptation) and adaptation.reason is None
    answer, unadapted = adaptation.answer(), adaptation.before()
    assert (str(answer), answer.score) == ("revir", 1.0) and answer.right
    assert unadapted.score == 0.0 and str(unadapted) != "revir"
    assert str(adaptation.answer("tulip")) == "pilut" and adaptation.answer("tulip").score is None  # gold is not known
    rows = adaptation.explain()
    assert [(row["question"], row["answer"]) for row in rows] == PAIRS
    assert sum(row["loss_after"] for row in rows) < sum(row["loss_before"] for row in rows)
    cost = adaptation.cost
    assert cost.sampled_tokens == 0 and cost.backward_passes == 80 and cost.trained_tokens > 1000 and cost.seconds > 0

    ids = strings.tokenizer("Input: river\nOutput:", return_tensors="pt")["input_ids"]
    plain = strings.model(ids).logits
    with adaptation.applied():
        assert strings.model.generate(input_ids=ids.expand(3, -1), max_new_tokens=2).shape[0] == 3
        applied = strings.model(ids).logits
    assert torch.equal(strings.model(ids).logits, plain) and not torch.allclose(applied, plain, atol=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(strings.model).items())

    adaptation.save(tmp_path / "adapted")
    base = AutoModelForCausalLM.from_pretrained(ASSETS / "strings-base")
    with torch.no_grad():
        alone = PeftModel.from_pretrained(base, str(tmp_path / "adapted")).eval()(ids).logits
    torch.testing.assert_close(alone, applied, rtol=1e-4, atol=1e-4)
    again = hf_mass.load(tmp_path / "adapted", device="cpu")
    assert str(hf_mass.solve(again, task(), "none").answers[0]) == "revir"
    onward = hf_mass.adapt(again, task())  # is continued, at its own rank
    assert onward.losses[0] < 0.5 * adaptation.losses[0] and onward.parts[0][1].keys() == adaptation.parts[0][1].keys()


def test_a_list_gives_a_list_and_equal_demonstrations_share(strings: LanguageModel) -> None:
    other = Task.from_pairs([(b, a) for a, b in PAIRS], "river")
    first, second, third = hf_mass.adapt(strings, [task(), other, task("tulip", None)], TTT(max_examples=4))
    assert first.adapted is third.adapted and first.adapted is not second.adapted
    assert [each.task.problem for each in (first, second, third)] == ["river", "river", "tulip"]
    alone = hf_mass.adapt(strings, other, TTT(max_examples=4))
    assert alone.losses == pytest.approx(second.losses, rel=1e-4)
    one_by_one = hf_mass.adapt(strings, [task(), other, task("tulip", None)], TTT(max_examples=4), tasks_per_pass=1)
    assert [each.losses for each in one_by_one] == [pytest.approx(r.losses, rel=1e-4) for r in (first, second, third)]


@pytest.mark.parametrize(
    "method",
    ["ttt", "mass", "both", "vote", "none", TTT(max_examples=4), MASS(samples=3), MajorityVote(samples=3)],
    ids=["ttt", "mass", "both", "vote", "none", "TTT", "MASS", "MajorityVote"],
)
def test_every_method_gives_the_same_kind_of_record(strings: LanguageModel, method: Any) -> None:
    solution = hf_mass.solve(strings, task(), method)
    adaptation = hf_mass.adapt(strings, task(), method)
    name = method if isinstance(method, str) else method.name
    assert solution.method == name and isinstance(adaptation, Adaptation)
    assert bool(adaptation.parts) == (name in ("ttt", "mass", "both"))
    assert bool(adaptation.samples) == (name in ("mass", "both")) == bool(adaptation.weights.numel())
    assert len(solution.before) == 1 and len(solution.after) == (0 if name == "none" else 1)


def test_samples_that_explain_the_demonstrations_have_positive_attribution(strings: LanguageModel) -> None:
    adaptation = hf_mass.adapt(strings, task(), MASS(samples=8, weigh_by="demonstrations"))
    rows = [row for row in adaptation.explain() if not row["reason"]]
    right = [row["attribution"] for row in rows if row["answer"] == row["question"][::-1]]
    assert len(right) >= 3 and sum(right) > 0  # what follows the rule of the task helps on the whole
    best = max(rows, key=lambda row: row["weight"])
    assert best["attribution"] == max(row["attribution"] for row in rows)


def test_both_stands_on_what_the_first_learned(strings: LanguageModel) -> None:
    adaptation = hf_mass.adapt(strings, task(), TTTThenMASS(TTT(max_examples=4), MASS(samples=3)))
    assert [lora.adapter for lora, _ in adaptation.parts] == ["default", "inner"]
    trained = hf_mass.adapt(strings, task(), TTT(max_examples=4))
    assert all(torch.equal(leaf, adaptation.parts[0][1][name]) for name, leaf in (trained.adapted or {}).items())
    assert adaptation.cost.sampled_tokens > 0 and adaptation.losses[: len(trained.losses)] == trained.losses


# -- what can be loaded ------------------------------------------------------------------------------------------------


def bytes_task() -> Task:
    return Task.from_pairs([("ab", "b"), ("cd", "d"), ("ef", "f")], "gh", "h")


def is_as_before(model: torch.nn.Module, names: list[str], values: dict[str, torch.Tensor]) -> bool:
    after = dict(model.named_parameters())
    same = list(after) == names and all(torch.equal(after[name], values[name]) for name in names)
    return same and not any("lora" in name for name, _ in model.named_modules() if "lora" not in "".join(names))


@pytest.mark.parametrize(
    ("kind", "trained"),
    [("llama", {"q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}), ("gpt2", {"c_attn", "c_proj", "c_fc"})],
)
def test_grids_are_trained_on_by_the_published_settings_as_far_as_the_model_has_their_modules(
    kind: str, trained: set[str]
) -> None:
    lm = hf_mass.load(byte_base(kind), byte_tokenizer())
    assert lm.defaults["ttt"]["grids"]["preset"] == "arc"
    pairs = [("1 2\n0 0", "2 1\n0 0"), ("3 4\n0 0", "4 3\n0 0"), ("5 6\n0 0", "6 5\n0 0")]
    tasks = [Task.from_pairs(pairs, "7 8\n0 0", "8 7\n0 0", id="swap")]
    settings = TTT(max_examples=1, max_length=None).resolved(lm, tasks)
    assert (settings.lora_r, settings.predict_length_factor) == (128, 3.0)
    TTT(max_examples=1, max_length=None).begin(lm, tasks, 0)
    assert {name.split(".")[-4] for name, _ in lm.model.named_parameters() if "lora_A" in name} == trained


@pytest.mark.parametrize("training", [True, False])
def test_a_model_in_memory_is_left_as_it_was(training: bool) -> None:
    model = byte_base().train(training)
    assert isinstance(model, PreTrainedModel)
    names, values = [n for n, _ in model.named_parameters()], {n: p.clone() for n, p in model.named_parameters()}
    kinds = [type(module) for module in model.modules()]
    lm = hf_mass.load(model, byte_tokenizer())
    assert hf_mass.adapt(lm, bytes_task(), TTT(preset="text", **QUICK)).reason is None
    assert hf_mass.adapt(lm, bytes_task(), MASS(prompt_format="plain", samples=2)).task.answer == "h"
    assert is_as_before(model, names, values) and model.training == training
    assert [type(module) for module in model.modules()] == kinds
    weight = next(model.parameters())
    assert any(p.data_ptr() == weight.data_ptr() for p in lm.model.parameters())  # shared, not copied
    assert all(p.requires_grad for p in model.parameters())


def test_a_peft_model_is_continued_at_its_own_rank_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = get_peft_model(byte_base(), LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    names, values = [n for n, _ in model.named_parameters()], {n: p.clone() for n, p in model.named_parameters()}
    lm = hf_mass.load(model, byte_tokenizer())
    adaptation = hf_mass.adapt(lm, bytes_task(), TTT(preset="text", **QUICK))
    assert adaptation.adapted is not None and is_as_before(model, names, values)
    for name, leaf in adaptation.adapted.items():
        start = values[name.replace("base_model.model.base_model", "base_model")] if name in values else None
        assert leaf.shape[1 if "lora_A" in name else 2] == 3
        assert start is None or (not torch.equal(leaf[0], start) and (leaf[0] - start).abs().max() < 1)
    ids = byte_tokenizer()("ab", return_tensors="pt")["input_ids"]
    assert torch.equal(lm.model(ids).logits, model.eval()(ids).logits)  # it starts from the LoRA that was given


def test_variants_of_lora_are_refused_by_name() -> None:
    dora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", use_dora=True)
    with pytest.raises(UnsupportedModelError, match=r"uses a LoRA variant \(such as DoRA\).*Set use_dora=False"):
        hf_mass.load(get_peft_model(byte_base(), dora), byte_tokenizer())


def test_a_lora_folder_starts_from_its_training(tmp_path: Path) -> None:
    byte_base().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "lora")
    lm = hf_mass.load(tmp_path / "lora", device="cpu")
    ids = byte_tokenizer()("ab", return_tensors="pt")["input_ids"]
    torch.testing.assert_close(lm.model(ids).logits, model.eval()(ids).logits)
    assert hf_mass.adapt(lm, bytes_task(), TTT(preset="text", **QUICK)).reason is None


def test_the_name_and_size_of_what_answers(strings: LanguageModel) -> None:
    assert repr(strings) == "LanguageModel('strings-base', 1.3M parameters, float32)"
    assert strings.size == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(ASSETS / "strings-base").parameters()
    )
    assert hf_mass.load(strings) is strings


def test_a_rank_of_ones_own_on_a_fresh_model_only(strings: LanguageModel) -> None:
    small = hf_mass.adapt(strings, task(), TTT(lora_r=2, max_examples=4))
    large = hf_mass.adapt(strings, task(), TTT(lora_r=8, max_examples=4))
    ranks = [
        next(leaf for name, leaf in (a.adapted or {}).items() if "lora_A" in name).shape[1] for a in (small, large)
    ]
    assert ranks == [2, 8]
    assert all(str(a.answer()) for a in (small, large))  # each still answers by its own matrices


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_wrong_calls_are_refused(strings: LanguageModel) -> None:
    with pytest.raises(DataError, match="tasks is empty; give at least one task"):
        hf_mass.adapt(strings, [])
    with pytest.raises(DataError, match=r"tasks holds a str; give hf_mass\.Task"):
        hf_mass.adapt(strings, ["cat -> cats"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="has no solved examples to train on"):
        hf_mass.adapt(strings, Task("river"))
    with pytest.raises(ConfigError, match="tokenizer is None, and the model does not say where it is from"):
        hf_mass.load(byte_base())
    with pytest.raises(ConfigError, match="learning_rate is -1"):
        TTT(learning_rate=-1)
    with pytest.raises(ConfigError, match="TTT has no setting 'rate'"):
        TTT(rate=1)
    with pytest.raises(ConfigError, match="MASS has no setting 'rate'"):
        MASS(rate=1)
    with pytest.raises(AdaptationError, match="has no adapted weights"):
        hf_mass.adapt(strings, task(), "none").save("nowhere")


def test_the_time_limit_ends_adapting(strings: LanguageModel) -> None:
    with pytest.raises(Stopped, match=r"the time limit of 0\.01 s is reached"):
        hf_mass.adapt(strings, task(), time_limit=0.01)


def test_a_model_with_adapters_inside_is_refused() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = inject_adapter_in_model(config, byte_base())
    with pytest.raises(ConfigError, match=r"model has adapters inside, and is no PeftModel"):
        hf_mass.load(model, byte_tokenizer())
    peft_model = get_peft_model(byte_base(), config)
    with pytest.raises(ConfigError, match="model has adapters inside"):
        hf_mass.load(peft_model.get_base_model(), byte_tokenizer())
    hf_mass.load(peft_model.unload(), byte_tokenizer())


def test_a_model_without_weights_is_refused() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(byte_base().config)
    with pytest.raises(ConfigError, match="model is on the device meta"):
        hf_mass.load(model, byte_tokenizer())


@pytest.mark.parametrize("trained", [False, True])
def test_what_is_moved_is_not_the_hosts(trained: bool) -> None:
    model = byte_base().requires_grad_(trained)
    lm = hf_mass.load(model, byte_tokenizer())
    lm.model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
