"""Reinforcement learning at test time: what is asked, what is rewarded, and what TRL's loop makes of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_fixtures import byte_tokenizer, equal_trees, snapshot
from peft import PeftModel
from transformers import TrainerCallback
from trl import GRPOTrainer
from ttt_fixtures import by_hand, guessing_base, reinforced, start_adapter, strip_task

from hf_mass.errors import DataError
from hf_mass.methods.base import Adaptation
from hf_mass.methods.few_shot_answers import FewShotAnswers
from hf_mass.methods.views import View
from hf_mass.tasks.grid_transformations import FlipColumns, Identity, PermuteColours, Reflect, Transformation
from hf_mass.tasks.task import Task
from hf_mass.training.reinforcement import ReinforcedPrompt, reinforced_prompts, ttt_reward
from hf_mass.training.ttt_trainer import TTTTrainer

FOUR, FIVE = strip_task("four", "444"), strip_task("five", "555")
# Answers of two cells, so that a flip can be seen.
PAIRS = strip_task("pairs", answers=("1 2", "1 2", "1 2"))  # type: ignore[arg-type]
SWAP = PermuteColours((0, 2, 1, 3, 4, 5, 6, 7, 8, 9))
IDENTITY = Identity()
EOS = byte_tokenizer().eos_token_id


def ids_of(text: str) -> list[int]:
    return byte_tokenizer()(text, add_special_tokens=False)["input_ids"]


def texts_of(prompts: Sequence[ReinforcedPrompt]) -> list[str]:
    return [prompt.text.removeprefix("<bos>") for prompt in prompts]


class Canned(TTTTrainer):
    """Takes its completions in turn from a list; keeps the prompts' ids and the rewards."""

    completions: Sequence[list[int]] = ()

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        self.asked = [*getattr(self, "asked", []), *prompt_ids]
        return [self.completions[n % len(self.completions)] for n in range(len(prompt_ids))], None

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*args)
        self.rewards = [*getattr(self, "rewards", []), *rewards[:, 0].tolist()]
        return rewards


def canned(folder: Path, completions: Sequence[str], **changes: Any) -> Canned:
    trainer = reinforced(folder, **{"max_steps": 1, **changes})
    trainer.__class__ = Canned
    assert isinstance(trainer, Canned)
    trainer.completions = [ids_of(text) for text in completions]
    return trainer


# -- rewards -----------------------------------------------------------------------------------------------------------


def prompt(transformation: Transformation = IDENTITY, gold: str | None = None, colours: Any = None) -> ReinforcedPrompt:
    task = Task("0 0", answer=gold, id="a")
    return ReinforcedPrompt("", [], View(0, task, transformation, colours, 0, 0), gold)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> TTTTrainer:
    return reinforced(tmp_path_factory.mktemp("grpo"))


def rewards_of(
    trainer: TTTTrainer, prompts: Sequence[ReinforcedPrompt], texts: Sequence[str], numbers: Sequence[int]
) -> list[float]:
    return ttt_reward(prompts, trainer.args.settings().format, texts, numbers)


def prompts_of(
    trainer: TTTTrainer, tasks: Sequence[Task], reward: str = "exact_match", seed: int = 0
) -> list[ReinforcedPrompt]:
    return reinforced_prompts(trainer.lm, trainer.args.settings(), tasks, reward, seed)


def ids_asked(trainer: TTTTrainer, task: Task) -> list[int]:
    return FewShotAnswers(trainer.lm, trainer.args.settings()).encoder.prompt(task)


def test_answers_that_match_are_rewarded(trainer: TTTTrainer) -> None:
    prompts = [prompt(gold="1 2"), prompt(gold="3")]
    texts = ["12;", "12", "12;34", "21;", "1 2;", "1\n2;", "x;", "", "3;", "12;"]
    numbers = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert rewards_of(trainer, prompts, texts, numbers) == [1, 1, 1, 0, 1, 0, 0, 0, 1, 0]


def test_the_majority_is_rewarded_for_each_prompt(trainer: TTTTrainer) -> None:
    """Of the first prompt "1" has two votes, "2" one, and what cannot be read none; of the second "2" has most."""
    prompts = [prompt(), prompt()]
    texts = ["1;", "2;", "1;", "x;", "x;", "x;", "2;", "2;", "1;"]
    assert rewards_of(trainer, prompts, texts, [0] * 6 + [1] * 3) == [1, 0, 1, 0, 0, 0, 1, 1, 0]


def test_of_equally_frequent_answers_the_first_is_the_majority(trainer: TTTTrainer) -> None:
    assert rewards_of(trainer, [prompt()], ["x;", "2;", "1;", "1;", "2;"], [0] * 5) == [0, 1, 0, 0, 1]
    assert rewards_of(trainer, [prompt()], ["3;", "2;", "1;"], [0] * 3) == [1, 0, 0]
    assert rewards_of(trainer, [prompt()], ["x;", ""], [0] * 2) == [0, 0]


def test_answers_are_mapped_back_before_they_vote(trainer: TTTTrainer) -> None:
    """A mirrored view of a row: only texts that are their own mirror image can be mapped back."""
    mirrored = [prompt(Reflect("columns"))]
    assert rewards_of(trainer, mirrored, ["12;", "12;", "12;", "1221;", "1221;", "3333;"], [0] * 6) == [
        0,
        0,
        0,
        1,
        1,
        0,
    ]
    for transformation, colours, answer in ((FlipColumns(), None, "2 1"), (IDENTITY, SWAP, "2 1")):
        view = prompt(transformation, None, colours).view
        assert view.read(trainer.args.settings().format, "12;").answer == answer


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_left_out_demonstrations_are_asked_for(trainer: TTTTrainer) -> None:
    task = strip_task("three", "345")
    prompts = prompts_of(trainer, [task])
    asked = {"02>4;33>5;10>": "3", "10>3;33>5;02>": "4", "10>3;02>4;33>": "5"}
    assert dict(zip(texts_of(prompts), [p.gold for p in prompts], strict=True)) == asked
    for each in prompts:
        assert each.ids == ids_of(each.text) == ids_asked(trainer, each.view.task)


def test_transformed_examples_are_rewarded_for_their_own_answer(tmp_path: Path) -> None:
    """They are shown flipped, and the gold answer is flipped too: nothing is mapped back."""
    trainer = reinforced(tmp_path, transformations=["flip columns"])
    prompts = prompts_of(trainer, [PAIRS])
    golds = dict(zip(texts_of(prompts), [p.gold for p in prompts], strict=True))
    assert len(golds) == 6 and golds["02>12;33>12;10>"] == "1 2" and golds["20>21;33>21;01>"] == "2 1"
    numbers = list(range(6))
    assert rewards_of(trainer, prompts, ["21;"] * 6, numbers) == [float(p.gold == "2 1") for p in prompts]


def test_equal_prompts_of_several_tasks_are_asked_once(trainer: TTTTrainer) -> None:
    other = replace(FOUR, id="other", problem="9 9")
    assert len(prompts_of(trainer, [FOUR, other, FIVE])) == 6
    with pytest.raises(DataError, match="no tasks to sample answers for"):
        prompts_of(trainer, [])


def test_the_majority_is_asked_for_the_tasks_own_query_and_never_sees_its_answer(tmp_path: Path) -> None:
    trainer = reinforced(tmp_path, predict_transformations=["strip"], predict_permutations=2)
    prompts = prompts_of(trainer, [strip_task("three", "345")], "majority")
    assert [p.gold for p in prompts] == [None] * 4
    assert [p.view.transformation.name for p in prompts] == ["identity"] * 2 + ["flip columns"] * 2
    assert [text.rpartition(";")[2] for text in texts_of(prompts)] == ["04>", "04>", "40>", "40>"]
    unknown = prompts_of(trainer, [strip_task("three", "345")], "majority")
    blind = prompts_of(trainer, [replace(strip_task("three", "345"), answer=None)], "majority")
    assert texts_of(blind) == texts_of(unknown)


@pytest.mark.parametrize("reward", ["exact_match", "majority"])
def test_trl_asks_what_the_engine_would_token_for_token(tmp_path: Path, reward: str) -> None:
    changes = {"ttt_reward": reward, "predict_transformations": ["strip"], "max_steps": 6}
    trainer = canned(tmp_path, ["4;"], **changes)
    trainer.adapt(FOUR)
    expected = {tuple(p.ids) for p in prompts_of(trainer, [FOUR], reward, trainer.args.seed)}
    assert {tuple(ids) for ids in trainer.asked} == expected and len(trainer.asked) == 6 * 8
    assert len(expected) == (3 if reward == "exact_match" else 2)
    if reward == "majority":
        assert tuple(ids_asked(trainer, FOUR)) in expected


# -- completions -------------------------------------------------------------------------------------------------------


def test_completions_are_cut_behind_the_text_that_ends_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = ["4;5;", "44", "4;", ";4", "555;"]
    kept = ["4;", "44", "4;", ";", "555;"]
    trainer = reinforced(tmp_path)
    given = [ids_of(text) for text in raw]
    for log_probs in (None, [[float(n) for n in range(len(ids))] for ids in given]):
        monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *_, rows=log_probs, **__: (given, rows))
        completions, values = trainer._generate_single_turn([], None, {}, 8)
        assert completions == [ids_of(text) for text in kept]
        assert values is None if log_probs is None else [len(row) for row in values] == [len(t) for t in kept]


def test_marks_inside_a_completion_are_not_read_over(tmp_path: Path) -> None:
    """TRL's text of a completion leaves special tokens out; the engine's, by which answers are read, does not."""
    trainer = canned(tmp_path, [])
    trainer.completions = [[*ids_of("4"), EOS], ids_of("4;"), [0, *ids_of("4;")], [*ids_of("5"), EOS]]
    trainer.adapt(FOUR)
    assert trainer.rewards == [1.0, 1.0, 0.0, 0.0] * 2


# -- the loop ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fourth(tmp_path_factory: pytest.TempPathFactory) -> Adaptation:
    """The task of fours, trained on alone."""
    return reinforced(tmp_path_factory.mktemp("alone")).adapt(FOUR)


def test_the_reward_rises_and_answers_change(tmp_path: Path, fourth: Adaptation) -> None:
    assert fourth.reason is None and fourth.examples == 3 and len(fourth.losses) == 20
    assert all(0 <= reward <= 1 for reward in fourth.losses)
    assert statistics.mean(fourth.losses[-5:]) > statistics.mean(fourth.losses[:5]) + 0.3
    trainer = reinforced(tmp_path)
    before, after = trainer.predict([FOUR], adapt=False)[0], trainer.predict([FOUR], records=[fourth])[0]
    assert before.answer == "5" and after.answer == "4"


def test_a_second_task_ends_where_it_would_have_ended_alone(tmp_path: Path, fourth: Adaptation) -> None:
    trainer = reinforced(tmp_path)
    assert trainer.optimizer is None
    five = trainer.adapt(FIVE)
    torch.rand(7)  # nor do random numbers drawn in between matter
    late = trainer.adapt(FOUR)
    assert late.losses == fourth.losses and equal_trees(late.adapted, fourth.adapted)
    assert statistics.mean(five.losses[-5:]) > 0.5 and not equal_trees(five.adapted, fourth.adapted)
    results = trainer.predict([FIVE, FOUR])
    assert [r.answer for r in results] == ["5", "4"] and results[1].losses == fourth.losses


@pytest.mark.parametrize("given", [False, True])
def test_the_model_is_bit_for_bit_what_it_was(tmp_path: Path, given: bool) -> None:
    trainer = reinforced(tmp_path, start_adapter() if given else None, max_steps=3, learning_rate=0.05)
    before = snapshot(trainer.model)
    record = trainer.adapt(FIVE)
    assert record.adapted is not None and not equal_trees(record.adapted, trainer._start)
    trainer.predict([FIVE])
    after = trainer.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None or not p.grad.any() for p in trainer.model.parameters())


def test_the_model_is_put_back_where_training_breaks_off(tmp_path: Path) -> None:
    class Breaking(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise RuntimeError("no more")

    trainer = reinforced(tmp_path, options={"callbacks": [Breaking()]}, learning_rate=0.05)
    before = snapshot(trainer.model)
    with pytest.raises(RuntimeError, match="no more"):
        trainer.adapt(FIVE)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    (result,) = trainer.predict([FIVE])
    assert result.reason == "RuntimeError: no more" and result.answer is None


def test_the_majority_sharpens_what_the_model_prefers(tmp_path: Path) -> None:
    task = replace(FOUR, answer=None)
    trainer = reinforced(tmp_path, ttt_reward="majority")
    record = trainer.adapt(task)
    assert record.examples == 1 and statistics.mean(record.losses[-5:]) > 0.7 > 0.6 > statistics.mean(record.losses[:3])

    def confidence(records: list[Adaptation] | None) -> float:
        return max(v[0] for v in by_hand(trainer).score([task], [["4", "5"]], records)[0].values())

    assert confidence([record]) > confidence(None) + 0.2


def test_one_adapter_for_all_tasks(tmp_path: Path) -> None:
    trainer = canned(tmp_path, ["4;", "5;"], adapters="shared", max_steps=6)
    first, second = trainer.adapt([FOUR, FIVE])
    assert first.adapted is second.adapted and first.examples == second.examples == 6
    assert {tuple(ids) for ids in trainer.asked} == {tuple(p.ids) for p in prompts_of(trainer, [FOUR, FIVE])}
    assert sum(trainer.rewards) == len(trainer.rewards) / 2  # each prompt got as many of both


def test_tasks_with_equal_demonstrations_are_trained_on_together(tmp_path: Path) -> None:
    trainer = canned(tmp_path, ["4;"], max_steps=3)
    first, other, second = trainer.adapt([FOUR, FIVE, replace(FOUR, id="again", problem="3 0")])
    assert first.adapted is second.adapted and other.adapted is not first.adapted
    assert len(trainer.asked) == 2 * 3 * 8


def test_a_task_that_cannot_be_trained_on_does_not_end_the_others(tmp_path: Path) -> None:
    trainer = canned(tmp_path, ["4;"], single_demonstration="refuse")
    single = strip_task("single", "4", ("1 0",))
    bad, good = trainer.adapt([single, FOUR])
    assert bad.adapted is None and bad.reason is not None and "one demonstration only" in bad.reason
    assert good.reason is None and good.adapted is not None


def test_weights_that_are_not_finite_are_a_reason(tmp_path: Path) -> None:
    record = canned(tmp_path, ["4;", "5;"], learning_rate=1e38, max_steps=4, max_grad_norm=0.0).adapt(FOUR)
    assert record.adapted is None and record.reason == "the weights are not finite; lower learning_rate"


def test_callbacks_are_called_and_steps_are_logged(tmp_path: Path) -> None:
    class Counting(TrainerCallback):
        begun, steps, logs = 0, 0, 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.begun += 1

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.steps += 1

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.logs += "reward" in logs

    counting = Counting()
    trainer = reinforced(tmp_path, options={"callbacks": [counting]}, max_steps=3)
    trainer.adapt([FOUR, FIVE])
    assert (counting.begun, counting.steps, counting.logs) == (2, 6, 6)


def test_epochs_go_over_the_left_out_demonstrations(tmp_path: Path) -> None:
    """Three prompts, eight answers each in batches of four: two steps a prompt, its reward at the first; two epochs."""
    trainer = canned(tmp_path, ["4;", "5;"], max_steps=-1, num_train_epochs=2, per_device_train_batch_size=4)
    record = trainer.adapt(FOUR)
    assert trainer.state.global_step == 12 and len(record.losses) == 6 and len(trainer.asked) == 2 * 3 * 8


def test_the_guessing_base_cannot_tell_which_answer_is_right(trainer: TTTTrainer) -> None:
    """What these tests start from: both answers are likely, whatever the demonstrations say."""
    scores = by_hand(trainer).score([FOUR, FIVE], [["4", "5"]] * 2)
    assert all(-6 < value[0] < -0.05 for each in scores for value in each.values())
    assert not guessing_base().training


def test_transformers_can_still_save_the_model_and_its_checkpoints(tmp_path: Path) -> None:
    trainer = reinforced(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    trainer.adapt(FOUR)
    trainer.save_model(str(tmp_path / "saved"))
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    loaded = PeftModel.from_pretrained(guessing_base(), str(tmp_path / "saved"))
    start = {name: leaf[0] for name, leaf in trainer._start.items()}
    assert all(torch.equal(p, start[name]) for name, p in loaded.named_parameters() if "lora_" in name)


def test_left_out_demonstrations_that_do_not_fit_are_not_asked_for(tmp_path: Path) -> None:
    base = guessing_base()
    base.config.max_position_embeddings = 14  # an example has 15 tokens
    record = reinforced(tmp_path, base).adapt(FOUR)
    assert record.adapted is None and record.reason is not None and "max_tokens = 14" in record.reason
    base.config.max_position_embeddings = 15
    assert len(prompts_of(reinforced(tmp_path, base), [FOUR])) == 3


def test_queries_with_the_same_demonstrations_ask_for_them_once(tmp_path: Path) -> None:
    trainer = reinforced(tmp_path)
    one, other, third = (
        strip_task("one"),
        strip_task("other", query="4 4"),
        strip_task("third", rows=("5 5", "6 6", "7 7")),
    )
    alone = prompts_of(trainer, [one])
    assert [p.text for p in prompts_of(trainer, [one, other])] == [p.text for p in alone]
    assert len(prompts_of(trainer, [one, third])) > len(alone)


def test_prompts_that_read_alike_keep_their_own_tokens() -> None:
    prompts = [replace(prompt(), text="a: b", ids=ids) for ids in ([1, 2], [3])]
    trainer: Any = SimpleNamespace(_prompts=prompts)
    assert TTTTrainer._tokenize_prompts(trainer, ["1: a: b", "0: a: b", "1: a: b"])[0] == [[3], [1, 2], [3]]
