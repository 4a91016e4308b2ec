"""`python -m tests.chaos`: run the stress harness."""

import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tests.chaos.outcomes import Outcome

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""A process with threads cannot be forked safely, so the numerical libraries must not start any."""

MEMORY_VARIABLES = {"PYTHONMALLOC": "malloc", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Use large pages, with which a fork takes a third of the time."""

RESTARTED_VARIABLE = "FEATGAN_CHAOS_RESTARTED"


@click.command()
@click.option("--minutes", type=float, help="Run time; 5 minutes by default, if no number of scenarios is given.")
@click.option("--seconds", type=float, help="Run time in seconds, instead of --minutes.")
@click.option("--seed", default=1, show_default=True, help="Scenario N of a seed is always the same.")
@click.option("--families", default="", help="Comma-separated families; all by default.")
@click.option("--count", "counts", multiple=True, metavar="FAMILY=N", help="Number of scenarios; may be repeated.")
@click.option("--first", default=0, show_default=True, help="Index of the first scenario.")
@click.option(
    "--only", metavar="FAMILY:INDEX", help="Run one scenario (or several, with commas), and print and keep its files."
)
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Number of scenarios at the same time.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all outcomes to this file.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the summary table to this file.")
@click.option("--folder", type=click.Path(path_type=Path), help="Working folder; a new temporary folder by default.")
def main(
    minutes: float | None,
    seconds: float | None,
    seed: int,
    families: str,
    counts: tuple[str, ...],
    first: int,
    only: str | None,
    jobs: int,
    json_path: Path | None,
    markdown: Path | None,
    folder: Path | None,
) -> None:
    """Run damaged inputs, kills, full disks, I/O errors and raw HTTP against featgan.

    Exits with 1 if there is a defect: a traceback, a hang, too much memory, a crash, a lost result or a process that is
    left behind.
    """
    restart_with_settings()
    from tests.chaos.harness import run_harness
    from tests.chaos.io_errors import remove_library

    minutes = seconds / 60 if seconds is not None else minutes
    minutes = 5 if not (counts or only) and minutes is None else minutes
    plan = plan_indices(only) if only else plan_counts(counts, families, first, has_deadline=minutes is not None)
    max_seconds = None if minutes is None else 60 * minutes
    # Not a TemporaryDirectory: its finalizer would also run in the forks.
    temporary = Path(tempfile.mkdtemp(prefix="chaos-", dir=folder))
    try:
        outcomes, defects = run_harness(temporary, plan, seed, 1 if only else jobs, max_seconds)
        if only:
            print_details(outcomes, temporary)
    finally:
        if not only:
            shutil.rmtree(temporary, ignore_errors=True)
        remove_library()
    if json_path:
        json_path.write_text(json.dumps([outcome.to_json() for outcome in outcomes], indent=1) + "\n")
    if markdown:
        from tests.chaos.summary import build_markdown

        markdown.write_text(build_markdown(outcomes))
    sys.exit(1 if defects else 0)


def plan_indices(text: str) -> dict[str, Iterable[int]]:
    """Return the scenarios named as FAMILY:INDEX, separated by commas."""
    plan: dict[str, list[int]] = {}
    for word in text.split(","):
        name, _, index = word.partition(":")
        plan.setdefault(name.strip(), []).append(int(index))
    return dict(plan)


def plan_counts(counts: tuple[str, ...], families: str, first: int, has_deadline: bool) -> dict[str, Iterable[int]]:
    """Return the scenarios of the families from `first` on: a number of them, or all until the deadline."""
    from tests.chaos.harness import FAMILIES

    numbers = {name: int(number) for name, _, number in (pair.partition("=") for pair in counts)}
    names = [name.strip() for name in families.split(",") if name.strip()]
    names = names or (list(numbers) if numbers and not has_deadline else [family.name for family in FAMILIES])
    return {name: range(first, first + numbers[name]) if name in numbers else itertools.count(first) for name in names}


def restart_with_settings() -> None:
    """Start this program again with settings that apply from the start of a process.

    They are the settings of memory and threads, and the library that makes system calls fail if it can be compiled.
    """
    from tests.chaos.io_errors import LIBRARY_VARIABLE, compile_library

    if os.environ.pop(RESTARTED_VARIABLE, ""):
        for name in ("LD_PRELOAD", *MEMORY_VARIABLES):
            os.environ.pop(name, None)  # not in the programs that the commands start
        return
    os.environ |= dict.fromkeys(THREAD_VARIABLES, "1") | MEMORY_VARIABLES | {RESTARTED_VARIABLE: "1"}
    library = compile_library()
    if library.endswith(".so"):
        os.environ |= {LIBRARY_VARIABLE: library, "LD_PRELOAD": library}
    elif library:
        click.echo(f"io: {library}")
    os.execv(sys.executable, [sys.executable, "-m", "tests.chaos", *sys.argv[1:]])


def print_details(outcomes: Sequence["Outcome"], temporary: Path) -> None:
    """Print the outcome of one scenario, the output of its last command, and where its files are."""
    click.echo(json.dumps([outcome.to_json() for outcome in outcomes], indent=1))
    for path in sorted(temporary.glob("copy*-output/*")):
        if path.is_file():
            click.echo(f"--- {path.name}\n{path.read_text(errors='backslashreplace')[-6000:]}")
    click.echo(f"--- the files are in {temporary}/copy000; remove {temporary} when you have read them")


if __name__ == "__main__":
    main()
