import pytest
import torch

from iis.embedding_file import load_embeddings
from iis.runtime import UserError


@pytest.mark.parametrize(("labels", "sentence"), [(None, "there is no file"), ({"a": 1}, "holds no labels"),
                                                  (torch.empty(0), "holds no labels")])
def test_labels_of_a_bare_matrix_that_cannot_be_used_are_one_sentence(tmp_path, labels, sentence):
    torch.save(torch.eye(3), tmp_path / "features.pt")
    if labels is not None:
        torch.save(labels, tmp_path / "labels.pt")
    with pytest.raises(UserError, match=sentence):
        load_embeddings(tmp_path / "features.pt", tmp_path / "labels.pt")
