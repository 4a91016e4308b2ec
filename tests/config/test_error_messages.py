"""One-line messages for validation errors: the key, the problem, the cause and the suggestion."""

from typing import Self

import pytest
from pydantic import ValidationError, field_validator, model_validator

from featgan.config.base import ConfigModel, PositiveInt, list_keys
from featgan.config.error_messages import find_override, format_validation_error, suggest_key


class SmallSection(ConfigModel):
    """A section for these tests."""

    low: PositiveInt = 1
    """A field."""
    high: int = 2
    """A field."""

    @model_validator(mode="after")
    def check_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low: {self.low} is larger than high {self.high}")
        return self


class SmallConfig(ConfigModel):
    """A configuration for these tests."""

    name: str = ""
    """A field."""
    range: SmallSection = SmallSection()
    """A section."""

    @field_validator("name")
    @classmethod
    def check_name(cls, value: str) -> str:
        if " " in value:
            raise ValueError(f"{value!r} contains a space")
        return value

    @model_validator(mode="after")
    def check_name_length(self) -> Self:
        if len(self.name) > self.range.high:
            raise ValueError(f"name: longer than range.high {self.range.high}")
        return self


def error_message(tree: dict[str, object], overrides: dict[str, str] | None = None) -> str:
    """Return the message for an invalid tree."""
    with pytest.raises(ValidationError) as caught:
        SmallConfig.model_validate(tree)
    return format_validation_error(caught.value, SmallConfig, "a.yaml", overrides)


def test_pydantic_message_is_followed_by_the_value() -> None:
    message = error_message({"range": {"low": 0}})
    assert message == "a.yaml: range.low: Input should be greater than or equal to 1 (got 0)"


def test_long_values_are_shortened() -> None:
    assert len(error_message({"range": {"low": "x" * 500}})) < 200


def test_section_validator_message_begins_with_the_field() -> None:
    assert error_message({"range": {"low": 3}}) == "a.yaml: range.low: 3 is larger than high 2"


def test_field_validator_message_follows_the_key() -> None:
    assert error_message({"name": "a b"}) == "a.yaml: name: 'a b' contains a space"


def test_top_level_validator_message_is_unchanged() -> None:
    assert error_message({"name": "abc"}) == "a.yaml: name: longer than range.high 2"


def test_unknown_key_is_followed_by_a_suggestion() -> None:
    assert error_message({"range": {"lo": 1}}) == "a.yaml: unknown key 'range.lo'; did you mean 'range.low'?"
    assert error_message({"zzz": 1}) == "a.yaml: unknown key 'zzz'; the top level has name, range"


def test_override_replaces_the_file_as_the_location() -> None:
    overrides = {"range.low": "range.low=3", "name": "name=x"}
    assert error_message({"range": {"low": 3}}, overrides).startswith("'range.low=3': range.low: ")
    assert error_message({"name": "a b"}, {"range.low": "range.low=1"}).startswith("a.yaml: ")


def test_override_is_found_by_key_section_or_mention() -> None:
    message = "low: 3 is larger than high 2"
    assert find_override("range", message, {"range.low": "one"}) == "one", "the field that the message begins with"
    assert find_override("range", message, {"range": "two"}) == "two", "the section around it"
    assert find_override("range", message, {"range.high": "three"}) == "three", "a field that the message mentions"
    assert find_override("range", message, {"name": "four"}) is None
    assert find_override("range.low", "", {"range.low": "five", "range.high": "six"}) == "five"


def test_suggestion_prefers_the_same_name_in_another_section() -> None:
    keys = list_keys(SmallConfig)
    assert suggest_key("low", keys) == "did you mean 'range.low'?"
    assert suggest_key("range.hihg", keys) == "did you mean 'range.high'?"
    assert suggest_key("rnage", keys) == "did you mean 'range'?"
