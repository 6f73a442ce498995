"""A session: events in order, outcomes equal to the plain API's, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from itertools import groupby, pairwise
from pathlib import Path

import pytest
import torch
from model_fixtures import snapshot
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from session_fixtures import METHODS, RULE, How, quick, result, run, solve, strips, unchanged
from transformers import AutoModelForCausalLM

from hf_mass.app.drawing import CUT
from hf_mass.cli.showing import show_solution
from hf_mass.engine.events import Generating, InnerStep, Loss, Replies, Weighed, Writing
from hf_mass.engine.models import default_model, load
from hf_mass.engine.session import Session
from hf_mass.engine.solution import Solution
from hf_mass.errors import ConfigError, DataError, HFMassError
from hf_mass.lm.generation import Sampling, complete
from hf_mass.lm.language_model import LanguageModel
from hf_mass.methods.mass import MASS
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.registry import make_method
from hf_mass.methods.ttt import TTT
from hf_mass.methods.ttt_settings import TTTSettings
from hf_mass.store.shipped import ASSETS
from hf_mass.tasks.problems import Problem, read_problem


def test_an_answer_that_the_limit_ended_is_told_everywhere(grids: LanguageModel) -> None:
    outcome = solve(grids, strips(), quick(max_completion_length=2))
    assert [answer.get("cut") for name in ("before", "after") for answer in outcome.to_dict()[name]] == [True] * 2
    console = Console(file=StringIO(), width=200)
    show_solution(outcome, "grids", console)
    assert console.file.getvalue().count(CUT) == 2  # type: ignore[attr-defined]
    whole = solve(grids, strips(), quick("none"))
    assert "cut" not in whole.to_dict()["before"][0]


# -- what happens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_events_are_in_order_and_complete(grids: LanguageModel, method: str, queries: int) -> None:
    before = snapshot(grids.model)
    *happened, outcome = run(grids, strips(queries), quick(method))
    assert isinstance(outcome, Solution) and unchanged(grids, before)
    told = [
        event for event in happened if not isinstance(event, Generating | InnerStep)
    ]  # signs of life between the others
    order = [kind.__name__ for kind, _ in groupby(map(type, told))]
    expected = ["Stage", "Replies"]
    if method in ("ttt", "both"):
        expected += ["Stage", "Loss", "Stage"]
    if method in ("mass", "both"):
        expected = expected[: 4 if method == "both" else 2]
        expected += ["Stage", "Writing", "Stage"]
        for rows in outcome.samples:
            expected += ["Weighed", *(["Loss"] if any(not r["reason"] for r in rows) else [])]
        expected += ["Stage"]
        expected = [name for name, _ in groupby(expected)]
    assert order == expected + (["Replies"] if method != "none" else [])
    assert [e.answers for e in happened if isinstance(e, Replies)] == [a for a in (outcome.before, outcome.after) if a]
    assert tuple(e for e in happened if isinstance(e, Loss)) == outcome.losses
    assert tuple(e.rows for e in happened if isinstance(e, Weighed)) == outcome.samples
    for _, group in groupby(outcome.losses, lambda loss: (loss.method, loss.query)):
        losses = list(group)
        assert [loss.step for loss in losses] == list(range(losses[0].steps))
    assert len(outcome.before) == queries and len(outcome.after) == (queries if method != "none" else 0)
    assert outcome.answers == (outcome.after or outcome.before)
    assert [answer.task.answer for answer in outcome.before] == [task.answer for task in outcome.problem.tasks]
    adapters = list(outcome.distinct())
    assert len(adapters) == {"none": 0, "ttt": 1}.get(method, len(adapters))
    if method == "both":
        assert len(adapters) == queries


def test_samples_grow_while_they_are_written(texts: LanguageModel) -> None:
    *happened, outcome = run(texts, RULE, quick("mass", samples=12, inner_steps=1))
    seen = [event.texts for event in happened if isinstance(event, Writing)]
    assert len(seen) > 2 and all(len(rows) == 12 for rows in seen)
    for early, late in pairwise(seen):
        assert all(b.startswith(a) for a, b in zip(early, late, strict=True))
    assert isinstance(outcome, Solution) and outcome.reason is None and outcome.sampled_tokens > 12
    (rows,) = outcome.samples
    assert sum(row["weight"] for row in rows) == pytest.approx(1, abs=1e-5)
    first, *_, last = outcome.losses
    assert last.value < first.value and last.steps == 2


def test_a_problem_without_its_answer(grids: LanguageModel) -> None:
    outcome = solve(grids, strips(answers=False), quick())
    assert [(a.task.answer, a.right) for a in (*outcome.before, *outcome.after)] == [(None, None)] * 2


# -- the same as without it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vote", [None, False])
def test_ttt_by_name_is_ttt_with_its_settings_spelled_out(grids: LanguageModel, vote: bool | None) -> None:
    problem, strip = strips(2), ("strip",)
    outcome = solve(grids, problem, quick(seed=3, vote=vote))
    asked = {"predict_permutations": 1, "predict_recolour": False, "vote": "first"} if vote is False else {}
    views = ("none",) if vote is False else strip
    settings = TTTSettings.preset(
        "grids", max_examples=6, num_train_epochs=1, transformations=strip, predict_transformations=views, **asked
    )
    session = Session(grids, TTT(settings), 3)
    records = session.adapt(problem.tasks)
    assert tuple(loss.value for loss in outcome.losses) == records[0].losses
    (adapted,) = outcome.distinct()
    assert adapted.adapted is not None and records[0].adapted is not None
    assert all(torch.equal(leaf, adapted.adapted[name]) for name, leaf in records[0].adapted.items())
    for answers, given in ((outcome.before, None), (outcome.after, records)):
        assert [a.text for a in answers] == [a.text for a in session.answer(problem.tasks, given)[0]]


@pytest.mark.parametrize("weigh_by", [None, "scorer", "uniform"])
def test_mass_is_what_the_mass_model_does(tmp_path: Path, texts: LanguageModel, weigh_by: str | None) -> None:
    outcome = solve(texts, RULE, How("mass", {"samples": 8, "weigh_by": weigh_by}, {"seed": 5}))
    mass = MassModel.from_pretrained("conventions-mass")
    (task,) = RULE.tasks
    samples = mass.generate_auxiliary([task], 8, seed=5)
    record = mass.adapt(task, weigh_by or "demonstrations", samples, seed=5)
    assert repr(outcome.samples) == repr((tuple(record.explain()),))  # NaN is equal to NaN in print alone
    for answers, given in ((outcome.before, None), (outcome.after, record)):
        assert answers == (mass.solve(task, given),)
    record.save(tmp_path / "plain")
    outcome.adaptations[0].save(tmp_path / "live")
    plain, live = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "live"))
    assert plain.keys() == live.keys() and all(torch.equal(plain[name], live[name]) for name in plain)
    for name in ("plain", "live"):
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "conventions-base"


def test_the_same_seed_gives_the_same_outcome(case: tuple[LanguageModel, Problem, How]) -> None:
    first, second = solve(*case), solve(*case)
    assert result(first) == result(second)
    other = solve(case[0], case[1], replace(case[2], session={"seed": 8}))
    assert result(other) != result(first)


# -- adapters ----------------------------------------------------------------------------------------------------------


def test_peft_alone_and_a_model_loaded_again_answer_the_same(
    tmp_path: Path, case: tuple[LanguageModel, Problem, How]
) -> None:
    lm, problem, how = case
    outcome = solve(lm, problem, replace(how, settings={**how.settings, "vote": False}))
    outcome.adaptations[0].save(tmp_path / "a")
    name = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert name == ("conventions-base" if problem is RULE else "grids-small")
    base = AutoModelForCausalLM.from_pretrained(ASSETS / name)
    bare = PeftModel.from_pretrained(base, str(tmp_path / "a")).eval()
    if how.synthesises:
        settings = {name: how.settings[name] for name in ("samples", "inner_steps")}
        mass = MASS(**settings).resolved(lm, problem.tasks)
        prompts = [mass.encoder.solver_prompt_ids(task) for task in problem.tasks]
        ids = complete(bare, lm.tokenizer, prompts, Sampling(mass.config.max_answer_tokens, 0.0))
        texts = [lm.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        assert texts == [answer.written for answer in outcome.after]
        return
    again = load(tmp_path / "a", device="cpu")
    assert again.untrained is None and again.kinds == lm.kinds and again.name == str(tmp_path / "a")
    unadapted = solve(again, problem, How("none", {"vote": False}))
    assert [a.text for a in unadapted.before] == [a.text for a in outcome.after]
    assert [a.text for a in make_method("ttt", {"vote": False}).answer(again, problem.tasks, None, 0)] == [
        a.text for a in outcome.after
    ]


def test_an_adaptation_that_changes_nothing_says_so(grids: LanguageModel) -> None:
    outcome = solve(grids, strips(), quick(learning_rate=1e-300))
    assert list(outcome.distinct()) == [] and "changed nothing" in str(outcome.reason)
    assert [a.text for a in outcome.after] == [a.text for a in outcome.before]


# -- what is refused ---------------------------------------------------------------------------------------------------


def every_way(model: LanguageModel, problem: Problem, config: How) -> Iterator[Callable[[], object]]:
    """A call and a generator."""
    yield lambda: solve(model, problem, config)
    yield lambda: list(run(model, problem, config))


def test_problems_that_are_none_for_the_model(grids: LanguageModel, texts: LanguageModel) -> None:
    rows = [[1, 2, 3, 4, 5] * 6] * 30
    large = json.dumps({"train": [{"input": rows, "output": rows}] * 3, "test": [{"input": rows}]})
    bare = read_problem("what is 1 + 1?")
    for model, problem, method, message in (
        (grids, bare, "mass", "grids-small is made for grids, and this problem is of texts"),
        (texts, strips(), "mass", "conventions-mass is made for texts, and this problem is of grids"),
        (texts, bare, "ttt", "no solved examples to train on. Add some, or choose method 'mass'"),
        (texts, RULE, "ttt", "cannot be trained on demonstrations of texts. Choose method 'mass'"),
        (texts, RULE, "both", "cannot be trained on demonstrations"),
        (grids, read_problem(large), "ttt", "tokens, and the model's context .*Give fewer"),
        (grids, read_problem(large), "mass", "tokens, and grids-small has room for .*Give fewer"),
        (grids, read_problem(large), "none", "tokens, and the model's context .*Give fewer"),
    ):
        before = snapshot(model.model)
        for call in every_way(model, problem, How(method)):
            with pytest.raises(DataError, match=message):
                call()
        assert unchanged(model, before)


def test_a_task_without_demonstrations_or_fields(texts: LanguageModel) -> None:
    with pytest.raises(HFMassError, match="family"):
        solve(texts, read_problem("peach"), quick("mass"))
    alone = read_problem(json.dumps({"problem": "peach", "fields": {"family": "sue"}}))
    outcome = solve(texts, alone, quick("mass", samples=12))
    assert outcome.after and not any(row["attribution"] for row in outcome.samples[0])
    with pytest.raises(DataError, match=r"no solved examples to weigh samples by\. Choose"):
        solve(texts, alone, quick("mass", weigh_by="demonstrations"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weigh_by", "magic"),
        *((name, value) for name in ("samples", "inner_steps", "max_examples") for value in (0, -1, 1.5, "3", True)),
        ("num_train_epochs", float("nan")),
        *(
            (name, value)
            for name in ("inner_learning_rate", "learning_rate", "time_limit")
            for value in (0, -1.0, float("nan"), float("inf"), "1", 10**400, True)
        ),
        ("seed", None),
        ("seed", 0.5),
    ],
)
def test_settings_that_are_refused(grids: LanguageModel, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*choose"):
        quick("both", **{name: value}).on(grids)


def test_methods_that_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"method is 'magic'; choose one of \['none', .*or give package.module:Class"):
        make_method("magic")
    with pytest.raises(ConfigError, match=r"method 'no_such_module:Class' cannot be imported"):
        make_method("no_such_module:Class")
    with pytest.raises(ConfigError, match=r"There is no setting 'sampels' of methods; choose some of"):
        make_method("mass", {"sampels": 3})


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70, -(2**70)])
def test_any_whole_number_is_a_seed(grids: LanguageModel, seed: int) -> None:
    assert solve(grids, strips(), quick("both", seed=seed, max_examples=2, samples=1)).after


def test_names_that_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No model that ships is made for problems of 'pictures'"):
        default_model("pictures")
    assert [default_model("grids"), default_model("texts")] == ["grids-base", "strings-base"]
    assert default_model("texts", ["family", "other"]) == "conventions-mass"
    with pytest.raises(HFMassError, match="no-such-model"):
        load("no-such-model")
    with pytest.raises(HFMassError, match="empty"):
        (tmp_path / "empty").mkdir()
        load(tmp_path / "empty")


def test_the_models_own_settings_are_what_none_stands_for(texts: LanguageModel) -> None:
    config = MASS().resolved(texts, RULE.tasks).config
    spelled = {"samples": config.samples, "inner_steps": config.inner.steps, "weigh_by": "demonstrations"}
    spelled["inner_learning_rate"] = config.inner.learning_rate
    assert result(solve(texts, RULE, How("mass", spelled))) == result(solve(texts, RULE, How("mass")))


def test_a_model_of_a_small_world_is_not_trained_in_words_that_it_lacks(tmp_path: Path, texts: LanguageModel) -> None:
    """As a folder or on the Hub nothing tells what a model was made for, but its tokenizer does."""
    assert isinstance(texts, MassModel)
    texts.save_pretrained(tmp_path / "mine")
    model = load(tmp_path / "mine", device="cpu")
    assert model.defaults["ttt"] == {}
    for method, words in (("ttt", "cannot be trained on demonstrations"), ("mass", "a field 'family'")):
        with pytest.raises(DataError, match=words):
            solve(model, read_problem("a -> b\nc ->"), How(method))
    assert load(ASSETS / "grids-small", device="cpu").defaults["ttt"]["grids"] == {"preset": "grids"}
