"""Names of layers: the head's input in four families against the model without its head; pooling by hand."""

import pytest
import torch
from torch import nn

from iis.backbones import load_backbone
from iis.layers import HEAD_INPUT, Node, pool, represent, resolve
from iis.runtime import UserError

FAMILIES = {"resnet18": ("fc", "layer4", "avgpool", "flatten", "head"),
            "vit_b_16": ("heads.head", "heads", "encoder.ln", "encoder", "fc", "layer4"),
            "swin_t": ("head", "norm", "avgpool", "flatten", "permute", "fc"),
            "convnext_tiny": ("classifier.2", "classifier", "classifier.1", "flatten", "fc", "head")}
SIZES = {"resnet18": 64, "swin_t": 64, "convnext_tiny": 64, "vit_b_16": 224}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    backbone = load_backbone(request.param, "none")
    return request.param, backbone, torch.randn(2, 3, *[SIZES[request.param]] * 2)


def test_all_spellings_are_the_input_of_the_head(family):
    name, backbone, images = family
    nodes = {resolve(backbone.module, backbone.head, layer, SIZES[name]) for layer in FAMILIES[name]}
    assert [node.name for node in nodes] == [HEAD_INPUT]
    with torch.no_grad():
        found = represent(backbone.module, nodes.pop(), images)
        parent, _, last = backbone.head.rpartition(".")
        owner, head = backbone.module.get_submodule(parent), backbone.module.get_submodule(backbone.head)
        setattr(owner, last, nn.Identity())
        without_head = backbone.module(images)
        setattr(owner, last, head)
    assert found.shape == (2, backbone.width)
    assert torch.equal(found, without_head)


EARLIER = {"resnet18": ("layer3", 256, (2, 3)), "vit_b_16": ("encoder.layers.encoder_layer_3", 768, None),
           "swin_t": ("features.3", 192, (1, 2)), "convnext_tiny": ("avgpool", 768, (2, 3))}


def test_an_earlier_layer_is_pooled_along_its_own_axes(family):
    name, backbone, images = family
    layer, width, spatial = EARLIER[name]
    node = resolve(backbone.module, backbone.head, layer, SIZES[name])
    assert node.name == layer
    kept = []
    hook = backbone.module.get_submodule(layer).register_forward_hook(lambda _, __, out: kept.append(out.clone()))
    with torch.no_grad():
        found = represent(backbone.module, node, images)
    hook.remove()
    assert found.shape == (2, width)
    assert torch.equal(found, kept[0].mean(spatial) if spatial else kept[0][:, 0])


def test_unknown_layer_names_the_nearest(family):
    name, backbone, _ = family
    with pytest.raises(UserError, match="no layer 'nonsense'"):
        resolve(backbone.module, backbone.head, "nonsense", 64)
    if name == "resnet18":
        with pytest.raises(UserError, match="layer3"):
            resolve(backbone.module, backbone.head, "layer33", 64)


def test_cifar_layer3_is_the_head_input_and_layer2_is_not():
    backbone = load_backbone("resnet20", "none")
    assert [resolve(backbone.module, "linear", layer, 32).name for layer in ("layer3", "avgpool", "fc", "layer2")] \
        == [HEAD_INPUT, HEAD_INPUT, HEAD_INPUT, "layer2"]


def test_a_layer_changed_in_place_afterwards_is_caught_as_it_came_out():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(4, 2))
    images = torch.randn(2, 3, 5, 5)
    node = resolve(net, "4", "0", 5)
    assert torch.equal(represent(net, node, images), net[0](images).mean((2, 3)))


def test_a_layer_the_forward_pass_skips_is_said():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.out(x.mean((2, 3)))

    with pytest.raises(UserError, match="takes no part"):
        resolve(Net(), "out", "unused", 4)


def test_a_hidden_layer_named_like_an_alias_is_itself():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.out(torch.tanh(self.linear(x.mean((2, 3)))))  # never the identity

    assert resolve(Net(), "out", "linear", 4).name == "linear"


def test_tokens_are_averaged_where_there_is_no_class_token():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    assert pool(tokens, Node("x", "x")).tolist() == [[2.0, 4.0]]
    assert pool(tokens, Node("x", "x", class_token=True)).tolist() == [[1.0, 2.0]]


def test_gradients_reach_the_backbone():
    backbone = load_backbone("resnet20", "none")
    backbone.module.requires_grad_(True)
    represent(backbone.module, Node(HEAD_INPUT, "linear"), torch.randn(1, 3, 32, 32)).sum().backward()
    assert backbone.module.conv1.weight.grad.abs().sum() > 0
