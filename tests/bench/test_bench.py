"""The benches: costs and goals are reckoned right, both sides make the same, tables fit, JSON holds everything."""

import io
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from featgan.bench import data_loading, extract, fixtures, forward_passes, startup, timing
from featgan.bench.results import Bench, Goal, Row, Table, markdown, print_bench, write_json
from featgan.bench.timing import Costs, Elsewhere, in_new_process, in_turn
from featgan.blackbox.extraction import extract as extract_features
from featgan.blackbox.loading import load_blackbox
from featgan.cli.main import cli
from featgan.data.loader import stream
from featgan.system.images import to_float


def test_sides_are_measured_in_turn_and_the_warm_up_is_forgotten() -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    found = in_turn(
        {"a": lambda: calls.append("a"), "b": lambda: (calls.append("b"), next(ticks))}, 3, clock=lambda: next(ticks)
    )
    assert calls == ["a", "b"] * 4
    assert found == {"a": Costs((1, 1, 1)), "b": Costs((2, 2, 2))}


def test_ratios_are_taken_pair_by_pair() -> None:
    # The machine slows down threefold: pair by pair the ratio stays 2.
    slow, fast = Costs((2.0, 4.0, 6.0)), Costs((1.0, 2.0, 3.0))
    assert slow.over(fast) == 2 and Costs((6.0,)).over(fast) == 3
    assert Costs((1.0, 2.0, 3.0)).quartiles == (1.5, 2.5) and fast.spread == 0.25


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal("ratio", 3), 4, True), (Goal("ratio", 5), 4, False),
        (Goal("share", 0.5), 0.5, True), (Goal("share", 0.8), 0.5, False),
        (Goal("multiple", 2), 2, True), (Goal("multiple", 1.3), 2, False),
        (Goal("part", 0.25), 0.25, True), (Goal("part", 0.2), 0.25, False),
        (Goal("value", 2), 2, True), (Goal("value", 1.9), 2, False),
    ],
)  # fmt: skip
def test_goals_know_their_side(goal: Goal, value: float, met: bool) -> None:
    row = Row("x", fast=Costs((2.0,)), plain=Costs((8.0,)), ceiling=Costs((1.0,)), goals=(goal,))
    assert row.value_of(goal.relation) == value
    assert row.goal_json(goal)["met"] is met and row.verdict(goal).endswith("met" if met else "missed")


def test_a_goal_whose_other_side_was_not_measured_is_not_met() -> None:
    row = Row("x", fast=Costs((2.0,)), goals=(Goal("ratio", 1),))
    assert row.verdict(row.goals[0]) == "at least 1.00 x: not measured, missed"


def example() -> Bench:
    rows = [
        Row("images: a long name of what was measured", Costs((0.5, 0.52)), Costs((2.0, 2.1)), Costs((0.4, 0.41)),
            (Goal("ratio", 4), Goal("share", 0.9)), items=1_000_000, rest="everything else is small"),
        Row("memory", Costs((75.25,)), Costs((1234.0,)), goals=(Goal("value", 100),), unit="MB"),
        Row("waiting", Costs((0.0123,)), unit="%"),
    ]  # fmt: skip
    return Bench("data", rows, {"batch_size": 16}, [Table("Parts", ("part", "µs"), (("decode", "80"),))], ["remark"])


def test_the_table_fits_80_columns_without_boxes() -> None:
    shown = io.StringIO()
    print_bench(example(), 0.0, Console(file=shown, width=80))
    assert max(map(len, shown.getvalue().splitlines())) <= 80
    assert not set(shown.getvalue()) & set("│┃┏╭|")
    for text in ("1,960,784/s", "4.02 x", "75.2 MB", "1.23 %", "at most 100 MB: 75.2 MB, met", "remark"):
        assert text in shown.getvalue(), text


def test_a_busy_machine_is_told() -> None:
    for load, told in ((0.0, False), (1e3, True)):
        shown = io.StringIO()
        print_bench(example(), load, Console(file=shown, width=80))
        assert ("busy" in shown.getvalue()) is told


def test_markdown_rows_can_be_copied() -> None:
    lines = markdown(example(), "featgan bench data").splitlines()
    assert lines[0].startswith("| images: a long name of what was measured | `featgan bench data` | 487,805/s")
    assert all(line.count("|") == 10 for line in lines[:3])
    assert lines[3:] == ["", "Parts:", "", "| part | µs |", "| --- | --- |", "| decode | 80 |"]


def test_json_holds_every_turn_and_the_machine(tmp_path: Path) -> None:
    write_json(example(), "featgan bench data", 0.25, tmp_path / "new" / "a.json")
    found = json.loads((tmp_path / "new" / "a.json").read_text())
    assert found["rows"][0]["plain"]["values"] == [2.0, 2.1] and found["rows"][0]["goals"][0]["met"] is True
    assert found["machine"]["torch"] == torch.__version__ and found["machine"]["load_before"] == 0.25
    assert found["command"] == "featgan bench data" and found["machine"]["cores"] >= 1
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "a.json"]


def hold(megabytes: int) -> int:
    """Touch memory and let it go again."""
    return int(np.ones(megabytes << 20, np.uint8).sum() >> 20)


@pytest.mark.slow
def test_a_new_process_tells_its_own_peak_of_memory() -> None:
    ballast = np.ones(300 << 20, np.uint8)  # of this process: must not be counted there
    spent = in_new_process("tests.test_bench:hold", 120)
    assert spent.result == 120 and ballast.size
    assert 120 < spent.megabytes < 160 and 0 < spent.seconds < spent.seconds + spent.import_seconds


def holding(megabytes: int) -> Callable[[], None]:
    """Work that touches so much memory, or ends its process for less than none."""
    return lambda: sys.exit(3) if megabytes < 0 else print(hold(megabytes))


@pytest.mark.slow
def test_sides_elsewhere_keep_their_memory_to_themselves() -> None:
    with Elsewhere("tests.test_bench:holding", 200) as large, Elsewhere("tests.test_bench:holding", 50) as small:
        for side in (small, large, small):
            side()
        assert 50 < small.megabytes < 100 and 200 < large.megabytes < 250
    with Elsewhere("tests.test_bench:holding", -1) as leaving, pytest.raises(RuntimeError, match="ended with 3"):
        leaving()


def peaks_after_an_earlier_one() -> tuple[float, float, float]:
    """The peak of 200 MB, the zero after forgetting it, and the peak of 64 MB from there, in MB."""
    hold(200)
    earlier = timing.peak_memory()
    zero = timing.forget_peak()
    hold(64)
    return earlier, zero, timing.peak_memory()


@pytest.mark.slow
def test_an_earlier_peak_is_forgotten() -> None:
    # In a new process: this one may hold freed memory of other tests, which takes 64 MB without growing.
    earlier, zero, peak = in_new_process("tests.test_bench:peaks_after_an_earlier_one").result
    if peak == earlier:
        pytest.skip("this system cannot start its peak of memory anew")
    assert zero + 60 < peak < zero + 100 < earlier


def test_pil_and_the_fast_path_make_the_same_batch(tmp_path: Path) -> None:
    jpegs, items = fixtures.draw_faces(24, 32, seed=int(time.time()))
    paths = fixtures.write_files(tmp_path / "files", jpegs, items)
    shards = fixtures.write_shards(tmp_path / "shards", jpegs, items, 32)
    fixtures.write_features(shards, 5)
    batches = data_loading.build_stream(data_loading.build_config(tmp_path, 8, 1), shards)
    rows, mirrored = batches.global_rows(0, 2)
    plain = data_loading.PlainImages(32)
    plain.transform.transforms.pop(0)  # its own coin
    images = plain.batch([paths[row] for row in rows])
    images[mirrored] = images[mirrored].flip(3)
    torch.testing.assert_close(to_float(batches[2].images), images, rtol=0, atol=1e-6)


def test_text_and_cache_hold_the_same_numbers(tmp_path: Path) -> None:
    shards, cache = startup.make_data(tmp_path, 40, 3)
    startup.write_text(tmp_path / "text", shards, cache)
    assert len(shards.split("train")) == 40
    np.testing.assert_allclose(startup.start_plain(str(tmp_path / "text")), cache.features("train", [0])[0], atol=1e-6)
    first = startup.start_fast(str(shards.path))
    row = stream(0, 0, 0, 0).permutation(40)[0]  # the order of the first epoch
    both = cache.features("train", [row, row], np.array([False, True]))
    assert any(np.allclose(first, side) for side in both)


def test_extraction_gives_the_features_that_the_plain_way_gives(tmp_path: Path) -> None:
    jpegs, items = fixtures.draw_faces(21, 32, seed=int(time.time()))
    shards = fixtures.write_shards(tmp_path / "shards", jpegs, items, 32, images_per_shard=8)
    cache = extract_features(shards.path, forward_passes.FRESH_BOX, "mine", batch_size=5)
    plain = extract.extract_plainly(shards, "train", load_blackbox(forward_passes.FRESH_BOX))
    for side in (False, True):
        found = torch.from_numpy(cache.features("train", np.arange(21), side))
        torch.testing.assert_close(found, plain[:, int(side)], rtol=1e-3, atol=1e-6)
    assert (plain[:, 0] - plain[:, 1]).abs().max() > 1e-4


def test_calls_are_watched_while_the_block_runs() -> None:
    class Box:
        def look(self, images: torch.Tensor, twice: int) -> int:
            return 2 * twice

    sizes: list[int] = []
    seconds: dict[str, float] = {}
    watched = forward_passes.timing(forward_passes.counting(Box.look, sizes), seconds, "look")
    with forward_passes.replaced({(Box, "look"): watched}):
        assert Box().look(torch.zeros(3, 1), 4) == 8 and Box().look(torch.zeros(5, 1), 1) == 2
    spent = seconds["look"]
    Box().look(torch.zeros(7, 1), 4)
    assert sizes == [3, 5] and seconds == {"look": spent} and spent > 0


def test_a_repeated_shard_reads_like_any_other(tmp_path: Path) -> None:
    jpegs, items = fixtures.draw_faces(6, 16)
    shards = fixtures.repeat_shard(fixtures.write_shards(tmp_path / "shards", jpegs, items, 16), 3)
    split = shards.split("train")
    assert len(split) == 18 and split.shard_names == ["train-00000", "train-00001", "train-00002"]
    assert torch.equal(split.decode(np.arange(6)), split.decode(np.arange(12, 18)))
    shards.verify()


def run_bench(tmp_path: Path, *words: str) -> dict[str, object]:
    """The command at a tiny size; its JSON."""
    out = tmp_path / "bench.json"
    result = CliRunner().invoke(cli, ["bench", *words, "--repeats", "1", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and re.search(r"goal .*(met|missed)", result.output), result.output
    found: dict[str, object] = json.loads(out.read_text())
    for row in found["rows"]:  # type: ignore[attr-defined]
        assert row["fast"]["median"] > 0, row
    return found


def test_bench_data(tmp_path: Path) -> None:
    words = ("data", "--image-size", "16", "--num-images", "16", "--batch-size", "8", "--training-steps", "0")
    found = run_bench(tmp_path, *words)
    assert found["command"] == "featgan bench " + " ".join(words) + " --repeats 1"
    assert len(found["tables"][0]["rows"]) == 6  # type: ignore[index]


@pytest.mark.slow
def test_bench_data_with_a_training(tmp_path: Path) -> None:
    words = ("data", "--image-size", "64", "--num-images", "16", "--batch-size", "2", "--training-steps", "2")
    assert len(run_bench(tmp_path, *words)["rows"]) == 3  # type: ignore[arg-type]


@pytest.mark.slow
def test_bench_start(tmp_path: Path) -> None:
    found = run_bench(tmp_path, "start", "--num-images", "30", "--feature-dim", "4")
    assert len(found["rows"]) == 5  # type: ignore[arg-type]


def test_bench_extract(tmp_path: Path) -> None:
    found = run_bench(tmp_path, "extract", "--image-size", "16", "--num-images", "6", "--pairs", "0")
    (row,) = found["rows"]  # type: ignore[misc]
    assert row["items"] == 12 and row["share_of_ceiling"] > 0


@pytest.mark.slow
def test_bench_extract_with_an_evaluation(tmp_path: Path) -> None:
    words = ("--image-size", "32", "--num-images", "20", "--dim", "4", "--pairs", "8")
    rows = run_bench(tmp_path, "extract", *words)["rows"]
    assert rows[1]["items"] > 8 * 5 and rows[1]["ceiling"]["median"] > 0  # type: ignore[index]


@pytest.mark.slow
def test_bench_render(tmp_path: Path) -> None:
    words = ("--image-size", "32", "--num-images", "2", "--components", "2", "--dim", "4")
    found = run_bench(tmp_path, "render", *words)
    (row,), (table,) = found["rows"], found["tables"]  # type: ignore[misc]
    assert row["goals"][0]["relation"] == "multiple" and row["goals"][0]["value"] > 1
    assert [part[0] for part in table["rows"]][-3:] == ["everything else", "together", "passes alone"]
    assert len(table["rows"]) == 9


def test_bench_explore(tmp_path: Path) -> None:
    (row,) = run_bench(tmp_path, "explore", "--image-size", "32", "--dim", "4")["rows"]  # type: ignore[misc]
    assert row["goals"] and 0 < row["ceiling"]["median"] and 0 < row["share_of_ceiling"]
