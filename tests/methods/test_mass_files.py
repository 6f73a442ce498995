"""A `MassModel` made from a base, saved, and loaded again: the same answers, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_fixtures import (
    BASE,
    WORLD,
    adapt,
    as_tuples,
    byte_base,
    byte_model,
    conventions_config,
    conventions_model,
    equal_trees,
    pair,
    pretend_training,
    rejected,
    solve,
    text_task,
)
from peft import PeftModel
from transformers import AutoModelForCausalLM

from hf_mass.errors import CheckpointError
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import WEIGHINGS, ScorerConfig
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.tasks.task import Task

# -- from a base -------------------------------------------------------------------------------------------------------


def test_an_untrained_model_is_its_base(tasks: list[Task]) -> None:
    mass, base = conventions_model(), AutoModelForCausalLM.from_pretrained(BASE)
    ids = torch.tensor([mass.encoder.solver_prompt_ids(tasks[0])])
    with torch.no_grad():
        assert torch.equal(mass.model(input_ids=ids).logits, base(input_ids=ids).logits)
    record = adapt(mass, tasks[0], "scorer")
    assert record.weights[record.weights > 0].unique().numel() == 1  # the scorer has no preference yet


def test_a_model_is_made_from_its_seed(tasks: list[Task]) -> None:
    torch.manual_seed(1)
    first = conventions_model(seed=4)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second, third = conventions_model(seed=4), conventions_model(seed=5)
    assert torch.equal(torch.get_rng_state(), state)  # making one does not move anybody's random numbers
    for source in ("model", "scorer"):
        one, two, other = (getattr(m, source).state_dict() for m in (first, second, third))
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("weigh_by", WEIGHINGS)
def test_free_text(kind: str, weigh_by: str) -> None:
    mass = byte_model(kind)
    tasks = [text_task(1), text_task(2)]
    groups = [[pair("3 + 4 = ?", "3 and 4.\n#### 7"), rejected()], [pair("1 + 2 = ?", "#### 3"), pair("what?", "no")]]
    records = mass.adapt(tasks, weigh_by, groups)
    assert [record.reason for record in records] == [None, None]
    assert all(torch.nan_to_num(r.losses_after).sum() < torch.nan_to_num(r.losses_before).sum() for r in records)
    assert [isinstance(s.written, str) and s.score == 0.0 for s in mass.solve(tasks, records)] == [True, True]


# -- saving and loading ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(mass: MassModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    mass.save_pretrained(folder)
    return folder


def test_a_loaded_model_gives_the_same_answers(mass: MassModel, saved: Path, tasks: list[Task]) -> None:
    again = MassModel.from_pretrained(saved)
    assert again.config == mass.config
    groups = mass.generate_auxiliary(tasks)
    assert as_tuples(again.generate_auxiliary(tasks)) == as_tuples(groups)
    assert torch.equal(again.score(tasks, groups), mass.score(tasks, groups))
    assert mass.score(tasks, groups).std() > 0.01
    for weigh_by in WEIGHINGS:
        first, second = mass.adapt(tasks, weigh_by, groups), again.adapt(tasks, weigh_by, groups)
        for one, two in zip(first, second, strict=True):
            assert equal_trees(one.adapted, two.adapted) and torch.equal(one.weights, two.weights)
        assert mass.solve(tasks, first, temperature=1.0) == again.solve(tasks, second, temperature=1.0)


def test_what_is_on_disk(saved: Path) -> None:
    for name in ("mass_config.json", "scorer/scorer.safetensors", "generator/adapter_config.json", "tokenizer.json"):
        assert (saved / name).is_file()
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".pth")]
    assert json.loads((saved / "mass_config.json").read_text())["format_version"] == 1
    named = json.loads((saved / "generator" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == BASE.name  # a base that ships: no path of this machine


def test_peft_alone_loads_the_generator(mass: MassModel, saved: Path, tasks: list[Task]) -> None:
    base = AutoModelForCausalLM.from_pretrained(BASE)
    ids = torch.tensor([mass.encoder.generator_prompt_ids(tasks[0])])
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        loaded = PeftModel.from_pretrained(base, str(saved), subfolder="generator")
        assert torch.equal(loaded(input_ids=ids).logits, mass.model(input_ids=ids).logits)
        assert not torch.allclose(loaded(input_ids=ids).logits, plain, atol=1e-3)
    assert list(loaded.peft_config) == ["default"]


def test_saving_again_changes_nothing(saved: Path, tmp_path: Path) -> None:
    MassModel.from_pretrained(saved).save_pretrained(tmp_path / "again")
    for path in sorted(saved.rglob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(saved)).read_bytes()
    assert (saved / "mass_config.json").read_bytes() == (tmp_path / "again" / "mass_config.json").read_bytes()


def test_a_model_on_a_base_without_a_name(tmp_path: Path) -> None:
    mass, task = byte_model(), text_task()
    pretend_training(mass)
    mass.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="names no base model; pass it as `base`"):
        MassModel.from_pretrained(tmp_path / "model")
    again = MassModel.from_pretrained(tmp_path / "model", base=byte_base())
    group = [[pair("3 + 4 = ?", "#### 7")]]
    assert equal_trees(adapt(mass, task, samples=group).adapted, adapt(again, task, samples=group).adapted)
    assert solve(mass, task) == solve(again, task)


def test_a_full_disk_leaves_the_earlier_model(
    mass: MassModel, saved: Path, tmp_path: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    mass.save_pretrained(tmp_path / "model")
    earlier = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}
    other = conventions_model(seed=9)

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(other.scorer, "save", full)
    with pytest.raises(CheckpointError, match=r"could not be written: .*No space left on device\. Free some space"):
        other.save_pretrained(tmp_path / "model")
    assert {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()} == earlier
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert MassModel.from_pretrained(tmp_path / "model").solve(tasks[0]) == mass.solve(tasks[0])


def test_what_cannot_be_loaded_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        MassModel.from_pretrained(tmp_path / "none")
    with pytest.raises(CheckpointError, match="neither a folder nor a Hub repository"):
        MassModel.from_pretrained("nobody/nothing")
    with pytest.raises(CheckpointError, match=r"mass_config\.json is missing: .* is no saved MassModel"):
        MassModel.from_pretrained(BASE)


def test_a_scorer_of_any_kind_is_saved(tmp_path: Path, tasks: list[Task]) -> None:
    config = conventions_config(scorer=ScorerConfig(("hidden", "overlap"), width=0, normalization="sigmoid"))
    mass = conventions_model(config, trained=True)
    mass.save_pretrained(tmp_path / "model")
    groups: list[list[AuxiliarySample]] = mass.generate_auxiliary(tasks)
    assert torch.equal(MassModel.from_pretrained(tmp_path / "model").score(tasks, groups), mass.score(tasks, groups))


def test_the_tokenizer_is_saved_with_the_model(saved: Path) -> None:
    again = MassModel.from_pretrained(saved)
    assert again.tokenizer.convert_ids_to_tokens(range(len(again.tokenizer))) == WORLD.vocabulary
