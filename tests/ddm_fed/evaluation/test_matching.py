"""Real images and samples with classes in the same proportion."""

import numpy as np
import pytest

from ddm_fed.evaluation import matched_by_class


def labels(*counts):
    return np.random.default_rng(9).permutation(np.repeat(np.arange(len(counts)), counts))


def counts_of(found, real, drawn, size):
    return [
        np.bincount(each[rows], minlength=size).tolist()
        for each, rows in ((real, found.real), (drawn, found.drawn))
    ]


@pytest.mark.parametrize(
    ("there", "wanted", "expected"),
    [
        # all samples are kept, and real images in their proportion
        ((400, 200, 100), (10, 10, 10), ((100, 100, 100), (10, 10, 10))),
        ((400, 200, 100), (40, 20, 10), ((400, 200, 100), (40, 20, 10))),
        ((50, 50, 50), (7, 0, 0), ((50, 0, 0), (7, 0, 0))),
        # too few of one class: as many of each as the poorer side has
        ((400, 200, 5), (100, 100, 100), ((100, 100, 5), (100, 100, 5))),
        # a class of one side only is left out of both
        ((0, 30, 30), (10, 10, 10), ((0, 30, 30), (0, 10, 10))),
        ((5, 0, 0), (0, 0, 5), ((0, 0, 0), (0, 0, 0))),
    ],
    ids=str,
)
def test_matched_classes_are_in_proportion(there, wanted, expected):
    real, drawn = labels(*there), labels(*wanted)
    found = matched_by_class(real, drawn, generator=np.random.default_rng(0))
    assert counts_of(found, real, drawn, 3) == [list(row) for row in expected]
    for rows in (found.real, found.drawn):
        assert (np.diff(rows) > 0).all()
    shares = [np.bincount(each, minlength=3) / len(each) for each in (real, drawn)]
    assert found.apart == pytest.approx(0.5 * np.abs(shares[0] - shares[1]).sum())
    assert found.unmatched == tuple(c for c in range(3) if wanted[c] and not there[c])


def test_at_most_as_many_as_are_drawn_are_taken_where_that_is_asked():
    real, drawn = labels(400, 200, 100), labels(10, 20, 0)
    found = matched_by_class(real, drawn, generator=np.random.default_rng(0), most=1)
    assert counts_of(found, real, drawn, 3) == [[10, 20, 0], [10, 20, 0]]


def test_empty_sets_are_refused():
    with pytest.raises(ValueError, match="real and drawn"):
        matched_by_class(labels(3), labels(), generator=np.random.default_rng(0))
