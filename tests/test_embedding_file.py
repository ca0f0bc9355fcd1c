"""Embedding files and bare matrices: what is kept, what is refused, and which files belong together."""

import numpy as np
import pytest
import torch
from conftest import clusters
from safetensors.torch import save_file

from iis.embedding_file import (
    Embeddings,
    as_embeddings,
    check_same_space,
    content_hash,
    differing,
    load_embeddings,
    load_tensors,
    save_embeddings,
    save_tensors,
)
from iis.runtime import UserError


def test_a_file_gives_back_what_was_saved_and_runs_nothing(tmp_path):
    made = clusters(30, "train")
    made.record = {"data root": "/somewhere", "seconds": 1.5}
    save_embeddings(tmp_path / "a.pkl", made)
    found = load_embeddings(tmp_path / "a.pkl")
    assert vars(found).keys() == vars(made).keys() and (len(found), found.width) == (30, 12)
    for name, value in vars(made).items():
        assert torch.equal(getattr(found, name), value) if torch.is_tensor(value) else getattr(found, name) == value
    plain = torch.load(tmp_path / "a.pkl", weights_only=True, mmap=True)
    assert plain["format"] == "iis-embeddings-1" and torch.equal(plain["features"], made.features_ND)
    with pytest.raises(UserError, match="30 rows of features, 29 labels and 30 paths"):
        made.labels_N = made.labels_N[1:]
        save_embeddings(tmp_path / "b.pkl", made)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pkl"]


def test_the_hash_sees_every_number_and_not_how_they_are_read():
    x, y = torch.randn(10, 3), torch.arange(10)
    usual = content_hash(x, y)
    assert usual == content_hash(x.T.contiguous().T, y.int(), rows=3) != content_hash(x, y.flip(0))
    assert len({usual, content_hash(x.view(5, 6), y), content_hash(x.double(), y), content_hash(x + 1e-6, y)}) == 4


def test_bare_matrices_in_every_form(tmp_path):
    x, y = torch.randn(4, 3, dtype=torch.float64), torch.tensor([2, 0, 2, 1])
    torch.save(x, tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", x.half().numpy())
    save_file({"any": x.float()}, tmp_path / "x.safetensors")
    np.save(tmp_path / "y.npy", y.numpy())
    torch.save(y[:, None].int(), tmp_path / "y.pt")
    (tmp_path / "y.txt").write_text("wolf\n\n cat\u2028b\nwolf \nfox\n", encoding="utf-8")  # a name may hold U+2028
    for end, kind in (("pt", torch.float32), ("npy", torch.float16), ("safetensors", torch.float32)):
        for labels, classes in (("y.pt", ["class 000", "class 001", "class 002"]), ("y.npy", None),
                                ("y.txt", ["cat\u2028b", "fox", "wolf"])):
            found = load_embeddings(tmp_path / f"x.{end}", tmp_path / labels)
            assert torch.equal(found.features_ND, x.to(kind)) and found.labels_N.tolist() == [2, 0, 2, 1]
            assert classes in (None, found.class_names) and found.image_paths[3] == "row 3"
            assert found.content_hash == content_hash(found.features_ND, y)


@pytest.mark.parametrize(("features", "labels", "sentence"), [
    (torch.eye(3), None, "there is no file .*y.pt"), (torch.eye(3), {"a": 1}, "y.pt holds no labels"),
    (torch.eye(3), torch.empty(0), "holds no labels"), (torch.eye(3), torch.zeros(2), r"3 rows .* shape \(2,\)"),
    (torch.zeros(3, 2, 2), torch.zeros(3), r"x.pt has shape \(3, 2, 2\)"),
    (torch.eye(3).int(), torch.zeros(3), "int32"), ({"x": torch.eye(3)}, torch.zeros(3), "neither an embedding file")])
def test_a_bare_matrix_that_cannot_be_used_is_one_sentence(tmp_path, features, labels, sentence):
    torch.save(features, tmp_path / "x.pt")
    if labels is not None:
        torch.save(labels, tmp_path / "y.pt")
    with pytest.raises(UserError, match=sentence):
        load_embeddings(tmp_path / "x.pt", tmp_path / "y.pt")


def test_labels_are_asked_for_and_tensors_are_kept(tmp_path):
    save_tensors(tmp_path / "two.safetensors", {"a": torch.eye(2).T[:, :1], "b": torch.zeros(1)}, {"made": "today"})
    assert load_tensors(tmp_path / "two.safetensors")["a"].tolist() == [[1], [0]]
    assert (tmp_path / "two.safetensors").stat().st_mode & 0o777 == 0o644
    torch.save(torch.eye(3), tmp_path / "x.pt")
    with pytest.raises(UserError, match="--train_labels, --val_labels"):
        load_embeddings(tmp_path / "x.pt")
    with pytest.raises(UserError, match="there is no file .*none.pt; run the stage"):
        load_tensors(tmp_path / "none.pt")


def test_elements_and_images_of_one_space_belong_together():
    elements, images = clusters(8, "elements"), clusters(9, "train")
    check_same_space(elements, images, "them")
    elements.provenance["weights"] = "a copy"  # another label of the same weights
    check_same_space(elements, images, "them")
    for key in ("model", "weights_hash", "node", "preprocessing", "precision"):
        other = clusters(8, "elements")
        other.provenance[key] = "another"
        with pytest.raises(UserError, match=f"them: elements and images differ in {key} .'another' and"):
            check_same_space(other, images, "them")
    with pytest.raises(UserError, match="5 and 12"):
        check_same_space(as_embeddings(np.eye(5)), images, "them")
    assert differing({"model": 1}, {"model": 1, "node": 2}, ("node", "model")) is None  # recorded by one side alone


@pytest.mark.parametrize("change", [lambda data: data.pop("labels"), lambda data: data["image_paths"].pop(),
                                    lambda data: data.update(labels=data["labels"][:4]),
                                    lambda data: data.update(features=data["features"][0])])
def test_parts_that_do_not_belong_together_are_refused(tmp_path, change):
    save_embeddings(tmp_path / "x.pt", Embeddings(torch.rand(5, 3), torch.arange(5), list("abcde"), list("vwxyz")))
    data = torch.load(tmp_path / "x.pt", weights_only=True)
    change(data)
    torch.save(data, tmp_path / "x.pt")
    with pytest.raises(UserError, match="embed again"):
        load_embeddings(tmp_path / "x.pt")
