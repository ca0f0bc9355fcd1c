"""The elastic-net layer of the Text script: what is written holds together, and folders are not mixed."""

import json

import pytest
import torch
from bank_runs import ledger, own_caches, refusal, run, save_clip, text_flags  # noqa: F401
from conftest import clusters
from safetensors.torch import load_file

from iis.runtime import UserError
from IP_training import IP_Text_training, elastic_net


def elastic(toy, out="out", **changes):
    save_clip(toy)
    folder = run(IP_Text_training, toy, out, **text_flags(toy, **{"n_iters": 60, **changes}))
    return folder, json.loads((folder / "elastic_net.json").read_text())


def test_without_the_switch_the_elastic_net_is_fitted_and_its_file_repeats_it(toy):
    folder, written = elastic(toy, seeds=2, lam=0.01)
    assert [result["seed"] for result in written["results"]] == [0, 1] and written["identity"]["lam"] == 0.01
    assert not (folder / "results.jsonl").exists()
    for result in written["results"]:
        file = folder / f"elastic_net_seed{result['seed']}.safetensors"
        assert file.stat().st_mode & 0o044 == 0o044  # colleagues can read it
        tensors, W = load_file(file), load_file(file)["weight"]
        train, val = ((split.features_ND @ tensors["bank"].T - tensors["mean"]) / tensors["std"]
                      for split in (clusters(300, "train"), clusters(200, "val")))
        torch.testing.assert_close(train.std(0), torch.ones(4), rtol=1e-4, atol=1e-4)
        right = (val @ W.T + tensors["bias"]).argmax(1) == clusters(200, "val").labels_N
        assert result["top1"] == pytest.approx(float(right.double().mean()), abs=0.0051) and result["top1"] > 0.9
        assert result["nonzero"] == int((W != 0).sum()) and result["nec"] == result["nonzero"] / 4
        loss = torch.nn.functional.cross_entropy(train @ W.T + tensors["bias"], clusters(300, "train").labels_N)
        penalty = 0.01 * (0.99 * W.abs().sum() + 0.005 * W.square().sum())
        assert result["objective"] == pytest.approx(float(loss + penalty), rel=1e-3)


def test_a_large_lam_leaves_no_weight(toy):
    _, written = elastic(toy, lam=10)
    assert written["results"][0]["nonzero"] == 0 and written["results"][0]["top1"] == 0.25


def test_holdout_fits_without_the_slice(toy, monkeypatch):
    seen, fit = [], elastic_net.fit_elastic_net
    monkeypatch.setattr(elastic_net, "fit_elastic_net", lambda x, y, *a, **k: seen.append((x, y)) or fit(x, y, *a, **k))
    elastic(toy, holdout=0.25)
    (x, y), = seen
    assert len(x) == len(y) == 225
    torch.testing.assert_close(x.mean(0), torch.zeros(4), rtol=0, atol=1e-4)


def test_tf32_is_on_while_it_is_fitted(toy, monkeypatch):
    seen, fit = [], elastic_net.fit_elastic_net
    monkeypatch.setattr(elastic_net, "fit_elastic_net", lambda *a, **k: seen.append(
        torch.backends.cuda.matmul.allow_tf32) or fit(*a, **k))
    save_clip(toy)
    for switches in ((), ("--tf32",)):
        run(IP_Text_training, toy, f"out{len(switches)}", *switches, **text_flags(toy, n_iters=5))
    assert seen == [False, True] and not torch.backends.cuda.matmul.allow_tf32


def test_grid_and_elastic_net_never_share_a_folder(toy):
    elastic(toy)
    with pytest.raises(UserError, match="final_layer"):
        run(IP_Text_training, toy, "out", "--sparsity_ratio", **text_flags(toy))
    with pytest.raises(UserError, match="lam = "):
        elastic(toy, lam=0.1)


@pytest.mark.parametrize("changes, words", [({"lam": -1}, "--lam"), ({"n_iters": 0}, "--n_iters"),
                                            ({"saga_batch_size": 0}, "--saga_batch_size"),
                                            ({"proj_batch_size": 0}, "--proj_batch_size"),
                                            ({"sparsity_ratio_value": 1.0}, "outside [0, 1)")])
def test_numbers_without_a_meaning(toy, changes, words):
    save_clip(toy)
    assert words in refusal(IP_Text_training, toy, **text_flags(toy, **changes))
