"""Text: cos-cubed against a plain loop, the cut-offs, the streaming top-5, and W aligned with what words mean."""

import numpy as np
import pytest
import torch

import IP_training.text_projection as module
from iis.runtime import UserError
from IP_training.text_projection import (
    Similarity,
    apply_clip_cutoff,
    apply_interpretability_cutoff,
    cos_cubed,
    learn_projection,
    mean_top5,
    text_bank,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_cos_cubed(a, b):
    result = []
    for column in range(a.shape[1]):
        x, y = ((v[:, column] - v[:, column].mean()) ** 3 for v in (a, b))
        result.append((x * y).sum() / (np.sqrt((x ** 2).sum()) * np.sqrt((y ** 2).sum())))
    return np.array(result)


def toy(count=400, width=10, seed=0):
    """Images with 5 hidden attributes: a CLIP that reads four of them (word 4 is noise to it), features mixing all."""
    attributes = (randn(count, 5, seed=seed) > 0.6).float()
    texts = torch.eye(6)[:5] + 0.1
    images = torch.cat([attributes[:, :4], randn(count, 2, seed=seed + 50).abs()], 1) + 0.05
    features = attributes @ randn(5, width, seed=90) + 0.1 * randn(count, width, seed=seed + 60)
    return attributes, features, Similarity(3 * images, 2 * texts)  # lengths must not matter


def test_cos_cubed_against_a_plain_loop():
    a, b = randn(50, 7).double(), randn(50, 7, seed=1).double()
    b[:, 0] = 3 * a[:, 0] + 2
    b[:, 1] = -a[:, 1]
    np.testing.assert_allclose(cos_cubed(a, b).numpy(), plain_cos_cubed(a.numpy(), b.numpy()), atol=1e-12)
    assert float(cos_cubed(a, b)[0]) == pytest.approx(1) and float(cos_cubed(a, b)[1]) == pytest.approx(-1)


def test_cos_cubed_by_hand():
    # Deviations (-1, 0, 1) and (-2, 1, 1): cubes (-1, 0, 1) and (-8, 1, 1); dot 9, lengths √2 and √66.
    value = cos_cubed(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [4.0], [4.0]]))
    assert float(value) == pytest.approx(9 / (2 ** 0.5 * 66 ** 0.5))


def test_a_constant_column_gives_zero_and_a_finite_gradient():
    a = torch.full((20, 2), 0.25)
    a[:, 1] = randn(20)
    a.requires_grad_()
    value = cos_cubed(a, randn(20, 2, seed=2))
    value.sum().backward()
    assert float(value[0].detach()) == pytest.approx(0, abs=1e-6) and torch.isfinite(a.grad).all()


def test_gradient_and_blocks(monkeypatch):
    assert torch.autograd.gradcheck(cos_cubed, (randn(9, 3).double().requires_grad_(), randn(9, 3, seed=1).double()))
    h, target = randn(30, 4), module.sharpened(randn(30, 5, seed=1))
    gradients = []
    for block in (512, 2):
        monkeypatch.setattr(module, "BLOCK", block)
        W = randn(5, 4, seed=2).requires_grad_()
        module._backward(W, h, target)
        gradients.append(W.grad)
    torch.testing.assert_close(*gradients)
    W = randn(5, 4, seed=2).requires_grad_()
    (-cos_cubed(h @ W.T, randn(30, 5, seed=1)).mean()).backward()
    torch.testing.assert_close(W.grad, gradients[0])


@pytest.mark.parametrize("count", [3, 40])
def test_mean_top5_in_chunks_equals_the_whole(count):
    similarity = Similarity(randn(count, 6), randn(8, 6, seed=1))
    images = similarity.images_Nd / similarity.images_Nd.norm(dim=1, keepdim=True)
    texts = similarity.texts_Md / similarity.texts_Md.norm(dim=1, keepdim=True)
    expected = (images @ texts.T).sort(0, descending=True).values[:5].mean(0)
    torch.testing.assert_close(mean_top5(similarity, chunk=7), expected)
    some = torch.arange(0, count, 2)
    expected = (images[some] @ texts.T).sort(0, descending=True).values[:5].mean(0)
    torch.testing.assert_close(mean_top5(similarity, image_rows=some, chunk=4), expected)


def test_cutoffs_keep_what_is_strictly_above_and_name_themselves():
    values = torch.tensor([0.2, 0.25, 0.5, 0.3, 0.4])
    assert apply_clip_cutoff(values, 0.25).tolist() == [2, 3, 4]
    assert apply_interpretability_cutoff(values, 0.25).tolist() == [2, 3, 4]
    assert apply_interpretability_cutoff(values, 0.25, 2).tolist() == [2, 4]
    with pytest.raises(UserError, match=r"--clip_cutoff 0.6 drops all 5 .* 0.5000"):
        apply_clip_cutoff(values, 0.6)
    with pytest.raises(UserError, match=r"--interpretability_cutoff 0.6 drops all 5 .* 0.5000"):
        apply_interpretability_cutoff(values, 0.6)
    with pytest.raises(UserError, match=r"--num_concepts 4, but only 3 of 5"):
        apply_interpretability_cutoff(values, 0.25, 4)


@pytest.mark.parametrize("batch_size", [50_000, 128])
def test_directions_are_aligned_with_the_words_and_not_against_them(batch_size):
    attributes, features, similarity = toy()
    val_attributes, val_features, val_similarity = toy(300, seed=1)
    found = learn_projection(features, similarity, val_features, val_similarity, steps=400, batch_size=batch_size)
    activations = val_features @ found.W_MD.T
    for word in range(4):
        has = val_attributes[:, word] > 0
        assert activations[has, word].mean() > activations[~has, word].mean() + activations[:, word].std()
    assert found.val_similarity_M[:4].min() > 0.5
    expected = plain_cos_cubed(activations.double().numpy(), val_similarity.rows(slice(None)).double().numpy())
    np.testing.assert_allclose(found.val_similarity_M.numpy(), expected, atol=1e-4)
    again = learn_projection(features, similarity, val_features, val_similarity, steps=400, batch_size=batch_size)
    assert torch.equal(found.W_MD, again.W_MD)


def test_stops_at_the_first_fall_and_keeps_the_best():
    """Images of train and val that have nothing in common: validation soon falls."""
    found = learn_projection(randn(40, 30), Similarity(randn(40, 5, seed=1), randn(6, 5, seed=2)),
                             randn(200, 30, seed=3), Similarity(randn(200, 5, seed=4), randn(6, 5, seed=2)), steps=1000)
    values = [value for _, value in found.curve]
    assert found.steps < 1000 and found.steps == found.curve[-1][0] and found.best_step == found.steps - 50
    assert values[-1] <= values[-2] and values[:-1] == sorted(values[:-1])
    assert float(found.val_similarity_M.mean()) == pytest.approx(values[-2])


@pytest.mark.parametrize("batch_size", [50_000, 128])
def test_rows_stand_for_a_holdout(batch_size):
    _, features, similarity = toy()
    rows = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    settings = {"steps": 60, "batch_size": batch_size}
    train, val = rows[100:], rows[:100]
    ours = learn_projection(features, similarity, features, similarity, train_rows=train, val_rows=val, **settings)
    sliced = learn_projection(features[train], Similarity(similarity.images_Nd[train], similarity.texts_Md),
                              features[val], Similarity(similarity.images_Nd[val], similarity.texts_Md), **settings)
    torch.testing.assert_close(ours.W_MD, sliced.W_MD)


def test_the_bank_says_which_word_went_and_why():
    _, features, similarity = toy()
    _, val_features, val_similarity = toy(300, seed=1)
    texts = torch.cat([similarity.texts_Md, -torch.ones(1, 6)])  # a word unlike every image
    words = ["red", "round", "striped", "small", "noise", "alien"]
    bank, dropped, _ = text_bank(words, features, Similarity(similarity.images_Nd, texts), val_features,
                                 Similarity(val_similarity.images_Nd, texts), num_concepts=3, clip_cutoff=0.1,
                                 interpretability_cutoff=0.4, steps=400)
    reasons = {item.word: item.setting for item in dropped}
    assert reasons["alien"] == "clip_cutoff" and reasons["noise"] == "interpretability_cutoff"
    assert list(reasons.values()).count("num_concepts") == 1 and len(dropped) == 3
    assert bank.vectors_MD.shape == (3, 10) and bank.blocks == (("standard", 3),)
    assert {word for [word] in bank.evidence} | set(reasons) == set(words)
    torch.testing.assert_close(bank.vectors_MD.norm(dim=1), torch.ones(3))
