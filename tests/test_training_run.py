import pytest

from iis.runtime import UserError
from IP_training.training_run import selection_of


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_holdout_that_leaves_one_side_empty_is_refused(fraction):
    with pytest.raises(UserError, match="choose a fraction"):
        selection_of(fraction, 60, 0)


def test_a_holdout_splits_train_and_none_is_none():
    train, held = selection_of(0.25, 60, 0)
    assert len(held) == 15 and sorted([*train.tolist(), *held.tolist()]) == list(range(60))
    assert selection_of(0.0, 60, 0) is None
