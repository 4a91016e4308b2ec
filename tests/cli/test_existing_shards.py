"""The guide for existing shards: its commands lead from 1,000 classes in tars on a server to a report."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.mounts import featgan_command
from tests.helpers.servers import serve_folder

ROOT = Path(__file__).parents[2]
SERVER_URL = "http://127.0.0.1:8123"


def read_commands() -> list[list[str]]:
    """Return the commands of the last block of the guide."""
    guide = (ROOT / "docs" / "guides" / "existing-shards.md").read_text()
    block = re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)[-1]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


def run(command: list[str], folder: Path) -> None:
    """Run one command of the guide; it must succeed."""
    program = [sys.executable, str(ROOT / command[1]), *command[2:]] if command[0] == "python" else []
    result = subprocess.run(
        program or featgan_command(*command[1:]), cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{shlex.join(command)}: {result.stderr}"


@pytest.mark.slow
def test_commands_of_the_guide_lead_to_a_report(tmp_path: Path) -> None:
    generate, serve, *commands = read_commands()
    assert serve[-1] == "&" and "http.server" in serve
    run(generate, tmp_path)
    with serve_folder(tmp_path / "tars") as server:
        for command in commands:
            run([word.replace(SERVER_URL, server.url) for word in command], tmp_path)
    assert any(request.endswith("-train-00.tar") or "train" in request for request in server.requests)
    report = (tmp_path / "run" / "report.html").read_text()
    classes = (tmp_path / "tars" / "class_names.txt").read_text().splitlines()
    assert len(classes) == 1000 and any(name in report for name in classes)
