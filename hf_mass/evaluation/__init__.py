"""Statistics, tables and figures for reporting what adaptation is worth."""

from hf_mass.evaluation.plots import accuracy_plot, training_plot
from hf_mass.evaluation.statistics import Interval, auc, mean_interval, paired_difference, wilson_interval
from hf_mass.evaluation.tables import Goal, ResultRow, ResultTable

__all__ = [
    "Goal",
    "Interval",
    "ResultRow",
    "ResultTable",
    "accuracy_plot",
    "auc",
    "mean_interval",
    "paired_difference",
    "training_plot",
    "wilson_interval",
]
