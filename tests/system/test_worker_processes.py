"""Tests of worker processes: none of them outlives its parent, and a full /dev/shm is one line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featgan.config.loading import to_yaml
from featgan.training.train import train
from tests.conftest import World
from tests.helpers.mounts import featgan_command, run_with_mounts, small_shared_memory

ROOT = Path(__file__).parents[2]

WAIT_SECONDS = 120.0
"""Time limit for what takes a second on an idle machine."""


def child_processes(pid: int) -> list[int]:
    """Return the ids of all descendants of a process."""
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [descendant for child in children for descendant in child_processes(child)]


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], problem: str) -> None:
    """Wait until a condition holds; fail after WAIT_SECONDS."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, problem
        time.sleep(0.02)


@contextmanager
def started(command: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
    """Run a command in its own session; everything that is left of it is killed at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def check_that_workers_end_with(command: list[str], num_workers: int, working_seconds: float = 2.0) -> None:
    """Kill a command as soon as it has its workers, and again when they are at work; check that nothing is left."""
    for delay in (0.0, working_seconds):
        with started(command) as process:
            wait_until(
                lambda pid=process.pid: len(child_processes(pid)) >= num_workers,  # type: ignore[misc]
                f"{command} started no workers",
            )
            time.sleep(delay)
            workers = child_processes(process.pid)
            assert process.poll() is None, "the command ended too early for this test"
            process.kill()
            process.wait()
            try:
                wait_until(lambda pids=workers: not any(map(is_running, pids)), "workers are left")  # type: ignore[misc]
            finally:
                for pid in filter(is_running, workers):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_workers_of_a_killed_synthesize_end(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from featgan.data.synthetic.dataset import synthesize_faces\n"
        "if __name__ == '__main__': synthesize_faces(Path(sys.argv[1]), 100_000, 0, 112, workers=2)"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    check_that_workers_end_with([sys.executable, str(script), str(tmp_path / "faces")], 3)


@pytest.mark.slow
def test_workers_of_a_killed_pack_end(world: World, tmp_path: Path) -> None:
    image = next((world.source / "train_set" / "images").glob("*.jpg"))
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4000):
            (tmp_path / "images" / name / f"{index}.jpg").symlink_to(image)
    out = tmp_path / "shards"
    command = featgan_command("pack", "folder", tmp_path / "images", "--out", out, "--workers", 2, "--image-size", 512)
    check_that_workers_end_with(command, 3)


@pytest.mark.slow
def test_workers_of_a_killed_training_end(world: World, tmp_path: Path) -> None:
    config = world.make_config(tmp_path / "run", training={"num_workers": 2, "steps": 10**6, "checkpoint_every": 10**6})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    check_that_workers_end_with(featgan_command("train", tmp_path / "config.yaml"), 2)


@pytest.mark.slow
def test_evaluation_of_a_killed_watch_ends(world: World, tmp_path: Path) -> None:
    train(world.make_config(tmp_path / "runs" / "run"))
    command = [sys.executable, "-m", "launch", "watch", str(tmp_path / "runs"), "--once"]
    check_that_workers_end_with(command, 1, working_seconds=0.5)


@pytest.mark.slow
def test_full_shared_memory_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from featgan.system.worker_processes import open_process_pool\n"
        "from featgan.errors import UserError\n"
        "if __name__ == '__main__':\n"
        "    try:\n        open_process_pool(2)\n"
        "    except UserError as error:\n        print(error)\n"
    )
    setup = small_shared_memory(4) + "\ndd if=/dev/zero of=/dev/shm/file bs=4k 2> /dev/null || true"
    result = run_with_mounts(setup, [sys.executable, str(script)])
    assert result.stdout.startswith("/dev/shm: cannot be written") and "--shm-size" in result.stdout, result.stderr
    assert len(result.stdout.splitlines()) == 1


def run_script(script: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script that starts a pool of workers."""
    command = [sys.executable, str(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def test_worker_that_is_killed_while_the_next_one_starts_is_reported(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, signal, time\n"
        "from concurrent.futures.process import BrokenProcessPool\n"
        "from featgan.system.worker_processes import open_process_pool\n"
        "Process = multiprocessing.get_context('spawn').Process\n"
        "start, started = Process.start, []\n"
        "def start_slowly(process):\n"
        "    start(process)\n"
        "    started.append(process.pid)\n"
        "    if len(started) == 1:\n"
        "        os.kill(process.pid, signal.SIGKILL)\n"
        "    else:\n"
        "        time.sleep(1)\n"
        "if __name__ == '__main__':\n"
        "    Process.start = start_slowly\n"
        "    with open_process_pool(2) as pool:\n"
        "        try:\n"
        "            for future in [pool.submit(abs, -1), pool.submit(abs, -2)]:\n"
        "                future.result()\n"
        "        except BrokenProcessPool:\n"
        "            print('broken')\n"
    )
    result = run_script(script)
    assert result.stdout == "broken\n" and result.returncode == 0, result.stderr


def test_workers_ignore_ctrl_c_from_their_start(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, signal, time\n"
        "from featgan.system.worker_processes import open_process_pool\n"
        "Process = multiprocessing.get_context('spawn').Process\n"
        "start = Process.start\n"
        "def start_and_interrupt(process):\n"
        "    start(process)\n"
        "    for _ in range(20):\n"
        "        time.sleep(0.01)\n"
        "        os.kill(process.pid, signal.SIGINT)\n"
        "if __name__ == '__main__':\n"
        "    Process.start = start_and_interrupt\n"
        "    with open_process_pool(2) as pool:\n"
        "        print(pool.submit(abs, -3).result())\n"
    )
    result = run_script(script)
    assert (result.stdout, result.stderr, result.returncode) == ("3\n", "", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_a_worker_starts_gives_no_traceback_of_the_worker(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from multiprocessing import util\n"
        "from featgan.system.worker_processes import open_process_pool\n"
        "start = util.spawnv_passfds\n"
        "def start_and_interrupt(*arguments):\n"
        "    pid = start(*arguments)\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    return pid\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        with open_process_pool(2) as pool:\n"
        "            util.spawnv_passfds = start_and_interrupt\n"
        "            pool.submit(abs, -3)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    result = run_script(script)
    assert "Traceback" not in result.stderr
    assert result.returncode == (130 if number is signal.SIGINT else -signal.SIGTERM)


@pytest.mark.parametrize("victim", [0, 1])
def test_worker_that_is_killed_while_the_pool_ends_does_not_block_it(tmp_path: Path, victim: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, threading, time\n"
        "from featgan.system.worker_processes import open_process_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = open_process_pool(2)\n"
        "    assert pool.submit(abs, -3).result() == 3\n"
        "    workers = list(pool._processes)\n"
        "    for _ in range(1000):  # until one waits for a task inside the lock, and one for the lock\n"
        "        states = [open(f'/proc/{pid}/wchan').read() for pid in workers]\n"
        "        if any('pipe' in state for state in states) and any('futex' in state for state in states):\n"
        "            break\n"
        "        time.sleep(0.01)\n"
        "    for pid in workers:\n"
        "        os.kill(pid, signal.SIGSTOP)\n"
        "    end = threading.Thread(target=pool.shutdown)\n"
        "    end.start()\n"
        "    time.sleep(0.5)  # now the pool has sent its last message to both\n"
        f"    os.kill(workers.pop({victim}), signal.SIGKILL)\n"
        "    os.kill(workers.pop(), signal.SIGCONT)\n"
        "    end.join(20)\n"
        "    print('blocked' if end.is_alive() else 'ended', flush=True)\n"
        "    os._exit(0)\n"
    )
    result = run_script(script)
    assert result.stdout == "ended\n", result.stderr


def test_worker_that_is_killed_while_it_sends_a_result_is_reported(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(
        "import gc, os, signal, struct\n"
        "from multiprocessing.queues import SimpleQueue\n"
        "def send_part_of_a_result():\n"
        "    queue = next(item for item in gc.get_objects() if isinstance(item, SimpleQueue))\n"
        "    os.write(queue._writer.fileno(), struct.pack('!i', 1000) + b'part')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from concurrent.futures.process import BrokenProcessPool\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from featgan.system.worker_processes import open_process_pool\n"
        "from work import send_part_of_a_result\n"
        "if __name__ == '__main__':\n"
        "    pool = open_process_pool(2)\n"
        "    future = pool.submit(send_part_of_a_result)\n"
        "    try:\n"
        "        future.result(timeout=20)\n"
        "    except TimeoutError:\n"
        "        print('blocked', flush=True)\n"
        "        os._exit(0)\n"
        "    except BrokenProcessPool:\n"
        "        pool.shutdown()\n"
        "        print('broken')\n"
    )
    result = run_script(script)
    assert result.stdout == "broken\n", result.stderr
