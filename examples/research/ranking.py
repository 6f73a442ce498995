"""How well scores rank what is right above what is wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hf_mass.errors import DataError


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a positive outscores a negative, ties counting one half (area under the ROC curve).

    With ranks from 1 upwards, ties sharing their mean rank, a positive's rank counts the scores at or below it; the
    positives' ranks among themselves add up to P (P + 1) / 2, and what remains counts pairs (Mann-Whitney):
    AUC = (Σ ranks of positives − P (P + 1) / 2) / (P N).

    Args:
        scores: One number per item.
        labels: One truth value per item (booleans, or 0 and 1).

    Returns:
        A number in [0, 1]; 0.5 for scores that say nothing.

    Raises:
        DataError: If the lengths differ, a score is NaN, a label is neither 0 nor 1, or one class is absent.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    truth = np.asarray(labels).ravel()
    if values.shape != truth.shape:
        raise DataError(f"auc: {values.size} scores and {truth.size} labels. Give one label per score.")
    if np.isnan(values).any():
        raise DataError("auc: scores hold NaN. Drop those items first.")
    if not np.isin(truth, (0, 1)).all():
        raise DataError(f"auc: labels are {np.unique(truth)[:5].tolist()}. Use 0 and 1, or booleans.")
    positive = truth.astype(bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        raise DataError(
            f"auc: {n_positive} positives and {n_negative} negatives. Both classes must occur for an AUC to be defined."
        )
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_rank = last_rank - (counts - 1) / 2
    rank_sum = float(mean_rank[group][positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
