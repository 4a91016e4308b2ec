"""SLURM's notation for times, memory, GPUs and lists of nodes. Every function raises ValueError for other text."""

import math
import re

TIME_LIMIT = re.compile(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", re.ASCII)
"""M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""

UNLIMITED_TIMES = ("0", "infinite", "unlimited")
"""Time limits that stand for no limit."""

MEMORY = re.compile(r"(\d+)(?:([kmgt])b?)?", re.ASCII | re.IGNORECASE)
MEGABYTES = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}

GPUS = re.compile(
    r"(?P<prefix>(?:gres[:/])?gpu(?::|$))?(?:(?P<type>\d*[A-Za-z_][\w.+-]*|\d+(?=:\d))(?::|$))?(?P<number>\d+)?", re.A
)
"""[gpu:][TYPE:]NUMBER; the number may be left out after `gpu` and `gpu:TYPE`."""

NODE_NAMES = re.compile(r"(?:[\w.-]+|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\])+", re.ASCII)
"""n1, n[1-4,7] or r[1-2]n[01-16]."""


def parse_minutes(time_limit: str) -> float:
    """Return a time limit in minutes; infinite if there is no limit."""
    if time_limit.lower() in UNLIMITED_TIMES:
        return math.inf
    match = TIME_LIMIT.fullmatch(time_limit)
    if match is None:
        raise ValueError(f"{time_limit!r} is not a time limit; write minutes, H:MM:SS or D-HH:MM:SS")
    fields = [int(field) for field in match[2].split(":")]
    if match[1] is None and len(fields) < 3:
        fields = [0, *fields]
    hours, minutes, seconds = (*fields, 0, 0)[:3]
    return int(match[1] or 0) * 1440 + hours * 60 + minutes + seconds / 60


def parse_megabytes(memory: str) -> int:
    """Return an amount of memory in MB, rounded up."""
    match = MEMORY.fullmatch(memory)
    if match is None:
        raise ValueError(f"{memory!r} is not an amount of memory; write a number of megabytes, 64000M or 64G")
    return math.ceil(int(match[1]) * MEGABYTES[(match[2] or "M").upper()])


def parse_gpus(text: str) -> dict[str, int]:
    """Return the number of GPUs by type; the type is empty if any type is suitable."""
    gpus: dict[str, int] = {}
    for part in text.split(","):
        match = GPUS.fullmatch(part)
        if match is None or not (match["number"] or match["prefix"]):
            raise ValueError(f"{text!r} is not a number of GPUs; write 4, a100:4 or gpu:a100:4")
        gpu_type = match["type"] or ""
        gpus[gpu_type] = gpus.get(gpu_type, 0) + int(match["number"] or 1)
    return gpus


def format_gpus(gpus: dict[str, int]) -> int | str:
    """Return the GPUs as --gpus-per-node expects them: 4, or `a100:4`."""
    if set(gpus) == {""}:
        return gpus[""]
    return ",".join(f"{gpu_type}:{number}" if gpu_type else str(number) for gpu_type, number in gpus.items())


def check_node_list(nodes: str) -> str:
    """Return the list of nodes without spaces; the path of a file with a list is not changed."""
    compact = re.sub(r"\s+", "", nodes)
    if "/" in nodes or all(NODE_NAMES.fullmatch(name) for name in re.split(r",(?![^\[]*\])", compact)):
        return nodes if "/" in nodes else compact
    raise ValueError(f"{nodes!r} is not a list of nodes; write n1,n2 or n[01-04,07]")
