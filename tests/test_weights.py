"""Checkpoints of every shape are read, what does not fit is named, and nothing in a file is executed."""

import hashlib
import pickle

import pytest
import torch
from torch import nn

from iis.runtime import UserError
from iis.weights import checkpoint_file, fit, published_state, read_checkpoint, weights_hash


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def prefixed(state):
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("shape", [lambda s: s, prefixed, lambda s: {"state_dict": s, "epoch": 3},
                                   lambda s: {"model": prefixed(s)}])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_shape_of_checkpoint_gives_the_same_weights(tmp_path, shape, zipped):
    file = tmp_path / "a.th"
    torch.save(shape(model().state_dict()), file, _use_new_zipfile_serialization=zipped)
    other = model(seed=1)
    assert weights_hash(other) != weights_hash(model())
    fit(other, read_checkpoint(file), "a.th")
    assert weights_hash(other) == weights_hash(model())


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file(model().state_dict(), tmp_path / "a.safetensors")
    other = model(seed=1)
    fit(other, read_checkpoint(tmp_path / "a.safetensors"), "a")
    assert weights_hash(other) == weights_hash(model())


def test_num_batches_tracked_may_be_absent_and_moves_no_hash():
    state = {name: value for name, value in model().state_dict().items() if "num_batches" not in name}
    other = model(seed=1)
    other[1].num_batches_tracked += 5
    fit(other, state, "old")
    assert weights_hash(other) == weights_hash(model())


def test_hash_sees_one_changed_bit():
    other = model()
    with torch.no_grad():
        other[3].bias[0] += 1e-7
    assert weights_hash(other) != weights_hash(model())


def test_half_precision_is_loaded_as_float32_and_said(capsys):
    other = model(seed=1)
    fit(other, {name: value.half() if value.is_floating_point() else value
                for name, value in model().state_dict().items()}, "half.pth")
    assert "half precision" in capsys.readouterr().err
    assert other[0].weight.dtype == torch.float32
    assert torch.equal(other[0].weight, model()[0].weight.half().float())


def test_what_does_not_fit_is_named_and_counted():
    state = model().state_dict()
    del state["3.weight"], state["3.bias"]
    state["extra"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"2 keys missing \(3.weight, 3.bias\); 1 key unexpected \(extra\)"):
        fit(model(), state, "it")
    with pytest.raises(UserError, match=r"1 key of another shape \(3.bias \(5,\) for \(2,\)\)"):
        fit(model(), {**model().state_dict(), "3.bias": torch.zeros(5)}, "it")


def test_truncated_file_says_what_it_is(tmp_path):
    for zipped in (True, False):
        whole = tmp_path / "whole.pth"
        torch.save(model().state_dict(), whole, _use_new_zipfile_serialization=zipped)
        (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:900])
        with pytest.raises(UserError, match=r"cut.pth is truncated or no checkpoint \(900 bytes"):
            read_checkpoint(tmp_path / "cut.pth")


class Evil:
    def __reduce__(self):
        import os

        return os.mkdir, (str(self.place),)


def test_nothing_in_a_file_is_executed(tmp_path):
    evil = Evil()
    evil.place = tmp_path / "hacked"
    torch.save({"state_dict": model().state_dict(), "args": evil}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="more than tensors"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not evil.place.exists()
    (tmp_path / "old.pth").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "old.pth")
    assert not evil.place.exists()


def test_a_file_under_a_published_name_is_used_and_said(tmp_path, capsys):
    torch.save(model().state_dict(), tmp_path / "net.pth")
    right = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()[:8]
    (tmp_path / "net.pth").rename(tmp_path / f"net-{right}.pth")
    read_checkpoint(tmp_path / f"net-{right}.pth")
    assert capsys.readouterr().err == ""
    (tmp_path / f"net-{right}.pth").rename(tmp_path / "net-01234567.pth")
    read_checkpoint(tmp_path / "net-01234567.pth")
    assert f"starts with {right}" in capsys.readouterr().err


def test_no_state_dict(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="no state dict"):
        read_checkpoint(tmp_path / "list.pth")


def test_tags_and_files_are_told_apart(tmp_path):
    assert checkpoint_file("IMAGENET1K_V1") is None
    assert checkpoint_file("none") is None
    (tmp_path / "a.th").touch()
    assert checkpoint_file(str(tmp_path / "a.th")) == tmp_path / "a.th"
    with pytest.raises(UserError, match="no checkpoint missing.th"):
        checkpoint_file("missing.th")


def test_failed_download_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    class Entry:
        url = "https://example.org/net-01234567.pth"

        def get_state_dict(self, **arguments):
            assert arguments["weights_only"] and arguments["check_hash"]
            raise OSError("no network")

    with pytest.raises(UserError, match="put https://example.org/net-01234567.pth into .*hub/checkpoints"):
        published_state(Entry())
