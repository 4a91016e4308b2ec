"""Files of other people run no code outside of arithmetic, and a file that hangs, crashes or fills the memory is
rejected in one line.
"""

import resource
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from featgan.blackbox import isolation
from featgan.blackbox.adapters.onnx import OnnxAdapter
from featgan.blackbox.adapters.torchscript_check import check_archive, check_operators
from featgan.blackbox.adapters.torchscript_operators import ALLOWED_OPERATORS
from featgan.blackbox.loading import load_blackbox
from featgan.blackbox.spec import parse_spec
from featgan.cli.click_helpers import run_command
from featgan.cli.main import cli
from featgan.errors import UserError
from tests.blackbox.small_network import SmallNetwork, save_onnx
from tests.helpers.limits import measure_call

WRITTEN = "written-by-the-network"
"""Relative path that the hostile networks write; the tests run in an empty folder."""

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder with an empty cache of checked files; no test may create the file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    assert not Path(WRITTEN).exists()


class BaseNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


class SavingNetwork(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        torch.save(images, "written-by-the-network")
        return self.predict(images)


class SavingInBranch(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        for step in range(2):
            if images.sum() > step:
                torch.save(images, "written-by-the-network")
        return self.predict(images)


def save_tensor(images: Tensor) -> Tensor:
    torch.save(images, "written-by-the-network")
    return images


class SavingInFunction(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        return self.predict(save_tensor(images))


class Saver:
    def __init__(self) -> None:
        self.number = 1

    def save_images(self, images: Tensor) -> Tensor:
        torch.save(images, "written-by-the-network")
        return images


class SavingInClass(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        return self.predict(Saver().save_images(images))


class SavingSubmodule(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images

    @torch.jit.export
    def unused(self, images: Tensor) -> Tensor:
        torch.save(images, "written-by-the-network")
        return images


class SavingInUnusedMethod(BaseNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.inner = SavingSubmodule()

    def forward(self, images: Tensor) -> Tensor:
        return self.predict(self.inner(images))


class PrintingNetwork(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        print(images.sum())
        return self.predict(images)


class SeedingNetwork(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        torch.manual_seed(3)
        return self.predict(images)


class ReadingNetwork(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        return self.predict(images) + torch.from_file("/etc/passwd", False, 4, dtype=torch.uint8).sum()


class ForkingNetwork(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        future = torch.jit.fork(self.predict, images)
        return torch.jit.wait(future)


def save_script(network: nn.Module, path: Path) -> str:
    """Save the scripted network and return its path, which is a SPEC."""
    script = torch.jit.script(network.eval())
    script.save(str(path))
    return str(path)


HOSTILE_NETWORKS = {
    SavingNetwork: "aten::save",
    SavingInBranch: "aten::save",
    SavingInFunction: "aten::save",
    SavingInClass: "aten::save",
    SavingInUnusedMethod: "aten::save",
    PrintingNetwork: "prim::Print",
    SeedingNetwork: "aten::manual_seed",
    ReadingNetwork: "aten::from_file",
    ForkingNetwork: "prim::fork",
}


@pytest.mark.parametrize("kind", HOSTILE_NETWORKS, ids=lambda kind: kind.__name__)
def test_operators_outside_of_the_list_are_rejected(tmp_path: Path, kind: type[BaseNetwork]) -> None:
    path = Path(save_script(kind(), tmp_path / "network.pt"))
    with pytest.raises(UserError, match=rf"network\.pt: .*{HOSTILE_NETWORKS[kind]}.*not allowed"):
        check_code(path)


def check_code(path: Path) -> None:
    """Apply the checks of a TorchScript file in this process."""
    check_archive(path, str(path))
    code = torch._C.CompilationUnit()
    torch._C.import_ir_module(code, str(path), torch.device("cpu"), {}, False)  # type: ignore[call-arg]
    check_operators(code, str(path))


def test_hook_of_a_module_is_checked(tmp_path: Path) -> None:
    def hook(self: Any, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
        torch.save(outputs, "written-by-the-network")
        return outputs

    network = torchvision.ops.Conv2dNormActivation(3, 2)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    inner.register_forward_hook(hook)
    hook.__annotations__ = {"inputs": tuple[Tensor], "outputs": Tensor, "return": Tensor}
    path = Path(save_script(nn.Sequential(network, inner), tmp_path / "network.pt"))
    with pytest.raises(UserError, match="aten::save"):
        check_code(path)


def test_command_reports_a_network_that_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = save_script(SavingNetwork(), tmp_path / "network.pt")
    with pytest.raises(SystemExit) as caught:
        run_command(cli, "featgan", ["extract", "--blackbox", spec, "--list-layers"])
    message = capsys.readouterr().err.strip()
    assert caught.value.code == 2 and len(message.splitlines()) == 1
    assert "network.pt: contains the operator aten::save (in __torch__" in message


class LoadingNetwork(nn.Module):
    """Its method `__setstate__` runs while the file is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.ones(2)

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))[:, :2] * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        torch.save(state[0], "written-by-the-network")
        self.weight = state[0]
        self.training = state[1]


def test_code_that_runs_during_loading_is_rejected(tmp_path: Path) -> None:
    path = Path(save_script(LoadingNetwork(), tmp_path / "network.pt"))
    with pytest.raises(UserError, match="defines __setstate__, which would run while the file is loaded"):
        load_blackbox(str(path))
    hidden = rewrite_archive(
        path, tmp_path / "hidden.pt", lambda name: [name.replace("code/__torch__", "CODE/__Torch__")]
    )
    with pytest.raises(UserError, match="__setstate__"):
        check_archive(hidden, "hidden.pt")
    assert not Path(WRITTEN).exists()
    torch.jit.load(str(hidden))
    assert Path(WRITTEN).exists(), "torch runs the code: the test is not vacuous"
    Path(WRITTEN).unlink()


def rewrite_archive(
    source: Path,
    target: Path,
    rename: Callable[[str], list[str]] = lambda name: [name],
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Copy an archive; `rename` returns the new names of a member, `extra` are additional members."""
    with warnings.catch_warnings(), zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        warnings.simplefilter("ignore")
        for member in old.infolist():
            for name in rename(member.filename):
                new.writestr(name, old.read(member))
        for name, content in (extra or {}).items():
            new.writestr(f"{source.stem}/{name}", content, compression)
    return target


def test_archives_that_torch_does_not_write_are_rejected(tmp_path: Path) -> None:
    path = Path(save_script(BaseScript(), tmp_path / "network.pt"))
    check_archive(path, "network.pt")
    twice = rewrite_archive(path, tmp_path / "twice.pt", lambda name: [name, name] if name.endswith(".py") else [name])
    case = rewrite_archive(path, tmp_path / "case.pt", lambda name: [name, name.replace("code", "CODE")])
    legacy = rewrite_archive(path, tmp_path / "legacy.pt", extra={"model.json": b"{}"})
    bomb = rewrite_archive(
        path, tmp_path / "bomb.pt", extra={"code/big.py": bytes(200 << 20)}, compression=zipfile.ZIP_DEFLATED
    )
    assert bomb.stat().st_size < 1 << 20
    for archive, message in (
        (twice, "is ambiguous"),
        (case, "is ambiguous"),
        (legacy, "format of torch before 1.2"),
        (bomb, "compressed members are too large"),
    ):
        with pytest.raises(UserError, match=message):
            check_archive(archive, archive.name)


def edit_member(source: Path, target: Path, name: str, old: bytes, new: bytes) -> Path:
    """Copy an archive with a changed member; the old bytes must be in it."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as edited:
        for member in archive.infolist():
            content = archive.read(member)
            if member.filename.endswith(name):
                assert old in content, content
                content = content.replace(old, new, 1)
            edited.writestr(member, content)
    return target


def test_tensors_that_are_larger_than_their_values_are_rejected(tmp_path: Path) -> None:
    """torch would fill them with other memory of the process."""
    path = tmp_path / "network.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(3, 4), torch.zeros(1, 3)).save(str(path))
    check_archive(path, "network.pt")
    shape, large_shape = b"(K\x04K\x03t", b"(M\x80\x3eK\x03t"
    count, large_count = b"K\x0ct", b"J\x00\x00\x00\x10t"
    large = edit_member(path, tmp_path / "large.pt", "/data.pkl", shape, large_shape)
    promised = edit_member(path, tmp_path / "promised.pt", "/data.pkl", count, large_count)
    edit_member(promised, tmp_path / "both.pt", "/data.pkl", shape, large_shape)
    edit_member(path, tmp_path / "row.pt", "/data.pkl", shape, b"(K\x05K\x03t")
    assert len(torch.jit.load(str(tmp_path / "both.pt")).weight) == 16000, "torch trusts it: the test is not vacuous"
    for damaged in (large, promised, tmp_path / "both.pt", tmp_path / "row.pt"):
        with pytest.raises(UserError, match="is larger than its values|values are declared"):
            check_archive(damaged, damaged.name)


@pytest.mark.parametrize(("name", "gibibytes"), [("network.onnx", 2), ("network.pt", 16)])
def test_file_with_holes_is_rejected_before_it_is_read(
    name: str, gibibytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featgan.blackbox.isolation.sha256_of", lambda path: pytest.fail("the file is read"))
    path = tmp_path / name
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=f"larger than {gibibytes} GiB; export a smaller network"):
        isolation.check_foreign_model(parse_spec(str(path)))


class BaseScript(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        return self.predict(images)


class EndlessNetwork(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        outputs = self.predict(images)
        while bool(torch.isfinite(outputs).any()) or len(outputs) > 0:
            outputs = outputs + 1
        return outputs


class GreedyNetwork(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        return self.predict(images) + torch.zeros(1000000000000).sum()


class GrowingNetwork(BaseNetwork):
    def forward(self, images: Tensor) -> Tensor:
        tensors = [torch.ones(100000000)]
        while len(tensors) > 0:
            tensors.append(tensors[-1] + 1)
        return self.predict(images)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (EndlessNetwork(), r"did not process one image in 3 seconds.* FEATGAN_CHECK_SECONDS"),
        (GreedyNetwork(), r"needs too much memory .* FEATGAN_CHECK_GIB"),
        (GrowingNetwork(), r"needs too much memory .* FEATGAN_CHECK_GIB"),
    ],
    ids=["endless", "greedy", "growing"],
)
def test_network_that_exceeds_a_limit_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: nn.Module, message: str
) -> None:
    monkeypatch.setenv("FEATGAN_CHECK_SECONDS", "3" if isinstance(network, EndlessNetwork) else "120")
    monkeypatch.setenv("FEATGAN_CHECK_GIB", "1")
    with pytest.raises(UserError, match=message) as caught:
        load_blackbox(save_script(network, tmp_path / "network.pt"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os.write(descriptor, b'ready\\n'); os.kill(os.getpid(), signal.SIGSEGV)", r"crashed .*\(SIGSEGV\)"),
        ("os.write(descriptor, b'ready\\n'); os.kill(os.getpid(), signal.SIGKILL)", "needed more memory than is free"),
        ("sys.exit('no module torch')", r"did not start \(exit code 1: no module torch\)"),
    ],
)
def test_crash_of_the_process_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    (tmp_path / "crashing_check.py").write_text(
        f"import os, resource, signal, sys\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"descriptor = int(sys.argv[2])\n{code}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(isolation, "CHECK_MODULE", "crashing_check")
    with pytest.raises(UserError, match=message) as caught:
        load_blackbox(save_script(BaseScript(), tmp_path / "network.pt"))
    assert "\n" not in str(caught.value)


def test_checked_file_is_remembered_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = save_script(BaseScript(), tmp_path / "network.pt")
    load_blackbox(spec)
    record = next((tmp_path / "cache" / "featgan" / "checked_models").iterdir())
    assert record.stat().st_mode & 0o777 == 0o600 and record.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(isolation, "CHECK_MODULE", "no_such_module")
    load_blackbox(str(shutil.copy(spec, str(tmp_path / "copy.pt"))))
    load_blackbox(f"{spec}?classes=a,b")
    with pytest.raises(UserError, match="did not start"):
        load_blackbox(f"{spec}?image_size=64")
    with pytest.raises(UserError, match="did not start"):
        load_blackbox(save_script(BaseScript(), tmp_path / "other.pt"))  # other random weights
    record.parent.chmod(0o777)
    with pytest.raises(UserError, match="did not start"):
        load_blackbox(spec)


def test_many_class_names_do_not_disturb_the_check(tmp_path: Path) -> None:
    spec = parse_spec(save_onnx(SmallNetwork().eval(), tmp_path / "network.onnx"), classes="a long name," * 20_000)
    assert isolation.run_isolated_check(spec)["status"] == "completed"


def test_unwritable_cache_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_blackbox(save_script(BaseScript(), tmp_path / "network.pt")).output_dim == 2


def test_invalid_limit_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATGAN_CHECK_GIB", "much")
    with pytest.raises(UserError, match="FEATGAN_CHECK_GIB=much: not a positive number"):
        load_blackbox(save_script(BaseScript(), tmp_path / "network.pt"))


QUICK_NETWORKS = ("squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "resnet18", "efficientnet_b0")
SLOW_NETWORKS = (
    "alexnet", "vgg11_bn", "densenet121", "inception_v3", "googlenet", "mobilenet_v2", "resnext50_32x4d",
    "wide_resnet50_2", "mnasnet0_5", "efficientnet_v2_s", "regnet_y_400mf", "regnet_x_400mf", "convnext_tiny",
    "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t",
)  # fmt: skip


@pytest.mark.parametrize("is_traced", [False, True], ids=["script", "trace"])
@pytest.mark.parametrize(
    "name", [*QUICK_NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_NETWORKS)]
)
def test_torchvision_networks_are_allowed(tmp_path: Path, name: str, is_traced: bool) -> None:
    options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    network = torchvision.models.get_model(name, weights=None, **options).eval()
    size = {"inception_v3": 299, "vit_b_16": 224, "maxvit_t": 224}.get(name, 64)
    script = (
        torch.jit.trace(network, torch.rand(1, 3, size, size), check_trace=False)
        if is_traced
        else torch.jit.script(network)
    )
    script.save(str(tmp_path / "network.pt"))
    check_code(tmp_path / "network.pt")


def test_list_of_operators_has_no_operator_with_side_effects() -> None:
    for operator in (
        "aten::save", "aten::from_file", "aten::hash", "aten::manual_seed", "aten::wait", "aten::set_", "aten::resize_",
        "prim::Print", "prim::PythonOp", "prim::rpc_async", "prim::fork", "aten::_print", "aten::set_data",
    ):  # fmt: skip
        assert operator not in ALLOWED_OPERATORS


def save_changed_onnx(path: Path, change: Callable[[Any, Any], None]) -> str:
    """Save the small network as an ONNX file after a change, which receives the model and the package onnx."""
    onnx = pytest.importorskip("onnx")
    save_onnx(SmallNetwork().eval(), path)
    model = onnx.load(path)
    change(model, onnx)
    onnx.save(model, path)
    return str(path)


def add_custom_operator(model: Any, onnx: Any) -> None:
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))


def add_nested_custom_operator(model: Any, onnx: Any) -> None:
    helper = onnx.helper
    node = helper.make_node("Run", ["active"], ["inner"], domain="com.example")
    branch = helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("inner", 1, None)])
    condition = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", 9, [], [True]))
    choice = helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch)
    model.graph.node.extend([condition, choice])


def add_compiled_context(model: Any, onnx: Any) -> None:
    model.graph.node[1].domain, model.graph.node[1].op_type = "com.microsoft", "EPContext"


@pytest.mark.parametrize(
    ("change", "operator"),
    [
        (add_custom_operator, "com.example::Relu"),
        (add_nested_custom_operator, "com.example::Run"),
        (add_compiled_context, "com.microsoft::EPContext"),
    ],
)
def test_onnx_operators_of_other_packages_are_rejected(
    tmp_path: Path, change: Callable[[Any, Any], None], operator: str
) -> None:
    with pytest.raises(UserError, match=f"contains the operator {operator}, which is not allowed"):
        load_blackbox(save_changed_onnx(tmp_path / "network.onnx", change))


def change_dimensions(model: Any, onnx: Any) -> None:
    model.graph.initializer[-1].dims[0] = 0


def remove_inputs(model: Any, onnx: Any) -> None:
    for node in model.graph.node:
        del node.input[:]


def change_input_type(model: Any, onnx: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99


def test_large_file_that_is_not_onnx_is_rejected_at_its_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    with path.open("wb") as file:
        file.truncate(1_900_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="not an ONNX file; export"):
        OnnxAdapter(parse_spec(str(path)), torch.device("cpu"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("field", [b"\x3a\x02\x0a\x00", b"\x3a\x02\x2a\x00", b"\xca\x01\x00"])
def test_onnx_file_of_many_empty_messages_is_rejected_at_low_cost(field: bytes, tmp_path: Path) -> None:
    """Nodes, initializers and functions: each needs a few hundred bytes of memory, and 2 to 4 in the file."""
    path = tmp_path / "network.onnx"
    save_changed_onnx(path, lambda model, onnx: None)
    with path.open("ab") as file:
        file.write(field * 2_000_000)
    setup = (
        "import torch\nfrom featgan.blackbox.adapters.onnx import OnnxAdapter, import_onnx\n"
        f"from featgan.blackbox.spec import parse_spec\nspec = parse_spec({str(path)!r}); import_onnx(spec)"
    )
    measured = measure_call(setup, "OnnxAdapter(spec, torch.device('cpu'))")
    assert measured.message and "more than 400000 parts" in measured.message and measured.is_cheap(), measured


def test_onnx_graph_with_a_huge_fixed_batch_is_rejected(tmp_path: Path) -> None:
    def change_batch_size(model: Any, onnx: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1_000_000

    spec = parse_spec(save_changed_onnx(tmp_path / "network.onnx", change_batch_size))
    with pytest.raises(UserError, match=r"batches of 1,000,000 images of 16 pixels.*variable batch size"):
        OnnxAdapter(spec, torch.device("cpu"))


@pytest.mark.parametrize("change", [change_dimensions, remove_inputs, change_input_type])
def test_damaged_onnx_graphs_are_one_line(tmp_path: Path, change: Callable[[Any, Any], None]) -> None:
    spec = parse_spec(save_changed_onnx(tmp_path / "network.onnx", change))
    with pytest.raises(UserError, match=r"network\.onnx: not an ONNX file \(.+\); export it again"):
        OnnxAdapter(spec, torch.device("cpu"))


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "link.bin", ""])
def test_onnx_weights_outside_of_the_folder_are_rejected(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "network"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(4096))
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")

    def move_weights(model: Any, onnx: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    with pytest.raises(UserError, match="outside of its folder"):
        load_blackbox(save_changed_onnx(folder / "network.onnx", move_weights))


def test_changed_onnx_weights_in_the_folder_are_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    path = Path(save_onnx(SmallNetwork().eval(), tmp_path / "network.onnx"))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    first = load_blackbox(str(path))
    monkeypatch.setattr(isolation, "CHECK_MODULE", "no_such_module")
    assert load_blackbox(str(path)).sha256 == first.sha256
    content = bytearray((tmp_path / "weights.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(UserError, match="did not start"):
        load_blackbox(str(path))
    monkeypatch.undo()
    (tmp_path / "weights.bin").write_bytes(content[:-8])
    with pytest.raises(UserError, match=r"weights\.bin is shorter than the weights in it"):
        load_blackbox(str(path))


def add_endless_loop(model: Any, onnx: Any) -> None:
    helper, maximum = onnx.helper, np.iinfo(np.int64).max
    step = helper.make_node("Tanh", ["before"], ["after"])
    keep = helper.make_node("Identity", ["go_on"], ["still"])
    body = helper.make_graph(
        [step, keep],
        "body",
        [
            helper.make_tensor_value_info("number", 7, []),
            helper.make_tensor_value_info("go_on", 9, []),
            helper.make_tensor_value_info("before", 1, None),
        ],
        [helper.make_tensor_value_info("still", 9, []), helper.make_tensor_value_info("after", 1, None)],
    )
    count = helper.make_tensor("count", 7, [], [int(maximum)])
    yes = helper.make_tensor("yes", 9, [], [True])
    model.graph.initializer.extend([count, yes])
    model.graph.node.append(helper.make_node("Loop", ["count", "yes", "logits"], ["looped"], body=body))
    model.graph.output[0].name = "looped"


def add_huge_tensor(model: Any, onnx: Any) -> None:
    helper = onnx.helper
    model.graph.initializer.append(helper.make_tensor("huge_shape", 7, [1], [10**12]))
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["huge_shape"], ["huge"]),
            helper.make_node("ReduceSum", ["huge"], ["total"], keepdims=0),
            helper.make_node("Add", ["logits", "total"], ["sum"]),
        ]
    )
    model.graph.output[0].name = "sum"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_endless_loop, "did not process one image in 3 seconds"),
        (add_huge_tensor, "needs too much memory"),
    ],
)
def test_onnx_network_that_exceeds_a_limit_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, Any], None], message: str
) -> None:
    monkeypatch.setenv("FEATGAN_CHECK_SECONDS", "3" if change is add_endless_loop else "120")
    with pytest.raises(UserError, match=message) as caught:
        load_blackbox(save_changed_onnx(tmp_path / "network.onnx", change))
    assert "\n" not in str(caught.value)


def test_process_cannot_write_files(tmp_path: Path) -> None:
    """The limits hold even if an operator that writes files is missed: the process cannot write one byte."""
    (tmp_path / "attempt.py").write_text(
        "from featgan.blackbox.isolated_check import set_limits\n"
        "set_limits(10, 1 << 30, 1)\n"
        "with open('written', 'wb') as file:\n    file.write(b'x')\n"
    )
    result = subprocess.run([sys.executable, "attempt.py"], capture_output=True, text=True, check=False)
    assert result.returncode != 0 and "File too large" in result.stderr
    assert Path("written").stat().st_size == 0
