"""The benchmark over simulated object storage trains on a server and downloads each shard once."""

from featgan.bench.remote import NUM_WINDOWS, SHUFFLE_WINDOW, run_benchmark


def test_each_shard_is_downloaded_once() -> None:
    result = run_benchmark(32, 128, 4)
    assert [len(row.goals) for row in result.rows] == [1, 0]
    assert len(result.tables[0].rows) == NUM_WINDOWS
    num_shards = NUM_WINDOWS * SHUFFLE_WINDOW
    assert f"{num_shards} downloads of {num_shards} shards, at most 1 per shard" in result.notes[-1]
