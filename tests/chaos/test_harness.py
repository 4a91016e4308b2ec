"""The stress harness detects planted defects, and its scenarios depend on the seed only."""

import json
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import featgan.cli.info
from featgan.errors import UserError
from tests.chaos import outcomes, processes
from tests.chaos.binaries import damage_array, damage_image, damage_npz, damage_safetensors, damage_tar
from tests.chaos.documents import damage_bytes, damage_json, damage_json_lines, damage_table, damage_yaml
from tests.chaos.inputs import find_lost_results
from tests.chaos.kills import check_interrupted
from tests.chaos.outcomes import Outcome, classify_result, has_one_error_line
from tests.chaos.processes import CommandResult, CommandSettings, run_command
from tests.chaos.special_files import SPECIAL_FILES
from tests.chaos.summary import build_markdown, find_defects
from tests.conftest import World

ROOT = Path(__file__).parents[2]
HOG_BYTES = 400_000_000


def run_in_child(function: Callable[[], tuple[str, str]], folder: Path) -> tuple[str, str]:
    """Call a function in a fork, which becomes the parent of all processes that a command leaves behind."""
    result = folder / "result.json"
    pid = os.fork()
    if pid == 0:
        try:
            result.write_text(json.dumps(function()))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    outcome, detail = json.loads(result.read_text())
    return outcome, detail


def classify_planted(planted: Callable[[], None], folder: Path, hangs: bool = False) -> tuple[str, str]:
    """Return the outcome of `featgan info` with a planted defect; one that hangs is ended early."""

    def run_planted() -> tuple[str, str]:
        command = ["featgan", "info", str(folder)]
        valid = run_command(command, folder, folder / "valid")
        if hangs:
            processes.HANG_SECONDS, processes.STALL_SECONDS = 1.0, 0.5
        processes.ORPHAN_GRACE_SECONDS = 0.5
        result = run_command(command, folder, folder / "output", CommandSettings(on_start=planted))
        return classify_result(result, valid.peak_bytes)

    return run_in_child(run_planted, folder)


def replace_description(function: Callable[[Path], object]) -> None:
    """Make `featgan info` call another function."""
    featgan.cli.info.describe_path = function  # type: ignore[assignment]


def raise_key_error(path: Path) -> object:
    empty: dict[str, int] = {}
    return empty["missing"]


def sleep_long(path: Path) -> None:
    time.sleep(600)


def use_processor(path: Path) -> None:
    while True:
        pass


def use_memory(path: Path) -> None:
    content = mmap.mmap(-1, HOG_BYTES)  # malloc could use memory that the test process has freed, but not returned
    for _ in range(HOG_BYTES // mmap.PAGESIZE):
        content.write(bytes(mmap.PAGESIZE))
    raise UserError(f"{path}: too large: {len(content)} bytes")


def leave_process(path: Path) -> None:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    raise UserError(f"{path}: wrong")


def raise_user_error(path: Path) -> None:
    raise UserError(f"{path}: wrong; choose another path")


def end_process(path: Path) -> None:
    os.abort()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (raise_user_error, outcomes.ONE_LINE),
        (raise_key_error, outcomes.TRACEBACK),
        (sleep_long, outcomes.HANG),
        (use_processor, outcomes.HANG),
        (use_memory, outcomes.MEMORY),
        (leave_process, outcomes.ORPHAN),
        (end_process, outcomes.KILLED),
    ],
)
def test_planted_defect_is_detected(function: Callable[[Path], object], expected: str, tmp_path: Path) -> None:
    outcome, detail = classify_planted(lambda: replace_description(function), tmp_path, expected == outcomes.HANG)
    assert outcome == expected, detail
    if expected == outcomes.HANG:
        assert function.__name__ in detail, "the stacks of a command that hangs are printed"


def test_messages_of_the_process_for_semaphores_are_left_out() -> None:
    messages = (
        "resource_tracker.py:123: UserWarning: resource_tracker: process died unexpectedly, relaunching.\n"
        'Traceback (most recent call last):\n  File "/lib/multiprocessing/resource_tracker.py", line 239, in main\n'
        "    cache[rtype].remove(name)\npacking  48/48 images\nKeyError: '/loky-1-a'\n"
    )
    result = CommandResult(0, 1.0, 0, "", messages, "")
    assert check_interrupted(result)[0] == outcomes.OK
    own = 'Traceback (most recent call last):\n  File "/featgan/pack.py", line 1, in main\nKeyError: 1\n'
    assert check_interrupted(replace(result, stderr=messages + own))[0] == outcomes.TRACEBACK


def test_orphans_are_ended(tmp_path: Path) -> None:
    marker = f"60{os.getpid()}"

    def leave_marked_process(path: Path) -> None:
        subprocess.Popen(["sleep", marker], start_new_session=True)

    outcome, detail = classify_planted(lambda: replace_description(leave_marked_process), tmp_path)
    assert outcome == outcomes.ORPHAN and marker in detail
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(marker.encode() in command for command in commands)


def test_lost_result_is_detected(tmp_path: Path) -> None:
    before = {"shards/a.tar": b"1", "runs/b.json": b"2"}
    for name, content in before.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    assert find_lost_results(tmp_path, before, tmp_path / "x") == ""
    (tmp_path / "runs" / "b.json").write_bytes(b"3")
    assert find_lost_results(tmp_path, before, tmp_path / "x") == "runs/b.json was changed"
    assert find_lost_results(tmp_path, before, tmp_path / "runs" / "b.json") == ""
    (tmp_path / "shards" / "a.tar").unlink()
    assert find_lost_results(tmp_path, before, tmp_path / "runs" / "b.json") == "shards/a.tar was removed"


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        ("featgan: x: wrong; do y\n", True),
        ("Usage: featgan pack [OPTIONS]\nTry 'featgan pack -h' for help.\n\nError: no such option\n", True),
        ("packing \u2501\u2501\u2501 100%\nfeatgan: x: wrong\n", True),
        ("UserWarning: y\nfeatgan: x: wrong\n", False),
        ("", False),
    ],
)
def test_number_of_error_lines(stderr: str, expected: bool) -> None:
    assert has_one_error_line(stderr) == expected


def test_exit_code_one_is_not_a_user_error() -> None:
    result = CommandResult(1, 1.0, 10, "", "featgan: x\n", "")
    assert classify_result(result, 10)[0] == outcomes.OTHER_EXIT


JSON_DOCUMENT = b'{"count": 3, "names": ["a", "b"], "splits": {"train": {"bytes": 10}}}'
DAMAGES = (
    (damage_json, JSON_DOCUMENT),
    (damage_json_lines, b'{"step": 1}\n{"step": 2}\n'),
    (damage_yaml, b"training: {steps: 4, batch_size: 2}\nrun_dir: x\n"),
    (damage_table, b"path,label\na.jpg,happy\nb.jpg,sad\n"),
    (damage_bytes, bytes(range(200))),
)


def damage_repeatedly(seed: str, world: World) -> list[bytes]:
    """Return 12 damaged versions of a file of each format."""
    binaries = (
        (damage_tar, next(world.shards.path.glob("*.tar"))),
        (damage_npz, next(world.shards.path.glob("*.npz"))),
        (damage_array, sorted(world.cache.path.glob("*.npy"))[0]),
        (damage_safetensors, sorted(world.cache.path.glob("*.safetensors"))[0]),
        (damage_image, sorted(world.source.rglob("*.jpg"))[0]),
    )
    sources = [*DAMAGES, *((damage, path.read_bytes()) for damage, path in binaries)]
    return [
        damage(content, random.Random(f"{seed}/{number}"))[0]
        for damage, content in sources
        for number in range(12)
    ]  # fmt: skip


def test_damage_depends_on_the_seed_only(world: World) -> None:
    first = damage_repeatedly("1", world)
    assert first == damage_repeatedly("1", world)
    assert first != damage_repeatedly("2", world)


def test_pool_of_values_is_the_same_in_every_process() -> None:
    code = (
        "import hashlib; from tests.chaos.values import draw_json_values; values = draw_json_values();"
        "print(len(values), hashlib.sha256(ascii(values).encode()).hexdigest())"
    )
    command = [sys.executable, "-c", code]
    outputs = {subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(outputs) == 1 and int(outputs.pop().split()[0]) >= 300


@pytest.mark.parametrize("name", SPECIAL_FILES)
def test_special_files_replace_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    SPECIAL_FILES[name](path)
    assert path.is_symlink() or path.exists() or name == "a missing file"


def test_summary_counts_defects_by_family_and_group() -> None:
    rows = [
        Outcome("inputs", 1, "images", "", "", outcomes.ONE_LINE),
        Outcome("inputs", 2, "images", "", "", outcomes.TRACEBACK),
        Outcome("kills", 3, "train", "", "", outcomes.OK),
    ]
    assert find_defects(rows) == [rows[1]]
    cells = [line.removeprefix("| ").split(" | ")[:6] for line in build_markdown(rows).splitlines()]
    assert cells[0] == ["family", "group", "runs", "ok", "one line", "traceback"]
    assert cells[2:] == [
        ["inputs", "images", "2", "", "1", "1"],
        ["inputs", "all", "2", "0", "1", "1"],
        ["kills", "train", "1", "1", "", ""],
        ["kills", "all", "1", "1", "0", "0"],
    ]


@pytest.mark.slow
def test_one_scenario_of_each_family_runs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.chaos",
        "--folder",
        str(tmp_path),
        "--json",
        str(tmp_path / "outcomes.json"),
    ]
    command += [f"--count={name}=1" for name in ("inputs", "kills", "io", "disks", "http")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    written = json.loads((tmp_path / "outcomes.json").read_text())
    assert {outcome["family"] for outcome in written} == {"inputs", "kills", "io", "disks", "http"}, result.stdout
    assert not [outcome for outcome in written if outcome["outcome"] == outcomes.HARNESS], result.stdout
