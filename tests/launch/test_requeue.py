"""A job that ended is requeued, not restarted with a verdict, or left alone because it was canceled."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from featgan.system.slurm import UNREACHABLE_MESSAGES
from launch import attempts, requeue, submit
from launch.attempts import EXIT_FAILURE, EXIT_REQUEUE, EXIT_USER_ERROR, read_attempts, read_state, record_exit
from launch.cluster import ClusterConfig
from launch.job_folder import write_job_info, write_requeue_script

RUNNING = "JobId=17 JobState=RUNNING Requeue=1"
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def job_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a job folder in a run at step 20."""
    folder = tmp_path / "run" / "jobs" / "001-train"
    folder.mkdir(parents=True)
    commit_checkpoint(folder, 20)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return folder


def commit_checkpoint(folder: Path, step: int) -> None:
    checkpoint = folder.parent.parent / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")


def test_job_is_requeued_after_a_signal_and_after_a_crash(job_folder: Path) -> None:
    assert requeue.decide_restart(job_folder, EXIT_REQUEUE, RUNNING) == "requeue"
    assert requeue.decide_restart(job_folder, 137, RUNNING) == "requeue"
    assert not (job_folder / "verdict.txt").exists()
    attempts = [json.loads(line) for line in (job_folder / "attempts.jsonl").read_text().splitlines()]
    assert [(attempt["code"], attempt["step"]) for attempt in attempts] == [(75, 20), (137, 20)]


def test_job_is_not_restarted_after_three_failures_at_one_step(
    job_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requeue.decide_restart(job_folder, 1)
    commit_checkpoint(job_folder, 40)
    assert [requeue.decide_restart(job_folder, 1) for _ in range(3)] == ["requeue", "requeue", "stop"]
    assert "failed 3 times at step 40 (exit code 1)" in (job_folder / "verdict.txt").read_text()
    assert "not restarted" in capsys.readouterr().err


def test_signals_are_not_failures_but_their_number_is_limited(job_folder: Path) -> None:
    for _ in range(attempts.MAX_INTERRUPTIONS_PER_FAILURE * 3 - 1):
        requeue.decide_restart(job_folder, EXIT_REQUEUE)
    assert not (job_folder / "verdict.txt").exists()
    requeue.decide_restart(job_folder, EXIT_REQUEUE)
    assert "its run time is too short for one step" in (job_folder / "verdict.txt").read_text()


def test_recorded_exit_code_replaces_the_code_of_srun(job_folder: Path) -> None:
    record_exit(job_folder, "0", EXIT_REQUEUE)
    assert requeue.decide_restart(job_folder, 137) == "requeue"
    record_exit(job_folder, "0", EXIT_USER_ERROR)
    assert requeue.decide_restart(job_folder, 143) == "stop"
    assert [attempt["code"] for attempt in read_attempts(job_folder)] == [EXIT_REQUEUE, EXIT_USER_ERROR]
    assert "a restart cannot fix" in (job_folder / "verdict.txt").read_text()


def test_exit_code_of_another_attempt_is_not_used(job_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_exit(job_folder, "0", EXIT_REQUEUE)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    requeue.decide_restart(job_folder, 139)
    assert [(attempt["code"], attempt["outcome"]) for attempt in read_attempts(job_folder)] == [(139, "failed")]


def test_error_of_one_process_is_not_replaced_by_the_signals_that_follow(job_folder: Path) -> None:
    record_exit(job_folder, "0", EXIT_FAILURE)
    record_exit(job_folder, "0", EXIT_REQUEUE)
    attempts.record_signal(job_folder, "0")
    assert read_state(job_folder, "0") == "1"


@pytest.mark.parametrize("code", [140, 143, 138, 129, 130])
def test_signals_before_a_job_handles_them_are_not_failures(job_folder: Path, code: int) -> None:
    for _ in range(5):
        assert requeue.decide_restart(job_folder, code) == "requeue"
    assert not (job_folder / "verdict.txt").exists()
    for _ in range(3):
        requeue.decide_restart(job_folder, EXIT_FAILURE)
    assert "failed 3 times at step 20" in (job_folder / "verdict.txt").read_text()


@pytest.mark.parametrize("code", [EXIT_REQUEUE, 140, 143])
def test_deleted_state_file_does_not_turn_a_signal_into_a_failure(job_folder: Path, code: int) -> None:
    for _ in range(4):
        attempts.record_start(job_folder, "0")
        record_exit(job_folder, "0", EXIT_REQUEUE)
        (job_folder / "state-0").unlink()
        assert requeue.decide_restart(job_folder, code) == "requeue"
    assert not (job_folder / "verdict.txt").exists()


def test_signaled_job_that_is_killed_while_it_saves_has_not_failed(job_folder: Path) -> None:
    for _ in range(4):
        attempts.record_start(job_folder, "0")
        attempts.record_signal(job_folder, "0")
        record_exit(job_folder, "0", EXIT_FAILURE)  # the connection to a process that has ended is lost
        assert requeue.decide_restart(job_folder, 137) == "requeue"
        (job_folder / "state-0").unlink()
    assert not (job_folder / "verdict.txt").exists()


def test_crash_that_makes_srun_end_the_other_processes_is_a_failure(job_folder: Path) -> None:
    attempts.record_start(job_folder, "0")
    for _ in range(3):
        requeue.decide_restart(job_folder, 143)
    assert "failed 3 times at step 20 (exit code 143)" in (job_folder / "verdict.txt").read_text()


SIGNALED_JOB = """
import os, signal, sys, time
from pathlib import Path
from launch.jobs import ExtractJob

class WaitingJob(ExtractJob):
    def execute(self):
        print("executes", flush=True)
        time.sleep(60)

WaitingJob("shards", "classifier")()
"""


@pytest.mark.parametrize("waits", [False, True])
def test_real_job_that_is_signaled_is_interrupted(job_folder: Path, waits: bool) -> None:
    environment = os.environ | {"SUBMITIT_FOLDER": str(job_folder), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", SIGNALED_JOB], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    if waits:
        assert process.stdout.readline() == b"executes\n" and read_state(job_folder, "0") == "running"
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    assert code == (EXIT_REQUEUE if waits else 128 + signal.SIGUSR2)
    assert attempts.resolve_outcome(job_folder, "0", code) == (code, "interrupted")


@pytest.mark.parametrize(("code", "outcome"), [(EXIT_REQUEUE, "interrupted"), (139, "failed"), (137, "failed")])
def test_process_that_srun_ends_because_another_one_crashed_does_not_hide_the_crash(
    job_folder: Path, code: int, outcome: str
) -> None:
    environment = os.environ | {
        "SUBMITIT_FOLDER": str(job_folder), "PYTHONPATH": str(ROOT), "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0",
    }  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", SIGNALED_JOB], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"executes\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    # srun returns the largest exit code of the processes.
    assert process.returncode == EXIT_REQUEUE and not read_state(job_folder, "0")
    assert attempts.resolve_outcome(job_folder, "0", code) == (code, outcome)


def test_job_that_fails_by_itself_records_it(job_folder: Path) -> None:
    environment = os.environ | {"SUBMITIT_FOLDER": str(job_folder), "PYTHONPATH": str(ROOT)}
    program = SIGNALED_JOB.replace("time.sleep(60)", "raise ValueError('broken')")
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert result.returncode == 1 and read_state(job_folder, "0") == "1"
    assert attempts.resolve_outcome(job_folder, "0", 143) == (1, "failed")


def test_verdict_names_the_command_that_continues(job_folder: Path) -> None:
    command = ["/featgan/launch/__main__.py", "train", "debug", "run_dir=my run"]
    write_job_info(job_folder, {"id": "17", "command": command, "cwd": "/home/me"})
    requeue.decide_restart(job_folder, EXIT_USER_ERROR)
    text = (job_folder / "verdict.txt").read_text()
    assert text.endswith("resume with `cd /home/me && python -m launch train debug 'run_dir=my run'`\n")
    write_job_info(job_folder, {"id": "17", "command": ["launch/sbatch_entry.py", "debug"], "log": "17.log"})
    requeue.decide_restart(job_folder, EXIT_USER_ERROR)
    assert (
        "logs: 17.log; fix the cause, then resume with `sbatch slurm/train.sbatch debug`"
        in (job_folder / "verdict.txt").read_text()
    )


def test_attempts_need_the_standard_library_only(job_folder: Path) -> None:
    code = "import sys; before = set(sys.modules); import launch.attempts; print(*set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    foreign = {name.partition(".")[0] for name in result.stdout.split()} - set(sys.stdlib_module_names)
    assert foreign == {"launch"}


def test_damaged_lines_of_the_record_are_skipped(job_folder: Path) -> None:
    lines = [b"", b"{", b"\xff\xfe", b"[1]", b'{"code": "x"}', b"[" * 5000, b'{"code": 1, "step": 20}']
    (job_folder / "attempts.jsonl").write_bytes(b"\n".join(lines))
    assert read_attempts(job_folder) == [{"code": 1, "step": 20}]


def test_job_is_not_restarted_after_a_user_error(job_folder: Path) -> None:
    assert requeue.decide_restart(job_folder, EXIT_USER_ERROR) == "stop"
    assert "a restart cannot fix" in (job_folder / "verdict.txt").read_text()


def test_failures_of_an_evaluation_are_counted_while_a_training_progresses(job_folder: Path) -> None:
    evaluation = job_folder.with_name("002-evaluate")
    evaluation.mkdir()
    decisions = []
    for step in (40, 60, 80):
        commit_checkpoint(job_folder, step)
        decisions.append(requeue.decide_restart(evaluation, 1))
    assert decisions == ["requeue", "requeue", "stop"] and "failed 3 times" in (evaluation / "verdict.txt").read_text()


@pytest.mark.parametrize(
    ("state", "decision"),
    [
        ("RUNNING", "requeue"),
        ("TIMEOUT", "requeue"),
        ("COMPLETING Reason=TimeLimit", "requeue"),
        ("COMPLETING Reason=None", "leave"),
        ("CANCELLED Reason=None", "leave"),
    ],
)
def test_job_that_reached_its_time_limit_is_requeued_and_a_canceled_one_is_not(
    job_folder: Path, state: str, decision: str
) -> None:
    # While its last processes end, a job is COMPLETING, whatever ended it.
    assert requeue.decide_restart(job_folder, 143, f"JobId=17 JobState={state} Requeue=1") == decision
    assert not (job_folder / "verdict.txt").exists()


def test_lost_attempts_are_recorded_and_their_number_is_limited(
    job_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert requeue.count_lost_starts(job_folder), "the first start"
    requeue.decide_restart(job_folder, 1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeue.count_lost_starts(job_folder) and len(read_attempts(job_folder)) == 1, (
        "the job script has recorded it"
    )
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    assert requeue.count_lost_starts(job_folder) and len(read_attempts(job_folder)) == 4, "no failure of the job"
    assert "attempt 2 ended without a record" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "30")
    assert not requeue.count_lost_starts(job_folder)
    assert "interrupted 30 times at step 20" in (job_folder / "verdict.txt").read_text()


@pytest.mark.parametrize(
    ("state", "recorded"), [("75", (75, "interrupted")), ("2", (2, "failed")), ("1", (1, "failed"))]
)
def test_lost_attempt_that_recorded_its_exit_code_has_this_code(
    job_folder: Path, monkeypatch: pytest.MonkeyPatch, state: str, recorded: tuple[int, str]
) -> None:
    (job_folder / "state-0").write_text(state)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert requeue.count_lost_starts(job_folder) == (state != "2")
    assert [(attempt["code"], attempt["outcome"]) for attempt in read_attempts(job_folder)] == [recorded]


FAKE_SCONTROL = """#!/bin/sh
echo "$@" >> {calls}
[ "$1" = show ] && echo "JobId=17 JobState={state} Requeue=1"
[ -z "{error}" ] || [ "$1" = show ] || {{ echo "{error}" >&2; exit 1; }}
exit 0
"""

CONTAINER = """#!/bin/sh
# A container: it has Python, but not SLURM's commands.
PATH={path}; export PATH
exec "$@"
"""


class JobScript:
    """Runs the shell lines of a job script with a fake scontrol, and Python in a container without scontrol."""

    def __init__(self, job_folder: Path) -> None:
        self.job_folder, self.folder = job_folder, job_folder.parents[2] / "machine"
        (self.folder / "container").mkdir(parents=True)
        write_requeue_script(job_folder)
        self.write_program("apptainer", CONTAINER.format(path=self.folder / "container"))
        self.use_scontrol("RUNNING")

    def write_program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def use_scontrol(self, state: str, error: str = "") -> None:
        self.write_program("scontrol", FAKE_SCONTROL.format(calls=self.folder / "calls", state=state, error=error))

    def run_script(
        self, command: str, cluster: ClusterConfig | None = None, restart: int = 0
    ) -> "subprocess.CompletedProcess[str]":
        """Run the setup and then a command in the place of srun."""
        cluster = cluster or ClusterConfig(python=f"apptainer exec.sif {shlex.quote(sys.executable)}")
        lines = [line for line in submit.setup_lines(cluster, self.job_folder) if "PYTHONPATH" not in line]
        environment = os.environ | {
            "PATH": f"{self.folder}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "17",
            "SLURM_RESTART_COUNT": str(restart), "FEATGAN_RETRY_DELAYS": "0 0",
        }  # fmt: skip
        script = "\n".join([*lines, command])
        return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)

    def count_requeues(self) -> int:
        calls = self.folder / "calls"
        return calls.read_text().count("requeue 17") if calls.exists() else 0


@pytest.fixture
def job_script(job_folder: Path) -> JobScript:
    script = JobScript(job_folder)
    # `apptainer exec.sif PYTHON` starts PYTHON; only this folder is in its PATH.
    script.write_program("exec.sif", '#!/bin/sh\nexec "$@"\n')
    shutil.copy(script.folder / "exec.sif", script.folder / "container" / "exec.sif")
    return script


def test_job_with_python_in_a_container_is_requeued_and_keeps_its_exit_code(
    job_folder: Path, job_script: JobScript
) -> None:
    result = job_script.run_script("(exit 143)")
    assert result.returncode == 143 and job_script.count_requeues() == 1, result.stderr
    assert [attempt["code"] for attempt in read_attempts(job_folder)] == [143]
    assert "it is requeued" in result.stderr and not (job_folder / "verdict.txt").exists()


def test_job_whose_container_is_started_by_srun_is_requeued(job_folder: Path, job_script: JobScript) -> None:
    # Python exists only in the container, so the decision is made in a step of the job.
    job_script.write_program("srun", f'#!/bin/sh\nshift 5\nPATH={job_script.folder}/container exec "$@"\n')
    (job_script.folder / "container" / "python-3.11").symlink_to(sys.executable)
    cluster = ClusterConfig(python="python-3.11", srun_args=("--container-image=featgan.sqsh",))
    result = job_script.run_script("(exit 75)", cluster)
    assert result.returncode == 75 and job_script.count_requeues() == 1, result.stderr
    assert [attempt["code"] for attempt in read_attempts(job_folder)] == [75]


def test_job_that_succeeds_runs_nothing(job_folder: Path, job_script: JobScript) -> None:
    assert job_script.run_script("true").returncode == 0
    assert job_script.count_requeues() == 0 and not read_attempts(job_folder)


def test_rejected_requeue_writes_a_verdict(job_folder: Path, job_script: JobScript) -> None:
    job_script.use_scontrol("RUNNING", "Requested operation is presently disabled for job 17")
    assert job_script.run_script("(exit 75)").returncode == 75
    assert "cannot requeue the job (Requested operation" in (job_folder / "verdict.txt").read_text()


def test_verdict_is_written_even_if_python_cannot_run(job_folder: Path, job_script: JobScript) -> None:
    cluster = ClusterConfig(python="apptainer /nowhere/python")
    job_script.run_script("(exit 1)", cluster, restart=3)
    assert "not restarted: exit code 1" in (job_folder / "verdict.txt").read_text()
    (job_folder / "verdict.txt").unlink()
    job_script.use_scontrol("RUNNING", "Requested operation is presently disabled")
    result = job_script.run_script("(exit 1)", cluster)
    verdict = (job_folder / "verdict.txt").read_text()
    assert verdict.startswith("001-train: not restarted: SLURM cannot requeue the job (Requested operation")
    assert "submit the job again with the same command to resume\n" in verdict and verdict in result.stderr


def test_job_that_an_administrator_requeues_has_no_old_verdict(
    job_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [requeue.decide_restart(job_folder, 1) for _ in range(3)] == ["requeue", "requeue", "stop"]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert requeue.count_lost_starts(job_folder) and not (job_folder / "verdict.txt").exists()


def test_job_script_of_an_earlier_version_gets_one_line_and_a_verdict(job_folder: Path) -> None:
    def run_requeue(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "launch.requeue", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    restarted = run_requeue(job_folder)
    assert restarted.returncode == 0 and not restarted.stderr and not (job_folder / "verdict.txt").exists()
    ended = run_requeue(job_folder, 75)
    assert ended.stderr.count("\n") == 1 and "submit the job again" in (job_folder / "verdict.txt").read_text()


@pytest.mark.parametrize("message", UNREACHABLE_MESSAGES)
def test_requeue_is_retried_if_the_controller_is_unavailable(
    job_folder: Path, job_script: JobScript, message: str
) -> None:
    job_script.use_scontrol("RUNNING", f"scontrol: error: {message}")
    job_script.run_script("(exit 75)")
    assert job_script.count_requeues() == 3 and "does not respond" in (job_folder / "verdict.txt").read_text()


def test_canceled_job_is_not_requeued(job_folder: Path, job_script: JobScript) -> None:
    job_script.use_scontrol("CANCELLED")
    assert job_script.run_script("(exit 75)").returncode == 75
    assert job_script.count_requeues() == 0 and not (job_folder / "verdict.txt").exists()


def test_restarted_job_records_the_code_of_a_lost_attempt(job_folder: Path, job_script: JobScript) -> None:
    (job_folder / "state-0").write_text(str(EXIT_REQUEUE))
    result = job_script.run_script("echo started", restart=1)
    assert result.stdout == "started\n", result.stderr
    assert [attempt["code"] for attempt in read_attempts(job_folder)] == [EXIT_REQUEUE]


def test_restarted_job_stops_after_too_many_lost_attempts(job_folder: Path, job_script: JobScript) -> None:
    result = job_script.run_script("echo started", restart=30)
    assert result.returncode == EXIT_USER_ERROR and not result.stdout and (job_folder / "verdict.txt").exists()


@pytest.mark.parametrize(
    ("code", "stored", "state", "restart", "num_requeues"),
    [
        (143, "75", "RUNNING", 5, 1),
        (143, "", "RUNNING", 5, 1),
        (137, "signaled", "RUNNING", 5, 1),
        (143, "running", "RUNNING", 5, 0),
        (1, "", "RUNNING", 2, 1),
        (1, "", "RUNNING", 3, 0),
        (143, "2", "RUNNING", 0, 0),
        (143, "75", "CANCELLED", 0, 0),
    ],
)
def test_job_script_decides_if_python_cannot_run(
    job_folder: Path, job_script: JobScript, code: int, stored: str, state: str, restart: int, num_requeues: int
) -> None:
    job_script.use_scontrol(state)
    command = f"echo {stored} > {job_folder}/state-{restart}; exit {code}"
    result = job_script.run_script(command, ClusterConfig(python="apptainer /nowhere/python"), restart)
    assert result.returncode == code and "the job script decides" in result.stderr
    assert job_script.count_requeues() == num_requeues


def test_requeue_script_is_posix_shell() -> None:
    for shell in filter(shutil.which, ("dash", "sh")):
        assert subprocess.run([shell, "-n", str(ROOT / "launch" / "requeue.sh")], check=False).returncode == 0
