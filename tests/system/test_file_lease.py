"""A file that one may hold: as long as its process or job is alive, whoever takes, passes on or gives back."""

import errno
import json
import multiprocessing
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featgan.system import file_lease as module
from featgan.system.file_lease import SILENCE, Hold, Holder, compose
from featgan.system.slurm import ask_slurm, job_state


@pytest.fixture
def hold(tmp_path: Path) -> Hold:
    return Hold(tmp_path / "thing")


def use_squeue(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "bin" / "squeue"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")


KNOWS_17 = '[ "$4" = 17 ] && echo RUNNING && exit 0; echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'


def test_one_holds_until_it_gives_back(hold: Hold, tmp_path: Path) -> None:
    first, second = Holder.here(), Holder.here()
    assert hold.take(first) and not hold.take(second) and hold.living() == first
    hold.give_back(second.token)
    assert hold.living() == first, "another's is not given back"
    hold.give_back(first.token)
    assert hold.living() is None and list(tmp_path.iterdir()) == []
    assert hold.take(second)


def race(path: str, results: Any, start: Any, end: Any) -> None:
    start.wait()
    results.put(sum(Hold(Path(path) / str(index)).take(Holder.here()) for index in range(200)))
    end.wait()


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results, start, end = context.Queue(), context.Event(), context.Event()
    processes = [context.Process(target=race, args=(str(tmp_path), results, start, end)) for _ in range(3)]
    for process in processes:
        process.start()
    start.set()
    assert sum(results.get(timeout=60) for _ in processes) == 200
    end.set()
    for process in processes:
        process.join()
    assert len(list(tmp_path.iterdir())) == 200


def test_a_process_that_is_gone_or_another_of_its_number_holds_nothing(hold: Hold) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = Holder.here()
    for gone in (replace(here, pid=dead.pid), replace(here, started="1"), replace(here, boot="of yesterday")):
        hold.path.write_bytes(compose(gone))
        assert hold.living() is None
        assert hold.take(here), gone
        hold.give_back(here.token)


def test_a_process_of_another_machine_is_believed_while_it_shows_life(hold: Hold) -> None:
    away = replace(Holder.here(), host="elsewhere")
    hold.path.write_bytes(compose(away))
    assert not hold.take(Holder.here())
    os.utime(hold.path, (1, 1))
    assert hold.silence() > SILENCE and hold.take(Holder.here())


def test_a_holder_shows_life(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    assert hold.take(Holder.here())
    os.utime(hold.path, (1, 1))
    with hold.kept():
        while hold.silence() > 100:
            pass
    os.utime(hold.path, (1, 1))
    assert hold.silence() > 100, "not after the end"


def test_a_job_is_asked_for(hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_squeue(tmp_path, KNOWS_17, monkeypatch)
    hold.path.write_bytes(compose(Holder.of_job("17", "t")))
    assert str(hold.living()) == "job 17"
    hold.path.write_bytes(compose(replace(Holder.here(), job="18", restart="0")))
    assert hold.living() is None, "its process is alive, but no part of the job"
    os.utime(hold.path, (1, 1))
    use_squeue(tmp_path, 'echo "Unable to contact slurm controller" >&2; exit 1', monkeypatch)
    assert hold.living() is not None, "no answer is no word about the job"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hold.living() is None, "where nobody can be asked, it is silent for too long"


def test_a_job_that_starts_again_takes_over_from_its_former_start(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    former = replace(Holder.here(), host="n7", job="17", restart="0")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    hold.path.write_bytes(compose(former))
    assert not hold.take(Holder.here()), "two steps of one job on two nodes are two"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert hold.take(Holder.here())


def test_passing_on_needs_the_token_and_revives_nothing(hold: Hold) -> None:
    first = Holder.here()
    assert hold.take(first)
    assert not hold.pass_to(Holder.of_job("17", "another token"))
    assert hold.pass_to(Holder.of_job("17", first.token)) and str(hold.holder()) == "job 17"
    hold.give_back(first.token)
    assert not hold.pass_to(Holder.of_job("17", first.token)) and not hold.path.exists()


def test_what_another_has_just_taken_over_is_left(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, alive = replace(Holder.here(), started="1"), Holder.here()
    hold.path.write_bytes(compose(alive))
    looks = iter([dead, dead])  # what we saw; since then another has cleared and taken it
    monkeypatch.setattr(Hold, "holder", lambda self: next(looks))
    assert not hold.clear()
    assert json.loads(hold.path.read_text())["token"] == alive.token


def test_what_cannot_be_read_is_nobodys_once_it_is_old(hold: Hold) -> None:
    hold.path.write_text("")
    assert not hold.take(Holder.here()), "it may just be written"
    os.utime(hold.path, (1, 1))
    assert hold.take(Holder.here())


def test_without_hard_links_still_one_gets_it(hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    first = Holder.here()
    assert hold.take(first) and not hold.take(Holder.here()) and hold.living() == first


def test_a_controller_that_hangs_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_squeue(tmp_path, f"echo x >> {tmp_path}/calls; exec sleep 60", monkeypatch)
    monkeypatch.setattr("featgan.system.slurm.SECONDS", 0.2)
    assert ask_slurm("squeue", pauses=(0, 0)) is None and job_state("17") is None
    assert (tmp_path / "calls").read_text().count("x") == 4
