"""Networks: shapes, sizes that recipes promise, initialisation."""

import sys
import types

import pytest
import safetensors.torch
import torch
from torch import nn

from sparse_ops.train import networks, networks_cifar

PRUNABLE = (nn.Conv2d, nn.Linear)


@pytest.mark.parametrize(
    "name, shape, weights, convolutions",
    [("resnet32", (3, 32, 32), 1_855_584, 33), ("resnet8", (1, 8, 8), 306_720, 9), ("mlp", (1, 8, 8), 300_032, 0)],
)
def test_sizes(name, shape, weights, convolutions):
    network = networks.build(name, shape, 10)
    assert sum(w.numel() for m in network.modules() if isinstance(m, PRUNABLE) for w in [m.weight]) == weights
    assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == convolutions
    assert network(torch.randn(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet8", "resnet32"])
def test_the_stride_of_the_stem_changes_the_images_alone(name):
    sizes = []
    for stride in (1, 2):
        network = networks.build(name, (1, 28, 28), 10, width=8, stride=stride)
        stem = network.stem(torch.randn(2, 1, 28, 28))
        assert stem.shape == (2, 8, 28 // stride, 28 // stride) and network(torch.randn(2, 1, 28, 28)).shape == (2, 10)
        sizes.append(sum(p.numel() for p in network.parameters()))
    assert sizes[0] == sizes[1]


def test_what_a_network_has_not_is_an_error():
    with pytest.raises(ValueError, match=r"network.stride is 2, but mlp has no stride"):
        networks.build("mlp", (1, 8, 8), 10, stride=2)


@pytest.mark.parametrize(
    "name, shape, classes, published",
    [
        ("resnet18", (3, 64, 64), 1000, 11_689_512),  # torchvision's tables
        ("resnet50", (3, 64, 64), 1000, 25_557_032),
        ("resnet20", (3, 32, 32), 10, 269_722),  # He et al.: 0.27 and 0.85 million
        ("resnet56", (3, 32, 32), 10, 853_018),
        ("vgg19_bn", (3, 32, 32), 10, 20_040_522),
        ("vgg19_bn", (3, 64, 64), 200, 20_137_992),
    ],
)
def test_published_numbers_of_parameters(name, shape, classes, published):
    network = networks.build(name, shape, classes).eval()
    assert sum(p.numel() for p in network.parameters()) == published
    assert network(torch.randn(1, *shape)).shape == (1, classes)
    if name == "vgg19_bn":
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 16 and all(m.bias is not None for m in convolutions)
        assert network.features(torch.randn(1, *shape)).shape[2:] == (shape[1] // 16, shape[2] // 16)


def test_imagenet_networks_divide_an_image_by_32():
    network = networks.build("resnet50", (3, 64, 96), 5, width=8).eval()
    seen = []
    network.layer4.register_forward_hook(lambda module, x, y: seen.append(y.shape))
    network(torch.randn(1, 3, 64, 96))
    assert seen == [(1, 256, 2, 3)]
    assert network.layer2[0].conv2.stride == (2, 2) and network.layer2[0].conv1.stride == (1, 1)


def test_a_thin_shortcut_is_the_image_with_new_channels():
    block = networks_cifar.ThinBlock(4, 8, 2)
    nn.init.zeros_(block.bn2.weight)  # what is left is the shortcut
    x = torch.rand(2, 4, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2]) and not y[:, :2].any() and not y[:, 6:].any()


def test_small_images_are_refused():
    with pytest.raises(ValueError, match=r"vgg19_bn halves an image four times: it is 8x8, expected 16x16 or more"):
        networks.build("vgg19_bn", (1, 8, 8), 10)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    network = networks.build("resnet20", (3, 8, 8), 10, width=4)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pt":
        state = {f"module.{k}": v for k, v in network.state_dict().items() if "num_batches" not in k}
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        safetensors.torch.save_file(network.state_dict(), path)
    torch.manual_seed(9)
    loaded = networks.build("resnet20", (3, 8, 8), 10, width=4, weights=str(path))
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in network.state_dict().items())
    with pytest.raises(ValueError, match=r"conv1.weight in .* is \(4, 3, 3, 3\), expected \(8, 3, 3, 3\)"):
        networks.build("resnet20", (3, 8, 8), 10, width=8, weights=str(path))
    with pytest.raises(ValueError, match=r"network.weights: .* lacks 1.weight: it is of another network"):
        networks.build("mlp", (3, 8, 8), 10, weights=str(path))
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"network.weights: .* cannot be read"):
        networks.build("resnet20", (3, 8, 8), 10, weights=str(path))
    with pytest.raises(ValueError, match=r"network.weights is 'pretrained', but resnet20 is not published with"):
        networks.build("resnet20", (3, 8, 8), 10, weights="pretrained")


def test_hubs_say_how_to_get_them(monkeypatch):
    for hub, package in (("timm", "timm"), ("hf", "transformers")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"'{hub}:x', which needs {package}: pip install {package}"):
            networks.build(f"{hub}:x", (3, 8, 8), 10)


def test_timm_gets_channels_and_classes(monkeypatch):
    """A stand-in with timm's interface: what it is asked for, and what an unknown name says."""
    asked = {}

    def create_model(name, **options):
        if name == "cnn" and "img_size" in options:
            raise TypeError("unexpected keyword argument 'img_size'")
        asked[name] = options
        return nn.Identity()

    fake = types.SimpleNamespace(
        create_model=create_model,
        is_model=lambda name: name in ("vit_tiny", "cnn"),
        list_models=lambda: ["cnn", "vit_tiny"],
        __version__="1.0",
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    networks.build("timm:vit_tiny.some_weights", (1, 28, 28), 7, weights="pretrained")
    networks.build("timm:cnn", (1, 28, 28), 7)
    assert asked == {
        "vit_tiny.some_weights": {"pretrained": True, "in_chans": 1, "num_classes": 7, "img_size": (28, 28)},
        "cnn": {"pretrained": False, "in_chans": 1, "num_classes": 7},
    }
    with pytest.raises(ValueError, match=r"'timm:vit_tin', but timm 1.0 has no such model; did you mean 'vit_tiny'"):
        networks.build("timm:vit_tin", (1, 28, 28), 7)
    with pytest.raises(ValueError, match=r"network.width is 3, but timm:vit_tiny has no width"):
        networks.build("timm:vit_tiny", (1, 28, 28), 7, width=3)


def test_hugging_face_gives_logits(monkeypatch):
    """A stand-in with the interface of transformers."""
    config = types.SimpleNamespace(image_size=224, num_channels=3)

    class Classifier(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.head = nn.Linear(config.num_channels * config.image_size**2, config.num_labels)

        def forward(self, pixel_values):
            return types.SimpleNamespace(logits=self.head(pixel_values.flatten(1)))

    def from_pretrained(name, num_labels):
        if name != "vit":
            raise OSError(f"{name} is not a local folder\nand is not a valid model identifier")
        config.num_labels = num_labels
        return config

    fake = types.SimpleNamespace(
        AutoConfig=types.SimpleNamespace(from_pretrained=from_pretrained),
        AutoModelForImageClassification=types.SimpleNamespace(from_config=Classifier),
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    network = networks.build("hf:vit", (1, 8, 8), 7)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    with pytest.raises(ValueError, match=r"network.name is 'hf:vif': vif is not a local folder and is not a valid"):
        networks.build("hf:vif", (1, 8, 8), 7)


def test_initialisation():
    torch.manual_seed(0)
    network = networks.resnet32((3, 32, 32), 10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert network.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not network.classifier.bias.any()


def test_unknown_network():
    with pytest.raises(ValueError, match=r"network.name is 'resnet23'; did you mean 'resnet32'"):
        networks.build("resnet23", (1, 8, 8), 10)
