"""Base class of the configuration sections, and what a field declares about itself."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from featgan.system.limits import MAX_COUNT

PositiveInt = Annotated[int, Field(ge=1, le=MAX_COUNT)]

Value = TypeVar("Value")


def fixed(default: Value) -> Value:
    """Return a field that must not change when a run resumes, because it changes the results."""
    return declare_field(default, False)


def resumable(default: Value) -> Value:
    """Return a field that may change when a run resumes, because it does not change the results beyond rounding."""
    return declare_field(default, True)


def resumable_without_lr_decay(default: Value) -> Value:
    """Return a field that may change when a run resumes, unless the learning rates decay toward the end of the run."""
    return declare_field(default, "without_lr_decay")


def declare_field(default: Value, is_resumable: bool | str) -> Value:
    """Return a field with the declaration that `resumable_keys` reads."""
    return Field(default=default, json_schema_extra={"resumable": is_resumable})


class ConfigModel(BaseModel):
    """A frozen group of fields that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def nested_config_model(annotation: Any) -> type[ConfigModel] | None:
    """Return the section that a field holds, also for `Section | None`; None if the field holds a value."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, ConfigModel):
            return candidate
    return None


def list_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every key of a model, sections included, as it is written in an override (`section.key`)."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        nested_model = nested_config_model(field.annotation)
        if nested_model:
            keys += list_keys(nested_model, f"{prefix}{name}.")
    return keys


def resumable_keys(model: type[BaseModel], prefix: str = "") -> dict[str, bool | str]:
    """Return the declaration of every key that has one: True, False or "without_lr_decay"."""
    keys: dict[str, bool | str] = {}
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and isinstance(extra.get("resumable"), bool | str):
            keys[prefix + name] = extra["resumable"]  # type: ignore[assignment]
        nested_model = nested_config_model(field.annotation)
        if nested_model:
            keys |= resumable_keys(nested_model, f"{prefix}{name}.")
    return keys
