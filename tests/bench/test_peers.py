"""`featgan bench data --peers`: every library reads the same images."""

from pathlib import Path

import pytest

from featgan.bench import peers
from featgan.bench.timing import CostSamples

NUM_IMAGES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("peers")
    peers.write_peer_data(root, 32, NUM_IMAGES)
    return root


def read_images(name: str, folder: Path, uses_torchvision: bool) -> list[bytes]:
    """Return the pixels of one epoch of a library, in a fixed order."""
    with peers.PEERS[name](peers.PeerData(folder, 8, 0, uses_torchvision)) as batches:
        return sorted(bytes(image.contiguous().numpy().data) for images in batches for image in images)


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_all_libraries_read_the_same_images(name: str, folder: Path) -> None:
    expected = read_images("featgan", folder, True)
    assert len(expected) == NUM_IMAGES and read_images(name, folder, True) == expected


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_costs_of_an_epoch_are_measured(name: str, folder: Path) -> None:
    costs = peers.measure_epoch(name, str(folder), 8, 0, False, True)
    assert costs["num_images"] == NUM_IMAGES
    assert costs["cpu_seconds"] > 0 and costs["first_batch_seconds"] > 0 and costs["megabytes"] >= 0


def test_table_compares_with_featgan() -> None:
    costs = {
        "featgan": peers.PeerCosts(100, CostSamples((1.0, 2.0)), CostSamples((0.1,)), 10),
        "wids": peers.PeerCosts(100, CostSamples((2.0, 4.0)), CostSamples((0.2,)), 20),
    }
    assert peers.table_rows(costs)[1] == ("wids", "33", "2.00 x", "0.20 s", "20 MB")
    (row,) = peers.build_rows(costs)
    assert row.goal_value("speedup") == 2
