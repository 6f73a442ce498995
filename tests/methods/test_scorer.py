"""The scorer and its inputs: what it sees, what it ignores, and that it comes back from disk as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_fixtures import WORLD, conventions_config, conventions_model, rejected, right_sample, written
from torch import Tensor

from hf_mass.core.weights import NORMALISATIONS, standardise
from hf_mass.errors import CheckpointError, ConfigError
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import FEATURES, ScorerConfig
from hf_mass.methods.samples import AuxiliarySample
from hf_mass.methods.scorer import FEATURE_SIZES, Scorer, scorer_features
from hf_mass.tasks.task import Task

HIDDEN = 5
EVERYTHING = ScorerConfig(FEATURES, width=7)

configs = st.builds(
    ScorerConfig,
    features=st.lists(st.sampled_from(FEATURES), min_size=1, unique=True).map(tuple),
    width=st.sampled_from([0, 1, 6]),
    normalization=st.sampled_from(NORMALISATIONS),
)


def random_scorer(config: ScorerConfig, seed: int = 0) -> Scorer:
    """With no parameter left at where it starts."""
    noise, scorer = torch.Generator().manual_seed(seed), Scorer(config, HIDDEN)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise))
    return scorer


def random_inputs(config: ScorerConfig, tasks: int, m: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    noise = torch.Generator().manual_seed(seed)
    sizes = {**FEATURE_SIZES, "hidden": HIDDEN}
    usable = torch.rand(tasks, m, generator=noise) < 0.7
    return {name: torch.randn(tasks, m, sizes[name], generator=noise) for name in config.features}, usable


# -- the head ----------------------------------------------------------------------------------------------------------


@given(configs, st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_an_untrained_scorer_weighs_all_samples_alike(config: ScorerConfig, tasks: int, m: int, seed: int) -> None:
    features, usable = random_inputs(config, tasks, m, seed)
    weights = Scorer(config, HIDDEN)(features, usable)
    share = {
        "softmax": 1 / usable.sum(1, keepdim=True).clamp(min=1),
        "sigmoid": torch.full((tasks, 1), 0.5 / m),
        "none": torch.full((tasks, 1), torch.log(torch.tensor(2.0)).item() / m),
    }[config.normalization]
    torch.testing.assert_close(weights, usable * share)


@given(configs, st.integers(1, 3), st.integers(1, 5), st.integers(0, 99))
def test_what_is_unusable_gets_nothing(config: ScorerConfig, tasks: int, m: int, seed: int) -> None:
    features, usable = random_inputs(config, tasks, m, seed)
    weights = random_scorer(config)(features, usable)
    assert (weights[~usable] == 0).all() and (weights[usable] > 0).all() and weights.isfinite().all()
    if config.normalization == "softmax":
        assert torch.allclose(weights.sum(1), usable.any(1).float())


@given(configs, st.integers(0, 99), st.permutations(range(4)))
def test_the_order_of_samples_and_the_other_tasks_do_not_matter(
    config: ScorerConfig, seed: int, order: list[int]
) -> None:
    features, usable = random_inputs(config, 3, 4, seed)
    scorer = random_scorer(config)
    weights = scorer(features, usable)
    moved = scorer({name: value[:, order] for name, value in features.items()}, usable[:, order])
    torch.testing.assert_close(moved, weights[:, order])
    alone = scorer({name: value[:1] for name, value in features.items()}, usable[:1])
    torch.testing.assert_close(alone, weights[:1])


@given(configs, st.integers(0, 99))
def test_the_gradient_reaches_the_scorer_alone(config: ScorerConfig, seed: int) -> None:
    features, usable = random_inputs(config, 2, 4, seed)
    usable = torch.ones_like(usable)
    inputs = {name: value.clone().requires_grad_() for name, value in features.items()}
    scorer = random_scorer(config)
    pull = torch.randn(2, 4, generator=torch.Generator().manual_seed(seed))
    (scorer(inputs, usable) * pull).sum().backward()
    assert all(value.grad is None for value in inputs.values())
    name, parameter = max(scorer.named_parameters(), key=lambda item: float(item[1].grad.abs().max()))
    direction, eps = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)), 1e-3

    def value_at(step: float) -> float:
        wide = random_scorer(config).double()
        with torch.no_grad():
            dict(wide.named_parameters())[name].add_(step * direction.double())
        return (wide(features, usable) * pull).sum().item()

    slope = (value_at(eps) - value_at(-eps)) / (2 * eps)
    assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-3, abs=1e-4)


BAD = {
    "an unknown feature": ({"features": ("hidden", "length")}, "scorer_features"),
    "no feature": ({"features": ()}, "scorer_features"),
    "an unknown normalisation": ({"normalization": "max"}, "score_normalization"),
    "a negative width": ({"width": -1}, "scorer_width"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(case: str) -> None:
    settings, field = BAD[case]
    with pytest.raises(ConfigError, match=field):
        ScorerConfig(**settings)


# -- files -------------------------------------------------------------------------------------------------------------


@given(config=configs, seed=st.integers(0, 99))
def test_a_scorer_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, config: ScorerConfig, seed: int
) -> None:
    folder, scorer = tmp_path_factory.mktemp("scorer") / "deep", random_scorer(config, seed)
    scorer.save(folder)
    again = Scorer.load(folder)
    features, usable = random_inputs(config, 2, 3, seed)
    assert again.config == config and again.hidden_size == HIDDEN
    assert torch.equal(again(features, usable), scorer(features, usable))
    assert sorted(path.name for path in folder.iterdir()) == ["scorer.safetensors", "scorer_config.json"]


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "scorer_config.json"
    values = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}), encoding="utf-8")


def cut(folder: Path) -> None:
    path = folder / "scorer.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no settings": (lambda f: (f / "scorer_config.json").unlink(), r"scorer_config\.json is missing"),
    "no tensors": (lambda f: (f / "scorer.safetensors").unlink(), r"scorer\.safetensors is missing"),
    "settings that are no JSON": (lambda f: (f / "scorer_config.json").write_text("{"), "is no JSON"),
    "settings that are a list": (lambda f: (f / "scorer_config.json").write_text("[1]"), "holds a list"),
    "no hidden size": (lambda f: rewrite(f, hidden_size=None), "hidden_size"),
    "an unknown setting": (lambda f: rewrite(f, depth=3), "depth"),
    "a setting out of range": (lambda f: rewrite(f, width=-1), "scorer_width"),
    "another size": (lambda f: rewrite(f, width=9), "does not fit"),
    "other features": (lambda f: rewrite(f, features=["overlap"]), "does not fit"),
    "a file cut off": (cut, "is damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_are_named(case: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[case]
    random_scorer(EVERYTHING).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        Scorer.load(tmp_path)


# -- features ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mass() -> MassModel:
    return conventions_model(conventions_config(scorer=EVERYTHING), trained=True)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return WORLD.tasks("train", 2)


@pytest.fixture(scope="module")
def samples(tasks: list[Task]) -> list[list[AuxiliarySample]]:
    """Two alike, one other, one unusable."""
    return [[right_sample(t), right_sample(t), written("tom lemon red rule03"), rejected()] for t in tasks]


def read(
    mass: MassModel, tasks: list[Task], samples: list[list[AuxiliarySample]], **kwargs: object
) -> dict[str, Tensor]:
    attributions = torch.tensor([[-1.0, -2.0, 3.0, 0.0], [0.5, 0.5, 0.5, 0.0]])
    kwargs = {"attributions": attributions, **kwargs}
    return scorer_features(FEATURES, mass.model.eval(), mass.encoder, tasks, samples, **kwargs)


def test_features_have_the_sizes_that_the_scorer_expects(
    mass: MassModel, tasks: list[Task], samples: list[list[AuxiliarySample]]
) -> None:
    sizes = {**FEATURE_SIZES, "hidden": 64}
    found = read(mass, tasks, samples)
    assert {name: tuple(value.shape) for name, value in found.items()} == {n: (2, 4, sizes[n]) for n in FEATURES}
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in found.values())
    # Nothing of what an unusable sample says is read.
    assert all((value[:, 3] == 0).all() for name, value in found.items() if name != "overlap")
    for microbatch in (1, 3):
        for name, value in read(mass, tasks, samples, microbatch=microbatch).items():
            torch.testing.assert_close(value, found[name], rtol=1e-4, atol=1e-5)


def test_log_probabilities_are_the_generator_s(
    mass: MassModel, tasks: list[Task], samples: list[list[AuxiliarySample]]
) -> None:
    found = read(mass, tasks, samples)
    for n, task in enumerate(tasks):
        prompt = mass.encoder.generator_prompt_ids(task)
        for i in range(3):
            ids = torch.tensor([[*prompt, *samples[n][i].token_ids]])
            with torch.no_grad():
                output = mass.model(input_ids=ids, output_hidden_states=True)
            log_p = output.logits[0, len(prompt) - 1 : -1].log_softmax(1)
            log_p = log_p.gather(1, ids[0, len(prompt) :, None])[:-1, 0]  # without the end token
            expected = torch.stack([log_p.mean(), log_p.min(), log_p[0], log_p[-1]]).clamp(min=-6) / 2
            torch.testing.assert_close(found["log_prob"][n, i], expected, rtol=1e-4, atol=1e-5)
            state = output.hidden_states[-1][0, -1]
            torch.testing.assert_close(found["hidden"][n, i], state, rtol=1e-4, atol=1e-4)


def test_overlap_and_agreement_by_hand(mass: MassModel) -> None:
    task = Task("kiwi", WORLD.tasks("train", 1)[0].demonstrations, fields={"family": "ada"})
    shown = {word for demo in task.demonstrations for word in (demo.question, demo.answer)} | {"ada", "kiwi"}
    group = [
        written("ada kiwi red rule00"),
        written("ada kiwi red rule00"),
        written("ada kiwi blue rule00"),
        written("tom kiwi red rule00"),
        rejected(),
    ]
    inputs = (mass.model, mass.encoder, [task])
    found = scorer_features(("overlap", "agreement"), *inputs, [group], torch.zeros(1, 5))
    # Question, answer, rationale alike, as a share of the four others, doubled; unusable samples agree with nobody.
    expected = [[1.0, 1.0, 1.5], [1.0, 1.0, 1.5], [1.0, 0.0, 1.5], [0.0, 1.0, 1.5], [0.0, 0.0, 0.0]]
    assert found["agreement"][0].tolist() == expected
    # What was rejected does not vouch for its like, even where it could be read.
    alike = [group[0], replace(group[0], reason="filtered out")]
    assert scorer_features(("agreement",), *inputs, [alike], torch.zeros(1, 2))["agreement"][0, 0].tolist() == [0.0] * 3
    colour = 0.5 * ("red" in shown)  # a convention's name is in no prompt
    assert found["overlap"][0, :, 0].tolist() == [1.0, 1.0, 1.0, 0.5, 0.0]
    assert found["overlap"][0, [0, 1, 3], 1].tolist() == [colour] * 3


def test_attributions_are_standardised_and_the_best_is_marked(
    mass: MassModel, tasks: list[Task], samples: list[list[AuxiliarySample]]
) -> None:
    found = read(mass, tasks, samples)["attribution"]
    usable = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(found[0, :, 0], standardise(torch.tensor([[1.0, 2.0, -3.0, 0.0]]), usable)[0])
    assert found[0, :, 1].tolist() == [0, 1, 0, 0]
    assert found[1].tolist() == [[0, 1], [0, 1], [0, 1], [0, 0]]  # all equal: no spread, and all are the best


def test_a_diverged_task_does_not_reach_the_others(
    mass: MassModel, tasks: list[Task], samples: list[list[AuxiliarySample]]
) -> None:
    broken = torch.tensor([[float("nan"), -2.0, float("inf"), 0.0], [0.5, 1.5, 0.5, 0.0]])
    found = read(mass, tasks, samples, attributions=broken)
    assert all(value.isfinite().all() for value in found.values())
    clean = read(mass, tasks, samples, attributions=torch.where(broken.isfinite(), broken, 0.0))
    assert torch.equal(found["attribution"][1], clean["attribution"][1])


def test_score_is_the_scorer_s_weights(
    mass: MassModel, tasks: list[Task], samples: list[list[AuxiliarySample]]
) -> None:
    weights = mass.score(tasks, samples)
    assert weights.shape == (2, 4) and (weights[:, 3] == 0).all() and torch.allclose(weights.sum(1), torch.ones(2))
    assert len({round(w, 4) for w in weights.flatten().tolist()}) > 3
    records = mass.adapt(tasks, "scorer", samples)
    assert torch.equal(torch.stack([record.weights for record in records]), weights)
    # Without demonstrations there is nothing to attribute to, unless no sample is usable anyway.
    bare = replace(tasks[0], demonstrations=())
    assert mass.score(bare, [[rejected()]]).tolist() == [[0.0]]
