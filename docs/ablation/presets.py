"""Train `modern` and `stargan` for the same time with several seeds, evaluate them on the way, keep the headline.

    python docs/ablation/presets.py shards/faces48 --modern wh16 --stargan box --witness boxes/witness --seed 0
    python docs/ablation/presets.py --goals
    python docs/ablation/presets.py --table
    python docs/ablation/presets.py --plot docs/real-curves.png

What is there is not done again, and a training that was cut short goes on. Processes may share the work
by seeds and presets.
"""

import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

import click
from run import MEASURES, spread

RESULTS = Path(__file__).parent / "presets"

SMALL = {
    "modern": ("generator.dim=16", "generator.num_blocks=3", "discriminator.max_dim=256"),
    "stargan": ("generator.dim=16", "discriminator.dim=24", "discriminator.num_layers=5", "training.precision=auto"),
}
"""Narrower than the presets, for hours of a CPU in place of days."""

LOOKS = 8
"""Evaluations of a training, at equal distances; the last one is thorough."""

GOALS = {
    "shift_aggregate": 0.8,
    "ccc": 0.75,
    "retrieval_top1": 0.4,
    "monotonicity": 0.95,
    "diagonal_dominance": 0.6,
    "self_l1": 0.06,
    "asked_edit_coarse_share": 0.5,
}
"""Those that are numbers of their own; the others are relative to a ceiling, a floor or the other preset."""

MOST = ("self_l1",)
"""Goals not to go above."""

BESIDE = {
    "frechet_real_floor": "Frechet, real halves",
    "witness_frechet_edited": "Frechet, the second box's space",
    "witness_frechet_real_floor": "the same, real halves",
    "asked_edit_constant_share": "part of the edit that is one tint",
}
"""Measures that say how to read the others."""


@click.command()
@click.argument("shards", required=False)
@click.option("--modern", default="wh16", show_default=True, help="Features of `modern`: whitened components.")
@click.option("--stargan", default="box", show_default=True, help="Features of `stargan`: all of them.")
@click.option("--steps", nargs=2, default=(10_000, 10_000), show_default=True, help="Of `modern` and of `stargan`.")
@click.option("--witness")
@click.option("--seed", default=0, show_default=True)
@click.option("--only", type=click.Choice(list(SMALL)), help="One of the presets in place of both.")
@click.option("--runs", type=Path, default=Path("runs/presets"), show_default=True)
@click.option("--table", is_flag=True, help="Print what is there as Markdown.")
@click.option("--goals", is_flag=True, help="Print what is there beside the goals.")
@click.option("--plot", type=Path, help="Draw the measures over the steps.")
def main(
    shards: str | None,
    modern: str,
    stargan: str,
    steps: tuple[int, int],
    witness: str | None,
    seed: int,
    only: str | None,
    runs: Path,
    table: bool,
    goals: bool,
    plot: Path | None,
) -> None:
    """Both presets, one after the other, for one seed."""
    if table:
        print_table()
    if goals:
        print_goals()
    if plot:
        draw(plot)
    if shards is None:
        return
    RESULTS.mkdir(exist_ok=True)
    for preset, features, count in zip(SMALL, (modern, stargan), steps, strict=True):
        result = RESULTS / f"{preset}-seed-{seed}.json"
        if result.exists() or (only or preset) != preset:
            continue
        run = runs / f"{preset}-seed-{seed}"
        values = {"dataset.shards": shards, "dataset.features": features, "run": run, "training.steps": count}
        values |= {"training.save_every": count // LOOKS, "training.keep_checkpoints": 1000, "training.seed": seed}
        overrides = [*SMALL[preset], *(f"{key}={value}" for key, value in values.items())]
        found = follow(preset, overrides, run, witness)
        result.write_text(json.dumps(found | {"steps": count}, indent=1) + "\n")


def follow(preset: str, overrides: list[str], run: Path, witness: str | None) -> dict[str, Any]:
    """Train, then evaluate each checkpoint: processor seconds, the curve, the last measures beside their controls."""
    from featgan.config.loading import load_config
    from featgan.evaluation.evaluate import evaluate_run
    from featgan.run.paths import committed_steps
    from featgan.training.train import train

    before, spent = sum(os.times()[:4]), run / "processor-seconds"
    train(load_config(preset, overrides))
    seconds = sum(os.times()[:4]) - before + (float(spent.read_text()) if spent.exists() else 0)
    spent.write_text(str(seconds))  # for a longer training that goes on from this one
    curve = []
    for step in committed_steps(run):
        measures = evaluate_run(run, step=step, suite="quick")["measures"]
        curve.append({"step": step} | {name: measures[name]["value"] for name in MEASURES if measures.get(name)})
    found = evaluate_run(run, suite="standard", witness=witness)
    names = [*MEASURES, "label_agreement", *BESIDE]
    return {
        "processor_seconds": round(seconds),
        "curve": curve,
        "measures": {name: found["measures"].get(name) for name in names},
        "controls": {
            control: {name: each["value"] for name, each in measures.items() if name in names}
            for control, measures in found.get("controls", {}).items()
        },
    }


def kept(preset: str) -> list[dict[str, Any]]:
    """The results of all seeds."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{preset}-seed-*.json"))]


def relative(result: dict[str, Any]) -> dict[str, float]:
    """The goals that are relative: to the ceiling, to the floor, to the first box."""
    value = {name: measure["value"] for name, measure in result["measures"].items() if measure}
    controls, nan = result["controls"], float("nan")
    ceilings = [controls[name]["label_agreement"] for name in ("ceiling_mirror", "ceiling_jpeg")]
    witnessed = value.get("witness_frechet_edited", nan) / value.get("witness_frechet_real_floor", nan)
    found = [value["label_agreement"] / ceiling for ceiling in ceilings]
    found += [value["frechet_edited"] / value["frechet_real_floor"], witnessed]
    return dict(zip(RELATIVE, [*found, value["flip_success"] - value["witness_agreement"]], strict=True))


RELATIVE = {
    "label agreement, of the mirrored wish's": 0.95,
    "label agreement, of the wish's after JPEG": 0.95,
    "Frechet, of real halves'": 2.0,
    "the same in the second box's space": 2.0,
    "flips, first box less second": 0.1,
}


def print_goals() -> None:
    """A row for each goal: what `modern` reaches in every seed, `stargan` beside it, and the nearest real image."""
    print("| goal | at | `modern`, by seed | met | `stargan`, by seed | nearest real image |")
    print("|---|---|---|---|---|---|")
    own, other = kept("modern"), kept("stargan")
    for name, goal in GOALS.items():
        found = [[each["measures"][name]["value"] for each in results] for results in (own, other)]
        real = own[0]["controls"].get("nearest_real", {}).get(name)
        goal_row(MEASURES[name], goal, name in MOST, found, "" if real is None else f"{real:.3f}")
        if name == "shift_aggregate":
            twice = [value / statistics.mean(found[1]) for value in found[0]]
            goal_row("the same, times `stargan`'s mean", 2, False, [twice, []], "")
    for name, goal in RELATIVE.items():
        found = [[relative(each)[name] for each in results] for results in (own, other)]
        goal_row(name, goal, goal > 1 or goal < 0.5, found, "")


def goal_row(words: str, goal: float, at_most: bool, found: list[list[float]], real: str) -> None:
    """Met where every seed of `modern` meets it."""
    met = [value <= goal if at_most else value >= goal for value in found[0]]
    cells = [", ".join(f"{value:.3f}" for value in values if not math.isnan(value)) for values in found]
    word = "yes" if all(met) else "in part" if any(met) else "no"
    print(f"| {words} | {'<=' if at_most else '>='} {goal:g} | {cells[0]} | {word} | {cells[1]} | {real} |")


def print_table() -> None:
    """A row for each measure: the mean of the seeds, ± half of how far they lie apart, for both presets."""
    print("| measure | " + " | ".join(f"`{preset}`" for preset in SMALL) + " |")
    print("|---" * (1 + len(SMALL)) + "|")
    for name, words in (MEASURES | BESIDE).items():
        values = [[each["measures"][name]["value"] for each in kept(p) if each["measures"].get(name)] for p in SMALL]
        print(f"| {words} | " + " | ".join(spread(each) for each in values) + " |")
    for words, key in (("steps", "steps"), ("processor minutes", "processor_seconds")):
        cells = [[each[key] / (60 if key != "steps" else 1) for each in kept(preset)] for preset in SMALL]
        print(f"| {words} | " + " | ".join(f"{statistics.mean(each):.0f}" if each else "" for each in cells) + " |")


def draw(path: Path) -> None:
    """One panel for each measure: thin lines are seeds, thick ones their means, dotted ones the goals."""
    import matplotlib
    import numpy

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in MEASURES if name != "witness_agreement"]
    figure, axes = pyplot.subplots(2, 5, figsize=(15, 5.6), layout="constrained")
    for axis, name in zip(axes.flat, names, strict=True):
        for preset, colour in zip(SMALL, ("tab:blue", "tab:orange"), strict=True):
            curves = [[(at(each, point), point[name]) for point in each["curve"]] for each in kept(preset)]
            for curve in curves:
                axis.plot(*zip(*curve, strict=True), color=colour, linewidth=0.6, alpha=0.6)
            if curves:  # a training that was made longer was looked at after other steps
                places = [place for place, _ in curves[0]]
                means = numpy.mean([numpy.interp(places, *zip(*curve, strict=True)) for curve in curves], 0)
                axis.plot(places, means, color=colour, linewidth=2, label=preset)
        if name in GOALS:
            axis.axhline(GOALS[name], color="gray", linestyle=":")
        axis.set_title(MEASURES[name])
        axis.set_yscale("log" if name == "frechet_edited" else "linear")
        axis.set_xlabel("processor minutes")
    axes.flat[0].legend()
    figure.savefig(path, dpi=80)


def at(result: dict[str, Any], point: dict[str, float]) -> float:
    """Processor minutes of a look, all steps alike; those of a head start are cheaper."""
    return float(result["processor_seconds"] / 60 * point["step"] / result["steps"])


if __name__ == "__main__":
    main()
