"""Fine-tuning: Eq. 8 against a computation by hand, the control against a plain loop, resume, refusals."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from iis.backbones import configured_backbone
from iis.cli import parse
from iis.datasets import folder_images
from iis.layers import HEAD_INPUT, Node
from iis.preprocessing import normalise
from iis.runtime import UserError, torch_rng
from IP_training import IP_Finetuning, finetune
from IP_training.finetune import augmented, chosen_images, held_out, losses
from IP_training.predictor import InterpretationHeads

NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(6, 2))
"""


@pytest.fixture
def world(tmp_path):
    """Two classes, red and blue, as 24 + 16 images and 6 elements of 12 pixels, and a net with its YAMLs."""
    rng = np.random.default_rng(0)
    for folder, count in (("data/train", 12), ("data/val", 8), ("elements", 3)):
        for label, name in enumerate(("blue", "red")):
            (tmp_path / folder / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 200, (12, 12, 3))
                pixels[..., 2 - 2 * label] += 55
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / name / f"{number:02d}.png")
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "net.yaml").write_text(f"model: {tmp_path}/net.py:net\nweights: none\nval_resize_size: 12\n"
                                       "val_crop_size: 12\n")
    (tmp_path / "toy.yaml").write_text(f"name: toy\nroot: {tmp_path}/data\n")
    return tmp_path


def flags(world, out="out", **changes):
    chosen = {"model_config": world / "net.yaml", "dataset": world / "toy.yaml", "data_path": world / "elements",
              "device": "cpu", "workers": 0, "epochs": 2, "batch_size": 10, "num_concepts": 4, "save_dir": world / out,
              **changes}
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def run(world, out="out", **changes):
    folder = IP_Finetuning.main(parse(IP_Finetuning.Settings, flags(world, out, **changes)))
    return json.loads((folder / "epochs.json").read_text()), torch.load(folder / "backbone.pth", weights_only=True)


@pytest.mark.parametrize("switches", [[], ["--tf32"]])
def test_full_float32_unless_tf32_is_asked_for_and_then_it_is_recorded(world, monkeypatch, switches):
    seen, function = set(), finetune.losses
    monkeypatch.setattr(finetune, "losses", lambda *args: (
        seen.add((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)), function(*args))[1])
    before = torch.backends.cudnn.allow_tf32
    folder = IP_Finetuning.main(parse(IP_Finetuning.Settings, [*flags(world, epochs=1), *switches]))
    assert seen == {(bool(switches),) * 2} and torch.backends.cudnn.allow_tf32 == before
    for name in ("manifest.json", "finetuning.json"):
        assert json.loads((folder / name).read_text()).get("tf32", False) == bool(switches)


def refusal(world, **changes):
    with pytest.raises(UserError) as error:
        run(world, "refused", **changes)
    return str(error.value)


@pytest.mark.parametrize("through", [True, False])
def test_gradient_of_eq_8_by_hand(through):
    """h = x Wᵀ (a net of one linear layer before its head): every gradient in closed form."""
    B, P, D, M, C, s = 5, 3 * 2 * 2, 4, 6, 3, 0.5
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(P, D, bias=False), nn.Linear(D, C)).double()
    predictor = InterpretationHeads([s], M, C, torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter += torch.randn_like(parameter)
    bank = F.normalize(torch.randn(M, D, dtype=torch.float64)).requires_grad_(False)
    x, y = torch.randn(B, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    dense, ip, dense_correct, ip_correct = losses(module, Node(HEAD_INPUT, "2"), predictor, bank, x, y, through)
    (dense + 0.7 * ip).backward()

    flat, W, V, b = (value.detach().numpy() for value in (x.flatten(1), module[1].weight, *module[2].parameters()))
    U, c, g, t = (value[0].detach().numpy() for value in (predictor.weight, predictor.bias, predictor.scale,
                                                          predictor.shift))
    A, onehot = bank.numpy(), np.eye(C)[y]
    h = flat @ W.T
    softmax = lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)  # noqa: E731
    a = h @ A.T
    deviation = np.sqrt(a.var(1, keepdims=True) + 1e-5)
    z = (a - a.mean(1, keepdims=True)) / deviation
    v = z * g + t
    keep = np.argsort(np.argsort(-np.abs(v), axis=1), axis=1) < M - int(M * s)
    p_dense, p_ip = softmax(h @ V.T + b), softmax((v * keep) @ U.T + c)
    assert dense.item() == pytest.approx(-np.log(p_dense[np.arange(B), y]).mean())
    assert ip.item() == pytest.approx(-np.log(p_ip[np.arange(B), y]).mean())
    assert dense_correct.tolist() == (p_dense.argmax(1) == y.numpy()).tolist()
    assert ip_correct.tolist() == (p_ip.argmax(1) == y.numpy()).tolist()
    d_dense, d_ip = (p_dense - onehot) / B, 0.7 * (p_ip - onehot) / B
    d_z = (d_ip @ U) * keep * g
    d_a = (d_z - d_z.mean(1, keepdims=True) - z * (d_z * z).mean(1, keepdims=True)) / deviation
    d_h = d_dense @ V + (d_a @ A if through else 0)
    assert module[1].weight.grad.numpy() == pytest.approx(d_h.T @ flat)
    assert module[2].weight.grad.numpy() == pytest.approx(d_dense.T @ h)
    assert predictor.weight.grad[0].numpy() == pytest.approx(d_ip.T @ (v * keep))
    assert predictor.scale.grad[0].numpy() == pytest.approx(((d_ip @ U) * keep * z).sum(0))
    assert not bank.requires_grad and bank.grad is None


@pytest.mark.parametrize(("objective", "decay"), [("dense", 0.0), ("weight_decay", 0.2)])
def test_the_controls_are_a_plain_loop(world, objective, decay):
    """Cross-entropy of the original head, SGD with momentum written out, half a cosine; no predictor anywhere."""
    log, state = run(world, objective=objective, weight_decay=0.2, learning_rate=0.1, shift=1)
    backbone = configured_backbone(str(world / "net.yaml"))
    net, images = backbone.module.requires_grad_(True), folder_images(world / "data/train", "toy", "train")
    pixels = torch.stack([torch.from_numpy(np.asarray(images.open(row)).copy()).permute(2, 0, 1)
                          for row in range(24)])
    labels, speed, step = torch.tensor(images.labels), {}, 0
    for epoch in range(2):
        order = torch.randperm(24, generator=torch_rng(0, "fine-tuning", epoch, "batch order"))
        generator = torch_rng(0, "fine-tuning", epoch, "augmentation")
        net.train()
        for batch in order.split(10):
            x = normalise(augmented(pixels[batch], 0.5, 1, generator), backbone.preprocessing)
            net.zero_grad()
            F.cross_entropy(net(x), labels[batch]).backward()
            rate = 0.1 * (1 + np.cos(np.pi * step / 6)) / 2
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    gradient = parameter.grad + decay * parameter
                    speed[name] = 0.9 * speed[name] + gradient if name in speed else gradient
                    parameter -= rate * speed[name]
            step += 1
    for name, value in net.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)
    val = folder_images(world / "data/val", "toy", "val")
    net.eval()
    x = torch.stack([torch.from_numpy(np.asarray(val.open(row)).copy()).permute(2, 0, 1) for row in range(16)])
    correct = net(normalise(x, backbone.preprocessing)).argmax(1) == torch.tensor(val.labels)
    assert log[-1]["dense_top1"] == pytest.approx(float(correct.float().mean()))


def test_the_progress_bar_is_closed_before_a_message(world, monkeypatch):
    bars, progress = [], finetune.progress
    monkeypatch.setattr(finetune, "progress", lambda *args, **more: bars.append(progress(*args, **more)) or bars[-1])
    said = refusal(world, learning_rate=1e30, ip_learning_rate=1e30)
    assert "choose another --save_dir and a smaller --learning_rate" in said and "\n" not in said
    assert bars[-1].unit == "step" and bars[-1].disable  # what tqdm is once closed


def test_objectives_share_all_but_the_gradient(world):
    (plain, plain_state), (told, told_state) = run(world, "a", objective="dense"), run(world, "b")
    assert plain[0] == told[0]  # the same backbone and the same fitted predictor
    assert any(not torch.equal(plain_state[name], told_state[name]) for name in plain_state)
    log, state = run(world, "c", interpretability_weight=0)
    assert all(torch.equal(state[name], plain_state[name]) for name in state)


def test_a_killed_run_goes_on_to_the_same_bits(world, monkeypatch):
    whole, state = run(world, "whole", epochs=3)
    write = IP_Finetuning.write_json

    def killed(file, data):
        write(file, data)
        if len(data) == 2:  # epochs 0 and 1 are in the log
            raise KeyboardInterrupt

    monkeypatch.setattr(IP_Finetuning, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run(world, "broken", epochs=3)
    monkeypatch.setattr(IP_Finetuning, "write_json", write)
    log, again = run(world, "broken", epochs=3)
    assert log == whole and all(torch.equal(again[name], state[name]) for name in state)
    assert not (world / "broken" / "state.pt").exists()


def test_from_disk_as_from_memory_and_done_is_done(world, capsys):
    (world / "data/train/red/03.png").write_bytes(b"no image")
    (log, state), (from_disk, other) = run(world, "a"), run(world, "b", cache_gb=0)
    assert "1 train images cannot be read and are left out" in capsys.readouterr().out
    assert [len(log), log[-1].keys()] == [3, from_disk[-1].keys()]
    (world / "data/train/red/03.png").unlink()
    (log, state), (from_disk, other) = run(world, "c"), run(world, "d", cache_gb=0)
    assert log == from_disk and all(torch.equal(state[name], other[name]) for name in state)
    loaded = configured_backbone(str(world / "net.yaml"), str(world / "c" / "backbone.pth"))  # what stage 2 takes
    assert all(torch.equal(loaded.module.state_dict()[name], value) for name, value in state.items())
    results, saved = json.loads((world / "c/finetuning.json").read_text()), load_file(world / "c/predictor.safetensors")
    assert results["before"] == log[0] and results["after"] == log[-1] and len(results["elements"]) == 4
    torch.testing.assert_close(saved["bank"].norm(dim=1), torch.ones(4))
    val = folder_images(world / "data/val", "toy", "val")  # the bank and predictor of the file give the log's accuracy
    x = torch.stack([torch.from_numpy(np.asarray(val.open(row)).copy()).permute(2, 0, 1) for row in range(16)])
    h = loaded.module[:5](normalise(x, loaded.preprocessing))
    v = F.layer_norm(h @ saved["bank"].T, (4,), saved["scale"], saved["shift"])
    correct = (v @ saved["weight"].T + saved["bias"]).argmax(1) == torch.tensor(val.labels)  # s = 0.1 of 4 keeps all
    assert log[-1]["ip_top1"] == pytest.approx(float(correct.float().mean()))
    run(world, "c")
    assert "done before" in capsys.readouterr().out


def test_augmentation_mirrors_and_moves():
    pixels = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    assert torch.equal(augmented(pixels, 0, 0, torch_rng(0)), pixels)
    many = pixels[:1].repeat(64, 1, 1, 1)
    mirrored = augmented(many, 0.5, 0, torch_rng(0))
    flipped = [torch.equal(one, many[0].flip(2)) for one in mirrored]
    assert 16 < sum(flipped) < 48
    assert all(flip or torch.equal(one, many[0]) for flip, one in zip(flipped, mirrored, strict=True))
    padded = F.pad(many[0], [1] * 4)
    windows = [padded[:, y:y + 4, x:x + 5] for y in range(3) for x in range(3)]
    moved = augmented(many, 0, 1, torch_rng(1))
    found = [[torch.equal(one, window) for window in windows].index(True) for one in moved]
    assert set(found) == set(range(9))


def test_chosen_images_are_balanced_and_seeded(world):
    images = folder_images(world / "data/train", "toy", "train")
    some = chosen_images(images, 7, 0)
    assert len(some) == 7 and abs(2 * sum(some.labels) - 7) == 1 and some.names == sorted(some.names)
    assert some.names == chosen_images(images, 7, 0).names != chosen_images(images, 7, 1).names
    assert chosen_images(images, 0, 0) is images is chosen_images(images, 99, 0)


def test_held_out_images_are_balanced_and_not_trained_on(world):
    images = folder_images(world / "data/train", "toy", "train")
    rest, held = held_out(images, 0.25, 0)
    assert len(held) == 6 and sum(held.labels) == 3 and sorted(rest.names + held.names) == sorted(images.names)
    assert held.names == held_out(images, 0.25, 0)[1].names != held_out(images, 0.25, 1)[1].names
    log, _ = run(world, holdout=0.25)
    results = json.loads((world / "out/finetuning.json").read_text())
    assert (results["n_train"], results["n_val"], results["holdout"]) == (18, 6, 0.25)
    backbone = configured_backbone(str(world / "net.yaml"))  # as it came: epoch 0
    x = torch.stack([torch.from_numpy(np.asarray(held.open(row)).copy()).permute(2, 0, 1) for row in range(6)])
    correct = backbone.module(normalise(x, backbone.preprocessing)).argmax(1) == torch.tensor(held.labels)
    assert log[0]["dense_top1"] == pytest.approx(float(correct.float().mean()))
    for row in range(6):  # other held-out images change what is measured, and nothing that is trained
        place = world / "data/train" / held.names[row]
        Image.fromarray(255 - np.asarray(held.open(row))).save(place)
    other, state = run(world, "other", holdout=0.25)
    before = torch.load(world / "out" / "backbone.pth", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert [one["train_dense_loss"] for one in other[1:]] == [one["train_dense_loss"] for one in log[1:]]
    assert other[0]["dense_loss"] != log[0]["dense_loss"]


@pytest.mark.parametrize(("changes", "words"), [
    ({"holdout": 1}, "--holdout 1 must be 0 or more"), ({"holdout": 0.01}, "--holdout 0.01 leaves 0 of 24"),
    ({"sparsity": 1}, "sparsity ratio 1 is outside"), ({"learning_rate": 0}, "--learning_rate 0 must be above 0"),
    ({"objective": "iis"}, "invalid choice: 'iis'"), ({"epochs": 0}, "0 is not a whole number above 0"),
    ({"interpretability_weight": -1}, "--interpretability_weight -1 must be 0 or more"),
    ({"data_path": "nowhere"}, "there are no visual elements at"),
    ({"model_config": "nonet"}, "there is no configuration nonet"),
    ({"mirror": 2}, "--mirror 2 must be a probability, from 0 to 1"), ({"lambda": 1}, "unknown argument --lambda")])
def test_bad_input_is_one_sentence(world, changes, words):
    said = refusal(world, **changes)
    assert words in said and "\n" not in said


def test_a_head_of_other_classes_is_replaced_by_a_fitted_one(world):
    (world / "net.py").write_text(NET.replace("Linear(6, 2)", "Linear(6, 15)"))
    log, weights = run(world)
    assert weights["5.weight"].shape == (2, 6)
    assert log[0]["dense_loss"] < np.log(2)  # an unfitted head of two classes has more
    assert json.loads((world / "out" / "finetuning.json").read_text())["new_head"] == 2
    backbone = configured_backbone(world / "net.yaml", str(world / "out" / "backbone.pth"))  # as stage 2 loads it
    assert backbone.num_classes == 2
    assert torch.equal(backbone.module.get_submodule(backbone.head).weight, weights["5.weight"])


def test_other_settings_are_refused(world):
    run(world)
    with pytest.raises(UserError, match="sparsity = 0.1, and this run has sparsity = 0.5"):
        run(world, sparsity=0.5)
    (world / "mine.yaml").write_text("epoch: 3\n")
    with pytest.raises(UserError, match="unknown key 'epoch'; did you mean epochs"):
        run(world, config_yaml=world / "mine.yaml")
