"""Tests of the benchmarks: statistics and goals, equal results of reference and fast code, tables and JSON."""

import io
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from featgan.bench import data_loading, extract, fixtures, forward_passes, startup, timing
from featgan.bench.results import (
    BenchmarkResults,
    BenchmarkRow,
    Goal,
    ResultTable,
    print_results,
    to_markdown,
    write_json,
)
from featgan.bench.timing import CostSamples, SubprocessWorker, run_in_new_process, time_interleaved
from featgan.blackbox.extraction import extract_features
from featgan.blackbox.loading import load_blackbox
from featgan.cli.main import cli
from featgan.config.trusted_callables import ALL_CALLABLES
from featgan.data.order import random_stream
from featgan.system.console import PlainConsole
from featgan.system.images import to_float


def test_variants_are_timed_in_turn_without_the_warm_up() -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    actual = time_interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: (calls.append("b"), next(ticks))}, 3, clock=lambda: next(ticks)
    )
    assert calls == ["a", "b"] * 4
    assert actual == {"a": CostSamples((1, 1, 1)), "b": CostSamples((2, 2, 2))}


def test_ratio_is_the_median_over_pairs() -> None:
    # The machine becomes three times slower, but the ratio of each pair is still 2.
    slow, fast = CostSamples((2.0, 4.0, 6.0)), CostSamples((1.0, 2.0, 3.0))
    assert slow.ratio_to(fast) == 2 and CostSamples((6.0,)).ratio_to(fast) == 3
    assert CostSamples((1.0, 2.0, 3.0)).quartiles == (1.5, 2.5) and fast.spread == 0.25


@pytest.mark.parametrize(
    ("goal", "value", "is_met"),
    [
        (Goal("speedup", 3), 4, True), (Goal("speedup", 5), 4, False),
        (Goal("efficiency", 0.5), 0.5, True), (Goal("efficiency", 0.8), 0.5, False),
        (Goal("overhead", 2), 2, True), (Goal("overhead", 1.3), 2, False),
        (Goal("cost_ratio", 0.25), 0.25, True), (Goal("cost_ratio", 0.2), 0.25, False),
        (Goal("value", 2), 2, True), (Goal("value", 1.9), 2, False),
    ],
)  # fmt: skip
def test_goals_compare_with_the_right_variant(goal: Goal, value: float, is_met: bool) -> None:
    row = BenchmarkRow(
        "x", fast=CostSamples((2.0,)), naive=CostSamples((8.0,)), upper_bound=CostSamples((1.0,)), goals=(goal,)
    )
    assert row.goal_value(goal.kind) == value
    assert row.goal_to_json(goal)["is_met"] is is_met
    assert row.goal_result(goal).endswith("met" if is_met else "missed")


def test_goal_without_measured_baseline_is_missed() -> None:
    row = BenchmarkRow("x", fast=CostSamples((2.0,)), goals=(Goal("speedup", 1),))
    assert row.goal_result(row.goals[0]) == "at least 1.00 x: not measured, missed"


def example_results() -> BenchmarkResults:
    """Return results with long and short rows, goals and a table."""
    rows = [
        BenchmarkRow(
            "images: a long name of what was measured",
            CostSamples((0.5, 0.52)),
            CostSamples((2.0, 2.1)),
            CostSamples((0.4, 0.41)),
            (Goal("speedup", 4), Goal("efficiency", 0.9)),
            num_items=1_000_000,
            note="the other stages are short",
        ),
        BenchmarkRow("memory", CostSamples((75.25,)), CostSamples((1234.0,)), goals=(Goal("value", 100),), unit="MB"),
        BenchmarkRow("waiting", CostSamples((0.0123,)), unit="%"),
    ]
    table = ResultTable("Stages", ("stage", "µs"), (("decode", "80"),))
    return BenchmarkResults("data", rows, {"batch_size": 16}, [table], ["example note"])


def test_table_fits_80_columns_without_vertical_lines() -> None:
    output = io.StringIO()
    print_results(example_results(), 0.0, PlainConsole(file=output, width=80))
    assert max(map(len, output.getvalue().splitlines())) <= 80
    assert not set(output.getvalue()) & set("│┃┏╭|")
    for text in ("1,960,784/s", "4.02 x", "75.2 MB", "1.23 %", "at most 100 MB: 75.2 MB, met", "example note"):
        assert text in output.getvalue(), text


def test_busy_machine_is_reported() -> None:
    for load, is_busy in ((0.0, False), (1e3, True)):
        output = io.StringIO()
        print_results(example_results(), load, PlainConsole(file=output, width=80))
        assert ("busy" in output.getvalue()) is is_busy


def test_markdown_contains_rows_and_tables() -> None:
    lines = to_markdown(example_results(), "featgan bench data").splitlines()
    assert lines[0].startswith("| images: a long name of what was measured | `featgan bench data` | 487,805/s")
    assert all(line.count("|") == 10 for line in lines[:3])
    assert lines[3:] == ["", "Stages:", "", "| stage | µs |", "| --- | --- |", "| decode | 80 |"]


def test_json_contains_every_sample_and_the_machine(tmp_path: Path) -> None:
    write_json(example_results(), "featgan bench data", 0.25, tmp_path / "new" / "a.json")
    document = json.loads((tmp_path / "new" / "a.json").read_text())
    assert document["rows"][0]["naive"]["values"] == [2.0, 2.1] and document["rows"][0]["goals"][0]["is_met"] is True
    assert document["machine"]["torch"] == torch.__version__ and document["machine"]["load_before"] == 0.25
    assert document["command"] == "featgan bench data" and document["machine"]["cores"] >= 1
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "a.json"]


def touch_memory(megabytes: int) -> int:
    """Allocate memory, touch every page, and free it."""
    return int(np.ones(megabytes << 20, np.uint8).sum() >> 20)


@pytest.mark.slow
def test_new_process_reports_its_own_peak_memory() -> None:
    ballast = np.ones(300 << 20, np.uint8)  # memory of this process, which must not be counted
    usage = run_in_new_process("tests.bench.test_bench:touch_memory", 120)
    assert usage.result == 120 and ballast.size
    assert 120 < usage.megabytes < 160 and 0 < usage.seconds < usage.seconds + usage.import_seconds


def memory_user(megabytes: int) -> Callable[[], None]:
    """Return work that touches memory, or that ends its process if `megabytes` is negative."""
    return lambda: sys.exit(3) if megabytes < 0 else print(touch_memory(megabytes))


@pytest.mark.slow
def test_workers_measure_their_own_memory() -> None:
    with (
        SubprocessWorker("tests.bench.test_bench:memory_user", 200) as large,
        SubprocessWorker("tests.bench.test_bench:memory_user", 50) as small,
    ):
        for worker in (small, large, small):
            worker()
        assert 50 < small.megabytes < 100 and 200 < large.megabytes < 250
    with (
        SubprocessWorker("tests.bench.test_bench:memory_user", -1) as failing,
        pytest.raises(RuntimeError, match="ended with status 3"),
    ):
        failing()


def measure_peaks_after_reset() -> tuple[float, float, float]:
    """Return in MB: the peak of 200 MB, the memory after the reset, and the following peak of 64 MB."""
    touch_memory(200)
    earlier_peak = timing.peak_memory()
    base = timing.reset_peak_memory()
    touch_memory(64)
    return earlier_peak, base, timing.peak_memory()


@pytest.mark.slow
def test_peak_memory_can_be_reset() -> None:
    # In a new process: this one may keep freed memory of other tests, so that 64 MB need no new memory.
    function = "tests.bench.test_bench:measure_peaks_after_reset"
    earlier_peak, base, peak = run_in_new_process(function).result
    if peak == earlier_peak:
        pytest.skip("this system cannot reset its peak memory")
    assert base + 60 < peak < base + 100 < earlier_peak


def test_naive_and_fast_pipelines_make_the_same_batch(tmp_path: Path) -> None:
    jpegs, items = fixtures.make_synthetic_faces(24, 32, seed=int(time.time()))
    paths = fixtures.write_image_files(tmp_path / "files", jpegs, items)
    shards = fixtures.write_shards(tmp_path / "shards", jpegs, items, 32)
    fixtures.write_features(shards, 5)
    batches = data_loading.build_stream(data_loading.build_config(tmp_path, 8, 1), shards)
    rows, flipped = batches.global_rows(0, 2)
    reference = data_loading.NaivePipeline(32)
    reference.transform.transforms.pop(0)  # random flip
    images = reference.load_batch([paths[row] for row in rows])
    images[flipped] = images[flipped].flip(3)
    torch.testing.assert_close(to_float(batches[2].images), images, rtol=0, atol=1e-6)


def test_text_files_and_cache_contain_the_same_features(tmp_path: Path) -> None:
    shards, cache = startup.make_data(tmp_path, 40, 3)
    startup.write_text_files(tmp_path / "text", shards, cache)
    assert len(shards.get_split("train")) == 40
    np.testing.assert_allclose(startup.start_naive(str(tmp_path / "text")), cache.features("train", [0])[0], atol=1e-6)
    first = startup.start_fast(str(shards.path))
    row = random_stream(0, 0, 0, 0).permutation(40)[0]  # the first image of the first epoch
    upright_and_flipped = cache.features("train", [row, row], np.array([False, True]))
    assert any(np.allclose(first, features) for features in upright_and_flipped)


def test_extraction_matches_the_naive_features(tmp_path: Path) -> None:
    jpegs, items = fixtures.make_synthetic_faces(21, 32, seed=int(time.time()))
    shards = fixtures.write_shards(tmp_path / "shards", jpegs, items, 32, images_per_shard=8)
    spec = forward_passes.UNTRAINED_CLASSIFIER
    cache = extract_features(shards.path, spec, "mine", batch_size=5, trusted=ALL_CALLABLES)
    reference = extract.extract_naively(shards, "train", load_blackbox(spec, trusted=ALL_CALLABLES))
    for is_flipped in (False, True):
        actual = torch.from_numpy(cache.features("train", np.arange(21), is_flipped))
        torch.testing.assert_close(actual, reference[:, int(is_flipped)], rtol=1e-3, atol=1e-6)
    assert (reference[:, 0] - reference[:, 1]).abs().max() > 1e-4


def test_calls_are_recorded_inside_the_block() -> None:
    class Network:
        def classify(self, images: torch.Tensor, scale: int) -> int:
            return 2 * scale

    sizes: list[int] = []
    seconds: dict[str, float] = {}
    counted = forward_passes.count_images(Network.classify, sizes)
    timed = forward_passes.time_calls(counted, seconds, "classify")
    with forward_passes.patched_functions({(Network, "classify"): timed}):
        assert Network().classify(torch.zeros(3, 1), 4) == 8 and Network().classify(torch.zeros(5, 1), 1) == 2
    spent = seconds["classify"]
    Network().classify(torch.zeros(7, 1), 4)
    assert sizes == [3, 5] and seconds == {"classify": spent} and spent > 0


def test_repeated_shard_contains_the_same_images(tmp_path: Path) -> None:
    jpegs, items = fixtures.make_synthetic_faces(6, 16)
    shards = fixtures.repeat_shard(fixtures.write_shards(tmp_path / "shards", jpegs, items, 16), 3)
    split = shards.get_split("train")
    assert len(split) == 18 and split.shard_names == ["train-00000", "train-00001", "train-00002"]
    assert torch.equal(split.decode(np.arange(6)), split.decode(np.arange(12, 18)))
    shards.verify()


def run_bench(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """Run a benchmark once and return its JSON."""
    out = tmp_path / "bench.json"
    result = CliRunner().invoke(cli, ["bench", *arguments, "--repeats", "1", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and re.search(r"goal .*(met|missed)", result.output), result.output
    document: dict[str, Any] = json.loads(out.read_text())
    for row in document["rows"]:
        assert row["fast"]["median"] > 0, row
    return document


def test_bench_data(tmp_path: Path) -> None:
    arguments = ("data", "--image-size", "16", "--num-images", "16", "--batch-size", "8", "--training-steps", "0")
    document = run_bench(tmp_path, *arguments)
    assert document["command"] == "featgan bench " + " ".join(arguments) + " --repeats 1"
    assert len(document["tables"][0]["rows"]) == 6


@pytest.mark.slow
def test_bench_data_with_a_training_run(tmp_path: Path) -> None:
    arguments = ("data", "--image-size", "64", "--num-images", "16", "--batch-size", "2", "--training-steps", "2")
    assert len(run_bench(tmp_path, *arguments)["rows"]) == 3


@pytest.mark.slow
def test_bench_start(tmp_path: Path) -> None:
    document = run_bench(tmp_path, "start", "--num-images", "30", "--feature-dim", "4")
    assert len(document["rows"]) == 5


def test_bench_extract(tmp_path: Path) -> None:
    document = run_bench(tmp_path, "extract", "--image-size", "16", "--num-images", "6", "--num-pairs", "0")
    (row,) = document["rows"]
    assert row["num_items"] == 12 and row["efficiency"] > 0


@pytest.mark.slow
def test_bench_extract_with_an_evaluation(tmp_path: Path) -> None:
    arguments = ("--image-size", "32", "--num-images", "20", "--dim", "4", "--num-pairs", "8")
    rows = run_bench(tmp_path, "extract", *arguments)["rows"]
    assert rows[1]["num_items"] > 8 * 5 and rows[1]["upper_bound"]["median"] > 0  # type: ignore[index]


@pytest.mark.slow
def test_bench_render(tmp_path: Path) -> None:
    arguments = ("--image-size", "32", "--num-images", "2", "--num-components", "2", "--dim", "4")
    document = run_bench(tmp_path, "render", *arguments)
    (row,), (table,) = document["rows"], document["tables"]
    assert row["goals"][0]["kind"] == "overhead" and row["goals"][0]["value"] > 1
    assert [cells[0] for cells in table["rows"]][-3:] == ["everything else", "total", "forward passes only"]
    assert len(table["rows"]) == 9


def test_bench_explore(tmp_path: Path) -> None:
    (row,) = run_bench(tmp_path, "explore", "--image-size", "32", "--dim", "4")["rows"]
    assert row["goals"] and 0 < row["upper_bound"]["median"] and 0 < row["efficiency"]
