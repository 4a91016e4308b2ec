"""Which Python code the jobs and the watch may import as classifiers: what their own user named earlier."""

import os
from pathlib import Path

from featgan.config.loading import find_config
from featgan.config.schema import Config, DatasetConfig
from featgan.config.trusted_callables import (
    NO_CALLABLES,
    TrustedCallables,
    UntrustedCallableError,
    callable_names,
    check_stored_spec,
)
from featgan.errors import UserError
from featgan.run.approved_callables import approved_callables
from featgan.run.evaluation_options import EvaluationOptions
from featgan.run.evaluation_schedule import STORED_CLASSIFIERS, list_specs, with_default_classifiers
from featgan.run.paths import checkpoint_steps, step_folder
from featgan.system.files import read_regular_file
from featgan.system.json_files import parse_json
from featgan.system.limits import MAX_JSON_BYTES
from featgan.system.locations import Location


def submitted_callables(config_name: str, config: Config) -> list[str]:
    """Return the callables of a configuration that the user submits; none if its file belongs to another user."""
    if find_config(config_name).stat().st_uid not in (os.geteuid(), 0):
        return []
    return callable_names(spec for name in STORED_CLASSIFIERS for spec in list_specs(config.evaluation, name))


def trust_pipeline(config_name: str, config: Config, given: TrustedCallables) -> TrustedCallables:
    """Return what the jobs of a pipeline may import: also the submitted callables, and those of the extraction.

    Raises UntrustedCallableError if the feature cache names other code.
    """
    names = submitted_callables(config_name, config)
    trusted = given.extend([*names, *callables_of_shards(config)])
    if config.dataset.condition.kind == "features":
        cache = find_local_cache(config.dataset)
        if cache is not None:
            check_json_callable(cache / "manifest.json", trusted)
    return trusted


def find_local_cache(dataset: DatasetConfig) -> Path | None:
    """Return the folder of the feature cache; None if it is behind a URL."""
    cache = dataset.feature_cache
    if "/" in cache:
        location = Location.parse(cache)
        return None if location.is_remote else location.path
    return None if dataset.shards.is_remote else dataset.shards.path / "features" / cache


def callables_of_shards(config: Config) -> frozenset[str]:
    """Return the callables that the user named for the shards, or for a feature cache in another folder.

    Nobody names any for data behind a URL.
    """
    shards, cache = config.dataset.shards, find_local_cache(config.dataset)
    folders = [*([] if shards.is_remote else [shards.path]), *([cache] if cache else [])]
    return frozenset(name for folder in folders for name in approved_callables(folder))


def trust_own_run(run: Path, step: int, config: Config, trusts_all: bool) -> TrustedCallables:
    """Return the callables that the watch may import for a run: those that its user named for the run or the shards.

    A run in which files belong to another user is not trusted, even with `trusts_all`.
    """
    files = (run, run / "config.yaml", step_folder(run, step), step_folder(run, step) / "model.json")
    if any(path.exists() and path.stat().st_uid != os.geteuid() for path in files):
        return NO_CALLABLES
    return TrustedCallables(approved_callables(run) | callables_of_shards(config), trusts_all)


def find_untrusted(run: Path, step: int, trusted: TrustedCallables) -> str | None:
    """Return why the watch does not evaluate a checkpoint: a file names code that is not trusted; else None."""
    try:
        check_run_callables(run, step, EvaluationOptions(trusted=trusted))
    except UntrustedCallableError as error:
        return str(error)
    except (UserError, OSError):
        pass  # the evaluation itself reports it
    return None


def check_run_callables(run: Path, step: int | None, options: EvaluationOptions) -> None:
    """Raise UntrustedCallableError if a file of the run names code that the evaluation would import without trust."""
    if not with_default_classifiers(run, options).classifiers:
        check_model_callable(run, step, options.trusted)


def check_model_callable(run: Path, step: int | None, trusted: TrustedCallables) -> None:
    """Raise UntrustedCallableError if model.json (of the newest step if None) names code that is not trusted."""
    chosen_step = max(checkpoint_steps(run), default=0) if step is None else step
    check_json_callable(step_folder(run, chosen_step) / "model.json", trusted)


def check_json_callable(path: Path, trusted: TrustedCallables) -> None:
    """Raise UntrustedCallableError if a JSON file names untrusted code as its `blackbox`; ignores a damaged file."""
    try:
        spec = parse_json(read_regular_file(path, MAX_JSON_BYTES))["blackbox"]["spec"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if isinstance(spec, str):
        check_stored_spec(spec, trusted, str(path), "--blackbox")
