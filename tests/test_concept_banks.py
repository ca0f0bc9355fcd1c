"""Banks: unit rows, balanced choice, and the refusals."""

from collections import Counter

import pytest
import torch
from conftest import clusters

from iis.runtime import UserError
from IP_training.concept_banks import balanced_choice, prototype_bank, unit_rows


def test_unit_rows_by_hand_and_zero_rows_stay_zero():
    rows = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_balanced_choice_is_even_without_replacement_and_moves_with_the_seed():
    labels = [0] * 50 + [1] * 50 + [2] * 2
    chosen = balanced_choice(labels, 22, 0)
    assert len(set(chosen)) == 22
    # Class 2 runs dry after two rounds; the other two share the rest evenly.
    assert Counter(labels[row] for row in chosen) == {0: 10, 1: 10, 2: 2}
    assert balanced_choice(labels, 22, 0) == chosen
    assert balanced_choice(labels, 22, 1) != chosen


def test_release_takes_the_first_rows_and_paper_spreads_over_classes():
    elements = clusters(80, "elements")
    order = elements.labels_N.argsort(stable=True)
    elements.features_ND, elements.labels_N = elements.features_ND[order], elements.labels_N[order]
    elements.image_paths = [elements.image_paths[row] for row in order]
    first = prototype_bank(elements, 12, seed=0, choice="first")
    assert {paths[0].split("/")[0] for paths in first.evidence} == {"class 0"}
    torch.testing.assert_close(first.vectors_MD, unit_rows(elements.features_ND[:12]))
    paper = prototype_bank(elements, 12, seed=0)
    assert Counter(paths[0].split("/")[0] for paths in paper.evidence) == {f"class {label}": 3 for label in range(4)}


@pytest.mark.parametrize("count", [81, 0])
def test_more_concepts_than_elements_or_none_is_refused(count):
    with pytest.raises(UserError, match="num_concepts"):
        prototype_bank(clusters(80, "elements"), count, seed=0)
