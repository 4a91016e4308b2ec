"""Train `modern` and `stargan` for the same time with several seeds, evaluate each checkpoint, and keep the results.

    python experiments/ablation/presets.py shards/faces48 --modern wh16 --stargan all \\
        --second-classifier classifiers/second --seed 0
    python experiments/ablation/presets.py --goals
    python experiments/ablation/presets.py --table
    python experiments/ablation/presets.py --plot docs/real-curves.png

Runs with a result are skipped, and an interrupted training resumes. Several processes can share the work by seed and
preset.
"""

import json
import math
import os
import statistics
import textwrap
from pathlib import Path
from typing import Any

import click
from run import METRICS, evaluate, mean_and_spread

from featgan.config import metric_specs

RESULTS = Path(__file__).parent / "presets"

SMALL = {
    "modern": ("generator.dim=16", "generator.num_blocks=3", "discriminator.max_dim=256"),
    "stargan": ("generator.dim=16", "discriminator.dim=24", "discriminator.num_layers=5", "training.precision=auto"),
}
"""Smaller networks than the presets': the comparison takes hours on a CPU instead of days."""

NUM_EVALUATIONS = 8
"""Evaluated checkpoints of a training, at equal distances."""

GOALS = {
    "target_progress_pooled": 0.8,
    "ccc": 0.75,
    "retrieval_top1": 0.4,
    "monotonicity": 0.95,
    "diagonal_dominance": 0.6,
    "reconstruction_l1": 0.06,
    "edit_low_frequency_share_when_changed": 0.5,
}
"""Goals for single metrics."""

UPPER_BOUNDS = ("reconstruction_l1",)
"""Metrics whose goal is an upper bound."""

RELATIVE_GOALS = {
    "label agreement, relative to the flipped target": 0.95,
    "label agreement, relative to the target after JPEG": 0.95,
    "Frechet distance, relative to real images": 2.0,
    "the same, for the second classifier": 2.0,
    "agreement gap between the two classifiers": 0.1,
}
"""Goals for a metric in relation to a baseline or to another metric."""

OTHER_METRICS = {
    name: metric_specs.METRICS[name].label
    for name in (
        "frechet_distance_real",
        "second_classifier_frechet_distance",
        "second_classifier_frechet_distance_real",
        "edit_uniform_share_when_changed",
    )
}
"""Metrics that help to interpret the others."""


@click.command()
@click.argument("shards", required=False)
@click.option("--modern", default="wh16", show_default=True, help="Feature cache of `modern`: whitened components.")
@click.option("--stargan", default="all", show_default=True, help="Feature cache of `stargan`: all features.")
@click.option("--steps", nargs=2, default=(10_000, 10_000), show_default=True, help="Steps of `modern` and `stargan`.")
@click.option("--second-classifier", help="SPEC of a second classifier that was not used in training.")
@click.option("--seed", default=0, show_default=True, help="Random seed of the training.")
@click.option("--only", type=click.Choice(list(SMALL)), help="Train only this preset.")
@click.option("--runs", type=Path, default=Path("runs/presets"), show_default=True, help="Folder of the runs.")
@click.option("--table", is_flag=True, help="Print all results as a Markdown table.")
@click.option("--goals", is_flag=True, help="Print the results and the goals as a Markdown table.")
@click.option("--plot", type=Path, help="Image file to plot the metrics over time to.")
def main(
    shards: str | None,
    modern: str,
    stargan: str,
    steps: tuple[int, int],
    second_classifier: str | None,
    seed: int,
    only: str | None,
    runs: Path,
    table: bool,
    goals: bool,
    plot: Path | None,
) -> None:
    """Train both presets for one seed; print or plot the results."""
    if table:
        print_table()
    if goals:
        print_goals()
    if plot:
        plot_curves(plot)
    if shards is None:
        return
    RESULTS.mkdir(exist_ok=True)
    for preset, feature_cache, num_steps in zip(SMALL, (modern, stargan), steps, strict=True):
        result_path = RESULTS / f"{preset}-seed-{seed}.json"
        if result_path.exists() or (only or preset) != preset:
            continue
        run = runs / f"{preset}-seed-{seed}"
        values = {"dataset.shards": shards, "dataset.feature_cache": feature_cache, "run_dir": run}
        values |= {"training.steps": num_steps, "training.checkpoint_every": num_steps // NUM_EVALUATIONS}
        values |= {"training.max_checkpoints": 1000, "training.seed": seed}
        overrides = [*SMALL[preset], *(f"{key}={value}" for key, value in values.items())]
        result = train_and_evaluate(preset, overrides, run, second_classifier)
        result_path.write_text(json.dumps(result | {"steps": num_steps}, indent=1) + "\n")


def train_and_evaluate(
    preset: str, overrides: list[str], run_dir: Path, second_classifier: str | None
) -> dict[str, Any]:
    """Train a run and evaluate every checkpoint.

    Return the CPU time, the metrics at each checkpoint, and the final metrics with their baselines.
    """
    from featgan.config.loading import load_config
    from featgan.run.paths import checkpoint_steps
    from featgan.training.train import train

    start_seconds, time_file = sum(os.times()[:4]), run_dir / "processor-seconds"
    train(load_config(preset, overrides))
    seconds = sum(os.times()[:4]) - start_seconds + (float(time_file.read_text()) if time_file.exists() else 0)
    time_file.write_text(str(seconds))  # A longer training that resumes this run adds to it.
    curve = []
    for step in checkpoint_steps(run_dir):
        metrics = evaluate(run_dir, "quick", step)["metrics"]
        curve.append({"step": step} | {name: metrics[name]["value"] for name in METRICS if metrics.get(name)})
    document = evaluate(run_dir, "standard", second_classifier=second_classifier)
    names = [*METRICS, "label_agreement", *OTHER_METRICS]
    return {
        "processor_seconds": round(seconds),
        "curve": curve,
        "metrics": {name: document["metrics"].get(name) for name in names},
        "baselines": {
            baseline: {name: estimate["value"] for name, estimate in metrics.items() if name in names}
            for baseline, metrics in document.get("baselines", {}).items()
        },
    }


def load_results(preset: str) -> list[dict[str, Any]]:
    """Return the results of all seeds."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{preset}-seed-*.json"))]


def relative_metrics(result: dict[str, Any]) -> dict[str, float]:
    """Return the values for `RELATIVE_GOALS`; NaN for a metric that was not computed."""
    values = {name: estimate["value"] for name, estimate in result["metrics"].items() if estimate}
    agreements = [result["baselines"][name]["label_agreement"] for name in ("target_flipped", "target_jpeg")]
    second_distance = values.get("second_classifier_frechet_distance", math.nan)
    ratios = [values["label_agreement"] / agreement for agreement in agreements]
    ratios += [values["frechet_distance"] / values["frechet_distance_real"]]
    ratios += [second_distance / values.get("second_classifier_frechet_distance_real", math.nan)]
    gap = values["validity"] - values["second_classifier_agreement"]
    return dict(zip(RELATIVE_GOALS, [*ratios, gap], strict=True))


def print_goals() -> None:
    """Print a Markdown row for each goal: the values of both presets for every seed, and of the nearest real image."""
    print("| metric | goal | `modern`, by seed | reached | `stargan`, by seed | nearest real image |")
    print("|---|---|---|---|---|---|")
    modern, stargan = load_results("modern"), load_results("stargan")
    for name, goal in GOALS.items():
        values = [[result["metrics"][name]["value"] for result in results] for results in (modern, stargan)]
        real = modern[0]["baselines"].get("nearest_real", {}).get(name)
        print_goal(METRICS[name], goal, name in UPPER_BOUNDS, values, "" if real is None else f"{real:.3f}")
        if name == "target_progress_pooled":
            ratios = [value / statistics.mean(values[1]) for value in values[0]]
            print_goal("the same, relative to the mean of `stargan`", 2, False, [ratios, []], "")
    for name, goal in RELATIVE_GOALS.items():
        values = [[relative_metrics(result)[name] for result in results] for results in (modern, stargan)]
        print_goal(name, goal, goal > 1 or goal < 0.5, values, "")


def print_goal(title: str, goal: float, is_upper_bound: bool, values: list[list[float]], real: str) -> None:
    """Print one row; a goal is reached if every seed of `modern` reaches it."""
    reached = [value <= goal if is_upper_bound else value >= goal for value in values[0]]
    cells = [", ".join(f"{value:.3f}" for value in column if not math.isnan(value)) for column in values]
    summary = "yes" if all(reached) else "in part" if any(reached) else "no"
    sign = "<=" if is_upper_bound else ">="
    print(f"| {title} | {sign} {goal:g} | {cells[0]} | {summary} | {cells[1]} | {real} |")


def print_table() -> None:
    """Print a Markdown row for each metric: the mean of the seeds ± half their range, for both presets."""
    print("| metric | " + " | ".join(f"`{preset}`" for preset in SMALL) + " |")
    print("|---" * (1 + len(SMALL)) + "|")
    results = [load_results(preset) for preset in SMALL]
    for name, title in (METRICS | OTHER_METRICS).items():
        estimates = [[result["metrics"].get(name) for result in seeds] for seeds in results]
        values = [[estimate["value"] for estimate in column if estimate] for column in estimates]
        print(f"| {title} | " + " | ".join(mean_and_spread(column) for column in values) + " |")
    for title, key, unit in (("steps", "steps", 1), ("CPU minutes", "processor_seconds", 60)):
        means = [statistics.mean(result[key] / unit for result in seeds) if seeds else math.nan for seeds in results]
        print(f"| {title} | " + " | ".join(f"{mean:.0f}" for mean in means) + " |")


def plot_curves(path: Path) -> None:
    """Plot one panel for each metric: thin lines are seeds, thick lines their means, dotted lines goals."""
    import matplotlib
    import numpy

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in METRICS if name != "second_classifier_agreement"]
    figure, axes = pyplot.subplots(2, 5, figsize=(15, 5.6), layout="constrained")
    for axis, name in zip(axes.flat, names, strict=True):
        for preset, color in zip(SMALL, ("tab:blue", "tab:orange"), strict=True):
            results = load_results(preset)
            curves = [[(minutes(result, point), point[name]) for point in result["curve"]] for result in results]
            for curve in curves:
                axis.plot(*zip(*curve, strict=True), color=color, linewidth=0.6, alpha=0.6)
            if curves:  # A resumed training was evaluated after other steps than the other seeds.
                times = [time for time, _ in curves[0]]
                means = numpy.mean([numpy.interp(times, *zip(*curve, strict=True)) for curve in curves], 0)
                axis.plot(times, means, color=color, linewidth=2, label=preset)
        if name in GOALS:
            axis.axhline(GOALS[name], color="gray", linestyle=":")
        axis.set_title(textwrap.fill(METRICS[name], 24))
        axis.set_yscale("log" if name == "frechet_distance" else "linear")
        axis.set_xlabel("CPU minutes")
    axes.flat[0].legend()
    figure.savefig(path, dpi=80)


def minutes(result: dict[str, Any], point: dict[str, float]) -> float:
    """Return the CPU minutes at a checkpoint, if every step took the same time."""
    return float(result["processor_seconds"] / 60 * point["step"] / result["steps"])


if __name__ == "__main__":
    main()
