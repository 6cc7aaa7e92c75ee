"""Rows of results, how sure they are, and how one model is compared with another."""

from adapter_mu.evaluate.statistics.bootstrap import Interval, bootstrap, marks, mean_interval, paired_difference
from adapter_mu.evaluate.statistics.curves import (
    area_difference,
    area_error,
    area_interval,
    area_under_curve,
    relative_area,
    steps_to,
    steps_to_interval,
)
from adapter_mu.evaluate.statistics.intervals import images_for, wilson_interval
from adapter_mu.evaluate.statistics.row import Row, row_from

__all__ = [
    "Interval",
    "Row",
    "area_difference",
    "area_error",
    "area_interval",
    "area_under_curve",
    "bootstrap",
    "images_for",
    "marks",
    "mean_interval",
    "paired_difference",
    "relative_area",
    "row_from",
    "steps_to",
    "steps_to_interval",
    "wilson_interval",
]
