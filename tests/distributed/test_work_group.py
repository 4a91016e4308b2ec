"""The processes of a command share results and errors, and none waits for a process that has ended."""

import os
import signal
import time
from pathlib import Path

import pytest

from featgan.distributed.work_group import SINGLE_PROCESS, WorkGroup, decode_message, encode_message
from featgan.errors import UserError
from tests.helpers.groups import KILLED, run_group


def check_messages(group: WorkGroup) -> None:
    assert group.exchange(f"ä{group.rank}") == [f"ä{rank}" for rank in range(3)]
    assert group.run_on_main(lambda: True) and not group.run_on_main(lambda: False)
    with group.joined():
        time.sleep(0.1 * group.rank)
        group.check_peers()


def test_processes_exchange_messages(tmp_path: Path) -> None:
    assert run_group(3, check_messages, tmp_path) == ["", "", ""]


def fail_in_rank_1(group: WorkGroup) -> None:
    with group.joined():
        if group.rank == 1:
            raise UserError("the disk is\nfull")
        while True:  # long work, which checks the others between its parts
            group.check_peers()
            time.sleep(0.01)


def fail_on_main(group: WorkGroup) -> None:
    def action() -> bool:
        raise OSError(28, "No space left on device", "/data/x")

    try:
        group.run_on_main(action)
    except OSError as error:
        assert group.is_main
        raise UserError("own error") from error


def test_an_error_in_one_process_is_one_line_in_all(tmp_path: Path) -> None:
    assert run_group(3, fail_in_rank_1, tmp_path) == [
        "rank 1: the disk is full", "the disk is\nfull", "rank 1: the disk is full",
    ]  # fmt: skip
    own, *others = run_group(2, fail_on_main, tmp_path)
    assert own == "own error"
    assert others[0].startswith("rank 0: /data/x") and "\n" not in others[0]


@pytest.mark.parametrize("killed", [0, 1])
def test_no_process_waits_for_one_that_was_killed(killed: int, tmp_path: Path) -> None:
    def action(group: WorkGroup) -> None:
        with group.joined():
            if group.rank == killed:
                os.kill(os.getpid(), signal.SIGKILL)

    messages = run_group(3, action, tmp_path)
    assert messages.pop(killed) == KILLED
    assert all(message.startswith("another process of this command has ended") for message in messages), messages


def test_one_process_needs_no_connection() -> None:
    assert SINGLE_PROCESS.exchange("a") == ["a"]
    assert SINGLE_PROCESS.run_on_main(lambda: True)
    SINGLE_PROCESS.check_peers()
    with pytest.raises(ZeroDivisionError), SINGLE_PROCESS.joined():
        raise ZeroDivisionError


def test_long_messages_are_cut() -> None:
    assert decode_message(encode_message("x" * 5000)) == "x" * 2000
