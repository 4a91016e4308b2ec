"""Tests of patterns with braces: the texts are those of braceexpand, and a large product is never created."""

import math

import pytest
from braceexpand import braceexpand
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from featgan.data.webdataset.sources import count_texts, expand_braces, expand_sources
from featgan.errors import UserError
from featgan.system.limits import MAX_SHARDS

BRACE_PARTS = st.one_of(
    st.text("0aZ,.-\\ \n", max_size=6),
    st.from_regex(r"-?\d{1,2}\.\.-?\d{1,2}(\.\.-?\d)?\n?", fullmatch=True),
    st.from_regex(r"[A-Za-z]\.\.[A-Za-z](\.\.-?\d)?", fullmatch=True),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(BRACE_PARTS, min_size=1, max_size=2))
def test_patterns_are_those_of_the_library_and_never_counted_too_low(parts: list[str]) -> None:
    count = math.prod(map(count_texts, parts))
    assume(count <= MAX_SHARDS)  # such as {-99..99}x/{-99..99}
    pattern = "x/".join(f"{{{part}}}" for part in parts)
    texts = list(braceexpand(pattern, escape=False))
    assert len(texts) <= count
    assert list(expand_braces(pattern)) == texts


@pytest.mark.parametrize("pattern", ["{000..99999999}", "{a{b}}", "{1..x"])
def test_errors_of_patterns_show_no_password(pattern: str) -> None:
    with pytest.raises(UserError) as error:
        expand_sources([f"https://user:secret@host/{pattern}.tar?sig=secret"])
    assert "secret" not in str(error.value)
