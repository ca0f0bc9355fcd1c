"""docs/notebook.ipynb: its cells run as they stand, on fewer images, and its stored outputs are those of such a run."""

import json

from conftest import ROOT


def test_the_notebook_runs(monkeypatch, tmp_path):
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] and cell["outputs"] for cell in cells[3:] if cell["cell_type"] == "code")
    monkeypatch.chdir(ROOT / "docs")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    names: dict = {}
    for source in code:
        exec(source.replace("800", "160").replace("400", "80").replace('"epochs": 20', '"epochs": 2'), names)
    assert names["x_train"].shape == (160, 64) and names["x_val"].shape == (80, 64)
    for name in ("control", "result", "own"):
        assert 0 < names[name].iis < 3 and len(names[name].frame()) == 9
    assert names["result"].plot()._repr_png_().startswith(b"\x89PNG")
    assert not list((ROOT / "docs").glob("*.json"))
