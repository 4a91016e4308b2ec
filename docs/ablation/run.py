"""Train the preset `modern`, as it was before this comparison, with parts changed; evaluate it, keep the headline.

    python docs/ablation/run.py shards/faces48 --features wh16 --witness boxes/witness --seed 0
    python docs/ablation/run.py --table

Rows that are there are not done again. Two processes may share the work: each takes the first that nobody has begun.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import click

RESULTS = Path(__file__).parent
SMALL = ("generator.dim=16", "generator.num_blocks=3", "discriminator.max_dim=256")
"""Narrower than the preset, for hours of a CPU in place of days."""

BEFORE = {
    "generator.request": "target",
    "discriminator.projection": False,
    "losses.penalty_weight": 0.02,
    "losses.identity_weight": 0,
    "losses.identity_margin": 0,
    "optimizer.clip_norm": 0,
}
"""Where the preset was other than it is now, which the row `NOW` is."""

TOLD: dict[str, object] = {
    "generator.request": "change",
    "discriminator.projection": True,
    "losses.identity_weight": 3,
    "losses.penalty_weight": 0.1,
}
MARGIN: dict[str, object] = {"losses.identity_margin": 0.05}
BOUNDED: dict[str, object] = {"optimizer.clip_norm": 1}
NOW = "that, and gradients bounded: `modern`"

LENGTH = {"training.steps": 1800, "training.head_start": 800}
"""A thousand steps of G, after D's head start where it has one."""

GONE = (
    "a residual, not a blend",
    "augmentation",
    "a quarter of targets between",
    "half of targets one component",
    "noise .2 on targets",
    "that, and G told the change alone",
)
"""Their parts did not earn their place: these rows were made before `Delete the parts that the ablation showed to be of
no use`, the last with a copy in which G took the difference of `conditions.phrase` without the target."""

ROWS: dict[str, dict[str, object]] = {
    "`modern` as it was": {},
    "without modulation (concat)": {"generator.conditioning": "concat"},
    "a new image, not a blend": {"generator.output": "image"},
    GONE[0]: {"generator.output": "residual"},
    "transposed, not nearest": {"generator.upsampling": "transposed"},
    "wgan_gp, not logistic": {"losses.adversarial": "wgan_gp", "losses.penalty_weight": 10},
    "penalty 1, not .02": {"losses.penalty_weight": 1},
    "cycle 3, not 1": {"losses.cycle_weight": 3},
    "identity 1": {"losses.identity_weight": 1},
    "without EMA": {"training.ema_images": 0},
    "projection": {"discriminator.projection": True},
    GONE[1]: {"discriminator.augmentation": True},
    GONE[2]: {"targets.permutation": 0.75, "targets.interpolation": 0.25},
    GONE[3]: {"targets.permutation": 0.5, "targets.component": 0.5},
    GONE[4]: {"targets.noise": 0.2},
    "without a head start": {"training.head_start": 0, "training.steps": 1000},
    "projection in place of the condition head": {
        "discriminator.projection": True,
        "losses.condition_weight": 0,
        "training.head_start": 0,
        "training.steps": 1000,
    },
    "R1 in every step": {"losses.r1_every": 1},
    "projection and cycle 3": {"discriminator.projection": True, "losses.cycle_weight": 3},
    "projection and identity 5": {"discriminator.projection": True, "losses.identity_weight": 5},
    "projection, identity 5, cycle 3": {
        "discriminator.projection": True,
        "losses.identity_weight": 5,
        "losses.cycle_weight": 3,
    },
    "projection, identity 2, cycle 2": {
        "discriminator.projection": True,
        "losses.identity_weight": 2,
        "losses.cycle_weight": 2,
    },
    "projection, identity 3, penalty .1": {
        "discriminator.projection": True,
        "losses.identity_weight": 3,
        "losses.penalty_weight": 0.1,
    },
    GONE[5]: {"generator.request": "change alone"},
    "that, and G told target and change": TOLD,
    "that, with a margin of .05 to the identity": TOLD | MARGIN,
    NOW: TOLD | MARGIN | BOUNDED,
}
"""What differs from the first row."""

MEASURES = {
    "shift_aggregate": "relative shift",
    "ccc": "concordance",
    "label_agreement": "label agreement",
    "flip_success": "flips",
    "witness_agreement": "flips, second box",
    "retrieval_top1": "retrieval",
    "monotonicity": "monotonicity",
    "diagonal_dominance": "own component",
    "frechet_edited": "Frechet",
    "self_l1": "self L1",
    "asked_edit_coarse_share": "coarse share",
}


@click.command()
@click.argument("shards", required=False)
@click.option("--features", default="wh16", show_default=True)
@click.option("--witness")
@click.option("--seed", default=0, show_default=True)
@click.option("--runs", type=Path, default=Path("runs/ablation"), show_default=True)
@click.option("--table", is_flag=True, help="Print what is there as Markdown.")
def main(shards: str | None, features: str, witness: str | None, seed: int, runs: Path, table: bool) -> None:
    """One row after the other, for one seed."""
    if table:
        print_table()
        return
    for number, (row, changes) in enumerate(ROWS.items()):
        name = f"{number:02d}-seed-{seed}"
        result, run = RESULTS / f"{name}.json", runs / name
        if row in GONE or result.exists() or run.exists():
            continue
        run.mkdir(parents=True)  # the row is taken
        data = {"dataset.shards": shards, "dataset.features": features}
        values = (
            data | BEFORE | LENGTH | {"training.save_every": 1800, "training.seed": seed, "run": run / "run"} | changes
        )
        overrides = [f"{key}={json.dumps(value, default=str).strip(chr(34))}" for key, value in values.items()]
        result.write_text(json.dumps(measure([*SMALL, *overrides], run / "run", witness), indent=1) + "\n")


def measure(overrides: list[str], run: Path, witness: str | None) -> dict[str, Any]:
    """Train, evaluate; the measures of `MEASURES` with their intervals."""
    from featgan.config.loading import load_config
    from featgan.evaluation.evaluate import evaluate_run
    from featgan.training.train import train

    train(load_config("modern", overrides))
    found = evaluate_run(run, suite="standard", witness=witness)
    return {name: found["measures"].get(name) for name in MEASURES}


def print_table() -> None:
    """A row for each part: the mean of the seeds, ± half of how far they lie apart; last, what images alone make."""
    every = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*-seed-*.json"))]
    print("| changed | seeds | " + " | ".join(MEASURES.values()) + " |")
    print("|---" * (2 + len(MEASURES)) + "|")
    for number, row in enumerate(ROWS):
        found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{number:02d}-seed-*.json"))]
        cells = [spread([each[name]["value"] for each in found if each[name]]) for name in MEASURES]
        print(f"| {row} | {len(found)} | " + " | ".join(cells) + " |")
    halves = [[(each[name]["high"] - each[name]["low"]) / 2 for each in every if each[name]] for name in MEASURES]
    cells = [f"±{statistics.mean(half):.3f}".replace("±0.", "±.") for half in halves]
    print("| half of a 95 % interval over images, mean of all rows | | " + " | ".join(cells) + " |")


def spread(values: list[float]) -> str:
    """Mean, and half the distance from least to most where there are several."""
    if not values:
        return ""
    apart = f" ±{(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{apart}".replace("±0.", "±.").removeprefix("0")


if __name__ == "__main__":
    main()
