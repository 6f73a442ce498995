"""Training data for one task, made of nothing but its own demonstrations (arXiv 2411.07279, §3).

Each demonstration in turn becomes a query and the others stand before it; the whole is transformed, recoloured and
reordered in as many ways as a `DataConfig` says, and cut to a limit. How an example reads is up to
`hf_mass.tasks.few_shot_format`.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from hf_mass.errors import ConfigError, DataError
from hf_mass.tasks.checks import require_one_of, require_whole, shown
from hf_mass.tasks.grid_transformations import Identity, PermuteColours, Transformation, Translate
from hf_mass.tasks.grids import parse_grid
from hf_mass.tasks.task import INSTRUCTION, Demonstration, Task
from hf_mass.tasks.transformations import SIDES, Side, transform_task

logger = logging.getLogger(__name__)

Single = Literal["direct", "refuse"]


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """One sequence to train on.

    Args:
        demonstrations: Solved examples that stand before the query, in this order; none for direct training.
        query: The left-out demonstration.
        origin: How it was made, to be read by people: what was left out, transformation, colours, order.
        instruction: The task's own instruction (`Task.fields["instruction"]`), empty if it has none.
    """

    demonstrations: tuple[Demonstration, ...]
    query: Demonstration
    origin: str = ""
    instruction: str = ""


@dataclass(frozen=True)
class DataConfig:
    """What training data to make of a task's demonstrations.

    Args:
        leave_two_out: Fill up to the limit with examples that lack a second demonstration, where leaving one out gives
            too few. Needs three demonstrations.
        direct: Train on single input-output pairs, without demonstrations before them (an ablation; then
            `leave_two_out` and `permutations` have no effect).
        permutations: Orders of the demonstrations for each query, transformation and recolouring; the first one is the
            order of the task, the others are drawn at random and differ.
        transformations: What to do to all grids of an example, on both sides of a pair or, as (transformation, side),
            on "input" or "output" grids only. Untransformed examples are always made as well.
        colour_permutations: Randomly recoloured copies of each untransformed and transformed example.
        keep_background: Whether colour 0 stays as it is in recoloured copies.
        recolour_to_unused: Recoloured copies have, as far as possible, colours that the example does not have.
        reorder_recoloured: Recoloured copies have their demonstrations in random orders, the first one too.
        random_shift: One more transformation, on both sides: a shift down and right by up to so many cells, drawn for
            the task; 0 for none.
        limit: Examples at most; which ones is drawn at random, those with one demonstration left out first.
        max_side: Examples with a grid that is higher or wider are dropped. Only for tasks whose texts are all grids.
        max_tokens: Examples with more tokens are dropped; None for no limit.
        single: What to do with a task of one demonstration, where none can be left out: train on the bare pair
            ("direct", with a warning in the log) or raise an error ("refuse").

    Raises:
        ConfigError: If a number is out of range, `single` is unknown, or `transformations` holds something else.
    """

    leave_two_out: bool = True
    direct: bool = False
    permutations: int = 1
    transformations: tuple[Transformation | tuple[Transformation, Side], ...] = ()
    colour_permutations: int = 0
    keep_background: bool = True
    recolour_to_unused: bool = False
    reorder_recoloured: bool = False
    random_shift: int = 0
    limit: int = 250
    max_side: int = 30
    max_tokens: int | None = None
    single: Single = "direct"

    def __post_init__(self) -> None:
        least_of = {"permutations": 1, "colour_permutations": 0, "random_shift": 0, "limit": 1, "max_side": 1}
        for name, least in least_of.items():
            require_whole(f"DataConfig.{name}", getattr(self, name), least)
        if self.max_tokens is not None:
            require_whole("DataConfig.max_tokens", self.max_tokens, 1)
        require_one_of("DataConfig.single", self.single, get_args(Single))
        if not isinstance(self.transformations, tuple):
            raise ConfigError(
                f"DataConfig.transformations must be a tuple, got {shown(self.transformations)}. Names become "
                "transformations with resolve_transformations."
            )
        for item in self.transformations:
            transformation, side = item if isinstance(item, tuple) and len(item) == 2 else (item, SIDES[0])
            if not isinstance(transformation, Transformation) or side not in SIDES:
                raise ConfigError(
                    f"DataConfig.transformations holds {shown(item)}. Give transformations, or pairs of a "
                    f"transformation and a side ({', '.join(map(repr, SIDES))})."
                )

    @property
    def sided_transformations(self) -> tuple[tuple[Transformation, Side], ...]:
        """The transformations with their sides, the identity first and only once."""
        pairs = [item if isinstance(item, tuple) else (item, SIDES[0]) for item in self.transformations]
        return ((Identity(), SIDES[0]), *(pair for pair in pairs if not isinstance(pair[0], Identity)))


def training_examples(
    task: Task,
    config: DataConfig,
    seed: int = 0,
    count_tokens: Callable[[TrainingExample], int] | None = None,
) -> list[TrainingExample]:
    """Makes the training data of one task.

    Args:
        task: The task. Only its demonstrations are used: neither its problem, nor its answer where it has one.
        config: What to make.
        seed: The same seed gives the same examples in the same order.
        count_tokens: The length of an example as it will be trained on; needed for `config.max_tokens`.

    Returns:
        At most `config.limit` different examples, shuffled.

    Raises:
        ConfigError: If `config.max_tokens` is set without `count_tokens`.
        DataError: If the task has no demonstrations, or one and `config.single` is "refuse"; if transformations or
            recolourings are asked for and a text is no grid; or if every example is dropped as too large or too long.
    """
    if config.max_tokens is not None and count_tokens is None:
        raise ConfigError("training_examples: DataConfig.max_tokens is set, but there is no count_tokens. Give it.")
    direct, rng = _is_direct(task, config), random.Random(seed)
    if config.random_shift:
        shift = Translate.random(rng, config.random_shift)
        config = replace(config, transformations=(*config.transformations, shift))
    variants = _variants(task, config)
    distinct: dict[tuple[object, ...], TrainingExample] = {}
    dropped: Counter[str] = Counter()
    for recipe in _shuffled_recipes(task, direct, config, rng):
        variant, fits = variants[recipe.variant]
        if not all(fits[number] for number in (recipe.query, *recipe.context)):
            dropped[f"have a grid over DataConfig.max_side = {config.max_side}"] += 1
            continue
        example = recipe.example(variant)
        if config.max_tokens and count_tokens and count_tokens(example) > config.max_tokens:
            dropped[f"are longer than DataConfig.max_tokens = {config.max_tokens}"] += 1
            continue
        distinct.setdefault((example.demonstrations, example.query), example)
        if len(distinct) == config.limit:
            break
    if not distinct:
        why = " and ".join(f"{count} {fault}" for fault, count in dropped.items())
        raise DataError(
            f"No training example can be made from the {len(task.demonstrations)} demonstrations of task {task.id!r}: "
            f"{why}. Raise the limit, or leave the task out."
        )
    examples = list(distinct.values())
    rng.shuffle(examples)
    return examples


def demonstration_orders(size: int, count: int, rng: random.Random) -> list[tuple[int, ...]]:
    """At most `count` different orders of `size` demonstrations: the one they are in first, then random ones."""
    orders = {tuple(range(size)): None}
    while len(orders) < min(count, math.factorial(size)):
        orders[tuple(rng.sample(range(size), size))] = None
    return list(orders)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to make one example. Recipes are cheap, so all of them are written, and only those needed are followed."""

    query: int
    context: tuple[int, ...]  # the demonstrations before the query, in order
    variant: int
    colours: PermuteColours | None
    origin: str

    def example(self, task: Task) -> TrainingExample:
        """The example, from the transformed task."""
        task = replace(task, demonstrations=tuple(task.demonstrations[n] for n in (*self.context, self.query)))
        if self.colours is not None:
            task = transform_task(task, self.colours)
        *context, query = task.demonstrations
        return TrainingExample(tuple(context), query, self.origin, task.fields.get(INSTRUCTION, ""))


def _is_direct(task: Task, config: DataConfig) -> bool:
    """Returns True if bare pairs are trained on, as the config says or for want of a second demonstration."""
    if not task.demonstrations:
        raise DataError(f"Task {task.id!r} has no demonstrations, so there is nothing to train on. Leave it out.")
    if len(task.demonstrations) > 1 or config.direct:
        return config.direct
    message = f"Task {task.id!r} has one demonstration only, so none can be left out"
    if config.single == "refuse":
        raise DataError(f"{message}. Leave the task out, or set DataConfig.single to 'direct'.")
    logger.warning("%s: it is trained on directly, from input to output.", message)
    return True


def _variants(task: Task, config: DataConfig) -> list[tuple[Task, list[bool]]]:
    """(the task, which of its demonstrations are small enough) under each of `config.sided_transformations`."""
    texts = [text for each in task.demonstrations for text in (each.question, each.answer)]
    odd = next((text for text in texts if parse_grid(text) is None), None)
    if odd is not None and config.colour_permutations:
        raise DataError(
            f"Task {task.id!r} has a demonstration with a text that is no grid, which has no colours to permute: "
            f"{odd[:60]!r}. Set DataConfig.colour_permutations to 0, or correct the grid."
        )
    # The task's own problem plays no part here; it would be transformed along with the demonstrations.
    task = replace(task, problem=task.demonstrations[0].question, answer=None)
    changed = [transform_task(task, *pair) for pair in config.sided_transformations]
    return [(one, [odd is not None or _fits(each, config.max_side) for each in one.demonstrations]) for one in changed]


def _fits(demonstration: Demonstration, max_side: int) -> bool:
    grids = [parse_grid(text) for text in (demonstration.question, demonstration.answer)]
    return all(grid is None or max(len(grid), len(grid[0])) <= max_side for grid in grids)


def _shuffled_recipes(task: Task, direct: bool, config: DataConfig, rng: random.Random) -> Iterator[_Recipe]:
    for left_out in (1, 2) if config.leave_two_out and not direct else (1,):
        recipes = list(_recipes(task, left_out, direct, config, rng))
        rng.shuffle(recipes)
        yield from recipes


def _recipes(task: Task, left_out: int, direct: bool, config: DataConfig, rng: random.Random) -> Iterator[_Recipe]:
    """All recipes with `left_out` of the demonstrations missing from the context."""
    size, colours_of = len(task.demonstrations), [_colours(pair) for pair in task.demonstrations]
    for missing in itertools.permutations(range(size), left_out):
        query, *others = missing
        rest = [] if direct else [number for number in range(size) if number not in missing]
        if not rest and not direct:
            continue
        recipe = f"query {query}" + "".join(f", without {other}" for other in others) + (", direct" if direct else "")
        used = set[int]().union(*(colours_of[number] for number in (query, *rest)))
        for variant, (transformation, side) in enumerate(config.sided_transformations):
            name = transformation.name if side == "both" else f"{transformation.name} ({side})"
            for colours in _colourings(config, used, rng):
                change = name if colours is None else f"{name}, {colours.name}"
                shown = rng.sample(rest, len(rest)) if colours and config.reorder_recoloured else rest
                for order in demonstration_orders(len(rest), config.permutations, rng):
                    context = tuple(shown[place] for place in order)
                    yield _Recipe(query, context, variant, colours, f"{recipe}, {change}, order {list(context)}")


def _colourings(config: DataConfig, used: set[int], rng: random.Random) -> Iterator[PermuteColours | None]:
    """None for the colours as they are, then those of the recoloured copies of an example that has colours `used`."""
    yield None
    for _ in range(config.colour_permutations):
        if config.recolour_to_unused:
            yield PermuteColours.to_unused(used, rng, config.keep_background)
        else:
            yield PermuteColours.random(rng, config.keep_background)


def _colours(pair: Demonstration) -> set[int]:
    """The colours of a demonstration's grids; none of texts. Transformations, recolouring apart, keep them."""
    grids = [parse_grid(text) or () for text in (pair.question, pair.answer)]
    return {cell for grid in grids for row in grid for cell in row}
