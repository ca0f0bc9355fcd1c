"""Names of layers: the head's input in four families against the model without its head; pooling by hand."""

import pytest
import torch
from torch import nn

from iis.backbones import load_backbone
from iis.layers import HEAD_INPUT, Node, find_head, pool, represent, represent_all, resolve
from iis.runtime import UserError

# spellings of the head's input; an earlier layer, its width and its spatial axes; side of the images in pixels
FAMILIES = {
    "resnet18": (("fc", "layer4", "avgpool", "flatten", "head"), "layer3", 256, (2, 3), 64),
    "resnet20": (("linear", "layer3", "avgpool", "fc"), "layer2", 32, (2, 3), 32),
    "vit_b_16": (("heads.head", "heads", "encoder.ln", "encoder", "fc", "layer4"),
                 "encoder.layers.encoder_layer_3", 768, None, 224),
    "swin_t": (("head", "norm", "avgpool", "flatten", "permute", "fc"), "features.3", 192, (1, 2), 64),
    "convnext_tiny": (("classifier.2", "classifier", "classifier.1", "flatten", "fc"), "avgpool", 768, (2, 3), 64)}


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_of_a_family(name):
    spellings, layer, width, spatial, side = FAMILIES[name]
    backbone, images = load_backbone(name, "none"), torch.randn(2, 3, side, side)
    module, head = backbone.module, backbone.head
    nodes = {resolve(module, head, spelling, side) for spelling in spellings}
    assert [node.name for node in nodes] == [HEAD_INPUT]
    earlier, kept = resolve(module, head, layer, side), []
    assert earlier.name == layer
    hook = module.get_submodule(layer).register_forward_hook(lambda _, __, out: kept.append(out.clone()))
    with torch.no_grad():
        pooled = represent(module, earlier, images)
        hook.remove()
        found = represent(module, nodes.pop(), images)
        setattr(module.get_submodule(head.rpartition(".")[0]), head.rpartition(".")[2], nn.Identity())
        assert torch.equal(found, module(images))  # the model without its head
    assert found.shape == (2, backbone.width) and pooled.shape == (2, width)
    assert torch.equal(pooled, kept[0].mean(spatial) if spatial else kept[0][:, 0])


class Net(nn.Module):
    """Uses `linear` or not; `out` is the head, though not by registration."""

    def __init__(self, used):
        super().__init__()
        self.used, self.out, self.linear = used, nn.Linear(3, 2), nn.Linear(3, 3)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.out(torch.tanh(self.linear(x)) if self.used else x)  # never the identity


def test_what_a_name_means_in_a_model_of_your_own():
    assert resolve(Net(True), "out", "linear", 4).name == "linear"  # its own layer, though an alias elsewhere
    with pytest.raises(UserError, match="'linear' takes no part"):
        resolve(Net(False), "out", "linear", 4)
    with pytest.raises(UserError, match="no layer 'liner'; did you mean linear"):
        resolve(Net(True), "out", "liner", 4)
    wide = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(UserError, match=r"gives 5 axes \(2, 3, 1, 2, 2\)"):
        resolve(wide, "2", "0", 2)
    assert find_head(Net(True)) == "linear"  # the linear layer registered last
    net = Net(True)
    net.get_classifier = lambda: (net.out, net.linear)  # timm's distilled models name two
    assert find_head(net) == "out"


def test_a_layer_changed_in_place_afterwards_is_caught_as_it_came_out():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(5, 2))
    images = torch.randn(2, 3, 5, 5)  # as many pixels in a row as channels, which a convolution has second
    assert torch.equal(represent(net, resolve(net, "4", "0", 5), images), net[0](images).mean((2, 3)))


def test_tokens_are_averaged_where_there_is_no_class_token():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert pool(tokens, Node("x", "x")).tolist() == [[2.0, 4.0]]
    assert pool(tokens, Node("x", "x", class_token=True)).tolist() == [[1.0, 2.0]]
    assert pool(tokens, Node("x", "x", axis=1)).tolist() == [[1.5, 4.5]]


def test_gradients_reach_the_backbone():
    backbone = load_backbone("resnet20", "none")
    backbone.module.requires_grad_(True)
    represent(backbone.module, Node(HEAD_INPUT, "linear"), torch.randn(1, 3, 32, 32)).sum().backward()
    assert backbone.module.conv1.weight.grad.abs().sum() > 0


def test_layers_of_one_pass_are_those_of_a_pass_each_bit_for_bit():
    backbone, images, ran = load_backbone("resnet20", "none"), torch.randn(3, 3, 32, 32), []
    nodes = [resolve(backbone.module, backbone.head, layer, 32) for layer in ("layer1", "bn1", "fc", "layer2")]
    alone = [represent(backbone.module, node, images) for node in nodes]
    backbone.module.register_forward_hook(lambda *_: ran.append(1))
    found = represent_all(backbone.module, nodes, images)
    assert len(ran) == 1 and [len(one[0]) for one in found] == [16, 16, 64, 32]
    assert all(torch.equal(one, other) for one, other in zip(found, alone, strict=True))
    net = Net(False)
    with pytest.raises(UserError, match="'linear' takes no part"):
        represent_all(net, [Node(HEAD_INPUT, "out"), Node("linear", "linear")], torch.randn(1, 3, 4, 4))
    assert not net.out._forward_pre_hooks and not net.linear._forward_hooks


def test_maps_are_not_kept_beyond_their_layer():
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    with torch.no_grad():
        found, = represent_all(net, [Node("0", "0", 1)], torch.randn(2, 3, 40, 40))
    assert found.untyped_storage().nbytes() == 2 * 5 * 4
