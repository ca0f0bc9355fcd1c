"""The Text script on a CLIP whose words are known: which words stay, and files that do not belong together."""

import pytest
import torch
from bank_runs import (  # noqa: F401
    CLASS_WORDS,
    DROPPED,
    GRID,
    WORDS,
    assert_plain,
    ledger,
    own_caches,
    predictors,
    refusal,
    run,
    save_clip,
    text_flags,
)
from conftest import clusters

from iis.embedding_file import load_embeddings, save_embeddings
from iis.runtime import UserError
from IP_training import IP_Text_training, text_projection


def text(toy, out="out", *switches, **changes):
    return run(IP_Text_training, toy, out, *(switches or ["--sparsity_ratio"]), **text_flags(toy, **changes))


def refused(toy, **changes):
    return refusal(IP_Text_training, toy, "--sparsity_ratio", **text_flags(toy, **changes))


def test_the_switch_trains_the_grid_and_the_stored_predictors_repeat_it(toy, capsys):
    save_clip(toy)
    rows = ledger(text(toy, seeds=2))
    assert len(rows) == 2 * GRID and {row["bank_size"] for row in rows} == {None, 4}
    tensors, described = predictors(toy / "out")
    assert described["concepts"]["all"] == [[word] for word in CLASS_WORDS]
    assert described["blocks"]["all"] == [["standard", 4]] and not (toy / "out" / "elastic_net.json").exists()
    a = clusters(300, "train").features_ND @ tensors["bank"].T
    torch.testing.assert_close(tensors["mean"], a.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tensors["std"], a.std(0), rtol=1e-4, atol=1e-5)
    assert_plain(toy / "out", slice(0, 0))
    assert all(word not in capsys.readouterr().out for word in DROPPED)


def test_rows_point_along_their_class_and_not_against_it(toy):
    save_clip(toy)
    bank, val = predictors(text(toy))[0]["bank"], clusters(200, "val")
    a = val.features_ND @ bank.T
    for k in range(4):
        assert a[val.labels_N == k, k].mean() > a[val.labels_N != k, k].mean() + 1


def test_print_names_what_was_dropped_and_why(toy, capsys):
    save_clip(toy)
    text(toy, "out", "--sparsity_ratio_value", "0.5", "--print", num_concepts=3)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  dropped by")]
    found = {line.split(": ")[1].rsplit(" (", 1)[0]: line.split()[2].rstrip(":") for line in lines}
    extra = set(found) - set(DROPPED)
    assert {word: found[word] for word in DROPPED} == DROPPED
    assert len(extra) == 1 and extra < set(CLASS_WORDS) and found[extra.pop()] == "num_concepts"


def test_one_ratio(toy):
    save_clip(toy)
    rows = ledger(text(toy, "out", "--sparsity_ratio_value", "0.5"))
    assert {row["ratio"] for row in rows} == {-1.0, 0.5} and len(rows) == 6


def test_holdout_decides_on_the_slice_alone(toy, monkeypatch):
    """Cut-offs and early stop see the slice of train that is held out, W and the moments the rest, and validation
    images nothing: other CLIP embeddings of val give the same bank."""
    seen, learn = [], text_projection.learn_projection

    def spy(*args, **settings):
        seen.append((args, settings))
        return learn(*args, **settings)

    monkeypatch.setattr(text_projection, "learn_projection", spy)
    save_clip(toy)
    first = predictors(text(toy, "first", holdout=0.25, ratios="0.5"))[0]
    (features, similarity, check, check_similarity), settings = seen[0]
    rows, held = settings["train_rows"], settings["val_rows"]
    assert len(rows) == 225 and len(held) == 75 and not set(rows.tolist()) & set(held.tolist())
    assert check is features and len(features) == 300 and torch.equal(check_similarity.images_Nd, similarity.images_Nd)
    a = clusters(300, "train").features_ND[rows] @ first["bank"].T
    torch.testing.assert_close(first["mean"], a.mean(0), rtol=1e-4, atol=1e-5)
    other = load_embeddings(toy / "toy_val_clip_ViT-B16.pt")
    other.features_ND = torch.randn(200, 6, generator=torch.Generator().manual_seed(9))
    save_embeddings(toy / "toy_val_clip_ViT-B16.pt", other)
    assert torch.equal(predictors(text(toy, "second", holdout=0.25, ratios="0.5"))[0]["bank"], first["bank"])
    with pytest.raises(UserError, match="--interpretability_cutoff"):  # without a holdout those images decide
        text(toy, "third", ratios="0.5")


def test_representations_are_found_in_the_activation_dir(toy):
    """The textual script writes them there, so the published flags alone must do."""
    save_clip(toy)
    for split in ("train", "val"):
        (toy / f"{split}.pt").rename(toy / f"toy_{split}_toy_layer4.pt")
    rows = ledger(text(toy, train_pt=None, val_pt=None, feature_layer="layer4", ratios="0.5"))
    assert len(rows) == 6


def test_all_concepts_dropped_names_the_cut_off_and_the_maximum(toy):
    save_clip(toy)
    said = refused(toy, clip_cutoff=0.999999)
    assert "--clip_cutoff 0.999999 drops all 6" in said and "largest mean top-5 similarity to the images is 0.9" in said
    said = refused(toy, interpretability_cutoff=0.9999)
    assert "--interpretability_cutoff 0.9999 drops all 5" in said and "largest similarity" in said
    assert "only 4 of 5 concepts pass" in refused(toy, num_concepts=5)
    assert "at least 1" in refused(toy, num_concepts=0) and "at least 1" in refused(toy, num_concepts=-1)


def test_missing_files_name_the_script_that_writes_them(toy):
    said = refused(toy)
    assert "words.txt" in said and "textual_emb_extractor.py" in said and "words_ViT-B16.pt" in said
    save_clip(toy)
    said = refused(toy, clip_name="ViT-L/14")
    assert "words_ViT-L14.pt" in said and "--clip_name ViT-L/14" in said
    (toy / "toy_val_clip_ViT-B16.pt").unlink()
    said = refused(toy)
    assert "toy_val_clip_ViT-B16.pt" in said and "textual_emb_extractor.py" in said


def test_words_and_images_of_different_clips(toy):
    save_clip(toy)
    words = load_embeddings(toy / "words_ViT-B16.pt")
    words.provenance["weights_hash"] = "other"
    save_embeddings(toy / "words_ViT-B16.pt", words)
    assert "different CLIPs" in refused(toy) and "weights_hash" in refused(toy)


def test_images_of_another_order_number_or_no_numbers(toy):
    save_clip(toy, shuffled=True)
    assert "not of the same images" in refused(toy)
    save_clip(toy)
    save_embeddings(toy / "train.pt", clusters(299, "train"))
    assert "(300 images) and the representations (299)" in refused(toy)
    save_embeddings(toy / "train.pt", clusters(300, "train"))
    images = load_embeddings(toy / "toy_train_clip_ViT-B16.pt")
    images.features_ND = images.features_ND.clone()
    images.features_ND[7, 2] = float("nan")
    save_embeddings(toy / "toy_train_clip_ViT-B16.pt", images)
    assert "row 7" in refused(toy) and "not finite" in refused(toy)


def test_a_refused_run_does_not_hold_the_folder(toy):
    """Who does as the sentence says (lower the cut-off) starts the same command again, into the same folder."""
    save_clip(toy)
    with pytest.raises(UserError, match="--clip_cutoff"):
        text(toy, clip_cutoff=0.999999, ratios="0.5")
    rows = ledger(text(toy, ratios="0.5"))
    assert {row["clip_cutoff"] for row in rows} == {0.25}
    with pytest.raises(UserError, match="clip_cutoff = 0.25"):  # now there are results
        text(toy, clip_cutoff=0.999999, ratios="0.5")
    assert len(ledger(text(toy, ratios="0.5,0.9"))) == 9


def test_a_refused_run_leaves_no_ledger_though_its_dense_heads_are_known(toy):
    """Another bank of the same features has trained them before."""
    save_clip(toy)
    text(toy, out="before", ratios="0.5")
    with pytest.raises(UserError, match="--clip_cutoff"):
        text(toy, clip_cutoff=0.999999, ratios="0.5")
    assert not (toy / "out" / "results.jsonl").exists()
    assert len(ledger(text(toy, ratios="0.5"))) == 6  # and the folder is free


def test_another_list_never_shares_a_folder(toy):
    save_clip(toy)
    text(toy, ratios="0.5")
    save_clip(toy, words=WORDS[:5])
    with pytest.raises(UserError, match="words_hash"):
        text(toy, ratios="0.5")
