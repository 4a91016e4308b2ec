"""Remember which Python code this user named as a classifier of a run or of shards, for the watch and for jobs.

The record is in the user's own state folder and not in the run, because others may be able to write the run. Only the
watch and the jobs of `launch pipeline` read it: they run later, without the command line that named the code.
"""

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from featgan.errors import UserError
from featgan.system.files import read_regular_file
from featgan.system.json_files import parse_line

logger = logging.getLogger(__name__)

MAX_RECORD_BYTES = 4 << 20


def record_path() -> Path:
    """Return the record of this user: XDG_STATE_HOME/featgan/callables.jsonl."""
    state_home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state_home) / "featgan" / "callables.jsonl"


def record_callables(folder: Path, names: Iterable[str]) -> None:
    """Record that the user named these callables for a run or for shards; an unwritable record logs a warning."""
    new_names = sorted(set(names) - approved_callables(folder))
    if not new_names:
        return
    path = record_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "a") as file:
            file.write(json.dumps({"folder": os.path.realpath(folder), "callables": new_names}) + "\n")
    except OSError as error:
        logger.warning(
            f"{path}: cannot be written ({(error.strerror or str(error)).lower()}); "
            f"`launch watch` runs {', '.join(new_names)} only with --trust-callables"
        )


def approved_callables(folder: Path) -> frozenset[str]:
    """Return the callables that the user named for a run or for shards; empty if the record cannot be trusted."""
    path, location = record_path(), os.path.realpath(folder)
    try:
        status = path.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return frozenset()
        lines = read_regular_file(path, MAX_RECORD_BYTES).decode("utf-8", "replace").splitlines()
    except (OSError, UserError, ValueError):
        return frozenset()
    return frozenset(name for line in lines for name in parse_record(line, location))


def parse_record(line: str, location: str) -> list[str]:
    """Return the callables of one line of the record if it is about this folder; a damaged line has none."""
    entry = parse_line(line.encode())
    if entry is None or entry.get("folder") != location or not isinstance(entry.get("callables"), list):
        return []
    return [name for name in entry["callables"] if isinstance(name, str)]
