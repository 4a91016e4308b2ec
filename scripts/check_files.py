"""Check files before a commit: size, trailing whitespace and exactly one newline at the end.

python scripts/check_files.py FILE...
"""

import sys
from pathlib import Path

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


def main(arguments: list[str]) -> int:
    """Print every problem and return the exit status."""
    messages = [problem for argument in arguments for problem in find_problems(Path(argument))]
    print("\n".join(messages) or "files: no problems")
    return int(bool(messages))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
