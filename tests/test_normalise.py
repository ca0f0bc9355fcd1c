"""Normalisers: LayerNorm, standardisation by the training set, and both side by side."""

import numpy as np
import pytest
import torch
from conftest import clusters

from IP_training.concept_banks import unit_rows
from IP_training.normalise import fit_normaliser

TRAIN, VAL = clusters(300, "train"), clusters(200, "val")
BANK = unit_rows(torch.randn(7, 12, generator=torch.Generator().manual_seed(0)))


def standardised(rows=slice(None)):
    """By numpy, from scratch."""
    train, val = (split.features_ND.double().numpy() @ BANK.double().numpy().T for split in (TRAIN, VAL))
    return (val - train[rows].mean(0)) / np.std(train[rows], axis=0, ddof=1)


def test_layer_is_torchs_layer_norm():
    a = VAL.features_ND @ BANK.T
    normaliser = fit_normaliser([("layer", 7)], TRAIN.features_ND, BANK)
    torch.testing.assert_close(normaliser(a), torch.nn.LayerNorm(7)(a).detach())
    assert normaliser.learned_M.all()


@pytest.mark.parametrize("chunk", [64, 65536])
def test_standard_uses_the_training_moments(chunk):
    normaliser = fit_normaliser([("standard", 7)], TRAIN.features_ND, BANK, chunk=chunk)
    np.testing.assert_allclose(normaliser(VAL.features_ND @ BANK.T).numpy(), standardised(), atol=1e-5)
    assert not normaliser.learned_M.any()


def test_blocks_keep_to_their_columns():
    normaliser = fit_normaliser([("layer", 3), ("standard", 4)], TRAIN.features_ND, BANK)
    a = VAL.features_ND @ BANK.T
    z = normaliser(a)
    torch.testing.assert_close(z[:, :3], torch.nn.functional.layer_norm(a[:, :3], (3,)))
    np.testing.assert_allclose(z[:, 3:].numpy(), standardised()[:, 3:], atol=1e-5)
    assert normaliser.learned_M.tolist() == [True] * 3 + [False] * 4


def test_a_holdout_is_not_looked_at_and_a_constant_column_is_zero():
    rows = torch.arange(0, 300, 2)
    normaliser = fit_normaliser([("standard", 7)], TRAIN.features_ND, BANK, rows)
    np.testing.assert_allclose(normaliser(VAL.features_ND @ BANK.T).numpy(), standardised(rows.numpy()), atol=1e-5)
    empty = torch.cat([BANK[:6], torch.zeros(1, 12)])
    z = fit_normaliser([("standard", 7)], TRAIN.features_ND, empty)(VAL.features_ND @ empty.T)
    assert torch.isfinite(z).all() and not z[:, 6].any()


def test_blocks_that_do_not_fit_the_bank():
    with pytest.raises(ValueError, match="7 columns"):
        fit_normaliser([("layer", 6)], TRAIN.features_ND, BANK)
