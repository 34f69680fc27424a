"""Arms are paired seed by seed and patient by patient, or it is said why they cannot be."""

from dataclasses import replace

import numpy as np
import pytest
from fake_scores import cell

from fewscan.harness.report.cells import Cell, Pretraining, difference, units_of
from fewscan.storage.errors import StudyError

NAN = float("nan")


def test_a_difference_is_taken_within_seed_and_patient() -> None:
    first = cell([[0.5, 0.6, NAN], [0.7, 0.9, 0.1]])
    second = cell([[0.4, NAN, 0.3], [0.2, 0.3, 0.3]])
    found = difference(first, second)
    np.testing.assert_allclose(found.scores_SP, [[0.1, NAN, NAN], [0.5, 0.6, -0.2]])


def test_the_order_of_seeds_and_patients_is_of_no_account() -> None:
    first, second = cell([[0.5, 0.6], [0.7, 0.9]]), cell([[0.4, 0.1], [0.2, 0.3]])
    turned = second.select((1, 0), ("P001", "P000"))
    assert turned.scores_SP.tolist() == [[0.3, 0.2], [0.1, 0.4]]
    assert turned.subsets == (("T1",), ("T0",))
    expected, found = difference(first, second), difference(first, turned)
    assert (found.seeds, found.patients) == (expected.seeds, expected.patients)
    np.testing.assert_array_equal(found.scores_SP, expected.scores_SP)


def test_a_seed_that_one_arm_has_not_finished_is_left_out() -> None:
    first = cell([[0.5, 0.6], [0.7, 0.9], [0.2, 0.2]])
    second = cell([[0.4, 0.1], [0.2, 0.3]], seeds=(2, 0))
    found = difference(first, second)
    assert found.seeds == (0, 2)
    np.testing.assert_allclose(found.scores_SP, [[0.3, 0.3], [-0.2, 0.1]])


def test_arms_that_cannot_be_paired_say_why() -> None:
    first = cell([[0.5, 0.6]], name="pre-trained, 8 scans")
    cases = {
        "no seed in common: 0 against 7, 9": cell([[0.1, 0.2], [0.1, 0.2]], seeds=(7, 9)),
        "different test patients: 1 in one alone (P002)": cell([[0.1, 0.2, 0.3]]),
        "different labelled scans for seed 0: 2 received by one alone (T0, T5)": cell(
            [[0.1, 0.2]], subsets=(("T5",),)
        ),
    }
    for message, second in cases.items():
        with pytest.raises(StudyError) as error:
            difference(first, second)
        assert error.value.found == message
        assert error.value.where == "pre-trained, 8 scans / scratch"
        assert error.value.expected
        assert error.value.remedy


def test_the_order_of_labelled_scans_is_of_no_account() -> None:
    first = cell([[0.5]], subsets=(("A", "B"),))
    second = cell([[0.25]], subsets=(("B", "A"),))
    assert difference(first, second).scores_SP.tolist() == [[0.25]]


def test_defined_drops_what_has_no_score_at_all() -> None:
    scores = cell([[NAN, 0.5, NAN], [NAN, NAN, NAN], [NAN, 0.25, 0.75]]).defined()
    assert (scores.seeds, scores.patients) == ((0, 2), ("P001", "P002"))
    np.testing.assert_array_equal(scores.scores_SP, [[0.5, NAN], [0.25, 0.75]])


def test_scores_fit_their_seeds_and_patients() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 2\) for 1 seeds and 1 patients"):
        Cell("scratch", (0,), ("A",), ((),), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="a seed or a patient comes twice"):
        Cell("scratch", (0,), ("A", "A"), ((),), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="1 pre-trainings for 2 seeds"):
        replace(cell([[0.5], [0.5]]), pretrainings=(frozenset(),))


def started(*seeds: int | None, name: str = "denoise") -> Cell:
    """A cell of as many seeds, each from this pre-training; None: from scratch."""
    found: list[frozenset[Pretraining]] = [
        frozenset() if seed is None else frozenset({(name, seed)}) for seed in seeds
    ]
    return replace(cell(np.zeros((len(seeds), 2))), pretrainings=tuple(found))


@pytest.mark.parametrize(
    ("cells", "unit_of", "one"),
    [
        ([cell(np.zeros((3, 2)))], (0, 1, 2), False),
        ([started(0, 1, 2)], (0, 1, 2), False),
        ([started(0, 1, 0, 1)], (0, 1, 0, 1), False),
        ([started(7, 7, 7)], (0, 1, 2), True),
        ([started(0, 1, 1), started(None, None, None)], (0, 1, 1), False),
        ([started(7, 7, 7, 7), started(0, 0, 1, 1, name="other")], (0, 0, 1, 1), True),
        ([started(0, 0, 1, 2), started(0, 1, 1, 2, name="other")], (0, 0, 0, 1), False),
        ([started(0, 1, 2), started(0, 0, 1, name="other")], (0, 0, 1), False),
    ],
)
def test_seeds_that_share_a_pretraining_are_one_unit(
    cells: list[Cell], unit_of: tuple[int, ...], one: bool
) -> None:
    """Unless all do; of several cells that are drawn together the coarser grouping."""
    for order in (cells, cells[::-1]):
        found = units_of(order)
        assert tuple(found.of_seed[seed] for seed in range(len(unit_of))) == unit_of
        assert len(found) == len({*unit_of})
        assert found.one_pretraining is one


def test_imported_weights_are_one_pretraining() -> None:
    imported = (frozenset[Pretraining]({("published", None)}),) * 3
    assert units_of([replace(cell(np.zeros((3, 2))), pretrainings=imported)]).one_pretraining


def test_a_difference_starts_from_what_both_arms_do() -> None:
    found = difference(started(0, 1), started(5, 5, name="other"))
    assert found.pretrainings == (
        frozenset({("denoise", 0), ("other", 5)}),
        frozenset({("denoise", 1), ("other", 5)}),
    )
    assert difference(started(0, 1), cell(np.zeros((2, 2)))).pretrainings == (
        frozenset({("denoise", 0)}),
        frozenset({("denoise", 1)}),
    )
    assert started(0, 1).select((1,), ("P000",)).pretrainings == (frozenset({("denoise", 1)}),)
