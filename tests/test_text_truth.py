"""AUROC of attribute words, by hand: aligned, anti-aligned, half-way, filtered away."""

import torch
from safetensors.torch import save_file

from iis.embedding_file import Embeddings
from iis.runtime import write_json
from reproduction.text_truth import attribute_auroc


def test_auroc_by_hand(tmp_path):
    # Pictures 0 and 1 are red, 0 and 2 are striped.
    features = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [0.0, 0.0]])
    val = Embeddings(features, torch.zeros(4, dtype=torch.int64), ["a"], [f"a/{row}.png" for row in range(4)])
    concepts = [["red", "striped"], ["red"], ["striped"], []]
    captions = {"attributes": {"colour": ["red", "blue"], "texture": ["striped"]},
                "images": {f"val/a/{row}.png": {"concepts": words} for row, words in enumerate(concepts)}}
    file = tmp_path / "seed_0"
    save_file({"bank": torch.tensor([[1.0, 0.0], [0.0, -1.0]])}, file.with_suffix(".safetensors"))
    write_json(file.with_suffix(".json"), {"concepts": {"all": [["red"], ["striped"]]}})
    scores = attribute_auroc(file, val, captions)
    # red: 3 and 2 above 1 and 0. striped, anti-aligned: -1 and -3 against -2 and 0: one of four pairs in order.
    assert scores == {"red": 1.0, "blue": None, "striped": 0.25}
