"""Intervals against hand-made references."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mass.errors import ConfigError, DataError
from hf_mass.evaluation import statistics
from hf_mass.evaluation.statistics import Interval, mean_interval, paired_difference, wilson_interval

# -- intervals ---------------------------------------------------------------------------------------------------------


def crossed(
    rng: np.random.Generator, seeds: int, tasks: int, sigma_seed: float, sigma_task: float, sigma_rest: float
) -> np.ndarray:
    """Results .5 + a_s + b_t + e_st whose effects have these standard deviations."""
    sizes = ((seeds, 1, sigma_seed), (1, tasks, sigma_task), (seeds, tasks, sigma_rest))
    # Uniform effects: bounded, so that no result leaves [0, 1].
    return 0.5 + sum(rng.uniform(-1, 1, (a, b)) * sigma * math.sqrt(3) for a, b, sigma in sizes)


def spread(interval: Interval) -> float:
    """The standard error that a normal 95% interval of this width has."""
    return (interval.high - interval.low) / (2 * 1.96)


@pytest.mark.parametrize(
    ("seeds", "sigma_seed", "sigma_task"),
    [(1, 0.0, 0.2), (4, 0.0, 0.2), (12, 0.2, 0.0), (8, 0.1, 0.15)],
    ids=["one seed", "tasks only", "seeds only", "both"],
)
def test_interval_width_matches_the_variance_components(seeds: int, sigma_seed: float, sigma_task: float) -> None:
    rng = np.random.default_rng(1)
    tasks = 60
    expected = math.sqrt(sigma_seed**2 / seeds + sigma_task**2 / tasks)
    widths = [
        spread(mean_interval(crossed(rng, seeds, tasks, sigma_seed, sigma_task, 0.0), resamples=500)) for _ in range(40)
    ]
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("size", [2, 3, 10])
def test_frequencies_have_the_moments_of_the_derivation(size: int) -> None:
    weights = statistics._frequencies(np.random.default_rng(0), 40_000, size)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights.mean(axis=0), 1 / size, rtol=0.03)
    np.testing.assert_allclose(weights.var(axis=0), 1 / size**2, rtol=0.05)


def test_noise_of_single_cells_widens_and_never_narrows_the_interval() -> None:
    rng = np.random.default_rng(2)
    true = 0.2 / math.sqrt(4 * 60)
    widths = [spread(mean_interval(crossed(rng, 4, 60, 0.0, 0.0, 0.2), resamples=500)) for _ in range(40)]
    # Three times the variance, as the derivation says.
    assert np.sqrt(np.mean(np.square(widths))) == pytest.approx(true * math.sqrt(3), rel=0.12)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        found = mean_interval(crossed(rng, 3, 100, 0.01, 0.13, 0.13), resamples=300, seed=trial)
        hits += found.low <= 0.5 <= found.high
    assert hits / 200 >= 0.93


def test_single_seed_agrees_with_the_binomial_interval() -> None:
    results = np.zeros(400)
    results[:280] = 1
    found, (low, high) = mean_interval(results), wilson_interval(280, 400)
    assert (found.mean, found.n, found.seeds) == (0.7, 400, 1)
    assert found.low == pytest.approx(low, abs=0.005)
    assert found.high == pytest.approx(high, abs=0.005)


def test_more_confidence_is_wider_and_the_seed_decides() -> None:
    results = np.random.default_rng(0).integers(0, 2, (3, 50)).astype(float)
    wide, narrow = mean_interval(results, confidence=0.99), mean_interval(results, confidence=0.8)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high
    assert mean_interval(results, seed=5) == mean_interval(results, seed=5)
    assert mean_interval(results, seed=5) != mean_interval(results, seed=6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_wrong_or_all_right_still_has_a_width(value: float) -> None:
    found = mean_interval(np.full((3, 100), value))
    assert found.mean == value
    assert found.high - found.low == pytest.approx(0.037, abs=0.001)


@given(seeds=st.integers(1, 5), tasks=st.integers(1, 30), seed=st.integers(0, 1000))
def test_interval_holds_its_mean_and_stays_in_range(seeds: int, tasks: int, seed: int) -> None:
    results = np.random.default_rng(seed).random((seeds, tasks))
    found = mean_interval(results, resamples=200)
    assert 0 <= found.low <= found.high <= 1
    assert found.mean == pytest.approx(results.mean())
    if tasks > 4 and seeds > 2:
        assert found.low <= found.mean <= found.high


def test_blocks_of_replicates_do_not_lose_any(monkeypatch: pytest.MonkeyPatch) -> None:
    results = np.random.default_rng(0).random((3, 40))
    whole = mean_interval(results, resamples=1000)
    monkeypatch.setattr(statistics, "_CHUNK_CELLS", 40 * 7)  # 1000 is no multiple of 7
    pieces = mean_interval(results, resamples=1000)
    assert pieces.low == pytest.approx(whole.low, abs=0.01)
    assert pieces.high == pytest.approx(whole.high, abs=0.01)


def test_pairing_removes_what_both_methods_share() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random((3, 200)) * 0.8
    better = hard + 0.05
    assert mean_interval(better).low < mean_interval(hard).high
    found = paired_difference(better, hard)
    assert found.low > 0
    assert (found.mean, found.n, found.seeds) == (pytest.approx(0.05), 200, 3)
    reverse = paired_difference(hard, better)
    assert (reverse.low, reverse.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_differences_that_are_all_alike_are_not_certain() -> None:
    """Three tasks that all improved do not say that every task does."""
    found = paired_difference([1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    assert found.mean == 1.0 and found.high == 1.0
    _, unseen = wilson_interval(0, 3)
    assert found.low == pytest.approx(1 - 2 * unseen)
    same = paired_difference(np.ones((2, 30)), np.ones(30))
    assert (same.low, same.high) == (pytest.approx(-same.high), pytest.approx(wilson_interval(0, 30)[1]))
    assert paired_difference(np.ones((2, 3000)), np.ones(3000)).high < 0.002


def test_clusters_that_fare_alike_are_not_certain() -> None:
    """Three puzzles with one of two inputs right each: every resample has the mean .5."""
    found = mean_interval([1, 0] * 3, clusters=[0, 0, 1, 1, 2, 2])
    assert (found.low, found.high) == wilson_interval(1.5, 3)
    assert (found.mean, mean_interval([0.25] * 40).low) == (0.5, wilson_interval(10, 40)[0])


def test_a_baseline_without_seeds_is_held_against_each() -> None:
    rng = np.random.default_rng(0)
    method, baseline = rng.random((3, 50)), rng.random(50)
    assert paired_difference(method, baseline) == paired_difference(method, np.tile(baseline, (3, 1)))


@pytest.mark.parametrize(
    "results", [[], [[]], [[[1.0]]], [0.0, 1.5], [-0.1], [0.5, math.nan]], ids=lambda value: str(value)
)
def test_results_that_are_no_accuracies_are_refused(results: list) -> None:
    with pytest.raises(DataError, match="results"):
        mean_interval(results)


def test_tasks_of_which_it_is_not_known_are_left_out() -> None:
    rng = np.random.default_rng(0)
    results, names = rng.integers(0, 2, (2, 30)).astype(float), [n // 3 for n in range(30)]
    some: list[list[float | None]] = [list(row) for row in results]
    some[0][4], some[1][7] = None, None
    rest = [n for n in range(30) if n not in (4, 7)]
    found = mean_interval(some, clusters=names)
    assert found == mean_interval(results[:, rest], clusters=[names[n] for n in rest]) and found.n == 28
    other = rng.random((2, 30))
    assert paired_difference(other, some) == paired_difference(other[:, rest], results[:, rest])
    with pytest.raises(DataError, match="none of 2 tasks"):
        mean_interval([None, None])


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="confidence is 95"):
        mean_interval([0.0, 1.0], confidence=95)
    with pytest.raises(ConfigError, match="resamples is 10"):
        mean_interval([0.0, 1.0], resamples=10)
    with pytest.raises(DataError, match="50 tasks and b has 40"):
        paired_difference(np.zeros(50), np.zeros(40))
    with pytest.raises(DataError, match="3 seeds and b has 2"):
        paired_difference(np.zeros((3, 9)), np.zeros((2, 9)))
    with pytest.raises(DataError, match="at least 2"):
        paired_difference([1.0], [0.0])


def test_wilson_matches_published_values() -> None:
    # Newcombe (1998), table I: 81 of 263, and 0 of 20.
    assert wilson_interval(81, 263) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert wilson_interval(0, 20) == (0.0, pytest.approx(0.1611, abs=5e-5))


# -- clusters ----------------------------------------------------------------------------------------------------------


def clustered(rng: np.random.Generator, clusters: int, most: int) -> tuple[np.ndarray, list[int]]:
    """(results [1, tasks], cluster of each): tasks of a cluster mostly stand or fall together."""
    sizes = rng.integers(1, most + 1, clusters)
    levels = rng.uniform(0, 1, clusters)
    names = [c for c, size in enumerate(sizes) for _ in range(size)]
    return (rng.uniform(0, 1, len(names)) < levels[names] ** 3)[None].astype(float), names


def test_clusters_are_resampled_whole() -> None:
    """Against a bootstrap that is written out, replicate by replicate."""
    results, names = clustered(np.random.default_rng(2), 30, 4)
    rng, members = np.random.default_rng(9), [np.flatnonzero(np.array(names) == c) for c in range(30)]
    means = []
    for _ in range(4000):
        drawn = [members[c] for c in rng.integers(0, 30, 29)]
        means.append(np.concatenate([results[0, tasks] for tasks in drawn]).mean())
    found = mean_interval(results, clusters=names, resamples=4000)
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.015)
    assert found.mean == pytest.approx(results.mean()) and found.n == len(names)


def test_the_interval_covers_other_clusters_as_often_as_it_says() -> None:
    """Tasks taken as independent, it would not."""
    rng, inside, apart = np.random.default_rng(3), 0, 0
    for trial in range(200):
        results, names = clustered(rng, 25, 5)
        whole, each = (mean_interval(results, clusters=c, resamples=300, seed=trial) for c in (names, None))
        inside, apart = inside + (whole.low <= 0.25 <= whole.high), apart + (each.low <= 0.25 <= each.high)
    assert inside >= 180 > apart


@given(st.integers(2, 12), st.integers(0, 5))
def test_clusters_of_one_change_nothing(tasks: int, seed: int) -> None:
    results = np.random.default_rng(seed).uniform(0, 1, (2, tasks)).round(1)
    one, other = (mean_interval(results, clusters=c, resamples=100) for c in (None, [f"t{n}" for n in range(tasks)]))
    assert one == other


def test_with_a_single_cluster_tasks_are_resampled() -> None:
    results = np.random.default_rng(0).integers(0, 2, (1, 40)).astype(float)
    assert mean_interval(results, clusters=["all"] * 40) == mean_interval(results)


def test_differences_are_clustered_too() -> None:
    results, names = clustered(np.random.default_rng(4), 20, 5)
    better = np.minimum(1, results + np.array([n % 3 == 0 for n in names]))
    wide, narrow = paired_difference(better, results, clusters=names), paired_difference(better, results)
    assert wide.mean == narrow.mean and spread(wide) > 1.2 * spread(narrow)


def test_clusters_must_be_as_many_as_tasks() -> None:
    with pytest.raises(DataError, match="3 clusters for 4 tasks"):
        mean_interval(np.zeros(4), clusters=["a", "b", "c"])


def test_all_right_in_few_clusters_is_less_certain_than_in_many_tasks() -> None:
    low, _ = wilson_interval(3, 3)
    assert mean_interval(np.ones(30), clusters=[n // 10 for n in range(30)]).low == low
