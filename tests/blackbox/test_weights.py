"""Tests of weight files as people save them: prefixes, old names, nested checkpoints, replaced heads."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from featgan.blackbox.fitting.fit import load_backbone_weights
from featgan.blackbox.fitting.network import Architecture, build_network
from featgan.blackbox.weights import read_checkpoint
from featgan.errors import UserError
from tests.blackbox.small_network import load_blackbox

NUM_CLASSES = 5
SIZE = 64

StateDict = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(2)
    model: nn.Module = torchvision.models.resnet18(num_classes=NUM_CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
    return model.eval()


def add_prefix(prefix: str) -> Callable[[StateDict], Any]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def insert_wrapper(state: StateDict) -> Any:
    return {re.sub(r"^(layer\d)\.", r"\1._orig_mod.", name): tensor for name, tensor in state.items()}


def remove_counters(state: StateDict) -> Any:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def nest(*keys: str) -> Callable[[StateDict], Any]:
    def build(state: StateDict) -> Any:
        content: Any = state
        for key in reversed(keys):
            content = {"epoch": 3, key: content, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}}
        return content

    return build


SAVED_FORMS: dict[str, Callable[[StateDict], Any]] = {
    "plain": lambda state: state,
    "before torch 0.4.1": remove_counters,
    **{prefix: add_prefix(prefix) for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone.")},
    "unknown prefix": add_prefix("lit_module.classifier_network."),
    "compiled stages": insert_wrapper,
    **{key: nest(key) for key in ("state_dict", "model", "model_state_dict", "net", "ema", "weights")},
    "nested twice": nest("checkpoint", "model"),
    "other parts": lambda state: {"state_dict": add_prefix("net.")(state) | {"loss.weight": torch.ones(3)}},
    "arguments and scores": lambda state: {
        "state_dict": state, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)
    },
    "profiled": lambda state: state | {"conv1.total_ops": torch.zeros(1), "total_params": torch.zeros(1)},
    "half precision": lambda state: {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("form", SAVED_FORMS)
def test_every_saved_form_gives_the_outputs_of_the_network(tmp_path: Path, network: nn.Module, form: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(SAVED_FORMS[form](dict(network.state_dict())), path)
    blackbox = load_blackbox(f"torchvision:resnet18:{path}?image_size={SIZE}&range=-1,1&mean=0&std=1")
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        expected = network(images)
    tolerance = 1e-2 if form == "half precision" else 1e-4
    torch.testing.assert_close(blackbox(images)[1], expected, rtol=tolerance, atol=tolerance)
    assert (blackbox.layer, blackbox.output_dim) == ("fc:input", NUM_CLASSES)


def test_head_in_a_sequential_is_loaded(tmp_path: Path, network: nn.Module) -> None:
    state = dict(network.state_dict())
    state = {re.sub(r"^fc\.", "fc.1.", name): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "weights.pth")
    blackbox = load_blackbox(f"torchvision:resnet18:{tmp_path / 'weights.pth'}?image_size={SIZE}")
    assert blackbox.head is not None
    assert torch.equal(blackbox.head[0], state["fc.1.weight"])


def test_official_densenet_names_are_loaded(tmp_path: Path) -> None:
    state = torchvision.models.densenet121(num_classes=3).state_dict()
    dotted = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): state[name] for name in state}
    assert any("norm.1." in name for name in dotted)
    torch.save(add_prefix("module.")(remove_counters(dotted)), tmp_path / "weights.pth")
    blackbox = load_blackbox(f"torchvision:densenet121:{tmp_path / 'weights.pth'}?image_size={SIZE}")
    assert blackbox.head is not None
    assert torch.equal(blackbox.head[0], state["classifier.weight"])


@pytest.mark.parametrize("name", ["mnasnet0_5", "squeezenet1_1", "vit_b_32", "mobilenet_v2"])
def test_files_without_module_versions_are_loaded(tmp_path: Path, name: str) -> None:
    """safetensors files have no versions, which the loading hooks of some networks need."""
    model = torchvision.models.get_model(name, num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    size = 224 if name == "vit_b_32" else SIZE
    blackbox = load_blackbox(
        f"torchvision:{name}:{tmp_path / 'weights.safetensors'}?image_size={size}&range=-1,1&mean=0&std=1"
    )
    images = torch.rand(2, 3, size, size) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(blackbox(images)[1], model(images), rtol=1e-4, atol=1e-4)


def test_network_with_a_convolution_as_head_has_features(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1(num_classes=4).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    blackbox = load_blackbox(
        f"torchvision:squeezenet1_1:{tmp_path / 'weights.pth'}?image_size={SIZE}&range=-1,1&mean=0&std=1"
    )
    images = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    with torch.no_grad():
        expected = model.features(images).mean((2, 3))
    assert (blackbox.layer, blackbox.feature_dim, blackbox.output_dim) == ("classifier.1:input", 512, 4)
    torch.testing.assert_close(blackbox(images)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_can_be_missing_or_have_another_number_of_classes(tmp_path: Path, name: str) -> None:
    state = torchvision.models.get_model(name, num_classes=3, aux_logits=False, init_weights=False).state_dict()
    for auxiliary in ({}, {"AuxLogits.fc.weight": torch.zeros(1000, 768), "aux1.fc2.weight": torch.zeros(1000, 1024)}):
        torch.save(state | auxiliary, tmp_path / "weights.pth")
        blackbox = load_blackbox(f"torchvision:{name}:{tmp_path / 'weights.pth'}?image_size=96")
        assert (blackbox.layer, blackbox.output_dim) == ("fc:input", 3)


def test_error_about_other_weights_lists_missing_and_unexpected_names(tmp_path: Path) -> None:
    state = dict(torchvision.models.resnet18(num_classes=3).state_dict())
    state["layer1.0.attention.weight"] = state.pop("layer1.0.conv1.weight")
    del state["bn1.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError) as caught:
        load_blackbox(f"torchvision:resnet18:{tmp_path / 'weights.pth'}")
    assert "2 missing: bn1.weight, layer1.0.conv1.weight; 1 unexpected: layer1.0.attention.weight" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_pickled_network_is_rejected_with_the_remedy(tmp_path: Path, network: nn.Module) -> None:
    for name in ("whole.pth", "whole.pt"):
        torch.save(network, tmp_path / name)
        with pytest.raises(UserError, match=r"a whole pickled network .*torch.save\(model.state_dict\(\), FILE\)"):
            load_blackbox(f"torchvision:resnet18:{tmp_path / name}")
    with pytest.raises(
        UserError, match="not a TorchScript file, but weights or a pickled network; .*torchvision:NAME:"
    ):
        load_blackbox(str(tmp_path / "whole.pt"))


def test_torchscript_file_with_the_suffix_of_weights_is_opened(tmp_path: Path) -> None:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    torch.jit.script(head).save(str(tmp_path / "script.pth"))  # type: ignore[no-untyped-call]
    assert load_blackbox(str(tmp_path / "script.pth")).output_dim == 4


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"class_to_idx": {"sad": 1, "happy": 0}}, ("happy", "sad")),
        ({"classes": ["happy", "sad"]}, ("happy", "sad")),
        ({"meta": {"id2label": {0: "happy", 1: "sad"}}}, ("happy", "sad")),
        ({"class_to_idx": {"sad": 1, "happy": 7}}, ()),
        ({}, ()),
    ],
)
def test_class_names_are_read_from_the_checkpoint(
    tmp_path: Path, content: dict[str, Any], names: tuple[str, ...]
) -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}, **content}, tmp_path / "weights.pth")
    assert read_checkpoint(tmp_path / "weights.pth").class_names == names


def test_weights_are_preferred_to_their_moving_average(tmp_path: Path, network: nn.Module) -> None:
    average = {name: torch.zeros_like(tensor) for name, tensor in network.state_dict().items()}
    torch.save({"model_ema": average, "model": dict(network.state_dict())}, tmp_path / "weights.pth")
    blackbox = load_blackbox(f"torchvision:resnet18:{tmp_path / 'weights.pth'}?image_size={SIZE}")
    assert blackbox.head is not None
    assert torch.equal(blackbox.head[0], network.state_dict()["fc.weight"])


@pytest.mark.parametrize("form", ["plain", "before torch 0.4.1", "module._orig_mod.", "model_state_dict"])
def test_fit_loads_the_same_forms(tmp_path: Path, network: nn.Module, form: str) -> None:
    torch.save(SAVED_FORMS[form](dict(network.state_dict())), tmp_path / "weights.pth")
    fitted = build_network(Architecture(network="torchvision:resnet18", output_dim=3))
    load_backbone_weights(fitted.backbone, tmp_path / "weights.pth")
    assert torch.equal(
        fitted.backbone.state_dict()["layer4.1.conv2.weight"], network.state_dict()["layer4.1.conv2.weight"]
    )


def test_fit_uses_a_network_with_a_convolution_as_head(tmp_path: Path) -> None:
    model = torchvision.models.squeezenet1_1().eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    fitted = build_network(Architecture(network="torchvision:squeezenet1_1", output_dim=3)).eval()
    load_backbone_weights(fitted.backbone, tmp_path / "weights.pth")
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(fitted.backbone(images), model.features(images).mean((2, 3)))
        assert fitted(images).shape == (2, 3)


def test_timm_renames_the_weights_of_the_original_repository(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("deit_tiny_patch16_224", num_classes=3)
    state = {"model": dict(model.state_dict()) | {"head_dist.weight": torch.zeros(3, 192)}}
    del state["model"]["head_dist.weight"]
    torch.save(state, tmp_path / "weights.pth")
    blackbox = load_blackbox(f"timm:deit_tiny_patch16_224:{tmp_path / 'weights.pth'}")
    assert (blackbox.layer, blackbox.feature_dim, blackbox.output_dim) == ("head:input", 192, 3)
