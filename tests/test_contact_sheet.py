"""The contact sheet: which images, and where they lie."""

import pytest
from PIL import Image

from extractor import patch_extractor
from iis.cli import parse
from iis.runtime import UserError
from reproduction import contact_sheet
from reproduction.lib.sweeps import call_script


def test_rows_over_the_classes_source_first(tmp_path):
    colours = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}
    for name, colour in colours.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (40, 20), colour).save(tmp_path / "data" / name / "x.png")
    elements, out = tmp_path / "elements", tmp_path / "sheet.png"
    flags = ["--data_root", tmp_path / "data", "--elements", elements, "--out", out, "--rows", 2, "--tile", 20]
    settings = parse(contact_sheet.Settings, list(map(str, flags)))
    with pytest.raises(UserError, match="was not made by stage 1"):
        contact_sheet.main(settings)
    call_script(patch_extractor, {"data_root": tmp_path / "data", "save_root": elements, "format": "png", "workers": 1})
    contact_sheet.main(settings)
    sheet = Image.open(out)
    assert sheet.size == (17 * 24 + 16, 2 * 24 + 4)
    assert sheet.getpixel((14, 14)) == colours["a"] and sheet.getpixel((14, 38)) == colours["b"]
    assert sheet.getpixel((14, 5)) == (255, 255, 255)  # 40 x 20 is fitted as 20 x 10
    assert sheet.getpixel((24 + 12 + 1, 5)) == colours["a"]  # a square patch fills its tile
