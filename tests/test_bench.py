"""The benchmark runs at toy size and writes ratios; what they are is the machine's business."""

import json

from bench.heads import main, parser


def test_heads_at_toy_size(tmp_path):
    main(parser().settings(["--pairs", "1", "--batch_size", "8", "--num_concepts", "16", "--out",
                            str(tmp_path / "heads.json")]))
    written = json.loads((tmp_path / "heads.json").read_text())
    assert len(written["results"]) == 2 and all(result["ratio"] > 0 for result in written["results"].values())
