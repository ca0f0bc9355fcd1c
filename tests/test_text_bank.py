"""Text: cos-cubed against a plain loop, the cut-offs, W aligned with what words mean; the script on a CLIP whose words
are known, its elastic-net layer, and files that do not belong together."""

import json

import bank_runs
import numpy as np
import pytest
import torch
from bank_runs import CLASS_WORDS, DROPPED, assert_plain, ledger, predictors, run, save_clip, text_flags
from conftest import clusters
from safetensors.torch import load_file

from iis import processes
from iis.embedding_file import load_embeddings, save_embeddings
from iis.runtime import UserError
from IP_training import IP_Text_training, elastic_net
from IP_training import text_bank as module

# ---- similarity and cut-offs ----


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_cos_cubed(a, b):
    result = []
    for column in range(a.shape[1]):
        x, y = ((v[:, column] - v[:, column].mean()) ** 3 for v in (a, b))
        result.append((x * y).sum() / (np.sqrt((x ** 2).sum()) * np.sqrt((y ** 2).sum())))
    return np.array(result)


def attributes(count=400, width=10, seed=0):
    """Images with 5 hidden attributes: a CLIP that reads four of them (word 4 is noise to it), features mixing all."""
    has = (randn(count, 5, seed=seed) > 0.6).float()
    images = torch.cat([has[:, :4], randn(count, 2, seed=seed + 50).abs()], 1) + 0.05
    features = has @ randn(5, width, seed=90) + 0.1 * randn(count, width, seed=seed + 60)
    return has, module.Split(features, 3 * images)  # lengths must not matter


TEXTS = 2 * (torch.eye(6)[:5] + 0.1)


def test_cos_cubed_by_hand_and_against_a_plain_loop():
    # Deviations (-1, 0, 1) and (-2, 1, 1): cubes (-1, 0, 1) and (-8, 1, 1); dot 9, lengths √2 and √66.
    value = module.cos_cubed(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [4.0], [4.0]]))
    assert float(value) == pytest.approx(9 / (2 ** 0.5 * 66 ** 0.5))
    a, b = randn(50, 7).double(), randn(50, 7, seed=1).double()
    b[:, 0], b[:, 1] = 3 * a[:, 0] + 2, -a[:, 1]
    np.testing.assert_allclose(module.cos_cubed(a, b).numpy(), plain_cos_cubed(a.numpy(), b.numpy()), atol=1e-12)
    assert module.cos_cubed(a, b)[:2].tolist() == pytest.approx([1, -1])


def test_gradient_blocks_and_a_constant_column(monkeypatch):
    a, b = randn(9, 3).double().requires_grad_(), randn(9, 3, seed=1).double()
    assert torch.autograd.gradcheck(module.cos_cubed, (a, b))
    constant = torch.stack([torch.full((20,), 0.25), randn(20)], 1).requires_grad_()
    value = module.cos_cubed(constant, randn(20, 2, seed=2))
    value.sum().backward()
    assert float(value[0].detach()) == pytest.approx(0, abs=1e-6) and torch.isfinite(constant.grad).all()
    h, words = randn(30, 4), randn(30, 5, seed=1)
    plain = randn(5, 4, seed=2).requires_grad_()
    (-module.cos_cubed(h @ plain.T, words).mean()).backward()
    for block in (512, 2):
        monkeypatch.setattr(module, "BLOCK", block)
        W = randn(5, 4, seed=2).requires_grad_()
        module._backward(W, h, module.sharpened(words))
        torch.testing.assert_close(W.grad, plain.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cos_cubed_knows_no_scale(dtype):
    """Activations a hundred thousand times smaller or larger, in float32, are as similar to a word as they were, and
    the gradient is as much larger or smaller."""
    a, b = randn(50, 7).to(dtype), randn(50, 7, seed=1).to(dtype)
    expected, gradients = plain_cos_cubed(a.double().numpy(), b.double().numpy()), []
    for scale in (1e-10, 1e-5, 1, 1e5, 1e10):
        scaled = (scale * a).requires_grad_()
        value = module.cos_cubed(scaled, b)
        np.testing.assert_allclose(value.detach().numpy(), expected, atol=1e-5)
        value.sum().backward()
        gradients.append(scale * scaled.grad)
    for gradient in gradients:
        torch.testing.assert_close(gradient, gradients[2], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-5, 1, 1e5])
@pytest.mark.parametrize("count", [20, 50_000])
def test_a_column_that_is_constant_up_to_rounding_is_like_nothing(scale, count):
    noise = torch.randint(-2, 3, (count, 3), generator=torch.Generator().manual_seed(0))  # in units of the last place
    column = scale * (0.1 + 7.5e-9 * torch.stack([0 * noise[:, 0], noise[:, 1], 10_000 * noise[:, 2]], 1))
    value = module.cos_cubed(column.requires_grad_(), noise.float())
    value.sum().backward()
    assert value[:2].tolist() == [0, 0] and float(value[2].detach()) > 0.999  # 0.08 % is no rounding
    assert torch.isfinite(column.grad).all() and not column.grad[:, :2].any()


@pytest.mark.parametrize("count", [3, 40])
def test_mean_top5_in_chunks_equals_the_whole(count):
    images, texts = randn(count, 6), module.unit(randn(8, 6, seed=1))
    for rows, chunk in ((None, 7), (torch.arange(0, count, 2), 4)):
        chosen = (images / images.norm(dim=1, keepdim=True))[slice(None) if rows is None else rows]
        expected = (chosen @ texts.T).sort(0, descending=True).values[:5].mean(0)
        torch.testing.assert_close(module.mean_top5(module.Split(images, images, rows), texts, chunk), expected)


def test_cutoffs_keep_what_is_strictly_above_and_name_themselves():
    values = torch.tensor([0.2, 0.25, 0.5, 0.3, 0.4])
    for setting in ("clip_cutoff", "interpretability_cutoff"):
        assert module.above(values, 0.25, setting).tolist() == [2, 3, 4]
        with pytest.raises(UserError, match=f"--{setting} 0.6 drops all 5 .* 0.5000"):
            module.above(values, 0.6, setting)


# ---- the projection ----


@pytest.mark.parametrize("batch_size", [50_000, 128])
def test_directions_are_aligned_with_the_words_and_not_against_them(batch_size):
    (_, train), (val_has, val) = attributes(), attributes(300, seed=1)
    found, again = (module.learn_projection(train, val, module.unit(TEXTS), steps=400, batch_size=batch_size)
                    for _ in range(2))
    assert torch.equal(found.W_MD, again.W_MD)
    activations = val.features_ND @ found.W_MD.T
    for word in range(4):
        has = val_has[:, word] > 0
        assert activations[has, word].mean() > activations[~has, word].mean() + activations[:, word].std()
    assert found.val_similarity_M[:4].min() > 0.5
    images, texts = (x.double().numpy() for x in (val.images_Nd, TEXTS))
    cosines = images @ texts.T / np.linalg.norm(images, axis=1)[:, None] / np.linalg.norm(texts, axis=1)
    expected = plain_cos_cubed(activations.double().numpy(), cosines)
    np.testing.assert_allclose(found.val_similarity_M.numpy(), expected, atol=1e-4)


def test_stops_at_the_first_fall_and_keeps_the_best():
    """Images of train and val that have nothing in common: validation soon falls."""
    found = module.learn_projection(module.Split(randn(40, 30), randn(40, 5, seed=40)),
                                    module.Split(randn(200, 30, seed=3), randn(200, 5, seed=200)),
                                    module.unit(randn(6, 5, seed=2)), steps=1000)
    steps, values = zip(*found.curve, strict=True)
    assert steps == tuple(range(0, steps[-1] + 1, 50)) and steps[-1] < 1000
    assert values[-1] <= values[-2] and list(values[:-1]) == sorted(values[:-1])
    assert float(found.val_similarity_M.mean()) == pytest.approx(values[-2])


def test_the_bank_says_which_word_went_and_why():
    (_, train), (_, val) = attributes(), attributes(300, seed=1)
    words = ["red", "round", "striped", "small", "noise", "alien"]  # the last is unlike every image
    bank, dropped, projection = module.text_bank(
        words, torch.cat([TEXTS, -torch.ones(1, 6)]), train, val, num_concepts=3, clip_cutoff=0.1,
        interpretability_cutoff=0.4, steps=400)
    reasons = {item.word: item.setting for item in dropped}
    assert reasons["alien"] == "clip_cutoff" and reasons["noise"] == "interpretability_cutoff"
    [extra] = [item for item in dropped if item.setting == "num_concepts"]
    assert len(dropped) == 3 and extra.value == float(projection.val_similarity_M[:4].min())  # the worst of four
    assert bank.blocks == (("standard", 3),) and {word for [word] in bank.evidence} | set(reasons) == set(words)
    for vector, [word] in zip(bank.vectors_MD, bank.evidence, strict=True):  # its row of W, at length 1
        torch.testing.assert_close(vector, torch.nn.functional.normalize(projection.W_MD[words.index(word)], dim=0))


# ---- the script ----


def text(toy, out="out", *switches, **changes):
    return run(IP_Text_training, toy, out, *(switches or ["--sparsity_ratio"]), **text_flags(toy, **changes))


def refused(toy, **changes):
    return bank_runs.refusal(IP_Text_training, toy, "--sparsity_ratio", **text_flags(toy, **changes))


def test_the_switch_trains_the_grid_on_the_words_that_pass(toy, capsys):
    """On representations that the textual script has written into --activation_dir."""
    save_clip(toy)
    for split in ("train", "val"):
        (toy / f"{split}.pt").rename(toy / f"toy_{split}_toy_layer4.pt")
    rows = ledger(text(toy, seeds=2, train_pt=None, val_pt=None, feature_layer="layer4"))
    assert len(rows) == 2 * bank_runs.GRID and {row["bank_size"] for row in rows} == {None, 4}
    tensors, described = predictors(toy / "out")
    assert described["concepts"]["all"] == [[word] for word in CLASS_WORDS]
    assert described["blocks"]["all"] == [["standard", 4]] and not (toy / "out" / "elastic_net.json").exists()
    a = clusters(300, "train").features_ND @ tensors["bank"].T
    torch.testing.assert_close(tensors["mean"], a.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tensors["std"], a.std(0), rtol=1e-4, atol=1e-5)
    assert_plain(toy / "out", slice(0, 0))
    assert all(word not in capsys.readouterr().out for word in DROPPED)
    val = clusters(200, "val")
    for k, a_N in enumerate((val.features_ND @ tensors["bank"].T).T):  # along their class, and not against it
        assert a_N[val.labels_N == k].mean() > a_N[val.labels_N != k].mean() + 1


def test_one_ratio_and_print_names_what_was_dropped_and_why(toy, capsys):
    save_clip(toy)
    rows = ledger(text(toy, "out", "--sparsity_ratio_value", "0.5", "--print", num_concepts=3))
    assert {row["ratio"] for row in rows} == {-1.0, 0.5} and len(rows) == 6
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  dropped by")]
    found = {line.split(": ")[1].rsplit(" (", 1)[0]: line.split()[2].rstrip(":") for line in lines}
    [extra] = set(found) - set(DROPPED)
    assert {word: found[word] for word in DROPPED} == DROPPED
    assert extra in CLASS_WORDS and found[extra] == "num_concepts"


def test_holdout_decides_on_the_slice_alone(toy, monkeypatch):
    """Cut-offs and early stop see the slice of train that is held out, W and the moments the rest, and validation
    images nothing: other CLIP embeddings of val give the same bank."""
    seen, learn = [], module.learn_projection
    monkeypatch.setattr(module, "learn_projection", lambda *args, **settings: seen.append(args)
                        or learn(*args, **settings))
    save_clip(toy)
    first = predictors(text(toy, "first", holdout=0.25, ratios="0.5"))[0]
    train, check = seen[0][:2]
    rows, held = train.rows, check.rows
    assert len(rows) == 225 and len(held) == 75 and not set(rows.tolist()) & set(held.tolist())
    assert check.features_ND is train.features_ND and check.images_Nd is train.images_Nd and len(train.images_Nd) == 300
    a = clusters(300, "train").features_ND[rows] @ first["bank"].T
    torch.testing.assert_close(first["mean"], a.mean(0), rtol=1e-4, atol=1e-5)
    other = load_embeddings(toy / "toy_val_clip_ViT-B16.pt")
    other.features_ND = randn(200, 6, seed=9)
    save_embeddings(toy / "toy_val_clip_ViT-B16.pt", other)
    assert torch.equal(predictors(text(toy, "second", holdout=0.25, ratios="0.5"))[0]["bank"], first["bank"])
    with pytest.raises(UserError, match="--interpretability_cutoff"):  # without a holdout those images decide
        text(toy, "third", ratios="0.5")


# ---- the elastic-net layer ----


def elastic(toy, out="out", *switches, **changes):
    save_clip(toy)
    folder = run(IP_Text_training, toy, out, *switches, **text_flags(toy, **{"n_iters": 60, **changes}))
    return folder, json.loads((folder / "elastic_net.json").read_text())


def test_without_the_switch_the_elastic_net_is_fitted_and_its_file_repeats_it(toy):
    folder, written = elastic(toy, seeds=2, lam=0.01)
    assert [result["seed"] for result in written["results"]] == [0, 1] and written["identity"]["lam"] == 0.01
    assert not (folder / "results.jsonl").exists()
    for result in written["results"]:
        file = folder / f"elastic_net_seed{result['seed']}.safetensors"
        assert file.stat().st_mode & 0o044 == 0o044  # colleagues can read it
        tensors = load_file(file)
        W, b, y = tensors["weight"], tensors["bias"], clusters(200, "val").labels_N
        train, val = ((split.features_ND @ tensors["bank"].T - tensors["mean"]) / tensors["std"]
                      for split in (clusters(300, "train"), clusters(200, "val")))
        torch.testing.assert_close(train.std(0), torch.ones(4), rtol=1e-4, atol=1e-4)
        right = float(((val @ W.T + b).argmax(1) == y).double().mean())
        assert result["top1"] == pytest.approx(right, abs=0.0051) and result["top1"] > 0.9 and result["converged"]
        assert result["nonzero"] == int((W != 0).sum()) and result["nec"] == result["nonzero"] / 4
        loss = torch.nn.functional.cross_entropy(train @ W.T + b, clusters(300, "train").labels_N)
        assert result["objective"] == pytest.approx(
            float(loss + 0.01 * (0.99 * W.abs().sum() + 0.005 * W.square().sum())), rel=1e-5)
    _, large = elastic(toy, "large", lam=10)
    assert large["results"][0]["nonzero"] == 0 and large["results"][0]["top1"] == 0.25
    with pytest.raises(UserError, match="final_layer"):  # grid and elastic net never share a folder
        text(toy)
    with pytest.raises(UserError, match="lam = "):
        elastic(toy, lam=0.1)


def test_elastic_nets_are_the_same_from_one_process_and_from_two(toy, monkeypatch):
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(processes, "available_cores", lambda cores=cores: cores)
        folder, written = elastic(toy, f"out{cores}", seeds=3, lam=0.01)
        tensors = [load_file(folder / f"elastic_net_seed{seed}.safetensors") for seed in range(3)]
        found.append(([{**result, "seconds": 0} for result in written["results"]],
                      [{name: tensor.tolist() for name, tensor in one.items()} for one in tensors]))
    assert found[0] == found[1] and [result["seed"] for result in found[0][0]] == [0, 1, 2]


def test_holdout_and_tf32_reach_the_elastic_net_and_a_dry_run_makes_nothing(toy, monkeypatch, capsys):
    seen, fit = [], elastic_net.fit_elastic_net
    monkeypatch.setattr(elastic_net, "fit_elastic_net", lambda x, y, *rest, **settings: seen.append(
        (x, y, torch.backends.cuda.matmul.allow_tf32)) or fit(x, y, *rest, **settings))
    save_clip(toy)
    before = sorted(toy.rglob("*"))
    run(IP_Text_training, toy, "out", "--dry_run", **text_flags(toy))
    plan = capsys.readouterr().out
    assert plan.startswith("dry run: stage 3, elastic net on a Text bank") and "at most 1000 passes" in plan
    assert sorted(toy.rglob("*")) == before and not seen
    elastic(toy, "out", "--tf32", holdout=0.25, n_iters=5)
    [(x, y, tf32)] = seen
    assert len(x) == len(y) == 225 and tf32 and not torch.backends.cuda.matmul.allow_tf32
    torch.testing.assert_close(x.mean(0), torch.zeros(4), rtol=0, atol=1e-4)


# ---- refusals ----


@pytest.mark.parametrize("changes, words", [
    ({"clip_cutoff": 0.999999}, "--clip_cutoff 0.999999 drops all 6"), ({"num_concepts": 5}, "only 4 of 5 concepts"),
    ({"interpretability_cutoff": 0.9999}, "--interpretability_cutoff 0.9999 drops all 5"),
    ({"num_concepts": 0}, "at least 1"), ({"num_concepts": -1}, "at least 1"), ({"lam": -1}, "--lam"),
    ({"n_iters": 0}, "--n_iters"), ({"proj_batch_size": 0}, "--proj_batch_size"), ({"proj_steps": 0}, "--proj_steps"),
    ({"sparsity_ratio_value": 1.0}, "outside [0, 1)"), ({"clip_name": "ViT-L/14"}, "words_ViT-L14.pt")])
def test_numbers_that_leave_nothing_or_mean_nothing(toy, changes, words):
    save_clip(toy)
    assert words in refused(toy, **changes)


def test_files_that_are_missing_or_do_not_belong_together(toy):
    for missing in ("words_ViT-B16.pt", "toy_val_clip_ViT-B16.pt"):
        assert missing in refused(toy) and "run extractor/textual_emb_extractor.py" in refused(toy)
        save_clip(toy)
        (toy / "toy_val_clip_ViT-B16.pt").unlink()
    save_clip(toy, shuffled=True)
    assert "not of the same images" in refused(toy)
    save_clip(toy)
    save_embeddings(toy / "train.pt", clusters(299, "train"))
    assert "(300 images) and the representations (299)" in refused(toy)
    save_embeddings(toy / "train.pt", clusters(300, "train"))
    words, images = (load_embeddings(toy / f"{name}_ViT-B16.pt") for name in ("words", "toy_train_clip"))
    images.features_ND = images.features_ND.clone().index_fill_(0, torch.tensor([7]), torch.nan)
    save_embeddings(toy / "toy_train_clip_ViT-B16.pt", images)
    assert "row 7" in refused(toy) and "not finite" in refused(toy)
    words.provenance["weights_hash"] = "other"
    save_embeddings(toy / "words_ViT-B16.pt", words)
    assert "different CLIPs" in refused(toy) and "weights_hash" in refused(toy)


def test_after_a_refusal_the_corrected_command_may_use_the_folder_and_later_ones_keep_to_its_settings(toy):
    save_clip(toy)
    with pytest.raises(UserError, match="--clip_cutoff"):
        text(toy, clip_cutoff=0.999999, ratios="0.5")
    assert {row["clip_cutoff"] for row in ledger(text(toy, ratios="0.5"))} == {0.25}
    with pytest.raises(UserError, match="clip_cutoff = 0.25"):
        text(toy, clip_cutoff=0.999999, ratios="0.5")
    save_clip(toy, words=bank_runs.WORDS[:5])
    with pytest.raises(UserError, match="words_hash"):  # another list of words
        text(toy, ratios="0.5")
