"""Family `inputs`: one damaged file or argument per command."""

import os
import random
from pathlib import Path

from tests.chaos.fixture import reseal_file
from tests.chaos.outcomes import LOST, OK, Outcome, classify_result
from tests.chaos.scenarios import Family, Workplace
from tests.chaos.special_files import replace_by_special_file
from tests.chaos.targets import (
    DRY_RUN,
    EVALUATE,
    LAYERS,
    PACK,
    RENDER,
    RESUME,
    RUN_FILES,
    SUBMIT,
    TARGETS,
    Target,
)
from tests.chaos.values import NUMBERS, choose_value, shorten

OLD_TIME = 1.6e9
"""Modification time of damaged lock files, in seconds since 1970."""
SPECIAL_SHARE, RESEAL_SHARE, ARGUMENT_SHARE = 0.08, 0.75, 0.12

SPECS = (
    "classifier",
    "network.pt",
    "network.onnx",
    "torchvision:shufflenet_v2_x0_5:weights.pth",
    "timm:resnet18",
    "torchvision:",
    "os:abort",
    "tests.blackbox.small_network:SmallNetwork",
    "weights.pth",
    "missing",
    "",
    ":",
    "?",
    "torchvision:nothing:x",
)
SPEC_OPTIONS = ("image_size", "mean", "std", "range", "layout", "channels", "task", "classes", "output", "device", "x")
CONFIG_KEYS = (
    "training.steps",
    "training.batch_size",
    "training.n_critic",
    "training.num_workers",
    "training.seed",
    "training.precision",
    "training.checkpoint_every",
    "training.max_checkpoints",
    "training.ema_half_life_images",
    "generator.dim",
    "generator.num_blocks",
    "discriminator.dim",
    "discriminator.max_dim",
    "discriminator.num_layers",
    "discriminator.projection",
    "optimizer.generator_lr",
    "optimizer.beta1",
    "losses.gp_weight",
    "losses.r1_interval",
    "dataset.shards",
    "dataset.feature_cache",
    "dataset.condition.kind",
    "dataset.condition.encoding",
    "dataset.condition.attributes",
    "distributed.gradient_accumulation_steps",
    "evaluation.every",
    "evaluation.selection_metric",
    "evaluation.suite",
    "evaluation.classifiers",
    "evaluation.max_pending",
    "run_dir",
    "second_dataset",
    "second_dataset.shards",
    "dataset",
    "training",
    "x",
    "training.x",
    "",
)
OPTIONS = (
    (
        EVALUATE,
        (
            "--step",
            "--suite",
            "--max-pairs",
            "--num-components",
            "--classifier",
            "--factor-probe",
            "--inception",
            "--lpips",
        ),
    ),
    (RENDER, ("--step", "--num-images", "--num-components", "--directions", "--images", "--component-name", "--video")),
    (
        PACK.format("csv"),
        (
            "--image-size",
            "--crop",
            "--margin",
            "--validation-fraction",
            "--quality",
            "--images-per-shard",
            "--workers",
            "--max-images",
            "--layout-option",
            "--out",
        ),
    ),
    (
        SUBMIT,
        (
            "--time",
            "--mem",
            "--nodes",
            "--gpus-per-node",
            "--partition",
            "--parameters",
            "--setup",
            "--python",
            "--signal-delay",
            "--cluster",
            "--after-job",
            "--dependency",
            "--exclude",
            "--init-from",
        ),
    ),
    (
        "featgan blackbox fit --shards shards --out new --width 0.125 --epochs 1",
        ("--network", "--width", "--seed", "--weights", "--task", "--out"),
    ),
    ("featgan synthesize new --num-images 4 --image-size 16", ("--image-size", "--seed")),
)
SLOW_OPTIONS = {"--workers", "--epochs", "--max-images", "--num-images"}
MAX_ARGUMENT = 4096


def run_input(workplace: Workplace, index: int) -> Outcome:
    """Damage one file or argument, run a command that reads it, and classify the result."""
    rng = workplace.stream("inputs", index)
    if rng.random() < ARGUMENT_SHARE:
        return run_argument(workplace, index, rng)
    target = rng.choices(TARGETS, [target.weight for target in TARGETS])[0]
    command = rng.choice(target.commands)
    baseline = workplace.measure_command(command, target.parts)
    folder = workplace.overlay.create_copy(target.parts)
    path = choose_file(folder, target, rng)
    change = f"{path.relative_to(folder)}: {damage_file(path, target, rng)}"
    before = digest_originals(folder)
    result = workplace.run(command.split())
    outcome, detail = classify_result(result, baseline.peak_bytes)
    lost = find_lost_results(folder, before, path) if result.exit_code else ""
    if lost and outcome != OK:
        outcome, detail = LOST, f"{lost}; {detail}"
    return Outcome(
        "inputs", index, target.name, command, change, outcome, detail, result.seconds, result.peak_bytes / 1e6
    )


def choose_file(folder: Path, target: Target, rng: random.Random) -> Path:
    """Choose the file to damage."""
    return rng.choice(sorted(path for pattern in target.patterns for path in folder.glob(pattern)))


def damage_file(path: Path, target: Target, rng: random.Random) -> str:
    """Damage a file and, usually, correct its checksum; return a description."""
    if rng.random() < SPECIAL_SHARE:
        return replace_by_special_file(path, rng)
    content, change = target.damage(path.read_bytes(), rng)
    path.write_bytes(content)
    if path.suffix in (".lock", ".claim"):  # a new file without an owner may still be in creation, so commands wait
        os.utime(path, (OLD_TIME, OLD_TIME))
    if rng.random() < RESEAL_SHARE:
        reseal_file(path)
        change += ", with matching checksums"
    return change


def digest_originals(folder: Path) -> dict[str, bytes]:
    """Return the content of all results of earlier commands."""
    names = ("shards", "runs", "classifier")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in names
        for path in (folder / name).rglob("*")
        if path.is_file() and not path.is_symlink() and is_result(path)
    }


def is_result(path: Path) -> bool:
    """Return whether a file must survive a command that fails."""
    if path.stat().st_size > 100_000_000:
        return False
    return (
        path.suffix in (".tar", ".npz", ".npy", ".safetensors", ".html")
        or path.name
        in (
            "model.json",
            "state.json",
            "manifest.json",
            "classifier.json",
            "config.yaml",
            "names.yaml",
        )
        or (path.suffix == ".json" and path.parent.name == "evaluations")
    )


def find_lost_results(folder: Path, before: dict[str, bytes], damaged: Path) -> str:
    """Return which results a failed command has removed or changed, apart from the damaged file; or nothing."""
    for name, content in before.items():
        path = folder / name
        if path == damaged or path.name == "config.yaml":  # a resumed training writes the new settings
            continue
        if not path.is_file():
            return f"{name} was removed"
        if path.read_bytes() != content:
            return f"{name} was changed"
    return ""


def run_argument(workplace: Workplace, index: int, rng: random.Random) -> Outcome:
    """Run a command with an unexpected argument: a SPEC, an override, or an option."""
    kind = rng.choice(("SPEC", "override", "override", "option", "option"))
    if kind == "SPEC":
        argv, change = make_spec_command(rng)
        parts: tuple[str, ...] = (*RUN_FILES, "network.pt", "network.onnx", "weights.pth")
    elif kind == "override":
        argv, change = make_override_command(rng)
        parts = RUN_FILES
    else:
        argv, change = make_option_command(rng)
        parts = (*RUN_FILES, "csv", "cluster.yaml", "images")
    baseline = workplace.measure_command(EVALUATE, RUN_FILES)
    workplace.overlay.create_copy(parts)
    result = workplace.run(argv)
    outcome, detail = classify_result(result, baseline.peak_bytes)
    return Outcome(
        "inputs",
        index,
        f"{kind}s of the command line",
        " ".join(argv[:4]),
        change,
        outcome,
        detail,
        result.seconds,
        result.peak_bytes / 1e6,
    )


def choose_argument(rng: random.Random) -> str:
    """Return a text that can be passed as an argument: without zero bytes; rarely, with bytes that are not UTF-8."""
    value = rng.choice(NUMBERS) if rng.random() < 0.4 else choose_value(rng)
    text = str(value).replace("\0", "")[:MAX_ARGUMENT].encode(errors="replace").decode()
    return os.fsdecode(b"\xff\xfe") + text if rng.random() < 0.03 else text


def make_spec_command(rng: random.Random) -> tuple[list[str], str]:
    """Return a command with an unusual SPEC."""
    options = [f"{rng.choice(SPEC_OPTIONS)}={choose_argument(rng)}" for _ in range(rng.choice((0, 1, 1, 2)))]
    spec = rng.choice(SPECS) + ("?" + "&".join(options) if options else "")
    if rng.random() < 0.1:
        spec = choose_argument(rng)
    spec = spec.replace("os:abort", "os:getpid")  # a callable on the command line is run, as the user requests
    words = LAYERS.format("SPEC").split()
    return [spec if word == "SPEC" else word for word in words], f"SPEC {shorten(spec)}"


def make_override_command(rng: random.Random) -> tuple[list[str], str]:
    """Return a dry run, or a resume, with an unusual override."""
    overrides = [f"{rng.choice(CONFIG_KEYS)}={choose_argument(rng)}" for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.1:
        overrides.append(choose_argument(rng))
    command = DRY_RUN if rng.random() < 0.8 else f"{RESUME} --dry-run"
    return [*command.split(), *overrides], f"overrides {shorten(overrides, 200)}"


def make_option_command(rng: random.Random) -> tuple[list[str], str]:
    """Return a command with an unusual value of one option."""
    command, options = rng.choice(OPTIONS)
    option, value = rng.choice(options), choose_argument(rng)
    if option in SLOW_OPTIONS and value.isdigit():
        value = "3"
    return [*command.split(), option, value], f"{option} {shorten(value)}"


INPUTS = Family("inputs", run_input, 0.5)
