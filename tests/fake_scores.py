"""Cells of scores for the tests of what the report claims."""

import numpy as np

from fewscan.harness.report.cells import Cell


def cell(
    scores_SP: np.ndarray | list[list[float]],
    *,
    name: str = "scratch",
    seeds: tuple[int, ...] | None = None,
    subsets: tuple[tuple[str, ...], ...] | None = None,
) -> Cell:
    """Seeds 0, 1, …, patients P000, P001, …, and one labelled scan for each seed."""
    scores_SP = np.asarray(scores_SP, dtype=float)
    seeds = seeds or tuple(range(len(scores_SP)))
    patients = tuple(f"P{number:03d}" for number in range(scores_SP.shape[1]))
    return Cell(name, seeds, patients, subsets or tuple((f"T{s}",) for s in seeds), scores_SP)
