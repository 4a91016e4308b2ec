"""Check files before a commit: size, trailing whitespace and exactly one newline at the end.

python scripts/check_files.py            # all files of the repository
python scripts/check_files.py FILE...    # these files
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

MAX_BYTES = 1_000_000
"""Upper bound for the size of a file in the repository."""


def find_problems(path: Path) -> list[str]:
    """Return what is wrong with a file, one line for each problem; binary files are checked for their size only."""
    content = path.read_bytes()
    messages = [f"{path}: {len(content):,} bytes; the limit is {MAX_BYTES:,}"] if len(content) > MAX_BYTES else []
    if b"\0" in content or not content:
        return messages
    if not content.endswith(b"\n") or content.endswith(b"\n\n"):
        messages.append(f"{path}: must end with exactly one newline")
    lines = content.split(b"\n")
    trailing = [number for number, line in enumerate(lines, 1) if line != line.rstrip()]
    return messages + [f"{path}:{number}: trailing whitespace" for number in trailing]


def repository_files() -> list[Path]:
    """Return the files that git tracks or would add, without deleted ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in sorted(set(names)) if (ROOT / name).is_file()]


def main(arguments: list[str]) -> int:
    """Print every problem and return the exit status."""
    paths = [Path(argument) for argument in arguments] or repository_files()
    messages = [problem for path in paths for problem in find_problems(path)]
    print("\n".join(messages) or "files: no problems")
    return int(bool(messages))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
