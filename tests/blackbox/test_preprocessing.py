"""Tests of the preprocessing: that of the library's own weights, described in one line, with options that override."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.transforms.functional import pil_to_tensor

from featgan.blackbox.loading import ADAPTER_OPENERS
from featgan.blackbox.preprocessing import IMAGENET, KIND_DEFAULTS, Preprocessing, build_defaults_table
from featgan.blackbox.torchvision_models import torchvision_preprocessing
from featgan.system.images import to_float
from tests.blackbox.small_network import SmallNetwork, list_layers, load_blackbox, register_callable_spec, save_onnx

NETWORKS = ["resnet18", "inception_v3", "googlenet", "efficientnet_v2_s", "efficientnet_b0", "swin_v2_t", "vit_b_32"]


def smooth_image(size: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_every_torchvision_network_uses_the_numbers_of_its_weights(name: str) -> None:
    preprocessing, source = torchvision_preprocessing(name)
    transforms = get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    assert preprocessing.image_size == transforms.crop_size[0]
    assert preprocessing.interpolation == transforms.interpolation.value
    if name not in ("inception_v3", "googlenet"):
        assert (list(preprocessing.mean), list(preprocessing.std)) == (transforms.mean, transforms.std)
    assert source.startswith("torchvision's ")


@pytest.mark.parametrize("name", NETWORKS)
def test_input_is_that_of_torchvisions_pipeline(name: str) -> None:
    """With the crop of torchvision, the input of the network equals that of its own transforms for the same image."""
    transforms = get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    image = smooth_image(300)
    expected = transforms(image)[None]
    if name in ("inception_v3", "googlenet"):  # these networks scale their input again with these weights
        expected = transform_input(expected)
    options = {"resize_size": transforms.resize_size[0]}
    preprocessing = torchvision_preprocessing(name)[0].with_options(options, name)
    found = preprocessing(to_float(pil_to_tensor(image)[None]))
    assert found.shape == expected.shape
    # torchvision rounds to bytes after it resizes.
    assert float((found - expected).abs().max()) < 2.5 / 255 / 0.22


def transform_input(images: Tensor) -> Tensor:
    """Apply the scaling inside torchvision's Inception-v3 to normalized images."""
    network = torchvision.models.inception_v3(weights=None, transform_input=True, init_weights=False)
    return network._transform_input(images)


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 96), ("googlenet", 64), ("mobilenet_v3_small", 64)])
def test_outputs_are_those_of_the_library(tmp_path: Path, name: str, size: int) -> None:
    """The network is built as torchvision builds it for its weights: with transform_input where it exists."""
    torch.manual_seed(0)
    options = {"transform_input": True, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=4, **options).eval()
    settle_batch_norm(network, size)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    transforms = get_model_weights(name).DEFAULT.transforms()  # type: ignore[attr-defined]
    mean, std = (torch.tensor(values)[:, None, None] for values in (transforms.mean, transforms.std))
    images = nn.functional.interpolate(torch.rand(4, 3, 9, 9), (size, size), mode="bilinear")
    with torch.no_grad():
        expected = network((images - mean) / std)
    found = load_blackbox(f"torchvision:{name}:{tmp_path / 'weights.pth'}?image_size={size}")(images * 2 - 1)[1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    other = load_blackbox(f"torchvision:{name}:{tmp_path / 'weights.pth'}?image_size={size}&mean=0.1&std=1")
    assert not torch.allclose(other(images * 2 - 1)[1], expected, rtol=1e-2)


def settle_batch_norm(network: nn.Module, size: int) -> None:
    """Compute the statistics of batch norm from noise, so that random weights give outputs that depend on images."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.train()
    with torch.no_grad():
        network(torch.randn(4, 3, size, size))
    network.eval()


@pytest.mark.parametrize("name", ["resnet10t", "deit_tiny_patch16_224", "convnext_atto"])
def test_input_is_that_of_timms_pipeline(name: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False)
    config = timm.data.resolve_model_data_config(model)
    image = smooth_image(400)
    expected = timm.data.create_transform(**config, is_training=False)(image)[None]
    resize_size = int(config["input_size"][-1] / config["crop_pct"])
    blackbox = load_blackbox(f"timm:{name}?resize_size={resize_size}")
    found = blackbox.preprocessing(to_float(pil_to_tensor(image)[None]))
    assert float((found - expected).abs().max()) < 2.5 / 255 / 0.22


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("featgan")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_source_of_the_preprocessing_is_printed(logged: pytest.LogCaptureFixture) -> None:
    list_layers("torchvision:resnet18?image_size=64&mean=0.5")
    assert "input 64 x 64, range 0,1, mean 0.5, std 0.229,0.224,0.225, rgb, nchw, bilinear" in logged.text
    assert "from torchvision's ResNet18_Weights.IMAGENET1K_V1" in logged.text
    assert "without its crop of the center 224 of 256 pixels; image_size, mean from the SPEC" in logged.text


def test_new_fields_do_not_change_the_hash_of_old_feature_caches() -> None:
    assert IMAGENET.hash_text() == (
        '{"image_size":224,"range":[0.0,1.0],"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225],'
        '"layout":"nchw","channels":"rgb"}'
    )
    assert "bicubic" in Preprocessing(interpolation="bicubic").hash_text()


def test_bicubic_interpolation_stays_between_black_and_white() -> None:
    edge = torch.ones(1, 3, 8, 8)
    edge[..., :4] = -1
    resized = Preprocessing(image_size=32, interpolation="bicubic")(edge)
    assert float(resized.abs().max()) <= 1


@pytest.mark.parametrize(("size", "resize_size", "message"), [(64, 32, "must not be below image_size")])
def test_crop_larger_than_the_image_is_rejected(size: int, resize_size: int, message: str) -> None:
    with pytest.raises(Exception, match=message):
        Preprocessing().with_options({"image_size": size, "resize_size": resize_size}, "SPEC")


def test_default_of_every_kind_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "blackbox.md").read_text()
    assert build_defaults_table() in page
    assert set(KIND_DEFAULTS) == {*ADAPTER_OPENERS, "fitted"}


def test_defaults_in_the_documentation_are_those_of_the_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: SmallNetwork
) -> None:
    torch.jit.script(network).save(str(tmp_path / "model.pt"))  # type: ignore[no-untyped-call]
    specs = {
        "torchscript": str(tmp_path / "model.pt"),
        "onnx": save_onnx(network, tmp_path / "model.onnx"),
        "callable": register_callable_spec(monkeypatch, network),
    }
    for kind, spec in specs.items():
        expected = KIND_DEFAULTS[kind].preprocessing
        assert expected is not None
        found = load_blackbox(spec).preprocessing
        size = {"image_size": found.image_size}
        assert found == expected.model_copy(update=size)
