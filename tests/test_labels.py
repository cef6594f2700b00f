from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from skmkd._labels import check_labels


@pytest.mark.parametrize("convert", [list, np.array, pd.Series, lambda y: np.array(y)[:, None]])
@pytest.mark.parametrize("labels", [[1, -1, 1], [1.0, -1.0], [1], [-1, -1], []])
@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
def test_labels_are_returned_as_they_are(labels, convert):
    assert_array_equal(check_labels(convert(labels)), labels)


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ([1, -1, 0], "got 0."),
        ([0, 1, 1, 0], "got 0."),
        ([True, False], "got False."),
        (["normal", "anomaly", "normal"], "got 'normal', 'anomaly'."),
        ([5, 4, 1, 3, 2, 5], "got 5, 4, 3."),
        ([1.0, np.nan], "got nan."),
    ],
)
def test_other_labels_are_named(labels, named):
    with pytest.raises(ValueError, match=r"y must hold \+1 for normal images and -1 for anom") as e:
        check_labels(labels)
    assert str(e.value).endswith(named)


def test_labels_must_be_one_dimensional():
    with pytest.raises(ValueError, match="1d array"):
        check_labels(np.ones((3, 2)))
