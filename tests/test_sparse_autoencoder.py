"""Sparse autoencoders: what they find, their controls, and the encoder route from training to stored predictors."""

import pytest
import torch
from bank_runs import ledger, predictors, refusal, run
from conftest import clusters
from scipy.optimize import linear_sum_assignment

import iis
from iis.embedding_file import load_embeddings
from iis.names import slug
from iis.runtime import UserError
from IP_training import IP_SAE_training, banks, sparse_autoencoder
from IP_training.banks import Seed, unit_rows
from IP_training.encoder import Encoder
from IP_training.predictor import fit_normaliser, interpret
from IP_training.sparse_autoencoder import SAERecipe, fit, sae
from reproduction.lib import sweeps
from reproduction.lib.explanation import load_predictor
from reproduction.lib.points import groups
from reproduction.lib.runs import Source, find_runs

CPU, M, K = torch.device("cpu"), 16, 3
GENERATOR = torch.Generator().manual_seed(1)
TRUE_MD = unit_rows(torch.randn(M, 32, generator=GENERATOR))
CODES_NM = torch.zeros(2000, M).scatter(1, torch.rand(2000, M, generator=GENERATOR).topk(K).indices,
                                        0.5 + torch.rand(2000, K, generator=GENERATOR))
X_ND = CODES_NM @ TRUE_MD + 5  # the mean is no concept
SHORT = {"n_epoch": 2, "learning_rates": "0.01", "sae_steps": 50}


def trained(rule="topk", control="none", steps=800, seed=0):
    return fit(X_ND, torch.arange(len(X_ND)), M, SAERecipe(rule=rule, control=control, steps=steps), K, seed, CPU)


def matched(decoder_MD):
    """Cosine of every true concept with the one that the assignment gives it."""
    cosine = (TRUE_MD @ decoder_MD.T).numpy()
    return cosine[linear_sum_assignment(-cosine)]


def test_topk_recovers_a_known_dictionary_and_its_codes():
    decoder_MD, encoder = trained(seed=1)  # other starts may end with a concept or two that are none
    assert matched(decoder_MD).min() > 0.95
    torch.testing.assert_close(decoder_MD.norm(dim=1), torch.ones(M))
    codes = encoder(X_ND)
    assert (codes >= 0).all() and ((codes > 0).sum(1) == K).float().mean() > 0.99 and (codes > 0).sum(1).max() == K
    order = linear_sum_assignment(-(TRUE_MD @ decoder_MD.T).numpy())[1]
    assert ((codes[:, order] > 0) == (CODES_NM > 0)).float().mean() > 0.97


def test_batchtopk_keeps_k_codes_on_average_and_uneven_numbers_of_them():
    decoder_MD, encoder = trained("batchtopk")
    count = (encoder(X_ND) > 0).sum(1).float()
    assert encoder.rule == "threshold" and count.mean() == pytest.approx(K, abs=0.15) and count.std() > 0.3
    assert matched(decoder_MD).mean() > 0.8


def test_controls_leave_one_part_as_it_was_and_random():
    for control, fixed in (("frozen_decoder", 0), ("frozen_encoder", 1)):
        few, many = ((decoder_MD, encoder.weight_MD) for decoder_MD, encoder in (
            trained(control=control, steps=steps) for steps in (1, 100)))
        assert torch.equal(few[fixed], many[fixed]) and not torch.equal(few[1 - fixed], many[1 - fixed])
        assert matched(many[fixed]).mean() < 0.6


def test_a_seed_gives_one_bank_and_another_seed_another():
    (one, encoder), (same, again), (other, _) = (trained(steps=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same) and encoder.fingerprint() == again.fingerprint() and not torch.equal(one, other)


def test_dead_concepts_learn_through_the_auxiliary_loss_alone(monkeypatch):
    """Where every concept counts as dead, the loss of the dead changes all; where none does, it changes none."""
    found = {}
    for after, weight in ((-1, 0.0), (-1, 1.0), (1000, 0.0), (1000, 1.0)):
        monkeypatch.setattr(sparse_autoencoder, "DEAD_AFTER", after)
        monkeypatch.setattr(sparse_autoencoder, "AUXILIARY", weight)
        found[after, weight] = trained(steps=5)[0]
    assert torch.equal(found[1000, 0.0], found[1000, 1.0])
    assert (found[-1, 0.0] != found[-1, 1.0]).any(1).all()


@pytest.mark.parametrize("images", [False, True])
def test_evidence_are_the_examples_with_the_largest_codes(images, monkeypatch):
    """Of the rows that a seed may use, here the first 150 under --holdout."""
    monkeypatch.setattr(sparse_autoencoder, "CHUNK", 64)
    examples = clusters(300, "train")
    rows = torch.arange(150) if images else torch.arange(300)
    seed = Seed(0, 0, (torch.arange(150), torch.arange(150, 300)))
    bank = sae(examples, 8, SAERecipe(k=2, steps=30), "encoder", images)(seed)
    codes_NM = bank.encoder(examples.features_ND[rows])
    for m, paths in enumerate(bank.evidence):
        best = sorted(((code, -row) for row, code in enumerate(codes_NM[:, m].tolist()) if code > 0), reverse=True)[:9]
        assert paths == [examples.image_paths[-row] for _, row in best]
    assert bank.blocks == (("scale", 8),) and len(bank) == 8 and bank.empty == 0


def test_a_code_of_zero_stays_zero_and_columns_have_a_mean_square_of_one():
    encoder = Encoder(torch.eye(4), "topk", torch.tensor([0.0, 0.5, 0.0, -9.0]), torch.full((4,), 0.25), scale=2.0, k=2)
    h = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    u = (h - 0.25) / 2 + encoder.bias_M
    codes = torch.tensor([[v if v > 0 and v in sorted(row)[-2:] else 0.0 for v in row] for row in u.tolist()])
    torch.testing.assert_close(encoder(h), codes)
    normaliser = fit_normaliser([("scale", 4)], h, encoder, torch.arange(40), chunk=7)
    rms = codes[:40].square().mean(0).sqrt()
    torch.testing.assert_close(normaliser.std_M, torch.where(rms > 0, rms, 1.0))  # the last is never on
    assert not normaliser.mean_M.any() and not normaliser.learned_M.any()
    z = interpret(h, encoder, normaliser, chunk=7)
    assert torch.equal(z == 0, codes == 0)
    torch.testing.assert_close(z, codes / normaliser.std_M)
    for rule, expected in (("relu", u.relu()), ("threshold", u * (u > 0.3))):
        other = Encoder(torch.eye(4), rule, encoder.bias_M, encoder.centre_D, torch.full((4,), 0.3), 2.0)
        torch.testing.assert_close(other(h), expected)


@pytest.mark.parametrize("changes", [{}, {"sae_rule": "batchtopk", "learned_on": "images", "holdout": 0.2}])
def test_the_encoder_route_is_stored_and_read_back(toy, changes):
    folder = run(IP_SAE_training, toy, num_concepts=16, sae_k=3, route="encoder", **SHORT, **changes)
    val, rows = load_embeddings(toy / "val.pt"), ledger(folder)
    tensors, described = predictors(folder)
    assert described["blocks"]["all"] == [["scale", 16]]
    assert described["encoders"]["all"]["rule"] == ("threshold" if changes else "topk")
    assert torch.equal(tensors["0.5/scale"], torch.ones(16)) and not tensors["0.5/shift"].any()
    [found] = find_runs(Source(model_root=[folder]), draws=2)
    bank = found.bank(0)
    codes = bank.encoder(load_embeddings(toy / "train.pt").features_ND)
    measured = {row["nonzero_codes"] for row in rows if row["ratio"] >= 0}
    assert len(measured) == 1 and measured.pop() == pytest.approx(float((codes > 0).sum(1).float().mean()), abs=1e-3)
    for ratio in (0.0, 0.5):
        predictor = load_predictor(folder, 0, ratio)
        x = predictor.interpretations(val.features_ND)
        expected = bank.encoder(val.features_ND) / tensors["std"]
        kept = torch.zeros_like(expected).scatter(1, expected.topk(predictor.kept).indices, 1.0)
        torch.testing.assert_close(x, expected * kept)
        right = (predictor.logits(x).argmax(1) == val.labels_N).double().mean()
        assert float(right) == pytest.approx(predictor.top1, abs=0.0051)


def test_settings_share_no_folder_and_titles_differ(toy):
    folders, same = [], {"save_root": toy / "root", "num_concepts": 16, **SHORT}
    for changes in ({}, {"sae_k": 5}, {"sae_rule": "batchtopk"}, {"route": "encoder"}, {"learned_on": "images"},
                    {"sae_control": "frozen_decoder"}, {"sae_control": "frozen_encoder"}, {"sae_steps": 40}):
        folders.append(run(IP_SAE_training, toy, None, **{**same, **changes}))
    assert len(set(folders)) == 8 and all(slug(folder.name) == folder.name for folder in folders)
    runs = find_runs(Source(model_root=[toy / "root"]), draws=2)
    assert len(groups(runs)) == 8


def test_from_python_it_is_beside_the_others():
    train, val = clusters(300, "train"), clusters(200, "val")
    for examples, images in ((clusters(80, "elements"), False), (train, True)):
        make = iis.banks.sae(examples, 8, iis.banks.SAERecipe(k=2, steps=20), "encoder", images)
        result = iis.score(train.features_ND, train.labels_N, val.features_ND, val.labels_N, bank=make, seeds=1,
                           epochs=2, batch_size=64, holdout=0.2, draws=10, show_progress=False)
        assert (result.summary["bank"], result.summary["num_concepts"]) == ("SAE", 8)
        assert 0 < result.rows[-1]["nonzero_codes"] <= 2
    for wrong in (lambda: SAERecipe(rule="top"), lambda: SAERecipe(control="frozen"), lambda: SAERecipe(steps=0),
                  lambda: sae(train, 8, route="codes"), lambda: sae(train, 0)):
        with pytest.raises(UserError):
            wrong()


def test_numbers_that_do_not_fit(toy):
    assert "outside 1 to 16" in refusal(IP_SAE_training, toy, num_concepts=16, sae_k=17)
    assert "invalid choice: 'gated'" in refusal(IP_SAE_training, toy, sae_rule="gated")
    encoded = sae(clusters(80, "elements"), 8, SAERecipe(steps=5), "encoder")
    with pytest.raises(UserError, match="without an encoder"):
        banks.combined([encoded, banks.random(4, 12)])(Seed(0, 0))


def test_a_sweep_reaches_both_routes(tmp_path):
    (tmp_path / "sweep.yaml").write_text("datasets: [toy]\nmodels: [toy]\nbanks: [SAE, {bank: SAE, route: encoder}, "
                                         "{bank: SAE, learned_on: images, sae_control: frozen_decoder}]")
    cells, *stages = sweeps.read_sweep(tmp_path / "sweep.yaml")
    sweeps.check_settings("toy", cells, *stages)
    assert [cell["flags"].get("route") for cell in cells] == [None, "encoder", None]
    assert [sweeps.of_elements(cell) for cell in cells] == [True, True, False]
    with pytest.raises(UserError, match="router"):
        sweeps.check_settings("toy", [{**cells[0], "flags": {"router": "encoder"}}], *stages)
