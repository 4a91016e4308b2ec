"""The embedded data set: drawn faces whose factors decide expression, valence and arousal, in AffectNet's layout."""

import csv
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from featgan.data.synthetic.drawing import draw_face as draw_face
from featgan.data.synthetic.drawing import landmarks
from featgan.errors import UserError
from featgan.system.files import explain_write_errors, lock_folder
from featgan.system.progress import console, meter

EXPRESSION_FACTORS = ("mouth_curvature", "mouth_opening", "eye_opening", "brow_height", "brow_slant")
NUISANCE_FACTORS = (
    "skin_tone",
    "hair_colour",
    "hair_length",
    "face_width",
    "pose_x",
    "pose_y",
    "head_tilt",
    "light_x",
    "light_y",
    "background_hue",
    "background_brightness",
    "glasses",
)
FACTORS = EXPRESSION_FACTORS + NUISANCE_FACTORS

RANGES = {
    "mouth_curvature": (-1.0, 1.0),  # corners down .. up
    "mouth_opening": (0.0, 1.0),
    "eye_opening": (0.0, 1.0),
    "brow_height": (-1.0, 1.0),
    "brow_slant": (-1.0, 1.0),  # inner ends up (worried) .. down (angry)
    "skin_tone": (0.0, 1.0),  # light .. dark
    "hair_colour": (0.0, 1.0),  # black .. brown .. fair
    "hair_length": (0.0, 1.0),
    "face_width": (-1.0, 1.0),
    "pose_x": (-1.0, 1.0),
    "pose_y": (-1.0, 1.0),
    "head_tilt": (-1.0, 1.0),
    "light_x": (-1.0, 1.0),  # the light comes from the left .. right
    "light_y": (-1.0, 1.0),  # from above .. below
    "background_hue": (0.0, 1.0),
    "background_brightness": (0.0, 1.0),
    "glasses": (0.0, 1.0),  # 0 or 1
}

PROTOTYPES = np.array(
    [
        # curvature, mouth opening, eye opening, brow height, brow slant
        (0.00, 0.00, 0.55, 0.00, 0.00),  # neutral
        (0.85, 0.40, 0.50, 0.20, -0.10),  # happy
        (-0.75, 0.00, 0.35, 0.05, -0.80),  # sad
        (0.05, 0.85, 0.95, 0.85, 0.00),  # surprise
        (-0.50, 0.45, 0.95, 0.45, -0.80),  # fear
        (-0.55, 0.35, 0.15, -0.50, 0.25),  # disgust
        (-0.60, 0.05, 0.65, -0.60, 0.90),  # anger
        (0.45, 0.00, 0.15, 0.50, 0.35),  # contempt
    ]
)
"""The five expression factors of the 8 expressions, by code."""
FREQUENCIES = (0.17, 0.17, 0.11, 0.11, 0.11, 0.11, 0.11, 0.11)
INTENSITY = (0.5, 1.1)
"""How far from neutral towards (and past) its prototype a face goes."""
DEVIATIONS = np.array((0.19, 0.10, 0.11, 0.21, 0.21))
"""Standard deviation of each expression factor about its place between neutral and prototype."""
GLASSES_SHARE = 0.3

VALIDATION_EVERY = 10
SET_FOLDERS = {"train": "train_set", "validation": "val_set"}
CHUNK = 64
MARKER = "synthetic.json"
FORMAT = 1
"""Raised whenever the same recipe would give other bytes."""


def sample_factors(generator: np.random.Generator) -> dict[str, float]:
    """Draw one face's FACTORS, `expression` (0..7), `valence` and `arousal` (-1..1)."""
    expression = int(generator.choice(len(PROTOTYPES), p=FREQUENCIES))
    intensity = generator.uniform(*INTENSITY)
    neutral = PROTOTYPES[0]
    values = neutral + intensity * (PROTOTYPES[expression] - neutral) + DEVIATIONS * generator.normal(size=len(neutral))
    factors = {name: float(np.clip(v, *RANGES[name])) for name, v in zip(EXPRESSION_FACTORS, values, strict=True)}
    factors |= {name: float(generator.uniform(*RANGES[name])) for name in NUISANCE_FACTORS}
    factors["glasses"] = float(factors["glasses"] < GLASSES_SHARE)
    valence, arousal = valence_arousal(factors)
    return factors | {"expression": float(expression), "valence": valence, "arousal": arousal}


def valence_arousal(factors: Mapping[str, float]) -> tuple[float, float]:
    """Valence and arousal in [-1, 1], by definition of this data set:

    valence = 0.8 mouth_curvature - 0.3 |brow_slant| + 0.1 brow_height
    arousal = 0.5 mouth_opening + 0.8 (eye_opening - 0.5) + 0.4 max(brow_slant, 0)
    """
    slant = factors["brow_slant"]
    valence = 0.8 * factors["mouth_curvature"] - 0.3 * abs(slant) + 0.1 * factors["brow_height"]
    arousal = 0.5 * factors["mouth_opening"] + 0.8 * (factors["eye_opening"] - 0.5) + 0.4 * max(slant, 0.0)
    return float(np.clip(valence, -1, 1)), float(np.clip(arousal, -1, 1))


def image_split(index: int) -> str:
    """Every tenth image, the first included, is for validation."""
    return "train" if index % VALIDATION_EVERY else "validation"


def write_face(root: Path, seed: int, image_size: int, index: int) -> dict[str, float]:
    """Draw and write face number `index`; its random numbers depend on seed and index only."""
    factors = sample_factors(np.random.default_rng((seed, index)))
    folder = root / SET_FOLDERS[image_split(index)]
    Image.fromarray(draw_face(factors, image_size)).save(folder / "images" / f"{index}.jpg", quality=95, subsampling=0)
    # AffectNet stores these three scalars as strings.
    labels = {
        "exp": np.array(str(int(factors["expression"]))),
        "val": np.array(f"{factors['valence']:.6f}"),
        "aro": np.array(f"{factors['arousal']:.6f}"),
        "lnd": landmarks(factors, image_size).round(2),
    }
    for suffix, values in labels.items():
        np.save(folder / "annotations" / f"{index}_{suffix}.npy", values, allow_pickle=False)
    return factors


def write_chunk(root: Path, seed: int, image_size: int, indices: Iterable[int]) -> list[dict[str, float]]:
    return [write_face(root, seed, image_size, index) for index in indices]


def write_faces(root: Path, count: int, seed: int, image_size: int, workers: int) -> Iterator[list[dict[str, float]]]:
    """Write all faces, chunk by chunk in order, in this process or in several."""
    job = partial(write_chunk, root, seed, image_size)
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    if workers <= 1 or len(chunks) == 1:
        yield from map(job, chunks)
        return
    # Fresh processes: a fork would inherit the threads of whatever runs here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), mp_context=context) as pool:
        try:
            yield from pool.map(job, chunks)
        except BrokenProcessPool:
            raise UserError("a drawing process was killed: free some memory and draw again") from None


def write_factors(path: Path, rows: Iterable[Mapping[str, float]]) -> None:
    """Every true factor: id, split, expression, valence, arousal, then all FACTORS."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "split", "expression", "valence", "arousal", *FACTORS))
        for index, row in enumerate(rows):
            numbers = (f"{row[name]:.6f}" for name in ("valence", "arousal", *FACTORS))
            writer.writerow((index, image_split(index), int(row["expression"]), *numbers))


def is_finished(out: Path, recipe: Mapping[str, int]) -> bool:
    """Whether `out` holds exactly this data set; UserError when it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / MARKER).read_text())
    except (OSError, ValueError):
        raise UserError(f"{out} is in use and holds no drawn faces: choose another folder") from None
    for name, value in recipe.items():
        if not isinstance(found, dict) or found.get(name) != value:
            theirs = found.get(name) if isinstance(found, dict) else None
            raise UserError(
                f"{out} holds faces drawn with {name} {theirs}, not {value}: choose another folder or remove it"
            )
    return True


def synthesize(out: Path, count: int, seed: int, image_size: int = 112, workers: int | None = None) -> None:
    """Write `count` drawn faces of `image_size` pixels into `out` in the layout of AffectNet's 8-label release.

    The same arguments give the same bytes for any number of workers (default: one a core). `out` appears only when
    complete; when it is there already nothing is done. UserError: bad numbers, a folder in use, a full disk.
    """
    out = Path(out).absolute()
    for name, value, most in (("count", count, 10**7), ("seed", seed, 2**63), ("image size", image_size, 2048)):
        least = {"count": 2, "seed": 0, "image size": 16}[name]
        if not least <= value <= most:
            raise UserError(f"{name} {value}: it must be {least} to {most}")
    recipe = {"format": FORMAT, "count": count, "seed": seed, "image_size": image_size}
    if is_finished(out, recipe):
        console.print(f"{out}: the {count} drawn faces are there already")
        return
    remedy = "free some space or choose another folder; nothing was left behind"
    with explain_write_errors(out, remedy), partial_folder(out) as folder:
        write_folder(folder, recipe, workers or len(os.sched_getaffinity(0)))
        os.replace(folder, out)


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, locked against a second process, cleared of what a killed one left there."""
    folder = out.with_name(f".{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, out)
    try:
        for name in os.listdir(folder):
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def write_folder(folder: Path, recipe: Mapping[str, int], workers: int) -> None:
    """The whole data set below one folder, the true factors and the recipe last."""
    for set_folder in SET_FOLDERS.values():
        (folder / set_folder / "images").mkdir(parents=True)
        (folder / set_folder / "annotations").mkdir()
    count = recipe["count"]
    rows: list[dict[str, float]] = []
    with meter("drawing faces", count, "faces") as bar:
        for chunk in write_faces(folder, count, recipe["seed"], recipe["image_size"], workers):
            rows += chunk
            bar.advance(len(chunk))
    write_factors(folder / "factors.csv", rows)
    (folder / MARKER).write_text(json.dumps(recipe) + "\n")
