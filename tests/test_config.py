import argparse

import pytest

from iis.cli import count, part, positive


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "abc", ""])
def test_what_is_no_whole_number_above_0_is_told_in_words(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number"):
        positive(text)


def test_a_count_may_be_0():
    assert (count("0"), count("12"), positive("1")) == (0, 12, 1)
    with pytest.raises(argparse.ArgumentTypeError, match="-1 is not a whole number"):
        count("-1")


@pytest.mark.parametrize("text", ["0", "1.01", "-1", "nan", "inf", "half", ""])
def test_a_part_is_above_0_and_at_most_1(text):
    assert (part("1"), part("0.25")) == (1.0, 0.25)
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number above 0 and at most 1"):
        part(text)
