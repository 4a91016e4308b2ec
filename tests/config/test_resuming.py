"""Each field declares whether it may change when a run resumes; every field is tested both ways."""

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

from featgan.config.base import list_keys, nested_config_model, resumable_keys
from featgan.config.loading import config_diff, flatten_mapping, parse_config
from featgan.config.schema import Config

RESUMABLE_DATASET_FIELDS = ("shards", "feature_cache", "cache_dir", "cache_gb", "stage", "retry_seconds")

RESUMABLE_KEYS = (
    "run_dir",
    *(f"dataset.{name}" for name in RESUMABLE_DATASET_FIELDS),
    *(f"second_dataset.{name}" for name in RESUMABLE_DATASET_FIELDS),
    "training.num_workers",
    "training.log_every",
    "training.sample_every",
    "training.checkpoint_every",
    "training.max_checkpoints",
    "distributed.strategy",
    "distributed.zero_stage",
    "distributed.gradient_accumulation_steps",
    "distributed.activation_checkpointing",
    "distributed.hang_timeout",
    "evaluation.every",
    "evaluation.suite",
    "evaluation.selection_metric",
    "evaluation.best_suite",
    "evaluation.classifiers",
    "evaluation.factor_probe",
    "evaluation.second_classifier",
    "evaluation.max_pending",
)

FIELD_KEYS = [key for key in list_keys(Config) if not any(other.startswith(f"{key}.") for other in list_keys(Config))]

OTHER_VALUES = {
    "evaluation.selection_metric": "r2",
    "dataset.condition.kind": "expression",
    "dataset.condition.attributes": ["Male"],
    "optimizer.lr_decay_steps": 7,
}
"""Values of fields for which the type alone does not give a valid value."""


def field_annotation(key: str) -> tuple[Any, Any]:
    """Return the type and the default of a field."""
    model: Any = Config
    *sections, name = key.split(".")
    for section in sections:
        model = nested_config_model(model.model_fields[section].annotation)
    field = model.model_fields[name]
    return field.annotation, field.default


def other_value(key: str) -> Any:
    """Return a valid value of a field that is not its default."""
    return OTHER_VALUES[key] if key in OTHER_VALUES else value_of_type(*field_annotation(key))


def value_of_type(annotation: Any, default: Any) -> Any:
    """Return a value of a type that differs from the default."""
    origin, options = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return value_of_type(options[0], default)
    if origin is Literal:
        return next(value for value in options if value != default)
    if origin in (Union, types.UnionType):
        return value_of_type(options[0], default)
    if annotation is bool:
        return not default
    if annotation is int:
        return default + 1
    if annotation is float:
        return default / 2 if default else 0.5
    return ["other"] if origin is tuple else "other"


def make_config(settings: dict[str, Any]) -> Config:
    """Return a configuration with the settings, given by dotted key."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return parse_config(tree, "test")


@pytest.mark.parametrize("key", [key for key in FIELD_KEYS if not key.startswith("second_dataset")])
def test_change_of_a_field_is_reported_unless_it_is_resumable(key: str) -> None:
    settings: dict[str, Any] = {}
    if key == "dataset.condition.attributes":
        settings = {"dataset.condition.kind": "attributes", key: ["Smiling"]}
    old, new = make_config(settings), make_config({**settings, key: other_value(key)})
    assert flatten(old)[key] != flatten(new)[key], "the test changes the field"
    is_resumable = key in RESUMABLE_KEYS or key == "training.steps"
    expected = [] if is_resumable else [key]
    assert changed_keys(old, new) == changed_keys(new, old) == expected


def changed_keys(old: Config, new: Config) -> list[str]:
    """Return the keys that `config_diff` reports."""
    return [entry.partition(":")[0] for entry in config_diff(old, new)]


def flatten(config: Config) -> dict[str, Any]:
    """Return every field of a configuration by dotted key."""
    return flatten_mapping(config.model_dump(mode="json"))


@pytest.mark.parametrize("key", [key for key in FIELD_KEYS if key.startswith("second_dataset.")])
def test_change_of_the_second_dataset_is_reported(key: str) -> None:
    labels: dict[str, Any] = {"dataset.condition.kind": "expression", "second_dataset.condition.kind": "expression"}
    value = other_value(key.removeprefix("second_"))
    if key.endswith(".kind"):
        value = "valence_arousal"
    if key.endswith(".attributes"):
        labels |= {"second_dataset.condition.kind": "attributes", key: ["Smiling"]}
    old, new = make_config(labels), make_config({**labels, key: value})
    assert changed_keys(old, new) == changed_keys(new, old) == ([] if key in RESUMABLE_KEYS else [key])


def test_adding_or_removing_a_second_dataset_is_reported() -> None:
    labels = {"dataset.condition.kind": "expression"}
    one, two = make_config(labels), make_config({**labels, "second_dataset.condition.kind": "expression"})
    assert set(changed_keys(one, two)) == set(changed_keys(two, one))
    fields = {key for key in FIELD_KEYS if key.startswith("second_dataset.")}
    assert set(changed_keys(one, two)) == fields - set(RESUMABLE_KEYS)


def test_number_of_steps_may_change_only_without_decay() -> None:
    decaying = {"optimizer.lr_decay_steps": 10, "training.steps": 100}
    longer = {**decaying, "training.steps": 200}
    assert config_diff(make_config(decaying), make_config(longer)) == ["training.steps: 100 -> 200"]
    assert config_diff(make_config(longer), make_config(decaying)) == ["training.steps: 200 -> 100"]
    short, long = make_config({"training.steps": 100}), make_config({"training.steps": 200})
    assert config_diff(short, long) == config_diff(long, short) == []


def test_every_field_declares_whether_it_is_resumable() -> None:
    declared = resumable_keys(Config)
    missing = {*FIELD_KEYS, "second_dataset"} - declared.keys()
    assert not missing, f"use fixed() or resumable(): {missing}"
    assert {key for key, value in declared.items() if value is True} == set(RESUMABLE_KEYS)
    assert {key: value for key, value in declared.items() if not isinstance(value, bool)} == {
        "training.steps": "without_lr_decay"
    }


def test_second_classifier_may_change_in_an_existing_run() -> None:
    assert config_diff(Config(), make_config({"evaluation.second_classifier": "classifiers/second"})) == []


def test_run_folder_may_be_moved() -> None:
    assert config_diff(Config(), Config(run_dir=Path("runs/moved"))) == []
