"""Dictionaries made elsewhere: the names and shapes of releases, their encoders, names in JSON, and what is refused."""

import json

import numpy as np
import pytest
import torch
from bank_runs import ledger, predictors, refusal, run
from conftest import clusters
from safetensors.torch import save_file

from iis.runtime import UserError
from IP_training import IP_Bank_training
from IP_training.banks import unit_rows
from IP_training.dictionary_file import from_file, read_names
from reproduction.lib.explanation import load_predictor

GENERATOR = torch.Generator().manual_seed(0)
M, D = 6, 12
DECODER, ENCODER = torch.randn(M, D, generator=GENERATOR), torch.randn(M, D, generator=GENERATOR)
BIAS, CENTRE = torch.randn(M, generator=GENERATOR), torch.randn(D, generator=GENERATOR)
H = clusters(40, "train").features_ND
U = (H - CENTRE) @ ENCODER.T + BIAS
SHORT = {"num_concepts": None, "concept_path": None, "ratios": "0,0.5", "n_epoch": 1}


def dictionary(folder, name="sae.safetensors", **tensors):
    tensors = {key.replace("__", "."): value.contiguous() for key, value in tensors.items()}
    (save_file if name.endswith("safetensors") else torch.save)(tensors, folder / name)
    return folder / name


SAELENS = {"W_dec": DECODER, "W_enc": ENCODER.T, "b_enc": BIAS, "b_dec": CENTRE}
LAYERS = {"decoder__weight": DECODER.T, "encoder__weight": ENCODER, "encoder__bias": BIAS, "b_dec": CENTRE}
OPENAI = {"decoder__weight": DECODER.T, "encoder__weight": ENCODER, "latent_bias": BIAS, "pre_bias": CENTRE}


@pytest.mark.parametrize("name", ["sae.safetensors", "sae.pt"])
@pytest.mark.parametrize("tensors", [SAELENS, LAYERS, OPENAI])
def test_the_names_that_releases_use(tmp_path, tensors, name):
    file = dictionary(tmp_path, name, **tensors)
    bank = from_file(file, D)
    assert torch.equal(bank.vectors_MD, unit_rows(DECODER)) and not bank.encoder.sparse
    assert bank.blocks == (("layer", M),)
    coded = from_file(file, D, route="encoder")
    torch.testing.assert_close(coded.encoder(H), U.relu())
    assert coded.blocks == (("scale", M),) and torch.equal(coded.vectors_MD, bank.vectors_MD)
    top = from_file(file, D, route="encoder", k=2).encoder(H)
    torch.testing.assert_close(top, U.relu() * (U >= U.sort(1).values[:, -2:-1]))


def test_k_and_thresholds_of_a_file(tmp_path):
    file = dictionary(tmp_path, **SAELENS, k=torch.tensor(3))
    assert ((from_file(file, D, route="encoder").encoder(H) > 0).sum(1) <= 3).all()
    file = dictionary(tmp_path, **SAELENS, k=torch.tensor(3), threshold=torch.tensor(0.7))
    torch.testing.assert_close(from_file(file, D, route="encoder").encoder(H), U * (U > 0.7))
    file = dictionary(tmp_path, **SAELENS, k=torch.tensor(3), threshold=torch.tensor(-1.0))  # not known yet
    assert from_file(file, D, route="encoder").encoder.rule == "topk"


def test_plain_numbers_and_sparse_tensors_of_a_file(tmp_path):
    """2**64 - 1, such as a seed, is beyond the integers of a tensor."""
    file = dictionary(tmp_path, "sae.pt", **SAELENS)
    torch.save({**SAELENS, "W_dec": DECODER.to_sparse(), "k": 2, "seed": 2**64 - 1, "lr": 0.1}, file)
    bank = from_file(file, D, route="encoder")
    assert torch.equal(bank.vectors_MD, unit_rows(DECODER)) and bank.encoder.k == 2
    torch.save(DECODER.to_sparse(), file)
    assert torch.equal(from_file(file, D).vectors_MD, unit_rows(DECODER))


def test_a_square_matrix_is_turned_by_its_name_alone(tmp_path):
    square = torch.randn(D, D, generator=GENERATOR)
    for name, expected in (("W_dec", square), ("decoder__weight", square.T), ("dictionary", square)):
        file = dictionary(tmp_path, **{name: square, "b_dec": CENTRE})
        assert torch.equal(from_file(file, D).vectors_MD, unit_rows(expected))


def test_names_of_concepts(tmp_path):
    file = dictionary(tmp_path, **SAELENS)
    (tmp_path / "list.json").write_text(json.dumps(["a", "b", "c", "d", "e", "f"]))
    (tmp_path / "some.json").write_text(json.dumps({"1": "wheel", "5": "fur"}))
    assert from_file(file, D, tmp_path / "list.json").evidence[2] == ["c"]
    assert from_file(file, D, tmp_path / "some.json").evidence[:2] == [["concept 0"], ["wheel"]]
    for content, words in (('{"6": "beyond"}', "concept 6"), ('["a"]', "1 names for the 6"),
                           ('{"a": "b"}', "neither a list"), ('"a"', "neither a list")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UserError, match=words):
            from_file(file, D, tmp_path / "bad.json")
    with pytest.raises(UserError, match="damaged|read"):
        (tmp_path / "bad.json").write_text("{")
        read_names(tmp_path / "bad.json")
    (tmp_path / "names.txt").write_bytes("café\n".encode("latin-1"))
    with pytest.raises(UserError, match="names.txt is no text in UTF-8"):
        read_names(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("\ufeffwheel\n\n fur \n", encoding="utf-8")  # as Windows writes it
    assert read_names(tmp_path / "names.txt") == ["wheel", "fur"]


@pytest.mark.parametrize("tensors, route, words", [
    ({"a": DECODER, "b": CENTRE}, "decoder", "several tensors .a 6x12, b 12."),
    ({"W_dec": DECODER, "b_dec": CENTRE}, "encoder", "W_dec 6x12, b_dec 12. has no encoder"),
    ({"anything": DECODER}, "encoder", "one matrix and no encoder"),
    ({"W_dec": DECODER[:, :5]}, "decoder", "D = 5"),
    ({**SAELENS, "W_enc": ENCODER.T[:, :4]}, "encoder", "weight does not fit"),
    ({**SAELENS, "b_enc": BIAS[:3]}, "encoder", "bias does not fit"),
    ({**SAELENS, "b_dec": CENTRE[:3]}, "encoder", "centre does not fit"),
    ({**SAELENS, "threshold": BIAS.abs()[:3]}, "encoder", "threshold does not fit"),
    ({**SAELENS, "b_enc": BIAS / 0}, "encoder", "not finite"),
    ({**SAELENS, "threshold": BIAS / 0 * 0}, "encoder", "threshold .* not finite"),
    ({**SAELENS, "k": torch.tensor(7)}, "encoder", "k = 7 of 6"),
    ({**SAELENS, "k": torch.tensor(2.5)}, "encoder", "k = 2.5 codes, .* --sae_k"),
    ({**SAELENS, "k": torch.tensor(torch.nan)}, "encoder", "k = nan codes"),
    ({**SAELENS, "W_dec": DECODER + 1j}, "decoder", "complex64; one matrix of M x D real")])
def test_files_that_are_unclear_are_refused_in_one_sentence(tmp_path, tensors, route, words):
    with pytest.raises(UserError, match=words) as error:
        from_file(dictionary(tmp_path, **tensors), D, route=route)
    assert "\n" not in str(error.value)


def test_the_encoder_of_a_file_through_the_script(toy):
    file, folders = dictionary(toy, **SAELENS), set()
    for changes in ({}, {"route": "encoder"}, {"route": "encoder", "sae_k": 2}):
        folder = run(IP_Bank_training, toy, None, bank=file, save_root=toy / "root", **{**SHORT, **changes})
        folders.add(folder)
        row = next(row for row in ledger(folder) if row["ratio"] == 0)
        assert ("nonzero_codes" in row) == bool(changes) and row["num_concepts"] == M
    assert len(folders) == 3 and row["nonzero_codes"] <= 2
    assert predictors(folder)[1]["encoders"]["all"] == {"rule": "topk", "scale": 1.0, "k": 2}
    x = load_predictor(folder, 0, 0.0).interpretations(H)
    assert torch.equal(x == 0, ~(U.relu() * (U >= U.sort(1).values[:, -2:-1]) > 0))


def test_flags_that_need_an_encoder(toy):
    np.save(toy / "bank.npy", np.eye(D))
    assert "no encoder" in refusal(IP_Bank_training, toy, bank=toy / "bank.npy", route="encoder", num_concepts=None)
    assert "--bank FILE" in refusal(IP_Bank_training, toy, kind="Random", route="encoder")
    assert "--route encoder" in refusal(IP_Bank_training, toy, bank=toy / "bank.npy", sae_k=2)
