"""Arrays of a program on their way into rows: nothing is changed by the dtype of the run."""

import numpy as np
import pytest

from worldloom_client.errors import WireError
from worldloom_client.rows import checked, checked_array
from worldloom_client.wire import Spec


@pytest.mark.parametrize(
    ("value", "dtype", "says"),
    [
        (np.array([1e300, 0.0]), "float32", "obs: got 1e+300, expected numbers of float32"),
        (np.array([-1e39, 0.0]), "float32", "obs: got -1e+39, expected numbers of float32"),
        (np.array([2**40, 0]), "int32", "obs: got 1099511627776, expected numbers of int32"),
        (np.array([300, 0], np.uint16), "uint8", "expected numbers of uint8, which are from 0 to"),
        (np.array([np.inf, 0.0]), "float32", "obs: holds numbers that are not finite"),
        (np.array([np.nan, 0.0], np.float32), "float32", "obs: holds numbers that are not finite"),
        (np.array([0.5, 0.0]), "int32", "obs: got float64, expected int32"),
    ],
)
def test_numbers_that_the_dtype_cannot_hold_are_refused_not_wrapped(value, dtype, says) -> None:
    with pytest.raises(WireError) as caught:
        checked(value, Spec("obs", (2,), dtype), "obs")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (np.array([1e38, -1e38]), "float32"),
        (np.array([3e38, 3e38], np.float32), "float32"),  # their squares are not finite
        (np.array([2**31 - 1, -(2**31)]), "int32"),
        (np.array([True, False]), "float32"),
        (np.array([255, 0], np.uint16), "uint8"),
    ],
)
def test_numbers_that_the_dtype_holds_are_taken(value, dtype) -> None:
    found = checked_array(value, Spec("obs", (2,), dtype), (), "obs")
    assert found.dtype == dtype
    assert found.tolist() == value.astype(np.float64).astype(dtype).tolist()
