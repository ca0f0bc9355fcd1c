"""Checkpoints of every shape are read, what does not fit is named, and nothing in a file is executed."""

import hashlib
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from iis.runtime import UserError
from iis.weights import checkpoint_file, fit, published_state, read_checkpoint, weights_hash


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def prefixed(state):
    return {f"module.{name}": value for name, value in state.items()}


def without_counts(state):
    return {name: value for name, value in state.items() if "num_batches" not in name}


@pytest.mark.parametrize("form", ["zip", "before zip", "safetensors"])
@pytest.mark.parametrize("shape", [dict, prefixed, without_counts, lambda state: {"state_dict": state, "epoch": 3},
                                   lambda state: {"model": prefixed(state)}])
def test_every_shape_of_checkpoint_gives_the_same_weights(tmp_path, shape, form):
    data, file = shape(model().state_dict()), tmp_path / "a.th"
    if form == "safetensors" and all(map(torch.is_tensor, data.values())):
        save_file(data, file := tmp_path / "a.safetensors")
    else:
        torch.save(data, file, _use_new_zipfile_serialization=form == "zip")
    other = model(seed=1)
    other[1].num_batches_tracked += 5  # moves no hash
    assert weights_hash(other) != weights_hash(model())
    fit(other, read_checkpoint(file), "a")
    assert weights_hash(other) == weights_hash(model())
    with torch.no_grad():
        other[3].bias[0] += 1e-7
    assert weights_hash(other) != weights_hash(model())


def test_half_precision_is_loaded_as_float32_with_a_line(capsys):
    other = model(seed=1)
    fit(other, {name: value.half() if value.is_floating_point() else value
                for name, value in model().state_dict().items()}, "half.pth")
    assert "half.pth is in half precision" in capsys.readouterr().err
    assert torch.equal(other[0].weight, model()[0].weight.half().float())


def test_what_does_not_fit_is_named_and_counted():
    state, untouched = model().state_dict(), weights_hash(model())
    with pytest.raises(UserError, match=r"it does not fit .* 1 key of another shape \(3.bias \(5,\) for \(2,\)\)"):
        fit(other := model(), {**state, "3.bias": torch.zeros(5)}, "it")
    assert weights_hash(other) == untouched
    for name in ("3.weight", "3.bias"):
        del state[name]
    with pytest.raises(UserError, match=r"2 keys missing \(3.weight, 3.bias\); 4 keys unexpected \(a, b, c, …\)"):
        fit(model(), {**state, **dict.fromkeys("abcd", torch.zeros(1))}, "it")


def test_the_first_densenets_names_are_todays():
    net = nn.ModuleDict({"denselayer1": nn.ModuleDict({"norm1": nn.BatchNorm2d(2)})})
    fit(net, {f"denselayer1.norm.1.{name}": torch.full((2,), 7.0)
              for name in ("weight", "bias", "running_mean", "running_var")}, "it")
    assert net["denselayer1"]["norm1"].running_var.tolist() == [7, 7]


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_one_sentence_and_nothing_in_them_is_executed(tmp_path):
    evil = Evil()
    evil.place = tmp_path / "hacked"
    torch.save({"state_dict": model().state_dict(), "args": evil}, tmp_path / "evil.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(evil, protocol=2))
    torch.save([1, 2], tmp_path / "list.pth")
    for zipped in (True, False):
        torch.save(model().state_dict(), tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
        (tmp_path / f"cut{zipped}.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:900])
    (tmp_path / "junk.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "junk.pth").write_bytes(b"hello world")
    (tmp_path / "new.pth").write_bytes(pickle.dumps([1], protocol=5))
    for name, sentence in {"evil.pth": "evil.pth holds more than tensors", "pickle.pth": "more than tensors",
                           "list.pth": "list.pth holds no state dict", "cutTrue.pth": r"is truncated.*\(900 bytes",
                           "cutFalse.pth": r"is truncated.*\(900 bytes", "junk.pth": r"is truncated.*\(11 bytes",
                           "junk.safetensors": r"is truncated.*\(40 bytes",
                           "new.pth": "no pickle of tensors"}.items():
        with pytest.raises(UserError, match=sentence) as error:
            read_checkpoint(tmp_path / name)
        assert "weights_only" not in str(error.value)  # torch's advice, to switch safety off, is not handed on
    assert not evil.place.exists()


def test_a_file_under_a_published_name_is_used_with_a_line(tmp_path, capsys):
    torch.save(model().state_dict(), tmp_path / "net.pth")
    right = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()[:8]
    read_checkpoint((tmp_path / "net.pth").rename(tmp_path / f"net-{right}.pth"))
    assert capsys.readouterr().err == ""
    read_checkpoint((tmp_path / f"net-{right}.pth").rename(tmp_path / "net-01234567.pth"))
    assert f"its sha256 starts with {right}, its name says 01234567" in capsys.readouterr().err


def test_tags_and_files_are_told_apart(tmp_path):
    (tmp_path / "a.th").touch()
    assert checkpoint_file(str(tmp_path / "a.th")) == tmp_path / "a.th"
    assert checkpoint_file("README.md/../README.md").name == "README.md"  # of the repository
    assert [checkpoint_file(tag) for tag in (None, "IMAGENET1K_V1", "none", "as built")] == [None] * 4
    with pytest.raises(UserError, match="no checkpoint missing.th"):
        checkpoint_file("missing.th")


def test_failed_download_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    class Entry:
        url = "https://example.org/net-01234567.pth"

        def get_state_dict(self, **arguments):
            assert arguments["weights_only"] and arguments["check_hash"]
            raise OSError("no network")

    with pytest.raises(UserError, match="no network.*put https://example.org/net-01234567.pth into .*hub/checkpoints"):
        published_state(Entry())
