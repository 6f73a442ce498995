"""Accuracies with intervals, and paired differences, on plain arrays.

Results are arrays of shape [seeds, tasks] with one number in [0, 1] per cell: whether (or how far) the run with that
seed solved that task. Every seed is evaluated on the same tasks.

**The interval.** Two things were drawn at random, the seeds of the runs and the tasks of the split, and a claim about
the method has to hold for other draws of both. With row (seed) effects a_s, column (task) effects b_t and what is left
over e_st, a cell is r_st = μ + a_s + b_t + e_st, and the mean over S seeds and T tasks has variance

    σ_a² / S + σ_b² / T + σ_e² / (S T).

The bootstrap resamples both margins independently: a replicate is Σ_st w_s v_t r_st with w and v the frequencies of
rows and columns drawn with replacement. Drawing S rows out of S would understate the first term by the factor
(S − 1) / S, a third where there are three seeds, so S − 1 rows and T − 1 columns are drawn: then Var(w_s) = 1 / S² and
both main terms are reproduced without bias. Since E[w_s²] = 2 / S² and E[v_t²] = 2 / T², the last term is counted
(4 − 1) = 3 times, so the interval errs on the wide side. It is the percentile interval of the replicates.

With one seed nothing is known about other seeds: only tasks are resampled, and the interval speaks of that run alone.
With two or three seeds the spread between them is known only roughly; `Interval.seeds` is there to be reported.

**Clusters.** Test inputs of one puzzle, or queries of one benchmark task, share their demonstrations, and with them
what makes them hard: they are no independent draws. Given their `clusters`, whole clusters are resampled in the place
of tasks, C − 1 of C, and a replicate is Σ_sc w_s v_c R_sc / Σ_c v_c n_c with the sums R and sizes n of the clusters.
With a single cluster nothing is known about others: tasks are resampled, and the interval speaks of that one alone.

**What is not known.** A task whose verifier raised is neither solved nor failed: its result is None, and it is left
out, with all of its seeds. `Interval.n` counts the tasks that are left.

What is left out on purpose: corrections for many comparisons, and p-values. A difference between two methods on the
same tasks belongs in `paired_difference`, which is much sharper than comparing two intervals.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hf_mass.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]
Results = ArrayLike | Sequence[float | None] | Sequence[Sequence[float | None]]

_CHUNK_CELLS = 4_000_000  # replicates are made in blocks of at most this many weights, 32 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its confidence interval.

    Args:
        mean: Mean over seeds and tasks.
        low: Lower end.
        high: Upper end.
        n: Number of tasks whose results are known.
        seeds: Number of seeds; the interval covers other seeds only where it is at least 2.
    """

    mean: float
    low: float
    high: float
    n: int
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Interval:
        """The inverse of `dataclasses.asdict`.

        Raises:
            DataError: If a field is missing or is not a number.
        """
        try:
            mean, low, high = (float(values[name]) for name in ("mean", "low", "high"))
            return cls(mean, low, high, int(values["n"]), int(values["seeds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"Interval: {values!r} is not an interval ({error!r}). Give the numbers mean, low, high, n and seeds."
            ) from error


def mean_interval(
    results: Results,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean accuracy with an interval over tasks and, where there are several, seeds.

    Where every result is 0, every result is 1, every cluster fares alike, or there is one task only, resampling always
    gives the same number back and its interval would have no width; the Wilson interval for that many tasks (or
    clusters) is given instead.

    Args:
        results: Shape [seeds, tasks], or [tasks] for a single seed; values in [0, 1], or None where it is not known.
        clusters: For each task what it belongs to, such as its puzzle; None for tasks drawn by themselves.
        confidence: Coverage aimed at, between 0 and 1.
        resamples: Number of bootstrap replicates.
        seed: Seed of the resampling.

    Returns:
        The interval.

    Raises:
        DataError: If the results are empty, none is known, one is not finite or outside [0, 1], or they have another
            number of axes, or there are not as many clusters.
        ConfigError: If `confidence` or `resamples` is out of range.
    """
    array, clusters = _known(_as_results(results, "results"), clusters)
    seeds, tasks = array.shape
    sums, sizes = _clustered(array, clusters)
    mean = float(array.mean())
    low, high = _bootstrap_ends(sums, sizes, confidence, resamples, seed)
    if _without_width(low, high):
        low, high = wilson_interval(mean * len(sizes), len(sizes), confidence=confidence)
    return Interval(mean, low, high, tasks, seeds)


def paired_difference(
    a: Results,
    b: Results,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of a − b, cell by cell, with the same bootstrap as `mean_interval`.

    Both methods are resampled on the same tasks and seeds, so what makes a task hard for both cancels out. A task for
    which either is not known is left out of both. Where the difference is the same everywhere, resampling knows nothing
    of tasks where it is not: it may then be anything on as large a share of tasks as the Wilson interval for none in
    that many leaves open.

    Args:
        a: Results of one method as in `mean_interval`, shape [seeds, tasks] or [tasks].
        b: Results of the other on the same tasks in the same order. One of the two may have a single seed, which is
            then held against every seed of the other (a baseline in which nothing is random).
        clusters: As in `mean_interval`.
        confidence: As in `mean_interval`.
        resamples: As in `mean_interval`.
        seed: As in `mean_interval`.

    Returns:
        The interval of the difference; it excludes 0 where the methods differ at that confidence.

    Raises:
        DataError: If the two do not fit together, there are fewer than two tasks, or either is not valid results.
        ConfigError: If `confidence` or `resamples` is out of range.
    """
    left, right = _as_results(a, "a"), _as_results(b, "b")
    if left.shape[1] != right.shape[1]:
        raise DataError(
            f"paired_difference: a has {left.shape[1]} tasks and b has {right.shape[1]}. "
            "Evaluate both methods on the same tasks in the same order."
        )
    if left.shape[0] != right.shape[0] and 1 not in (left.shape[0], right.shape[0]):
        raise DataError(
            f"paired_difference: a has {left.shape[0]} seeds and b has {right.shape[0]}. "
            "Give both the same seeds, or one of them a single seed."
        )
    difference, clusters = _known(left - right, clusters)
    if difference.shape[1] < 2:
        raise DataError("paired_difference: there is 1 task; an interval needs at least 2.")
    sums, sizes = _clustered(difference, clusters)
    mean = float(difference.mean())
    low, high = _bootstrap_ends(sums, sizes, confidence, resamples, seed)
    if _without_width(low, high):
        _, other = wilson_interval(0, len(sizes), confidence=confidence)
        low, high = max(-1.0, (1 - other) * mean - other), min(1.0, (1 - other) * mean + other)
    return Interval(mean, low, high, difference.shape[1], difference.shape[0])


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval for a proportion (Wilson 1927): the p with |p̂ − p| ≤ z √(p (1 − p) / n), solved for p.

    Unlike p̂ ± z √(p̂ (1 − p̂) / n) it keeps its width at 0 and at 1 and never leaves [0, 1]. Partial credit may make
    `successes` a fraction.
    """
    _check_confidence(confidence)
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    p = successes / n
    centre = p + z2 / (2 * n)
    half = float(np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))))
    scale = 1 + z2 / n
    # At p = 0 and p = 1 the outer end is exactly 0 or 1; rounding must not move it.
    low = 0.0 if successes == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if successes == n else min(1.0, (centre + half) / scale)
    return low, high


def _without_width(low: float, high: float) -> bool:
    """Whether every replicate is the same, up to rounding."""
    return high - low < 1e-9


def _known(array: FloatArray, clusters: Sequence[Hashable] | None) -> tuple[FloatArray, Sequence[Hashable] | None]:
    """The tasks whose results are all known, and their clusters."""
    tasks = array.shape[1]
    if clusters is not None and len(clusters) != tasks:
        raise DataError(f"There are {len(clusters)} clusters for {tasks} tasks. Give one for each task.")
    known = np.flatnonzero(np.isfinite(array).all(axis=0))
    if not len(known):
        raise DataError(f"results: of none of {tasks} tasks is it known whether it was solved. Mend the verifier.")
    return array[:, known], clusters and [clusters[n] for n in known.tolist()]


def _clustered(array: FloatArray, clusters: Sequence[Hashable] | None) -> tuple[FloatArray, FloatArray]:
    """(sums [seeds, C], sizes [C]) of C clusters of tasks; each task by itself where there are none, or one."""
    places: dict[Hashable, int] = {}
    numbers = np.array([places.setdefault(each, len(places)) for each in clusters or ()], dtype=np.int64)
    if len(places) < 2:
        return array, np.ones(array.shape[1])
    sums = np.zeros((array.shape[0], len(places)))
    np.add.at(sums.T, numbers, array.T)
    return sums, np.bincount(numbers).astype(np.float64)


def _bootstrap_ends(
    sums: FloatArray, sizes: FloatArray, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of replicates of the mean; sums [seeds, C] and sizes [C] of clusters, see the module's
    docstring."""
    _check_confidence(confidence)
    if resamples < 100:
        raise ConfigError(f"resamples is {resamples}. Use at least 100; 2000 is the default.")
    rng = np.random.default_rng(seed)
    seeds, count_clusters = sums.shape
    replicates = np.empty(resamples)
    block = max(1, _CHUNK_CELLS // count_clusters)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        rows = _frequencies(rng, count, seeds) @ sums  # [count, C]
        drawn = _frequencies(rng, count, count_clusters)
        replicates[start : start + count] = (rows * drawn).sum(axis=1) / (drawn @ sizes)
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def _frequencies(rng: np.random.Generator, count: int, size: int) -> FloatArray:
    """Relative frequencies [count, size] of `size` units when size − 1 are drawn; a single unit is always drawn."""
    draws = max(1, size - 1)
    return rng.multinomial(draws, np.full(size, 1 / size), size=count) / draws


def _as_results(results: Results, name: str) -> FloatArray:
    values = np.asarray(results, dtype=object)
    unknown = np.array([value is None for value in values.flat], dtype=bool).reshape(values.shape)
    array = values.astype(np.float64)  # None becomes NaN
    if array.ndim == 1:
        unknown = unknown[None, :]
        array = array[None, :]
    if array.ndim != 2 or array.size == 0:
        raise DataError(f"{name} has shape {array.shape}. Give a non-empty array [seeds, tasks] or [tasks].")
    # A NaN that was given fails the comparison too.
    if not (((array >= 0) & (array <= 1)) | unknown).all():
        raise DataError(
            f"{name} holds values outside [0, 1] or NaN. Give 0 or 1 (or partial credit) for every task, or None where "
            "it is not known."
        )
    return array


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}. Use a number between 0 and 1, such as 0.95.")
