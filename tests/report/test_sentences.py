"""The sentences of the report: they are complete, short and in use."""

import re
import string
from pathlib import Path

import pytest

from featgan.report import html
from featgan.report.html.sentences import (
    METRIC_DESCRIPTIONS,
    SECTION_TEXTS,
    SENTENCES,
    SHORT_LIMITATIONS,
    fill_sentence,
)

MAX_WORDS = 30
LABELS = {"component_with_share", "numbered_components"}
"""Entries that are inserted into other sentences as names of components."""
TEXTS = [text for name, text in SENTENCES.items() if name not in LABELS] + [text for _, text in SECTION_TEXTS.values()]


@pytest.mark.parametrize("text", TEXTS)
def test_sentence_is_complete_and_short(text: str) -> None:
    assert text[0].isupper() or text.startswith("{")
    assert text.endswith((".", ")."))
    assert all(len(sentence.split()) <= MAX_WORDS for sentence in re.split(r"(?<=[.?]) (?=[A-Z{])", text))


@pytest.mark.parametrize("name", SENTENCES)
def test_placeholders_are_named(name: str) -> None:
    fields = [field for _, field, _, _ in string.Formatter().parse(SENTENCES[name]) if field is not None]
    assert all(field.isidentifier() for field in fields)
    assert "{" not in fill_sentence(name, **dict.fromkeys(fields, "x"))


def test_every_sentence_is_used() -> None:
    code = "".join(path.read_text() for path in Path(html.__path__[0]).glob("*.py") if path.name != "sentences.py")
    built = {f"{kind}_with_names" for kind in ("classes", "attributes")} | set(SHORT_LIMITATIONS)
    unused = [name for name in SENTENCES if f'"{name}"' not in code and name not in built]
    assert unused == []


def test_metrics_of_a_component_have_a_description() -> None:
    code = (Path(html.__path__[0]) / "component_rows.py").read_text()
    assert [name for name in METRIC_DESCRIPTIONS if f'"{name}"' not in code] == []


def test_values_are_escaped() -> None:
    assert fill_sentence("brighter") == "The whole image becomes brighter."
    assert "&lt;b&gt;" in fill_sentence("color_change", classes="<b>", change="darker")
