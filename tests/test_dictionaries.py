"""Banks from dictionary learning: against scikit-learn, an SVD and dictionaries that are known, and their script."""

import numpy as np
import pytest
import torch
from bank_runs import GRID, WORDS, assert_plain, ledger, predictors, refusal, run, save_clip
from conftest import clusters
from scipy.optimize import linear_sum_assignment

import iis
from iis.embedding_file import Embeddings, load_embeddings, save_embeddings
from iis.names import shared_words_file
from iis.runtime import UserError, seed_of
from IP_training import IP_Dictionary_training as script
from IP_training import dictionaries
from IP_training.banks import Seed, unit_rows
from tests import test_textual_emb_extractor as textual
from tests.test_clip import make as make_clip

SEED, OTHER = Seed(0, 0), Seed(1, 1)


def elements_of(features: np.ndarray | torch.Tensor) -> Embeddings:
    """Elements with these features, two classes in turn."""
    features, names = torch.as_tensor(features, dtype=torch.float32), [f"{row}.png" for row in range(len(features))]
    return Embeddings(features, torch.arange(len(features)) % 2, ["a", "b"], names)


def mixtures(count: int = 400, concepts: int = 6, width: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Elements (E, D) that are sparse sums of known directions (M, D), all of at least 0."""
    rng = np.random.default_rng(0)
    known_MD = rng.exponential(size=(concepts, width)) * (rng.random((concepts, width)) < 0.3) + np.eye(concepts, width)
    codes_EM = rng.exponential(size=(count, concepts)) * (rng.random((count, concepts)) < 0.4)
    return codes_EM @ known_MD, known_MD


# ---- NMF ----


def test_nmf_is_scikit_learns_and_finds_the_directions_that_the_elements_were_made_of():
    from sklearn.decomposition import NMF

    x_ED, known_MD = mixtures()
    make = dictionaries.nmf(elements_of(x_ED), 6)
    bank, other = make(SEED), make(OTHER)
    theirs = NMF(6, init="random", max_iter=100, random_state=seed_of(0, "NMF") % 2**32)
    codes_EM = theirs.fit_transform(x_ED.astype(np.float32))
    torch.testing.assert_close(bank.vectors_MD, unit_rows(torch.from_numpy(theirs.components_)), atol=1e-5, rtol=1e-4)
    assert bank.kind == "NMF" and bank.empty == 0 and bank.vectors_MD.min() >= 0 and bank.blocks == (("layer", 6),)
    for m, images in enumerate(bank.evidence):
        assert images == [f"{row}.png" for row in sorted(range(400), key=lambda row, m=m: -codes_EM[row, m])[:9]]
    for made in (bank, other):
        cosines_MM = made.vectors_MD.numpy() @ (known_MD / np.linalg.norm(known_MD, axis=1, keepdims=True)).T
        pairs = linear_sum_assignment(-cosines_MM)
        assert cosines_MM[pairs].min() > 0.98
    assert not torch.equal(bank.vectors_MD, other.vectors_MD) and torch.equal(bank.vectors_MD, make(SEED).vectors_MD)


def test_a_direction_that_nmf_does_not_use_is_an_empty_concept(capsys):
    x_ED = np.zeros((30, 4))
    x_ED[:, 0], x_ED[::2, 2] = 1.0, 0.0
    bank = dictionaries.nmf(elements_of(x_ED), 3)(SEED)
    lengths = bank.vectors_MD.norm(dim=1)
    assert ((lengths - 1).abs().lt(1e-5) | lengths.eq(0)).all() and (bank.vectors_MD[lengths > 0][:, 0] > 0.999).all()
    assert bank.empty == int((lengths == 0).sum()) and [not lines for lines in bank.evidence] == lengths.eq(0).tolist()
    nothing = dictionaries.nmf(elements_of(np.zeros((30, 4))), 3)(SEED)
    assert nothing.empty == 3 and nothing.evidence == [[], [], []] and "3 empty" in capsys.readouterr().out


def test_nmf_refuses_features_below_0_and_takes_as_many_concepts_as_there_are_elements():
    x_ED = np.abs(np.random.default_rng(0).normal(size=(12, 4)))
    assert len(dictionaries.nmf(elements_of(x_ED), 12)(SEED)) == 12  # more than D
    x_ED[[2, 5], 1] = -0.25, -0.5
    with pytest.raises(UserError, match="2 of the 12 .*-0.5"):
        dictionaries.nmf(elements_of(x_ED), 3)
    for make in (dictionaries.nmf, dictionaries.pca):
        for count in (13, 0):
            with pytest.raises(UserError, match=f"num_concepts {count}"):
                make(elements_of(np.abs(x_ED)), count)


# ---- PCA ----


def test_pca_is_the_svd_of_the_centred_elements_and_the_evidence_is_the_largest_scores():
    x_ED = clusters(80, "elements").features_ND.numpy().astype(np.float64)
    make = dictionaries.pca(elements_of(x_ED), 5)
    bank = make(SEED)
    centred = x_ED - x_ED.mean(0)
    expected = np.linalg.svd(centred, full_matrices=False)[2][:5]
    for m, (vector, plain) in enumerate(zip(bank.vectors_MD.double().numpy(), expected, strict=True)):
        scores = centred @ plain
        scores, plain = (scores, plain) if scores.max() > -scores.min() else (-scores, -plain)
        np.testing.assert_allclose(vector, plain, atol=1e-4)
        assert bank.evidence[m] == [f"{row}.png" for row in sorted(range(80), key=lambda row, s=scores: -s[row])[:9]]
    assert torch.equal(make(OTHER).vectors_MD, bank.vectors_MD) and bank.kind == "PCA"


def test_pca_counts_directions_in_which_nothing_varies_as_empty_and_refuses_more_than_the_space_has():
    x_ED = clusters(80, "elements").features_ND.clone()
    x_ED[:, 3:] = 7.0
    bank = dictionaries.pca(elements_of(x_ED), 6)(SEED)
    assert bank.empty == 3 and bank.vectors_MD[:3].norm(dim=1).allclose(torch.ones(3))
    assert [len(lines) for lines in bank.evidence] == [9, 9, 9, 0, 0, 0]
    with pytest.raises(UserError, match="D = 12"):
        dictionaries.pca(elements_of(x_ED), 13)


# ---- the script ----


def after_relu(toy):
    """The toy files with features of at least 0, as after a ReLU."""
    for name in ("train.pt", "val.pt", "elements.pkl"):
        found = load_embeddings(toy / name)
        found.features_ND = found.features_ND.clamp(min=0)
        save_embeddings(toy / name, found)


@pytest.mark.parametrize("kind", ["NMF", "PCA"])
def test_the_script_trains_the_grid_and_names_the_bank(toy, kind):
    if kind == "NMF":
        after_relu(toy)
    rows = ledger(run(script, toy, seeds=2, num_concepts=10, kind=kind))
    assert len(rows) == 2 * GRID and {row["bank"] for row in rows} == {kind}
    assert {row["element_choice"] for row in rows} == {"balanced"} and {row["num_concepts"] for row in rows} == {10}
    one, other = (predictors(toy / "out", seed)[0]["bank"] for seed in (0, 1))
    make = {"NMF": dictionaries.nmf, "PCA": dictionaries.pca}[kind](load_embeddings(toy / "elements.pkl"), 10)
    torch.testing.assert_close(one, make(SEED).vectors_MD)
    assert torch.equal(one, other) == (kind == "PCA")
    if kind == "PCA":
        assert_plain(toy / "out")
    folder = run(script, toy, None, kind=kind, num_concepts=10, save_root=toy / "root", ratios="0.5", n_epoch=1)
    assert str(folder.relative_to(toy / "root")) == f"IP_{kind}/toy/toy_segments_M10_epochs1_batch64"


def test_from_python_the_banks_are_beside_the_others():
    train, val, elements = (clusters(count, split) for count, split in ((300, "train"), (200, "val"), (80, "elements")))
    for make in (iis.banks.pca(elements, 10), iis.banks.nmf(elements_of(elements.features_ND.clamp(min=0)), 10)):
        result = iis.score(train.features_ND, train.labels_N, val.features_ND, val.labels_N, bank=make, seeds=1,
                           epochs=2, batch_size=64, draws=10, show_progress=False)
        assert result.summary["bank"] == make(SEED).kind and result.summary["num_concepts"] == 10


@pytest.mark.parametrize("changes, words", [
    ({"kind": "NMF", "num_concepts": 10}, "80 visual elements"), ({"kind": "PCA"}, "--num_concepts 20"),
    ({"kind": "PCA", "num_concepts": 0}, "at least 1"),
    ({"kind": "PCA", "penalty": 0.5}, "belongs to SpLiCE"), ({"kind": "ICA"}, "invalid choice")])
def test_the_script_refuses_before_it_trains(toy, changes, words):
    assert words in refusal(script, toy, **changes)


# ---- SpLiCE ----


def splice_flags(toy, **changes):
    return {"kind": "SpLiCE", "model_name": "clip", "activation_dir": toy, "concept_set": toy / "words.txt",
            "train_pt": None, "val_pt": None, "concept_path": None, "num_concepts": None, **changes}


def save_unit_clip(toy):
    """CLIP's files of `bank_runs.save_clip` with images of length 1, as CLIP gives them."""
    save_clip(toy)
    for split in ("train", "val"):
        images = load_embeddings(toy / f"toy_{split}_clip_ViT-B16.pt")
        images.features_ND = unit_rows(images.features_ND)
        save_embeddings(toy / f"toy_{split}_clip_ViT-B16.pt", images)


def plain_codes(toy, split, penalty=0.25):
    """Codes of all words as the paper says, by scikit-learn, and the centred words."""
    from sklearn.linear_model import Lasso

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    words, train, images = (load_embeddings(toy / f"{name}_ViT-B16.pt").features_ND.double().numpy()
                            for name in ("words", "toy_train_clip", f"toy_{split}_clip"))
    bank_Md = unit(unit(words) - unit(words).mean(0))
    lasso = Lasso(penalty / (2 * words.shape[1]), fit_intercept=False, positive=True, tol=1e-10, max_iter=100_000)
    return lasso.fit(bank_Md.T, unit(images - train.mean(0)).T).coef_, bank_Md


def test_splice_codes_are_the_papers_and_their_stored_predictors_repeat_the_ledger(toy):
    save_unit_clip(toy)
    rows = ledger(run(script, toy, seeds=2, **splice_flags(toy)))
    assert len(rows) == 2 * GRID and {row["bank"] for row in rows} == {"SpLiCE"} and rows[0]["penalty"] == 0.25
    tensors, described = predictors(toy / "out")
    train_NM, bank_Md = plain_codes(toy, "train")
    np.testing.assert_allclose(tensors["bank"].numpy(), bank_Md, atol=1e-5)
    assert described["concepts"]["all"] == [[word] for word in WORDS] and described["blocks"]["all"] == [["scale", 6]]
    [nonzero] = {row["nonzero_codes"] for row in rows if row["ratio"] >= 0}
    assert nonzero == pytest.approx((train_NM > 0).sum(1).mean(), abs=0.01)
    np.testing.assert_allclose(tensors["std"].numpy() ** 2, (train_NM ** 2).mean(0), rtol=1e-3)
    z_NM = torch.from_numpy(plain_codes(toy, "val")[0]).float() / tensors["std"]
    right = (z_NM @ tensors["0/weight"].T + tensors["0/bias"]).argmax(1) == clusters(200, "val").labels_N
    assert float(right.double().mean()) == pytest.approx(described["selected"]["0"]["top1"], abs=0.0051)
    folder = run(script, toy, None, **splice_flags(toy, penalty=0.5, save_root=toy / "root", ratios="0.5", n_epoch=1))
    assert str(folder.relative_to(toy / "root")) == "IP_SpLiCE/clip/toy_penalty0.5_words_Mall_epochs1_batch64"


def test_splice_keeps_the_words_that_the_images_use_most(toy):
    save_unit_clip(toy)
    # In CLIP's own folder the words' file has a hash of them; one of an older list lies beside it.
    (toy / "words.txt").write_text("\n".join(WORDS))
    ours = shared_words_file(toy, toy / "words.txt", "ViT-B16", WORDS)
    (toy / "words_ViT-B16.pt").rename(ours)
    (toy / "words_ViT-B16_0123abcd.pt").write_text("older")
    run(script, toy, ratios="0.5", **splice_flags(toy, num_concepts=4))
    (toy / "words.txt").write_text("edited")
    assert "textual_emb_extractor" in refusal(script, toy, **splice_flags(toy))
    ours.rename(toy / "words_ViT-B16.pt")
    most = sorted(np.argsort(-plain_codes(toy, "train")[0].sum(0))[:4])
    assert predictors(toy / "out")[1]["concepts"]["all"] == [[WORDS[m]] for m in most]


def test_a_dry_run_counts_all_words(toy, capsys):
    save_unit_clip(toy)
    run(script, toy, None, "--dry_run", **splice_flags(toy))
    printed = capsys.readouterr().out
    assert "M = at most 6" in printed and f"{4 * 6 * 500 / 1000:.1f} kB of activations" in printed


def test_splice_refuses_what_is_not_clips(toy):
    assert "textual_emb_extractor" in refusal(script, toy, **splice_flags(toy, train_pt=toy / "train.pt",
                                                                          val_pt=toy / "val.pt"))
    save_clip(toy)  # images of any length
    assert "length 1" in refusal(script, toy, **splice_flags(toy))
    save_unit_clip(toy)
    assert "--model_name clip" in refusal(script, toy, **splice_flags(toy, train_pt=toy / "train.pt",
                                                                      val_pt=toy / "val.pt"))
    for changes, words in (({"num_concepts": 7}, "6 words"), ({"penalty": 0}, "--penalty 0"),
                           ({"penalty": "inf"}, "--penalty inf")):
        assert words in refusal(script, toy, **splice_flags(toy, **changes))
    with pytest.raises(UserError, match="D = 6 and the representations D = 5"):
        dictionaries.splice(WORDS, torch.eye(6), torch.eye(5))


def test_splice_on_the_files_of_the_textual_script(tmp_path, monkeypatch):
    """From images and words through a tiny CLIP: `--model_name clip` finds CLIP's own folder."""
    textual.images_below(tmp_path / "data")
    (tmp_path / "toy.yaml").write_text(f"name: toy\nroot: {tmp_path}/data\n")
    (tmp_path / "words.txt").write_text("red\nblue tail\nround\n")
    textual.run(tmp_path, make_clip(tmp_path, "tiny-splice"))
    rows = ledger(run(script, tmp_path, ratios="0,0.5", **splice_flags(
        tmp_path / "embs" / "clip", dataset="toy", concept_set=tmp_path / "words.txt",
        clip_name=tmp_path / "tiny-splice.json", penalty=0.05)))
    assert {row["bank_size"] for row in rows} == {None, 3} and rows[0]["clip"] == "tiny-splice"
    assert predictors(tmp_path / "out")[1]["concepts"]["all"] == [["red"], ["blue tail"], ["round"]]
