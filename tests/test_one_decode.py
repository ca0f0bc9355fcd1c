"""The benchmark of one decode for several backbones, at toy size: it compares the files itself."""

import json

from bench import one_decode


def test_at_toy_size(tmp_path):
    out = one_decode.main(one_decode.parser().settings(
        ["--pairs", "1", "--images", "4", "--models", "resnet20,resnet32", "--out", str(tmp_path / "x.json")]))
    written = json.loads(out.read_text())
    assert written["results"][one_decode.RESULT]["ratio"] > 0 and written["note"].startswith("2 backbones")
