"""A job's folder: the code and configuration as they were when it was submitted, so that later edits change nothing."""

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from featgan.errors import UserError

ROOT = Path(__file__).parent.parent
PACKAGES = ("featgan", "launch")
KINDS = ("*.py", "*.yaml", "*.j2", "*.css", "*.js")
ATTEMPTS = "attempts.jsonl"
"""How each start of a job ended, in its folder."""

DONE = "done"
"""Left by a job that was submitted by hand and has succeeded; submitit leaves a result."""

NUMBERED = re.compile(r"(\d{3,})-(\w+)")


def make_job_folder(jobs: Path, kind: str) -> Path:
    """The next free JOBS/NNN-KIND, made; two that submit at once get different ones."""
    jobs.mkdir(parents=True, exist_ok=True)
    numbers = [int(match[1]) for path in jobs.iterdir() if (match := NUMBERED.fullmatch(path.name))]
    for number in range(max(numbers, default=0) + 1, 1_000_000):
        folder = jobs / f"{number:03d}-{kind}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise UserError(f"{jobs}: has no free number left; remove old jobs")


def copy_code(folder: Path) -> Path:
    """The packages and presets under FOLDER/code, which the job has on its PYTHONPATH."""
    code = folder / "code"
    for package in PACKAGES:
        for kind in KINDS:
            for source in (ROOT / package).rglob(kind):
                copy_file(source, code / source.relative_to(ROOT))
    for source in (ROOT / "configs").rglob("*.yaml"):
        copy_file(source, code / source.relative_to(ROOT))
    return code


def copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """job.json: what was submitted, for status and for people."""
    (folder / "job.json").write_text(json.dumps(card, indent=1) + "\n")


def read_card(folder: Path) -> dict[str, Any]:
    """job.json; empty where it is not there yet or cannot be read."""
    try:
        card = json.loads((folder / "job.json").read_text())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """Every start of a job that has ended; lines that a kill cut off are left out."""
    path, found = folder / ATTEMPTS, []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found
