"""Shards are WebDataset tar files: the webdataset library reads the same images and labels."""

import json

import webdataset

from tests.conftest import World


def test_webdataset_library_reads_the_shards(world: World) -> None:
    split = world.shards.get_split("train")
    paths = [str(world.shards.path / f"{name}.tar") for name in split.shard_names]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == split.keys_of(range(len(split))).tolist()
    for row, sample in enumerate(samples):
        assert sample["jpg"] == split.read_jpeg(row)
        assert json.loads(sample["json"])["expression"] == split.expression[row]
