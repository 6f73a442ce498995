"""Adapting many tasks at once: the rows, the outer losses against autograd by hand, and weights without a label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import (
    WORLD,
    conventions_config,
    conventions_model,
    largest_difference,
    rejected,
    right_sample,
    written,
)
from tiny_models import lora_model, randomise_lora, relative_error, tree_error
from torch import Tensor

from hf_mass.core import trees
from hf_mass.core.inner_loop import Trajectory
from hf_mass.core.token_loss import IGNORED
from hf_mass.core.trees import Tree
from hf_mass.core.weights import uniform_weights
from hf_mass.errors import DataError
from hf_mass.lab.conventions import CONVENTIONS_FORMAT
from hf_mass.methods.inner import InnerProblem
from hf_mass.methods.mass_model import MassModel
from hf_mass.methods.mass_settings import AttributionConfig, InnerConfig, MassConfig
from hf_mass.methods.samples import AuxiliarySample, read_sample
from hf_mass.tasks.task import Demonstration, Task
from research.conventions.protocol import fits_demonstrations
from research.conventions.word_tokenizer import build_word_tokenizer
from research.ranking import auc

# -- a model in double precision, whose inner adapter does not start at zero -------------------------------------------

ITEMS, COLOURS, RULES = ["i1", "i2", "i3", "i4"], ["c1", "c2", "c3"], ["r1", "r2", "r3", "r4"]
WORDS = ["<pad>", "<bos>", "<eos>", ">", "=", "write", "fam", "kin", *ITEMS, *COLOURS, *RULES]


def precise(steps: int = 1, microbatch: int | None = None, rule: str = "adjoint") -> MassModel:
    model = lora_model("llama", torch.float64, adapters=("default", "inner"))
    randomise_lora(model, scale=0.2)
    inner = InnerConfig(steps=steps, learning_rate=0.3, microbatch=microbatch, rule=rule)
    config = MassConfig(format=CONVENTIONS_FORMAT, inner=inner, max_length=32, max_sample_tokens=6, max_answer_tokens=4)
    return MassModel(model, build_word_tokenizer(WORDS), config)


def small_task(number: int = 0, shown: int = 2) -> Task:
    pairs = [Demonstration(ITEMS[i], COLOURS[(i + number) % 3]) for i in range(shown)]
    return Task("i4", tuple(pairs), f"r1 c{number + 1}", f"c{number + 1}", id=str(number), fields={"family": "fam"})


def small_sample(text: str) -> AuxiliarySample:
    return read_sample(text, [WORDS.index(word) for word in text.split()], CONVENTIONS_FORMAT)


def log_p(mass: MassModel, params: Tree, task: int, prompt: str, answer: str) -> Tensor:
    """log p(answer | prompt) at one task's weights: one row, no padding, nothing of the package but the adapter."""
    ids = [1, *map(WORDS.index, prompt.split())]
    ends = len(ids)
    ids += list(map(WORDS.index, answer.split()))
    with mass.adapter.lora.applied(params, torch.tensor([task])):
        scores = mass.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(1)
    return scores[torch.arange(ends - 1, len(ids) - 1), ids[ends:]].sum()


def marginal(mass: MassModel, params: Tree, tasks: list[Task], proposed: list[list[str]]) -> Tensor:
    """−Σ_n mean_j log Σ_r p(r, y_j | x_j), term by term."""
    total = torch.zeros((), dtype=torch.float64)
    for n, (task, rules) in enumerate(zip(tasks, proposed, strict=True)):
        for shown in task.demonstrations:
            prompt = f"fam {shown.question} ="
            ways = [log_p(mass, params, n, prompt, f"{rule} {shown.answer}".strip()) for rule in rules]
            total = total - torch.stack(ways).logsumexp(0) / len(task.demonstrations)
    return total


def random_point(mass: MassModel, tasks: int, seed: int) -> Tree:
    noise = torch.Generator().manual_seed(seed)
    start = mass.adapter.lora.start(tasks)
    return trees.tree_map(lambda x: x + 0.2 * torch.randn(x.shape, generator=noise, dtype=x.dtype), start)


proposals = st.lists(st.sampled_from(["", *RULES]), min_size=1, max_size=4, unique=True)


@settings(max_examples=12)
@given(st.lists(proposals, min_size=1, max_size=3), st.sampled_from([None, 1, 3]), st.integers(0, 99))
def test_the_demonstration_loss_is_the_marginal(proposed: list[list[str]], microbatch: int | None, seed: int) -> None:
    mass = precise(microbatch=microbatch)
    tasks = [small_task(n, shown=2 if n else 4) for n in range(len(proposed))]
    outer = mass.adapter.demonstration_loss(tasks, proposed)
    params = random_point(mass, len(tasks), seed)
    with mass.adapter.lora.inactive():
        losses, gradient, _ = outer.gradient(params)
        graph = outer.value(params)
    point = trees.leaves(params)
    by_hand = marginal(mass, point, tasks, proposed)
    by_hand.backward()
    assert relative_error(losses.sum(), by_hand.detach()) < 1e-10
    assert relative_error(graph.detach(), by_hand.detach()) < 1e-10
    assert tree_error(gradient, {name: leaf.grad for name, leaf in point.items()}) < 1e-9


@pytest.mark.parametrize("field", ["demonstration_prompt_template", "inner_template", "solver_template"])
def test_a_demonstration_is_asked_for_beside_the_others_only(field: str) -> None:
    """Where prompts show demonstrations; the problem that they may show, too, stays the task's own."""
    mass, tasks = precise(), [small_task(0, shown=3), small_task(1, shown=1)]
    plain = {"demonstration_template": "{question} = {answer}", "demonstrations_header": "", "inner_template": None}
    plain |= {"demonstration_separator": " ", "demonstrations_footer": " > ", "demonstration_prompt_template": None}
    question = "{problem}" if field == "solver_template" else "write {problem} > {question}"
    template = f"{{demonstrations}}{question} ="
    mass.encoder.format = replace(CONVENTIONS_FORMAT, **{**plain, field: template})
    batch = mass.adapter.demonstration_loss(tasks, [["r1"], ["r2"]]).loss.batch  # type: ignore[attr-defined]
    rows = zip(batch.input_ids, batch.attention_mask, strict=True)
    texts = [mass.tokenizer.decode(ids[mask.bool()]) for ids, mask in rows]
    if field == "solver_template":  # inner prompts that are solver prompts show no demonstrations
        assert texts[0] == "<bos> i1 = r1 c1"
        return
    assert texts == [
        "<bos> i2 = c2 i3 = c3 > write i4 > i1 = r1 c1",
        "<bos> i1 = c1 i3 = c3 > write i4 > i2 = r1 c2",
        "<bos> i1 = c1 i2 = c2 > write i4 > i3 = r1 c3",
        "<bos> write i4 > i1 = r2 c2",
    ]


def test_the_loss_of_each_task_is_its_own() -> None:
    mass, tasks, proposed = precise(), [small_task(0), small_task(1)], [["r1", "r2"], ["r3"]]
    params = random_point(mass, 2, 0)
    with mass.adapter.lora.inactive():
        losses = mass.adapter.demonstration_loss(tasks, proposed).gradient(params).losses
        for n in range(2):
            one = trees.tree_map(lambda x, n=n: x[n : n + 1], params)
            alone = mass.adapter.demonstration_loss([tasks[n]], [proposed[n]]).gradient(one).losses
            assert relative_error(losses[n : n + 1], alone) < 1e-12


def test_derivations_that_lead_nowhere_hardly_count() -> None:
    # The marginal of a derivation and an unlikely one is that of the derivation: a maximum, not a mean.
    mass, task = precise(), small_task()
    params = random_point(mass, 1, 1)

    def loss(*rules: str) -> float:
        with mass.adapter.lora.inactive():
            return float(mass.adapter.demonstration_loss([task], [list(rules)]).gradient(params)[0])

    single = {rule: loss(rule) for rule in RULES}
    assert loss(*RULES) < min(single.values())
    assert loss(*RULES) > min(single.values()) - np.log(len(RULES))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("rule", ["adjoint", "unrolled"])
def test_attributions_are_the_slopes_of_the_marginal(steps: int, rule: str) -> None:
    """∂L/∂s of the samples, through the inner loop, against differences of the loss by hand."""
    mass, tasks = precise(steps, rule=rule), [small_task(0), small_task(1)]
    texts = [["fam i1 c1 r1", "fam i2 c2 r2", "fam i3 c1 r1"], ["kin i4 c2 r3", "fam i1 c3 r4", "nonsense"]]
    problem = mass.adapter.problem(tasks, [[small_sample(t) if t[0] != "n" else rejected() for t in g] for g in texts])
    weights = torch.tensor([[0.5, 0.2, 0.3], [0.6, 0.4, 0.0]], dtype=torch.float64)
    found = mass.adapter.demonstration_attributions(problem, mass.adapter.run(problem, weights))
    assert found[1, 2] == 0 and not problem.usable[1, 2]
    proposed = [["r1", "r2"], ["r3", "r4"]]
    for n, i in problem.usable.nonzero().tolist():
        step = torch.zeros_like(weights)
        step[n, i] = eps = 1e-5
        ends = [mass.adapter.run(problem, weights + sign * step).adapted for sign in (1, -1)]
        with torch.no_grad():
            up, down = (marginal(mass, end, tasks, proposed) for end in ends)
        assert ((up - down) / (2 * eps)).item() == pytest.approx(found[n, i].item(), rel=1e-5, abs=1e-8)


def test_the_gold_loss_is_the_loss_of_the_solution() -> None:
    mass = precise()
    tasks = [small_task(0), replace(small_task(1), solution=None)]
    params = random_point(mass, 2, 2)
    with mass.adapter.lora.inactive():
        losses = mass.adapter.gold_loss(tasks).gradient(params).losses
    for n, gold in enumerate(["r1 c1 <eos>", "c2 <eos>"]):  # a derivation where there is one, else the answer
        prompt = CONVENTIONS_FORMAT.solver_prompt(tasks[n])
        with torch.no_grad():
            expected = -log_p(mass, params, n, prompt, gold) / len(gold.split())
        assert relative_error(losses[n], expected) < 1e-10
    with pytest.raises(DataError, match=r"Task '7' has neither solution nor answer"):
        mass.adapter.gold_loss([replace(small_task(), id="7", solution=None, answer=None)])


# -- the inner problem -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mass() -> MassModel:
    return conventions_model()


def run(mass: MassModel, tasks: list[Task], samples: list[list[AuxiliarySample]]) -> tuple[InnerProblem, Trajectory]:
    mass.model.eval()
    problem = mass.adapter.problem(tasks, samples)
    return problem, mass.adapter.run(problem, uniform_weights(problem.usable))


def test_rows_are_the_usable_samples(mass: MassModel) -> None:
    tasks = WORLD.tasks("train", 2)
    groups = [[rejected(), right_sample(tasks[0])], [written("tom pear red rule03"), rejected()]]
    problem = mass.adapter.problem(tasks, groups)
    assert problem.usable.tolist() == [[False, True], [True, False]] and problem.loss is not None
    batch = problem.loss.batch
    assert batch.row_task.tolist() == [0, 1]
    assert (
        mass.tokenizer.decode(batch.input_ids[1][batch.attention_mask[1].bool()]) == "<bos> tom pear = rule03 red <eos>"
    )
    assert mass.tokenizer.decode(batch.labels[1][batch.labels[1] != IGNORED]) == "rule03 red <eos>"


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_rows_and_samples_are_the_same_numbers(usable: list[list[bool]]) -> None:
    problem = InnerProblem([], [], None, torch.tensor(usable))
    values = torch.rand(problem.usable.shape)
    rows = problem.to_rows(values)
    assert rows.numel() == sum(map(sum, usable))
    assert torch.equal(problem.to_samples(rows), values * problem.usable)
    assert torch.equal(problem.to_rows(problem.to_samples(rows)), rows)


def test_groups_must_match_the_tasks(mass: MassModel) -> None:
    tasks = WORLD.tasks("train", 2)
    good = rejected()
    for groups, sizes in [([[good]], "[1]"), ([[good], [good, good]], "[1, 2]"), ([[], []], "[0, 0]")]:
        with pytest.raises(DataError, match="one group for each task") as caught:
            mass.adapter.problem(tasks, groups)
        assert f"groups of {sizes} for 2 tasks" in str(caught.value)


def test_there_must_be_something_to_adapt_on(mass: MassModel) -> None:
    problem = mass.adapter.problem(WORLD.tasks("train", 1), [[rejected(), rejected()]])
    assert problem.loss is None
    with pytest.raises(DataError, match="nothing to adapt on"):
        mass.adapter.run(problem, uniform_weights(problem.usable))


def test_derivations_are_those_of_the_usable_samples(mass: MassModel) -> None:
    texts = ["ada pear red rule04", "tom fig blue rule02", "ada fig red rule04"]
    group = [rejected(), *map(written, texts), replace(written("ada fig red rule09"), reason="filtered out")]
    task = WORLD.tasks("train", 1)[0]
    assert mass.adapter.proposed_derivations(task, group) == ["rule04", "rule02"]
    assert mass.adapter.proposed_derivations(task, [rejected()]) == [""]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("microbatch", [None, 3])
def test_tasks_do_not_touch_each_other(steps: int, microbatch: int | None) -> None:
    """Together or one by one, also where their usable samples are not equally many."""
    config = conventions_config(inner_steps=steps, inner_microbatch=microbatch, inner_learning_rate=10.0)
    mass = conventions_model(config)
    tasks = WORLD.tasks("test_families", 4)
    groups = mass.generate_auxiliary(tasks)
    groups[1][:4] = [rejected()] * 4
    problem, together = run(mass, tasks, groups)
    for n, (task, group) in enumerate(zip(tasks, groups, strict=True)):
        own, alone = run(mass, [task], [group])
        part = {name: leaf[n : n + 1] for name, leaf in together.adapted.items()}
        moved = trees.add(part, {name: leaf[:1] for name, leaf in together.states[0].items()}, -1)
        assert largest_difference(moved, trees.add(alone.adapted, alone.states[0], -1)) < 1e-5
        torch.testing.assert_close(problem.to_samples(together.losses[0])[n], own.to_samples(alone.losses[0])[0])


def test_a_diverging_task_leaves_the_others_alone() -> None:
    mass = conventions_model(conventions_config(inner_steps=2))
    tasks = WORLD.tasks("train", 40)
    chosen = [next(t for t in tasks if t.fields["family"] == name) for name in ("ada", "bob", "cyd")]
    groups = [[right_sample(task), right_sample(task, "fig")] for task in chosen]
    _, clean = run(mass, chosen, groups)
    place = mass.model.get_base_model().get_input_embeddings().weight
    with torch.no_grad():
        place[WORLD.vocabulary.index("bob")] = float("inf")
    problem, broken = run(mass, chosen, groups)
    attributions = mass.adapter.demonstration_attributions(problem, broken)
    assert attributions.isfinite().all(1).tolist() == [True, False, True]
    for name, leaf in broken.adapted.items():
        assert torch.equal(leaf[[0, 2]], clean.adapted[name][[0, 2]])
    assert not all(leaf[1].isfinite().all() for leaf in broken.adapted.values())
    weights, _, trajectory = mass.adapter.weigh_by_demonstrations(problem, broken)
    assert weights[[0, 2]].isfinite().all()
    assert all(leaf[[0, 2]].isfinite().all() for leaf in trajectory.adapted.values())


# -- weights without a label -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fifty(mass: MassModel) -> tuple[list[Task], InnerProblem, Trajectory]:
    """Tasks of conventions that no meta-training meets, with the untrained generator's samples."""
    tasks = WORLD.tasks("test_conventions", 50)
    groups = mass.generate_auxiliary(tasks, count=8)
    return tasks, *run(mass, tasks, groups)


def test_attribution_tells_right_samples_from_wrong_ones(
    mass: MassModel, fifty: tuple[list[Task], InnerProblem, Trajectory]
) -> None:
    """A measured property of the shipped base: nothing was trained for it, and no label is used."""
    tasks, problem, uniform = fifty
    weights, first, _ = mass.adapter.weigh_by_demonstrations(problem, uniform)
    likely = mass.features(problem, uniform)["log_prob"][..., 0]
    pairs = [(t, s) for t, group in zip(tasks, problem.samples, strict=True) for s in group if s.usable]
    right = np.array([WORLD.is_right_sample(t, s.question, s.answer) for t, s in pairs])
    fits = np.array([fits_demonstrations(WORLD, t, s.question, s.answer) for t, s in pairs])
    by_weight, by_first, by_likelihood = (problem.to_rows(x).numpy() for x in (weights, -first, likely))
    assert 20 < right.sum() < len(right) / 4  # few are right, and the weights have to find them
    assert auc(by_weight, right) > 0.88 and auc(by_first, right) > 0.88
    # Also among those that copy a demonstration, where what the generator finds likely says little.
    assert auc(by_weight[fits], right[fits]) > 0.85 and auc(by_first[fits], right[fits]) > 0.85
    assert auc(by_likelihood[fits], right[fits]) < 0.8


def test_weights_are_a_distribution_over_the_usable_samples(
    mass: MassModel, fifty: tuple[list[Task], InnerProblem, Trajectory]
) -> None:
    tasks, problem, _ = fifty
    groups = [[rejected(), *group[1:]] for group in problem.samples[:4]]
    groups[1] = [rejected()] * 7 + [groups[1][7]]
    groups[2] = [rejected()] * 8
    some, uniform = run(mass, tasks[:4], groups)
    weights, first, trajectory = mass.adapter.weigh_by_demonstrations(some, uniform)
    assert (weights[:, 0] == 0).all() and (first[:, 0] == 0).all() and weights.isfinite().all()
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert weights[1, 7] == 1
    # What comes back is the trajectory at these weights.
    again = mass.adapter.run(some, weights)
    assert largest_difference(trajectory.adapted, again.adapted) < 1e-6


def test_rounds_correct_the_weights(mass: MassModel, fifty: tuple[list[Task], InnerProblem, Trajectory]) -> None:
    tasks, problem, _ = fifty
    found = []
    for rounds in (1, 3):
        other = conventions_model(conventions_config(attribution=AttributionConfig(8.0, rounds)))
        few, uniform = run(other, tasks[:20], list(problem.samples[:20]))
        weights, first, trajectory = other.adapter.weigh_by_demonstrations(few, uniform)
        outer = other.adapter.demonstration_loss(tasks[:20], [[f"rule{c:02d}" for c in range(24)]] * 20)
        with other.adapter.lora.inactive():
            losses = [outer.gradient(t.adapted)[0].mean().item() for t in (uniform, trajectory)]
        found.append((weights, first, losses))
    (one, first_one, losses_one), (three, first_three, losses_three) = found
    assert torch.equal(first_one, first_three) and not torch.allclose(one, three)
    # Weighing explains the demonstrations better than equal weights do, and more rounds no worse than one.
    assert losses_one[1] < losses_one[0] and losses_three[1] < losses_three[0]
    assert losses_three[1] < losses_one[1] + 0.05


def test_attribution_needs_demonstrations(mass: MassModel) -> None:
    task = replace(WORLD.tasks("train", 1)[0], demonstrations=())
    problem, uniform = run(mass, [task], [[right_sample(task)]])
    with pytest.raises(DataError, match=r"'train-0-0' has no demonstrations to attribute samples to"):
        mass.adapter.weigh_by_demonstrations(problem, uniform)
