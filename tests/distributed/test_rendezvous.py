"""Processes started by SLURM find each other, also if another training or another program uses their port."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from featgan.distributed import rendezvous as rendezvous_module
from featgan.distributed.rendezvous import Rendezvous, init_env_from_slurm
from featgan.distributed.store_discovery import DiscoveryServer, ask_for_store, find_store, open_discovery_server
from featgan.errors import UserError

ROOT = Path(__file__).parent.parent.parent
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ALLOCATION = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_JOB_NODELIST": "n[1-4]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Replace os.environ with an empty dictionary, on a machine without scontrol and without a terminal."""
    variables: dict[str, str] = {"PATH": "/nowhere"}
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.setattr(os, "isatty", lambda descriptor: False)
    monkeypatch.setattr(sys, "argv", ["featgan", "train", "A"])
    return variables


def start_step(environment: dict[str, str], step: int, nodes: str, arguments: str = "train A") -> tuple[str, str]:
    """Return the address and the first port of a step."""
    environment.clear()
    environment.update(ALLOCATION | {"SLURM_STEP_ID": str(step), "SLURM_STEP_NODELIST": nodes, "PATH": "/nowhere"})
    sys.argv = ["featgan", *arguments.split()]
    assert init_env_from_slurm() is not None
    assert environment["LOCAL_WORLD_SIZE"] == "2" and environment["WORLD_SIZE"] == "4"
    return environment["MASTER_ADDR"], environment["MASTER_PORT"]


def test_steps_of_one_allocation_use_their_own_nodes_and_ports(environment: dict[str, str]) -> None:
    first, second = start_step(environment, 0, "n[1-2]"), start_step(environment, 1, "n[3-4]")
    assert first[0] == "n1" and second[0] == "n3" and first[1] != second[1]
    assert start_step(environment, 0, "n[1-2]") == first, "every process of a step finds the same"
    assert start_step(environment, 1, "n[1-2]")[1] != first[1], "two steps on the same nodes"
    assert start_step(environment, 0, "n[1-2]", "train B")[1] != first[1], "two trainings in one step"


def test_port_of_the_user_is_kept(environment: dict[str, str]) -> None:
    environment.update(ALLOCATION | {"SLURM_STEP_ID": "0", "MASTER_PORT": "23456", "MASTER_ADDR": "ib-n1"})
    assert init_env_from_slurm() is None
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"], environment["RANK"]) == ("ib-n1", "23456", "0")


def test_candidate_ports_are_below_the_ports_of_the_system() -> None:
    ports = Rendezvous("17/0/0").candidate_ports()
    assert ports == Rendezvous("17/0/0").candidate_ports() and len(set(ports)) > 10
    assert all(20_000 <= port < 32_000 for port in ports)


def test_server_answers_its_own_training_only() -> None:
    with DiscoveryServer(0, "17/0", 23456) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        assert ask_for_store("127.0.0.1", port, "17/0", "1:a") == 23456
        assert ask_for_store("127.0.0.1", port, "17/0", "1:a") == 23456, "its first answer may have been lost"
        assert ask_for_store("127.0.0.1", port, "17/0", "1:b") is None, "the same rank of another training"
        assert ask_for_store("127.0.0.1", port, "17/1", "1:a") is None
        server.shutdown()


def test_occupied_ports_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous_module, "NUM_CANDIDATES", 2)
    rendezvous = Rendezvous(f"{os.getpid()}/occupied")
    with open_discovery_server(rendezvous, 1) as first, open_discovery_server(rendezvous, 1) as second:
        ports = [server.server_address[1] for server in (first, second)]
        assert ports == rendezvous.candidate_ports()
        with pytest.raises(UserError, match=r"are in use by other programs; set MASTER_PORT to a free port") as error:
            open_discovery_server(rendezvous, 1)
        assert "\n" not in str(error.value)


def test_missing_rank_zero_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(UserError, match="rank 3: rank 0 was not found on 127.0.0.1 within 0 s; read the log") as error:
        find_store(Rendezvous(f"{os.getpid()}/nobody"), 0.1)
    assert "\n" not in str(error.value)


TRAINING = """
import sys, torch
from featgan.config.schema import DistributedConfig
from featgan.distributed.context import DistributedContext
from featgan.errors import UserError
try:
    context = DistributedContext("fp32", DistributedConfig())
except UserError as error:
    sys.exit(f"error: {error}")
number = torch.tensor([float(sys.argv[1])])
print(context.world_size, float(context.all_reduce_mean(number)), flush=True)
context.barrier()
"""


def start_process(number: int, variables: dict[str, str]) -> "subprocess.Popen[str]":
    """Start one process of a training; `number` identifies the training."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment |= variables | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(number)],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_rank(number: int, rank: int, step: int = 0) -> "subprocess.Popen[str]":
    """Start a rank of a training in a step of this machine, as srun does."""
    return start_process(number, {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": str(step), "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    })  # fmt: skip


def test_trainings_of_one_step_meet_although_programs_use_their_first_ports() -> None:
    """Two trainings start on one node; a silent program and a web server listen on the first candidates of one."""
    digest = rendezvous_module.describe_arguments(["1"])
    ports = Rendezvous(f"{os.getpid()}/0/0/{digest}").candidate_ports()
    with socket.create_server(("", ports[0])), socket.create_server(("", ports[1])) as web_server:
        threading.Thread(target=answer_like_a_web_server, args=(web_server,), daemon=True).start()
        processes = [start_rank(number, rank) for rank in (1, 0) for number in (1, 2)]
        outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert [output.split() for output, _ in outputs] == [["2", "1.0"], ["2", "2.0"]] * 2


def answer_like_a_web_server(server: socket.socket) -> None:
    """Answer every connection until the server is closed."""
    while True:
        try:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        except OSError:
            return


def test_occupied_port_of_the_user_is_one_line() -> None:
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = start_process(1, variables)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    message = errors[errors.index("error: MASTER_ADDR") :]
    assert f"127.0.0.1:{port} (the port is in use); use another port" in message and message.count("\n") == 1
