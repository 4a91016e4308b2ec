"""Keys and values of release 0.1 that were renamed in 0.2: they are rejected with a message that names the new one."""

from collections.abc import Mapping
from typing import Any

RENAMED_SECTIONS = {"distribution": "distributed"}

DATASET_KEYS = {
    "features": "feature_cache",
    "mirror": "horizontal_flip",
    "condition.objective": "condition.loss_on",
    "condition.regression": "condition.regression_loss",
    "condition.reduction": "condition.ccc_reduction",
}

RENAMED_KEYS = {
    "run": "run_dir",
    **{
        f"{section}.{old}": f"{section}.{new}"
        for section in ("dataset", "second_dataset")
        for old, new in DATASET_KEYS.items()
    },
    "generator.request": "generator.condition_input",
    "losses.r1_every": "losses.r1_interval",
    "losses.prediction_weight": "losses.output_weight",
    "optimizer.generator_rate": "optimizer.generator_lr",
    "optimizer.discriminator_rate": "optimizer.discriminator_lr",
    "optimizer.decay_steps": "optimizer.lr_decay_steps",
    "optimizer.clip_norm": "optimizer.max_grad_norm",
    "training.critic_steps": "training.n_critic",
    "training.head_start": "training.discriminator_warmup_steps",
    "training.ema_images": "training.ema_half_life_images",
    "training.report_every": "training.log_every",
    "training.preview_every": "training.sample_every",
    "training.save_every": "training.checkpoint_every",
    "training.keep_checkpoints": "training.max_checkpoints",
    "distributed.accumulation": "distributed.gradient_accumulation_steps",
    "distributed.recompute": "distributed.activation_checkpointing",
    "evaluation.best": "evaluation.selection_metric",
    "evaluation.most_waiting": "evaluation.max_pending",
    "evaluation.blackboxes": "evaluation.classifiers",
    "evaluation.probe": "evaluation.factor_probe",
    "evaluation.witness": "evaluation.second_classifier",
}
"""New key by old key, after a renamed section was replaced by its new name."""

SPLIT_KEYS = {
    "losses.penalty_weight": (
        "'losses.gp_weight' for adversarial: wgan_gp, and by 'losses.r1_gamma' (twice the old value) for adversarial:"
        " non_saturating"
    ),
}
"""Keys that were replaced by several, with the text that names them."""

TARGET_VALUES = {"actv": "features", "pred": "outputs"}

SELECTION_METRIC_VALUES = {
    "shift": "target_progress",
    "shift_median": "target_progress_median",
    "shift_aggregate": "target_progress_pooled",
    "centred_cosine": "centered_cosine",
    "flip_success": "validity",
    "self_l1": "reconstruction_l1",
    "self_psnr": "reconstruction_psnr",
    "self_ssim": "reconstruction_ssim",
    "frechet_edited": "frechet_distance",
    "kid_edited": "kid",
}

RENAMED_VALUES = {
    "dataset.condition.loss_on": TARGET_VALUES,
    "second_dataset.condition.loss_on": TARGET_VALUES,
    "generator.condition_input": {"change": "target_and_difference"},
    "generator.conditioning": {"modulation": "adain"},
    "generator.output": {"blend": "masked_blend"},
    "losses.adversarial": {"logistic": "non_saturating"},
    "evaluation.selection_metric": SELECTION_METRIC_VALUES,
}
"""New value by old value, for each new key."""


def find_renamed(tree: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the first key of the tree that has an old name or value, and a message; None if there is none."""
    for key, value in iterate_keys(tree):
        new_key = rename_key(key)
        new_value = rename_value(new_key, value)
        if key in SPLIT_KEYS:
            return key, f"unknown key {key!r}; it was replaced in featgan 0.2 by {SPLIT_KEYS[key]}"
        if new_key != key:
            remedy = f", and its value {value!r} to {new_value!r}" if new_value != value else ""
            return key, f"unknown key {key!r}; it was renamed to {new_key!r} in featgan 0.2{remedy}"
        if new_value != value:
            return key, f"{key}: {value!r} was renamed to {new_value!r} in featgan 0.2"
    return None


def iterate_keys(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return every leaf of nested mappings as (key, value), and every empty section."""
    items: list[tuple[str, Any]] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        items += iterate_keys(value, f"{key}.") if isinstance(value, Mapping) and value else [(key, value)]
    return items


def rename_key(key: str) -> str:
    """Return the new name of a key; the key itself if it was not renamed."""
    section, dot, leaf = key.partition(".")
    key = f"{RENAMED_SECTIONS.get(section, section)}{dot}{leaf}"
    return RENAMED_KEYS.get(key, key)


def rename_value(key: str, value: Any) -> Any:
    """Return the new name of a value of the key; the value itself if it was not renamed.

    The name of a selection metric could begin with a minus sign, and with `second_` for the second data set.
    """
    if not isinstance(value, str):
        return value
    renamed_values = RENAMED_VALUES.get(key, {})
    if key != "evaluation.selection_metric":
        return renamed_values.get(value, value)
    name = value.removeprefix("-")
    is_second = name.startswith("second_") and not name.startswith("second_dataset_")
    name = name.removeprefix("second_") if is_second else name
    new_name = renamed_values.get(name, name)
    if not is_second and new_name == name:
        return value
    return f"second_dataset_{new_name}" if is_second else new_name
