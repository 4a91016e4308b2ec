"""Keys and values of release 0.1 are rejected in one line that names the new ones."""

from pathlib import Path
from typing import Any

import pytest

from featgan.config.base import list_keys
from featgan.config.loading import load_config, parse_config
from featgan.config.renamed_keys import RENAMED_KEYS, RENAMED_VALUES, find_renamed
from featgan.config.schema import Config
from featgan.errors import UserError

OLD_OVERRIDES = {
    "run=runs/x": "renamed to 'run_dir'",
    "dataset.features=blackbox": "renamed to 'dataset.feature_cache'",
    "dataset.mirror=false": "renamed to 'dataset.horizontal_flip'",
    "second_dataset.condition.reduction=mean": "renamed to 'second_dataset.condition.ccc_reduction'",
    "distribution.recompute=true": "renamed to 'distributed.activation_checkpointing'",
    "distribution.strategy=ddp": "renamed to 'distributed.strategy'",
    "distribution={accumulation: 2}": "renamed to 'distributed.gradient_accumulation_steps'",
    "distribution={}": "renamed to 'distributed'",
    "distributed.accumulation=2": "renamed to 'distributed.gradient_accumulation_steps'",
    "losses.penalty_weight=10": "'losses.gp_weight' for adversarial: wgan_gp, and by 'losses.r1_gamma'",
    "training.head_start=100": "renamed to 'training.discriminator_warmup_steps'",
    "generator.request=change": "'generator.condition_input' .* value 'change' to 'target_and_difference'",
    "generator.request=target": "renamed to 'generator.condition_input' in featgan 0.2$",
    "dataset.condition.objective=actv": "'dataset.condition.loss_on' .* value 'actv' to 'features'",
    "evaluation.best=-frechet_edited": "'evaluation.selection_metric' .* to 'frechet_distance'",
    "evaluation.best=-second_self_l1": "to 'second_dataset_reconstruction_l1'",
    "evaluation.witness=SPEC": "renamed to 'evaluation.second_classifier'",
}

OLD_VALUES = {
    "generator.conditioning=modulation": "generator.conditioning: 'modulation' was renamed to 'adain'",
    "generator.output=blend": "generator.output: 'blend' was renamed to 'masked_blend'",
    "losses.adversarial=logistic": "losses.adversarial: 'logistic' was renamed to 'non_saturating'",
    "dataset.condition.loss_on=pred": "dataset.condition.loss_on: 'pred' was renamed to 'outputs'",
    "evaluation.selection_metric=flip_success": "'flip_success' was renamed to 'validity'",
    "evaluation.selection_metric=-kid_edited": "'-kid_edited' was renamed to 'kid'",
}


@pytest.mark.parametrize(("override", "message"), {**OLD_OVERRIDES, **OLD_VALUES}.items())
def test_old_override_is_rejected_with_the_new_name(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("")
    with pytest.raises(UserError, match=message) as caught:
        load_config(str(path), ["training.seed=3", override])
    assert str(caught.value).startswith(f"{override!r}: ") and "\n" not in str(caught.value)


def test_old_key_in_a_file_is_rejected_with_the_new_name(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training: {steps: 7}\ndistribution:\n  recompute: true\n")
    with pytest.raises(UserError, match=r"a\.yaml: .* renamed to 'distributed\.activation_checkpointing'"):
        load_config(str(path), ["training.seed=3"])
    path.write_text("generator: {conditioning: modulation}\n")
    with pytest.raises(UserError, match=r"a\.yaml: generator\.conditioning: .* renamed to 'adain'"):
        load_config(str(path))


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_every_new_key_exists_and_no_old_key_does(old: str) -> None:
    keys = list_keys(Config)
    assert RENAMED_KEYS[old] in keys and old not in keys


@pytest.mark.parametrize("key", RENAMED_VALUES)
def test_every_new_value_is_valid(key: str) -> None:
    *sections, name = key.split(".")
    for new in RENAMED_VALUES[key].values():
        tree: dict[str, object] = {name: new}
        for section in reversed(sections):
            tree = {section: tree}
        if key.startswith("second_dataset"):
            continue  # features are not allowed in a second data set, whatever the name
        value: Any = parse_config(tree, "test")
        for section in (*sections, name):
            value = getattr(value, section)
        assert value == new


def test_current_names_are_not_rejected() -> None:
    assert find_renamed(Config().model_dump(mode="json")) is None
    assert find_renamed({"evaluation": {"selection_metric": "second_dataset_reconstruction_l1"}}) is None
