"""Test-time training on few-shot tasks: what is learned, side by side as alone, and answers mapped back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from model_fixtures import byte_base, byte_tokenizer, equal_trees, largest_difference
from peft import LoraConfig, get_peft_model
from transformers import FalconConfig, FalconForCausalLM
from ttt_fixtures import FewShot, few_shot_settings

from hf_mass.core.dropout import LoraDropout
from hf_mass.core.memory import LEAN, MemoryPlan
from hf_mass.errors import AdaptationError, ConfigError
from hf_mass.lm.few_shot_encoding import FewShotEncoder
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.ttt import TTT
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.tasks.few_shot_format import resolve_format
from hf_mass.tasks.grid_transformations import FlipColumns, Identity, PermuteColours, Transformation
from hf_mass.tasks.leave_one_out import TrainingExample
from hf_mass.tasks.task import Demonstration, Task
from hf_mass.tasks.voting import flat_vote

COMPACT = resolve_format("compact")
SWAP = PermuteColours((0, 2, 1, 3, 4, 5, 6, 7, 8, 9))


def copy_task(name: str, rows: tuple[str, ...] = ("1 0 0", "0 2 0", "0 0 3")) -> Task:
    """Output = input."""
    return Task("0 4 4", tuple(Demonstration(row, row) for row in rows), answer="0 4 4", id=name)


def few_shot(views: tuple[Transformation, ...] | None = None, **changes: Any) -> FewShot:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    lm = LanguageModel(get_peft_model(byte_base(), config).eval(), byte_tokenizer())
    training = {"learning_rate": 0.02, "num_train_epochs": 6, "leave_two_out": True, "max_completion_length": 6}
    return FewShot(lm, few_shot_settings(4, 8, **{**training, **changes}), views)


def test_only_what_the_setting_says_is_learned() -> None:
    encoder = FewShotEncoder(byte_tokenizer(), COMPACT)
    shown = TrainingExample((Demonstration("1 2", "2 1"), Demonstration("0 3", "3 0")), Demonstration("4 5", "5 4"))
    learned = {}
    for loss_on in ("query", "demonstrations", "outputs", "all"):
        ids, flags = encoder.example(shown, loss_on)
        text = [byte_tokenizer().decode([i]) for i, flag in zip(ids, flags, strict=True) if flag]
        learned[loss_on] = "".join(text)
    assert learned == {
        "query": "54;",
        "demonstrations": "30;54;",
        "outputs": "21;30;54;",
        "all": "12>21;03>30;45>54;",
    }


def test_a_prompt_begins_as_its_example_does() -> None:
    encoder, task = FewShotEncoder(byte_tokenizer(), COMPACT), copy_task("a")
    prompt = encoder.prompt(task)
    ids, _ = encoder.example(TrainingExample(task.demonstrations, Demonstration(task.problem, "0 4 4")), "query")
    assert ids[: len(prompt)] == prompt and byte_tokenizer().decode(ids[len(prompt) :]) == "044;"


def test_training_learns_the_rule_of_the_task() -> None:
    few = few_shot(num_train_epochs=40, per_device_train_batch_size=3, max_examples=6)
    (record,) = few.adapt([copy_task("a")])
    assert record.reason is None and record.examples == 6 and len(record.losses) == 80
    assert record.losses[-1] < 0.7 * record.losses[0]
    before, after = few.predict([copy_task("a", ("1 0 0", "0 2 0"))]), few.predict([copy_task("a")], [record])
    assert before[0][0].answer != "0 4 4" and after[0][0].transformation == "identity"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_tasks_end_where_they_would_alone(dropout: float) -> None:
    """Of different numbers of demonstrations, so of different numbers of steps."""
    few = few_shot(lora_dropout=dropout)
    tasks = [copy_task("a"), copy_task("b", ("5 0", "0 6"))]
    together = few.adapt(tasks)
    for task, record in zip(tasks, together, strict=True):
        (alone,) = few.adapt([task])
        assert alone.examples == record.examples and len(alone.losses) == len(record.losses)
        assert record.adapted is not None and alone.adapted is not None
        assert largest_difference(record.adapted, alone.adapted) < 1e-4


def test_the_model_is_left_as_it_was_and_seeds_decide() -> None:
    few = few_shot()
    before = {name: p.detach().clone() for name, p in few.lm.model.named_parameters()}
    first, second, other = (few.adapt([copy_task("a")], seed)[0] for seed in (0, 0, 1))
    assert all(torch.equal(p, before[name]) for name, p in few.lm.model.named_parameters())
    assert equal_trees(first.adapted, second.adapted) and not equal_trees(first.adapted, other.adapted)


def test_inputs_of_the_lora_are_dropped_anew_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    at_step = LoraDropout.at_step
    monkeypatch.setattr(LoraDropout, "at_step", lambda self, step: (steps.append(step), at_step(self, step))[1])
    (without,), (dropped,) = (few_shot(lora_dropout=share).adapt([copy_task("a")]) for share in (0.0, 0.5))
    assert steps == list(range(len(dropped.losses)))
    assert without.losses[0] == pytest.approx(dropped.losses[0])  # B is zero there
    assert abs(without.losses[-1] - dropped.losses[-1]) > 1e-3


@pytest.mark.parametrize("plan", [LEAN, MemoryPlan(microbatch=1)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_short_memory_changes_nothing_but_time(
    plan: MemoryPlan, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"per_device_train_batch_size": 3, "lora_dropout": dropout}
    (whole,) = few_shot(**changes).adapt([copy_task("a")])
    monkeypatch.setattr("hf_mass.methods.ttt.training_plan", lambda loss, start: plan)
    (cut,) = few_shot(**changes).adapt([copy_task("a")])
    assert whole.adapted is not None and cut.adapted is not None
    assert largest_difference(whole.adapted, cut.adapted) < 1e-4
    assert cut.losses == pytest.approx(whole.losses, abs=1e-5)


def test_one_adapter_for_all() -> None:
    few = few_shot()
    records = few.adapt([copy_task("a"), copy_task("b")], shared=True)
    assert equal_trees(records[0].adapted, records[1].adapted)
    assert not equal_trees(records[0].adapted, few.adapt([copy_task("a")])[0].adapted)


def test_a_task_that_cannot_be_trained_does_not_end_the_others() -> None:
    few = few_shot(single_demonstration="refuse")
    single = copy_task("one", ("1 0 0",))
    bad, good = few.adapt([single, copy_task("a")])
    assert bad.adapted is None and bad.reason is not None and "one demonstration" in bad.reason
    assert good.adapted is not None
    predictions = few.predict([single, copy_task("a")], [bad, good])
    assert len(predictions[0]) == len(predictions[1]) == 1


def test_a_loss_that_is_not_finite_is_a_reason() -> None:
    few = few_shot(learning_rate=1e30, num_train_epochs=4, max_grad_norm=None)
    (record,) = few.adapt([copy_task("a")])
    assert record.adapted is None and record.reason is not None and "not finite" in record.reason


@pytest.mark.parametrize("stacked", [True, False])
def test_answers_are_mapped_back(monkeypatch: pytest.MonkeyPatch, stacked: bool) -> None:
    """A model that copies the query's input, whatever the view of the task is."""
    few = few_shot((Identity(), FlipColumns(), SWAP), predict_permutations=2)
    seen = []

    def copying(
        model: object, tokenizer: object, prompts: list[list[int]], *rest: object, **more: object
    ) -> list[list[int]]:
        texts = [byte_tokenizer().decode(prompt, skip_special_tokens=True) for prompt in prompts]
        seen.extend(texts)
        return [
            byte_tokenizer()(text.split(";")[-1][:-1] + ";", add_special_tokens=False)["input_ids"] for text in texts
        ]

    monkeypatch.setattr("hf_mass.methods.few_shot_answers.complete", copying)
    task = Task("0 1 2", copy_task("a").demonstrations, answer="0 1 2", id="a")
    records = few.adapt([task]) if stacked else None
    (predictions,) = few.predict([task], records)
    assert [p.answer for p in predictions] == ["0 1 2"] * 6 and flat_vote(predictions) == ["0 1 2"]
    assert [p.transformation for p in predictions] == [n for n in ("identity", "flip columns", SWAP.name) for _ in "ab"]
    assert {text.split(";")[-1] for text in seen} == {"012>", "210>", "021>"} and len(set(seen)) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_r": 0}, r"TTTSettings.lora_r is 0; choose a whole number of at least 1"),
        ({"loss_on": "inputs"}, r"TTTSettings.loss_on is 'inputs'; choose one of"),
        ({"warmup_steps": 1.0}, r"TTTSettings.warmup_steps is 1.0"),
        ({"max_grad_norm": 0.0}, r"TTTSettings.max_grad_norm is 0.0"),
        ({"lr_scheduler_type": "step"}, r"lr_scheduler_type is 'step'"),
        ({"learning_rate": 0.0}, r"learning_rate is 0.0"),
        ({"predict_permutations": 0}, r"TTTSettings.predict_permutations is 0"),
        ({"predict_transformations": ("turn",)}, r"'turn'"),
        ({"predict_temperature": -1.0}, r"TTTSettings.predict_temperature is -1.0"),
        ({"predict_samples": 2}, r"predict_samples is 2 at predict_temperature 0"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TTTSettings(**changes)


def test_an_adaptation_of_another_model_is_refused() -> None:
    """Its matrices would go into that model, and the answer would be the unadapted one."""
    one, other = few_shot(num_train_epochs=1), few_shot(num_train_epochs=1)
    record = one.adapt([copy_task("a")])[0]
    assert one.predict([copy_task("a")], [record])
    with pytest.raises(AdaptationError, match=r"is of another model. Answer with its own: adaptation\.answer\(\)"):
        other.predict([copy_task("a")], [record])


@pytest.mark.parametrize("changes", [{}, {"new_decoder_architecture": True, "num_kv_heads": 2}, {"alibi": True}])
def test_layers_that_add_in_place(changes: dict[str, Any]) -> None:
    """Falcon's write into what a linear map gave, also at B = 0, where an update hands that on."""
    torch.manual_seed(0)
    shape = {"vocab_size": 259, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    base = FalconForCausalLM(FalconConfig(**shape, **tokens, initializer_range=0.2, **changes)).eval()
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    lm = LanguageModel(get_peft_model(base, config).eval(), byte_tokenizer())
    training = FewShot(lm, few_shot_settings(4, 8, learning_rate=0.02, num_train_epochs=1, max_grad_norm=None))
    task = copy_task("a")
    (record,) = training.adapt([task])
    state = TTT(training.settings).begin(lm, [task], 0)
    rows, (first, *_) = state.rows[0], state.batches[0]
    losses = []
    for r in first:
        ids, learned = torch.tensor([rows.sequences[r]]), torch.tensor([rows.learned[r]])
        losses.append(float(lm.model(input_ids=ids, labels=ids.masked_fill(~learned.bool(), -100)).loss))
    assert record.losses[0] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert record.adapted is not None and any(leaf.any() for n, leaf in record.adapted.items() if "lora_B" in n)
