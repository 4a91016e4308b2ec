"""Ablation of the preset `modern`: change one part at a time, train, evaluate and keep the main metrics.

    python experiments/ablation/run.py shards/faces48 --second-classifier classifiers/second --seed 0
    python experiments/ablation/run.py --table

Rows with a result are skipped. Several processes can share the work: each takes the first row that has no run folder.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import click

from featgan.config import metric_specs

RESULTS = Path(__file__).parent
SMALL = ("generator.dim=16", "generator.num_blocks=3", "discriminator.max_dim=256")
"""Smaller networks than the preset's: the comparison takes hours on a CPU instead of days."""

BASELINE = {
    "generator.condition_input": "target",
    "discriminator.projection": False,
    "losses.r1_gamma": 0.04,
    "losses.identity_weight": 0,
    "losses.identity_margin": 0,
    "optimizer.max_grad_norm": 0,
}
"""Where the preset before the comparison differed from the preset now."""

WITH_DIFFERENCE: dict[str, object] = {
    "generator.condition_input": "target_and_difference",
    "discriminator.projection": True,
    "losses.identity_weight": 3,
    "losses.r1_gamma": 0.2,
}
WITH_MARGIN = WITH_DIFFERENCE | {"losses.identity_margin": 0.05}
MODERN = WITH_MARGIN | {"optimizer.max_grad_norm": 1}

LENGTH = {"training.steps": 1800, "training.discriminator_warmup_steps": 800}
"""1,000 steps that train G, after the discriminator warm-up."""

REMOVED = (
    "output `residual`",
    "augmentation of D's input",
    "a quarter of the targets interpolated",
    "half of the targets with one component",
    "noise of 0.2 SD on the targets",
    "7, `condition_input` with the difference only",
)
"""Rows whose code was removed because it did not improve the results. They cannot be run again."""

ROWS: dict[str, dict[str, object]] = {
    "1: `modern` before the comparison": {},
    "`conditioning: concat`": {"generator.conditioning": "concat"},
    "`output: image`": {"generator.output": "image"},
    REMOVED[0]: {"generator.output": "residual"},
    "`upsampling: transposed`": {"generator.upsampling": "transposed"},
    "`adversarial: wgan_gp`": {"losses.adversarial": "wgan_gp", "losses.gp_weight": 10},
    "`r1_gamma: 2`": {"losses.r1_gamma": 2},
    "`cycle_weight: 3`": {"losses.cycle_weight": 3},
    "`identity_weight: 1`": {"losses.identity_weight": 1},
    "no EMA": {"training.ema_half_life_images": 0},
    "2: projection discriminator": {"discriminator.projection": True},
    REMOVED[1]: {"discriminator.augmentation": True},
    REMOVED[2]: {"targets.permutation": 0.75, "targets.interpolation": 0.25},
    REMOVED[3]: {"targets.permutation": 0.5, "targets.component": 0.5},
    REMOVED[4]: {"targets.noise": 0.2},
    "no discriminator warm-up": {"training.discriminator_warmup_steps": 0, "training.steps": 1000},
    "2, no condition loss, no warm-up": {
        "discriminator.projection": True,
        "losses.condition_weight": 0,
        "training.discriminator_warmup_steps": 0,
        "training.steps": 1000,
    },
    "R1 in every step": {"losses.r1_interval": 1},
    "3: 2, `cycle_weight: 3`": {"discriminator.projection": True, "losses.cycle_weight": 3},
    "4: 2, `identity_weight: 5`": {"discriminator.projection": True, "losses.identity_weight": 5},
    "5: 2, `identity_weight: 5`, `cycle_weight: 3`": {
        "discriminator.projection": True,
        "losses.identity_weight": 5,
        "losses.cycle_weight": 3,
    },
    "6: 2, `identity_weight: 2`, `cycle_weight: 2`": {
        "discriminator.projection": True,
        "losses.identity_weight": 2,
        "losses.cycle_weight": 2,
    },
    "7: 2, `identity_weight: 3`, `r1_gamma: 0.2`": {
        "discriminator.projection": True,
        "losses.identity_weight": 3,
        "losses.r1_gamma": 0.2,
    },
    REMOVED[5]: {"generator.condition_input": "difference"},
    "8: 7, `condition_input: target_and_difference`": WITH_DIFFERENCE,
    "9: 8, `identity_margin: 0.05`": WITH_MARGIN,
    "10: 9, `max_grad_norm: 1`, the preset `modern`": MODERN,
}
"""Name of a row => its differences from the first row. The position of a row is the number of its result files."""

METRICS = {
    name: metric_specs.METRICS[name].label
    for name in (
        "target_progress_pooled",
        "ccc",
        "label_agreement",
        "validity",
        "second_classifier_agreement",
        "retrieval_top1",
        "monotonicity",
        "diagonal_dominance",
        "frechet_distance",
        "reconstruction_l1",
        "edit_low_frequency_share_when_changed",
    )
}
"""Metric => the title of its column."""


@click.command()
@click.argument("shards", required=False)
@click.option("--feature-cache", default="wh16", show_default=True, help="Name of the feature cache.")
@click.option("--second-classifier", help="SPEC of a second classifier that was not used in training.")
@click.option("--seed", default=0, show_default=True, help="Random seed of the training.")
@click.option("--runs", type=Path, default=Path("runs/ablation"), show_default=True, help="Folder of the runs.")
@click.option("--table", is_flag=True, help="Print the results as a Markdown table and exit.")
def main(
    shards: str | None, feature_cache: str, second_classifier: str | None, seed: int, runs: Path, table: bool
) -> None:
    """Train and evaluate every row that has no result yet, for one seed."""
    if table or shards is None:
        print_table()
        return
    for number, (row, changes) in enumerate(ROWS.items()):
        name = f"{number:02d}-seed-{seed}"
        result_path, run = RESULTS / f"{name}.json", runs / name
        if row in REMOVED or result_path.exists() or run.exists():
            continue
        run.mkdir(parents=True)  # Other processes skip this row from now on.
        values = {"dataset.shards": shards, "dataset.feature_cache": feature_cache, **BASELINE, **LENGTH}
        values |= {"training.checkpoint_every": 1800, "training.seed": seed, "run_dir": run / "run"} | changes
        overrides = [f"{key}={json.dumps(value, default=str).strip(chr(34))}" for key, value in values.items()]
        result = train_and_evaluate([*SMALL, *overrides], run / "run", second_classifier)
        result_path.write_text(json.dumps(result, indent=1) + "\n")


def train_and_evaluate(overrides: list[str], run_dir: Path, second_classifier: str | None) -> dict[str, Any]:
    """Train a run and return the metrics named in `METRICS` with their intervals."""
    from featgan.config.loading import load_config
    from featgan.training.train import train

    train(load_config("modern", overrides))
    metrics = evaluate(run_dir, suite="standard", second_classifier=second_classifier)["metrics"]
    return {name: metrics.get(name) for name in METRICS}


def evaluate(
    run_dir: Path, suite: str, step: int | None = None, second_classifier: str | None = None
) -> dict[str, Any]:
    """Evaluate a checkpoint (the newest by default) and return its evaluation document as plain values."""
    from featgan.evaluation.evaluate import evaluate_run
    from featgan.run.paths import checkpoint_steps, evaluation_path

    evaluate_run(run_dir, step, suite, second_classifier=second_classifier)
    path = evaluation_path(run_dir, checkpoint_steps(run_dir)[-1] if step is None else step, suite)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def print_table() -> None:
    """Print a Markdown row for each entry of `ROWS`, and the mean half-width of the confidence intervals."""
    all_results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*-seed-*.json"))]
    print("| configuration | seeds | " + " | ".join(METRICS.values()) + " |")
    print("|---" * (2 + len(METRICS)) + "|")
    for number, row in enumerate(ROWS):
        results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{number:02d}-seed-*.json"))]
        cells = [mean_and_spread([result[name]["value"] for result in results if result[name]]) for name in METRICS]
        print(f"| {row} | {len(results)} | " + " | ".join(cells) + " |")
    widths = [
        [(result[name]["high"] - result[name]["low"]) / 2 for result in all_results if result[name]] for name in METRICS
    ]
    cells = [f"±{statistics.mean(width):.3f}" for width in widths]
    print("| half-width of the 95 % interval over images, mean of all rows | | " + " | ".join(cells) + " |")


def mean_and_spread(values: list[float]) -> str:
    """Format the mean of the seeds, ± half the difference between the largest and the smallest value."""
    if not values:
        return ""
    spread = f" ±{(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
