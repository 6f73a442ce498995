"""Statistics against hand-made references, tables through their formats, figures that hold what they should."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from hf_mass.errors import ConfigError, DataError
from hf_mass.evaluation import plots, statistics
from hf_mass.evaluation.plots import accuracy_plot
from hf_mass.evaluation.statistics import Interval, mean_interval, paired_difference, wilson_interval
from hf_mass.evaluation.tables import ResultRow, ResultTable

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


# -- tables ------------------------------------------------------------------------------------------------------------


def make_table() -> ResultTable:
    base = {"families": Interval(0.4, 0.36, 0.44, 400, 3), "conventions": Interval(0.25, 0.21, 0.29, 450, 3)}
    ours = {"families": Interval(0.7, 0.66, 0.74, 400, 3)}
    return ResultTable(
        title="two | methods",
        splits=("families", "conventions"),
        rows=(
            ResultRow("base", base, sampled_tokens=0),
            ResultRow("MASS | scored", ours, sampled_tokens=184.6, latency_s=0.01234, extra={"auc": 0.75}),
        ),
        meta={"command": "python -m research.conventions.results --seeds 3", "versions": {"torch": "2.13.0"}},
    )


def test_markdown() -> None:
    assert make_table().to_markdown().splitlines() == [
        "| method | families | conventions | n | seeds | tokens / problem | s / problem |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| base | 0.400 [0.360, 0.440] | 0.250 [0.210, 0.290] | 400 / 450 | 3 | 0 | – |",
        "| MASS \\| scored | 0.700 [0.660, 0.740] | – | 400 | 3 | 185 | 0.0123 |",
    ]


def test_text_is_aligned() -> None:
    title, *lines = make_table().to_text().splitlines()
    assert title == "two | methods"
    assert len({len(line) for line in lines}) == 1
    assert lines[2].index("0.400") == lines[3].index("0.700")


def test_json_round_trip(tmp_path: Path) -> None:
    table = make_table()
    assert ResultTable.from_json(table.to_json()) == table
    path = table.save(tmp_path / "new" / "table.json")
    assert ResultTable.load(path) == table
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]
    assert "command" not in table.to_markdown() + table.to_text()


@given(
    names=st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True),
    mean=st.floats(0, 1),
    cost=st.none() | st.floats(0, 1e9),
)
def test_json_round_trip_of_any_table(names: list[str], mean: float, cost: float | None) -> None:
    rows = tuple(ResultRow(name, {"split": Interval(mean, mean, mean, 5, 1)}, cost, cost) for name in names)
    table = ResultTable("t", ("split",), rows, {"date": "2025-01-01"})
    assert ResultTable.from_json(table.to_json()) == table


def test_saving_over_a_table_keeps_the_old_one_if_it_fails(tmp_path: Path) -> None:
    path = make_table().save(tmp_path / "table.json")
    before = path.read_text()
    broken = ResultTable("t", ("split",), (), {"device": object()})
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_text() == before


@pytest.mark.parametrize("field", ["format", "title", "splits", "rows", "meta"])
def test_json_without_a_field_is_refused(field: str) -> None:
    record = json.loads(make_table().to_json())
    del record[field]
    with pytest.raises(DataError, match=field):
        ResultTable.from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"format": 99}'])
def test_text_that_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="ResultTable"):
        ResultTable.from_json(text)


def test_broken_interval_is_refused() -> None:
    record = json.loads(make_table().to_json())
    record["rows"][0]["accuracy"]["families"]["low"] = "n/a"
    with pytest.raises(DataError, match="Interval"):
        ResultTable.from_json(json.dumps(record))


def test_table_refuses_what_does_not_fit() -> None:
    row = ResultRow("base", {"x": Interval(0.5, 0.4, 0.6, 10, 1)})
    with pytest.raises(DataError, match="more than once"):
        ResultTable("t", ("x",), (row, row))
    with pytest.raises(DataError, match="more than once"):
        ResultTable("t", ("x", "x"), (row,))
    with pytest.raises(DataError, match=r"results for \['x'\]"):
        ResultTable("t", ("y",), (row,))
    with pytest.raises(DataError, match="at least one split"):
        ResultTable("t", (), ())
    with pytest.raises(DataError, match="no row 'MASS'"):
        ResultTable("t", ("x",), (row,))["MASS"]
    with pytest.raises(DataError, match="no result for split 'conventions'"):
        make_table().interval("MASS | scored", "conventions")


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, as they are handed to the writer."""
    drawn: list[Figure] = []
    save = plots.save_figure

    def keep(figure: Figure, target: Path) -> Path:
        drawn.append(figure)
        return save(figure, target)

    monkeypatch.setattr(plots, "save_figure", keep)
    return drawn


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_accuracy_plot_writes_the_format_of_its_name(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = accuracy_plot(make_table(), tmp_path / "figures" / f"accuracy{suffix}", highlight=["MASS | scored"])
    assert path.read_bytes().startswith(magic)


def test_accuracy_plot_shows_the_numbers(tmp_path: Path, figures: list[Figure]) -> None:
    accuracy_plot(make_table(), tmp_path / "a.png", highlight=["MASS | scored"])
    left, right = figures[0].axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["base", "MASS | scored"]
    assert left.get_ylim()[0] > left.get_ylim()[1], "the first row belongs on top"
    assert [bar.get_width() for bar in left.patches] == [0.4, 0.7]
    assert [text.get_text() for text in left.texts] == ["0.400", "0.700"]
    assert [text.get_text() for text in right.texts] == ["0.250", "not run"]
    whiskers = [
        bars.lines[2][0].get_segments()[0][:, 0] for bars in left.containers if isinstance(bars, ErrorbarContainer)
    ]
    np.testing.assert_allclose(whiskers, [[0.36, 0.44], [0.66, 0.74]])
    assert left.get_xlim() == right.get_xlim(), "panels must be comparable"


def test_no_text_is_cut(tmp_path: Path, figures: list[Figure]) -> None:
    long = "a method with a name that is far longer than anybody would give it, and then some more"
    rows = [ResultRow(long + str(i), {"x": Interval(1.0, 0.9, 1.0, 5, 1)}) for i in range(3)]
    accuracy_plot(ResultTable("title", ("x",), tuple(rows)), tmp_path / "a.png")
    figure = figures[0]
    axis = figure.axes[0]
    drawn = figure.get_tightbbox()
    for label in [*axis.get_yticklabels(), *axis.texts]:
        box = label.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
        assert drawn.x0 <= box.x0 + 1e-6
        assert box.x1 <= drawn.x1 + 1e-6


def test_figures_refuse_what_they_cannot_draw(tmp_path: Path) -> None:
    table = make_table()
    with pytest.raises(ConfigError, match=r"\.jpeg"):
        accuracy_plot(table, tmp_path / "a.jpeg")
    with pytest.raises(DataError, match=r"\['GRPO'\]"):
        accuracy_plot(table, tmp_path / "a.png", highlight=["GRPO"])
    with pytest.raises(DataError, match="no rows"):
        accuracy_plot(ResultTable("t", ("x",), ()), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
