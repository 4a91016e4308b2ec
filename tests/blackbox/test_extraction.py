"""Extraction: flipped images get flipped features, finished shards are kept, and changed shards are refused."""

import csv
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from featgan.blackbox.extraction import extract
from featgan.blackbox.prefetch import prefetched
from featgan.data.feature_cache.cache import FeatureCache
from featgan.data.packing.pack import pack
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.system.images import to_float

SIZE = 16
SPEC = "code_under_study:build"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """14 images of random colours, dark on the left, in shards of four."""
    source = tmp_path / "source"
    source.mkdir()
    generator = np.random.default_rng(5)
    with (source / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "split", "expression"))
        for number in range(14):
            colour = generator.uniform(60, 255, 3)
            shade = np.linspace(0.2, 1, SIZE)[None, :, None]
            pixels = np.broadcast_to(colour * shade, (SIZE, SIZE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(source / f"{number:02d}.png")
            writer.writerow((f"{number:02d}.png", "validation" if number > 9 else "train", "happy"))
    pack("csv", source, tmp_path / "shards", image_size=SIZE, images_per_shard=4, workers=1)
    return tmp_path / "shards"


def halves(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean colours of the left and of the right half as features; how much brighter the right one is as output."""
    left, right = images[..., : SIZE // 2].mean((2, 3)), images[..., SIZE // 2 :].mean((2, 3))
    return torch.cat([left, right], 1), (right - left).mean(1, keepdim=True)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], str]:
    """Give a module or function, get its SPEC."""

    def name(made: object) -> str:
        module = types.ModuleType("code_under_study")
        module.build = lambda: made  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return SPEC

    return name


def test_flipped_images_get_the_features_of_flipped_images(shards: Path, study: Callable[[object], str]) -> None:
    cache = extract(shards, study(halves), "halves", batch_size=3)
    for name in ("train", "validation"):
        split = ShardSet.open(shards).split(name)
        rows = range(len(split))
        images = to_float(split.decode(rows))
        np.testing.assert_allclose(cache.features(name, rows), halves(images)[0], atol=1e-5)
        np.testing.assert_allclose(cache.features(name, rows, True), halves(images.flip(3))[0], atol=1e-5)
        np.testing.assert_allclose(cache.outputs(name, rows, True), halves(images.flip(3))[1], atol=1e-5)
        assert (cache.outputs(name, rows) > 0.2).all()
        assert (cache.outputs(name, rows, True) < -0.2).all()


def test_cache_carries_the_boxs_identity_and_head(shards: Path, study: Callable[[object], str]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 8))
    cache = extract(shards, study(network), "box", components=3, output_kind="expression")
    assert cache.blackbox["layer"] == "4:input"
    assert cache.blackbox["spec"] == f"{SPEC}?output_kind=expression"
    assert (cache.feature_dim, cache.output_dim, cache.num_components) == (5, 8, 3)
    assert (cache.output_kind, cache.class_names[7]) == ("expression", "contempt")
    assert cache.space.num_components == 3
    assert cache.head is not None
    weight, bias = cache.head
    rows = range(10)
    np.testing.assert_allclose(
        cache.features("train", rows) @ weight.numpy().T + bias.numpy(), cache.outputs("train", rows), atol=1e-5
    )


def test_a_box_that_gives_one_answer_for_all_is_remarked_on(
    shards: Path, study: Callable[[object], str], capfd: pytest.CaptureFixture[str]
) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 8))
    with torch.no_grad():
        network[-1].bias[3] = 1000.0
    extract(shards, study(network), "box", output_kind="expression")
    assert "the box decides 'surprise' for 100% of the images" in " ".join(capfd.readouterr().err.split())
    with torch.no_grad():
        network[-1].bias[3] = 0.0
        network[-1].weight[:] = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)) * 100
        network[2].weight *= 100
    extract(shards, study(network), "other", output_kind="expression")
    assert "the box decides" not in capfd.readouterr().err


def test_saying_what_the_outputs_are_afterwards_is_kept(shards: Path, study: Callable[[object], str]) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 8))
    assert extract(shards, study(network), "box").output_kind == "other"
    again = extract(shards, study(network), "box", output_kind="expression")
    assert (again.output_kind, again.class_names[0]) == ("expression", "neutral")


def test_interrupted_extraction_goes_on_where_it_stopped(shards: Path, study: Callable[[object], str]) -> None:
    seen: list[int] = []

    def interrupted(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(images))
        if sum(seen) > 3 + 2 * 6:  # the trial run, one whole shard, half of the second
            raise KeyboardInterrupt
        return halves(images)

    with pytest.raises(KeyboardInterrupt):
        extract(shards, study(interrupted), "halves", batch_size=4)
    folder = shards / "features" / "halves"
    first = folder / "train-00000.features.npy"
    written = first.stat().st_mtime_ns
    with pytest.raises(UserError, match="not complete"):
        FeatureCache.open(ShardSet.open(shards), "halves")
    seen.clear()

    def counted(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(images))
        return halves(images)

    cache = extract(shards, study(counted), "halves", batch_size=4)
    assert sum(seen) == 3 + 2 * 10
    assert first.stat().st_mtime_ns == written
    images = to_float(ShardSet.open(shards).split("train").decode(range(10)))
    np.testing.assert_allclose(cache.features("train", range(10)), halves(images)[0], atol=1e-5)


def test_complete_cache_is_not_touched_again(
    shards: Path, study: Callable[[object], str], capsys: pytest.CaptureFixture[str]
) -> None:
    cache = extract(shards, study(halves), "halves")
    before = {path.name: path.stat().st_mtime_ns for path in cache.path.iterdir()}
    extract(shards, study(halves), "halves")
    assert "extracted already" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in cache.path.iterdir()} == before
    assert extract(shards, study(halves), "halves", components=2).num_components == 2
    assert "halves: holds all features, from now on 2 components" in "".join(capsys.readouterr().err.splitlines())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip_bit(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


@pytest.mark.parametrize("harm", [cut, flip_bit, Path.unlink])
@pytest.mark.parametrize("file", ["train-00001.features.npy", "train-00001.outputs.npy", "space.safetensors"])
def test_extracting_again_mends_damaged_files_and_no_others(
    shards: Path, study: Callable[[object], str], harm: Callable[[Path], None], file: str
) -> None:
    cache = extract(shards, study(halves), "halves", components=2)
    before = {path.name: path.read_bytes() for path in cache.path.iterdir()}
    kept = {path: path.stat().st_mtime_ns for path in cache.path.glob("*.npy") if "train-00001" not in path.name}
    harm(cache.path / file)
    seen: list[int] = []

    def counted(images: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(images))
        return halves(images)

    extract(shards, study(counted), "halves", components=2).verify()
    assert sum(seen) == 3 + (2 * 4 if file.endswith(".npy") else 0)  # the trial run, and the shard's four images
    assert {path.name: path.read_bytes() for path in cache.path.iterdir()} == before
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_mending_that_is_interrupted_goes_on(shards: Path, study: Callable[[object], str]) -> None:
    cache = extract(shards, study(halves), "halves")
    before = {path.name: path.read_bytes() for path in cache.path.iterdir()}
    flip_bit(cache.path / "train-00002.features.npy")
    calls: list[int] = []

    def interrupted(images: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(images))
        if len(calls) > 1:  # after the trial run
            raise KeyboardInterrupt
        return halves(images)

    with pytest.raises(KeyboardInterrupt):
        extract(shards, study(interrupted), "halves")
    with pytest.raises(UserError, match="not complete"):
        FeatureCache.open(ShardSet.open(shards), "halves")
    extract(shards, study(halves), "halves")
    assert {path.name: path.read_bytes() for path in cache.path.iterdir()} == before


def test_another_box_does_not_mend_a_damaged_cache(shards: Path, study: Callable[[object], str]) -> None:
    cache = extract(shards, study(halves), "halves")
    flip_bit(cache.path / "train-00000.features.npy")
    before = {path.name: path.read_bytes() for path in cache.path.iterdir()}
    with pytest.raises(UserError, match="another black box"):
        extract(shards, study(halves), "halves", preprocessing={"range": (0, 1)})
    assert {path.name: path.read_bytes() for path in cache.path.iterdir()} == before


def test_another_box_under_the_same_name_is_refused(shards: Path, study: Callable[[object], str]) -> None:
    cache = extract(shards, study(halves), "halves")
    before = cache.features("train", range(10))
    with pytest.raises(UserError, match="another black box"):
        extract(
            shards, study(nn.Sequential(nn.Flatten(), nn.Linear(768, 2))), "halves", preprocessing={"image_size": 16}
        )
    with pytest.raises(UserError, match="another black box"):
        extract(shards, study(halves), "halves", preprocessing={"range": (0, 1)})
    np.testing.assert_array_equal(
        FeatureCache.open(ShardSet.open(shards), "halves").features("train", range(10)), before
    )


def test_shards_that_changed_are_refused_before_anything_is_written(
    shards: Path, study: Callable[[object], str]
) -> None:
    path = shards / "train-00001.tar"
    content = bytearray(path.read_bytes())
    content[600] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="train-00001.tar"):
        extract(shards, study(halves), "halves")
    assert not (shards / "features").exists()


def test_features_that_are_not_finite_name_the_image(shards: Path, study: Callable[[object], str]) -> None:
    with pytest.raises(UserError, match="not finite"):
        extract(shards, study(lambda images: (images.mean((2, 3)) / 0, images.mean((1, 2, 3)))), "broken")


def test_work_ahead_keeps_its_order_and_raises_where_it_is_due() -> None:
    assert list(prefetched(lambda number: number**2, range(7))) == [0, 1, 4, 9, 16, 25, 36]
    results = prefetched(lambda number: 1 // (3 - number), range(5))
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
