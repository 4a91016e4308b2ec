"""Values that programs often do not expect, for JSON, YAML, tables and command lines."""

import math
import random
import warnings
from functools import cache
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import NonInteractiveExampleWarning

POOL_SIZE = 400

NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    256,
    65_536,
    2**31,
    2**31 - 1,
    -(2**31),
    2**32,
    2**53 + 1,
    2**63,
    -(2**63),
    2**64,
    10**9,
    10**12,
    10**30,
    10**400,
    0.5,
    -0.5,
    1e-320,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
)
TEXTS = (
    "",
    " ",
    "[/a]",
    "[bold red]x[/]",
    "[link=file:///etc/passwd]x",
    "\x1b[31mred\x1b[0m",
    "\x00",
    "a\nb",
    "a\r\nb",
    "../../../etc/passwd",
    "/etc/passwd",
    "~",
    "~/x",
    "$HOME",
    "%s%n",
    "{0}",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "\ud800",
    "\u202e",
    "\ufeff",
    "é",
    "表情",
    "NaN",
    "-inf",
    "1e9",
    "1e999",
    "0x10",
    "1_000",
    "true",
    "null",
    "yes",
    "2024-01-01",
    "12:30:00",
    "24:00:00",
    "1-02:00:00",
    "os:abort",
    "os:system",
    "builtins:exec",
    "CON",
    "a" * 300,
    "b/" * 200,
    "9" * 30,
    "[" * 200,
    "-",
    "--help",
    "=",
    ":",
    "#",
    "&a",
    "*a",
    "!!python/object:os.system",
    "|",
    "\t",
    "none",
    "latest",
    "step-00000099",
    ".",
    "..",
    "/",
    "//",
    "/dev/zero",
    "/proc/self/mem",
    "file:///x",
    "?",
    "a?b=c",
)
RAW_JSON = (
    "[" * 100_000,
    '{"a":' * 50_000,
    "[" * 900 + "]" * 900,
    "9" * 5000,
    "-" + "9" * 5000,
    "1e99999",
    "1." + "0" * 5000,
    "Infinity",
    "NaN",
    "nul",
    '"\\ud800"',
    '"\\u0000"',
    '"' + "x" * 300_000 + '"',
    "'a'",
    "01",
    "+1",
    "[1,]",
    "{,}",
    "/* a */ 1",
    "[" + "0," * 200_000 + "0]",
    "{" + ",".join(f'"k{n}":{n}' for n in range(20_000)) + "}",
)
"""Texts that replace a value of a JSON document: too deep, too long, too many digits, or not JSON."""

RAW_YAML = (
    "[" * 10_000,
    "- " * 2_000 + "a",
    "9" * 5000,
    "0x" + "f" * 4000,
    "&a [*a]",
    "*missing",
    "!!python/object/apply:os.abort []",
    "!!binary x",
    "!!set {a}",
    "!!timestamp x",
    "190:20:30",
    "1_0",
    "0o7",
    ".nan",
    ".inf",
    "2024-02-31",
    "? [a]\n: b",
    "{[1]: 2}",
    "{1: 2, 1: 3}",
    "|\n  text",
    ">-\n  text",
    '"\\xff"',
    "'",
    '"',
    "@a",
    "`a",
    "%a",
    "a: b: c",
    "\t- a",
    "<<: {a: 1}",
    "--- a",
    "... b",
    "\x00",
    "\x1b[31m",
)


def alias_bomb(depth: int = 9) -> str:
    """Return YAML whose aliases stand for 10 ** depth values."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * 10) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 10) + "]" for n in range(1, depth)]
    return "\n".join(lines) + "\n"


@cache
def draw_json_values() -> tuple[Any, ...]:
    """Return JSON values of all shapes, drawn by hypothesis; always the same ones."""
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.text(max_size=20)
        | st.sampled_from(TEXTS)
    )
    strategy = st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    )
    values: list[Any] = []

    @seed(20_240_601)
    @settings(
        max_examples=POOL_SIZE,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect_value(value: Any) -> None:
        values.append(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonInteractiveExampleWarning)
        collect_value()
    return tuple(values)


def choose_value(rng: random.Random) -> Any:
    """Return a value that may replace any value of a document."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(NUMBERS)
    return rng.choice(TEXTS) if kind < 0.7 else rng.choice(draw_json_values())


def shorten(value: object, length: int = 80) -> str:
    """Return the representation of a value, without its middle if it is long."""
    text = ascii(value)
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-10:]} ({len(text):,} characters)"
