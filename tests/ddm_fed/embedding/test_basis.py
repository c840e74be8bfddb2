"""The basis of cosines."""

from ddm_fed.embedding import dct_basis


def test_basis_is_of_the_caller_s_own():
    first = dct_basis((1, 4, 4), 5)
    expected = first.clone()
    first.zero_()
    assert dct_basis((1, 4, 4), 5).equal(expected)
