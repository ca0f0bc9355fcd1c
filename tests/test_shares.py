"""In which shares heads train: sizes by hand, and that none is lost."""

import pytest

from iis.grid import LEARNING_RATES, RATIOS, Cell
from IP_training.shares import shares_each, split

CELLS = [Cell(0, ratio, rate) for ratio in RATIOS for rate in LEARNING_RATES]


@pytest.mark.parametrize("parts, sizes", [(1, [24]), (3, [8, 8, 8]), (4, [6, 6, 6, 6]), (5, [5, 5, 4, 5, 5]),
                                          (24, [1] * 24), (30, [1] * 24)])
def test_split_keeps_rates_together_and_every_cell(parts, sizes):
    found = split(CELLS, parts)
    assert [len(part) for part in found] == sizes
    assert sorted(cell for part in found for cell in part) == sorted(CELLS)
    if parts == 3:
        assert [{cell.learning_rate for cell in part} for part in found] == [{0.001}, {0.01}, {0.1}]


@pytest.mark.parametrize("seeds, jobs, most, expected", [
    (3, 1, 0, 1),   # one process: all heads of a seed in one pass
    (2, 2, 0, 1), (4, 2, 0, 1), (1, 2, 0, 2),
    (3, 2, 0, 2),   # 3 shares would leave a process idle for a quarter of the time
    (5, 2, 0, 2),   # 5 shares: 3 rounds of 2, 83 % of them at work
    (3, 16, 0, 5),  # 15 of 16 at work
    (1, 64, 0, 24), (1, 1, 5, 5), (1, 2, 23, 2)])
def test_the_fewest_shares_that_keep_processes_at_work(seeds, jobs, most, expected):
    assert shares_each(seeds, len(CELLS), jobs, most) == expected
