"""Synthetic faces whose factors define expression, valence and arousal, written in AffectNet's 8-class layout."""

import csv
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from featgan.data.readers.affectnet_annotations import SET_FOLDERS
from featgan.data.synthetic.drawing import draw_face, face_landmarks
from featgan.errors import UserError
from featgan.system.files import lock_folder, user_friendly_write_errors
from featgan.system.json_files import read_json_object
from featgan.system.progress import progress_bar
from featgan.system.resources import count_workers
from featgan.system.worker_processes import open_process_pool

logger = logging.getLogger(__name__)

EXPRESSION_FACTORS = ("mouth_curvature", "mouth_opening", "eye_opening", "brow_height", "brow_slant")
NUISANCE_FACTORS = (
    "skin_tone",
    "hair_color",
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

FACTOR_RANGES = {
    "mouth_curvature": (-1.0, 1.0),  # corners down .. corners up
    "mouth_opening": (0.0, 1.0),
    "eye_opening": (0.0, 1.0),
    "brow_height": (-1.0, 1.0),
    "brow_slant": (-1.0, 1.0),  # inner ends up (worried) .. down (angry)
    "skin_tone": (0.0, 1.0),  # light .. dark
    "hair_color": (0.0, 1.0),  # black .. brown .. fair
    "hair_length": (0.0, 1.0),
    "face_width": (-1.0, 1.0),
    "pose_x": (-1.0, 1.0),
    "pose_y": (-1.0, 1.0),
    "head_tilt": (-1.0, 1.0),
    "light_x": (-1.0, 1.0),  # light from the left .. from the right
    "light_y": (-1.0, 1.0),  # light from above .. from below
    "background_hue": (0.0, 1.0),
    "background_brightness": (0.0, 1.0),
    "glasses": (0.0, 1.0),  # 0 or 1
}

EXPRESSION_PROTOTYPES = np.array(
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
"""The five expression factors of each of the 8 expressions, by class code."""

EXPRESSION_FREQUENCIES = (0.17, 0.17, 0.11, 0.11, 0.11, 0.11, 0.11, 0.11)
INTENSITY_RANGE = (0.5, 1.1)
"""Range of the expression intensity: 0 is the neutral face, 1 is the prototype."""

FACTOR_STDS = np.array((0.19, 0.10, 0.11, 0.21, 0.21))
"""Standard deviation of each expression factor around its value at the sampled intensity."""

GLASSES_SHARE = 0.3
"""Share of faces with glasses."""

VALIDATION_EVERY = 10
"""Every n-th image, starting with the first, belongs to the validation split."""

FACES_PER_CHUNK = 64
RECIPE_FILE = "synthetic.json"
RECIPE_VERSION = 2
"""Raised whenever the same recipe would produce different files."""


def sample_factors(generator: np.random.Generator) -> dict[str, float]:
    """Sample the FACTORS of one face, its `expression` (0 .. 7), `valence` and `arousal` (-1 .. 1)."""
    expression = int(generator.choice(len(EXPRESSION_PROTOTYPES), p=EXPRESSION_FREQUENCIES))
    intensity = generator.uniform(*INTENSITY_RANGE)
    neutral = EXPRESSION_PROTOTYPES[0]
    values = (
        neutral
        + intensity * (EXPRESSION_PROTOTYPES[expression] - neutral)
        + FACTOR_STDS * generator.normal(size=len(neutral))
    )
    factors = {
        name: float(np.clip(v, *FACTOR_RANGES[name])) for name, v in zip(EXPRESSION_FACTORS, values, strict=True)
    }
    factors |= {name: float(generator.uniform(*FACTOR_RANGES[name])) for name in NUISANCE_FACTORS}
    factors["glasses"] = float(factors["glasses"] < GLASSES_SHARE)
    valence, arousal = compute_valence_arousal(factors)
    return factors | {"expression": float(expression), "valence": valence, "arousal": arousal}


def compute_valence_arousal(factors: Mapping[str, float]) -> tuple[float, float]:
    """Return valence and arousal in [-1, 1], which this data set defines as follows:

    valence = 0.8 mouth_curvature - 0.3 |brow_slant| + 0.1 brow_height
    arousal = 0.5 mouth_opening + 0.8 (eye_opening - 0.5) + 0.4 max(brow_slant, 0)
    """
    slant = factors["brow_slant"]
    valence = 0.8 * factors["mouth_curvature"] - 0.3 * abs(slant) + 0.1 * factors["brow_height"]
    arousal = 0.5 * factors["mouth_opening"] + 0.8 * (factors["eye_opening"] - 0.5) + 0.4 * max(slant, 0.0)
    return float(np.clip(valence, -1, 1)), float(np.clip(arousal, -1, 1))


def choose_image_split(index: int) -> str:
    """Return the split of an image: every tenth image, starting with the first, belongs to validation."""
    return "train" if index % VALIDATION_EVERY else "validation"


def write_face(root: Path, seed: int, image_size: int, index: int) -> dict[str, float]:
    """Draw face number `index` and write its image and annotations; it depends only on the seed and the index."""
    factors = sample_factors(np.random.default_rng((seed, index)))
    folder = root / SET_FOLDERS[choose_image_split(index)]
    Image.fromarray(draw_face(factors, image_size)).save(folder / "images" / f"{index}.jpg", quality=95, subsampling=0)
    # AffectNet stores these three scalars as strings.
    labels = {
        "exp": np.array(str(int(factors["expression"]))),
        "val": np.array(f"{factors['valence']:.6f}"),
        "aro": np.array(f"{factors['arousal']:.6f}"),
        "lnd": face_landmarks(factors, image_size).round(2),
    }
    for suffix, values in labels.items():
        np.save(folder / "annotations" / f"{index}_{suffix}.npy", values, allow_pickle=False)
    return factors


def write_chunk(root: Path, seed: int, image_size: int, indices: Iterable[int]) -> list[dict[str, float]]:
    """Write the faces with these indices and return their factors."""
    return [write_face(root, seed, image_size, index) for index in indices]


def write_faces(root: Path, count: int, seed: int, image_size: int, workers: int) -> Iterator[list[dict[str, float]]]:
    """Write all faces in chunks, in this process or in several, and yield the factors of each chunk in order."""
    job = partial(write_chunk, root, seed, image_size)
    chunks = [range(start, min(start + FACES_PER_CHUNK, count)) for start in range(0, count, FACES_PER_CHUNK)]
    if workers <= 1 or len(chunks) == 1:
        yield from map(job, chunks)
        return
    with open_process_pool(min(workers, len(chunks))) as pool:
        try:
            yield from pool.map(job, chunks)
        except BrokenProcessPool:
            raise UserError("a worker process was killed; free some memory and generate the faces again") from None


def write_factors(path: Path, rows: Iterable[Mapping[str, float]]) -> None:
    """Write factors.csv with the columns id, split, expression, valence, arousal and all FACTORS."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "split", "expression", "valence", "arousal", *FACTORS))
        for index, row in enumerate(rows):
            numbers = (f"{row[name]:.6f}" for name in ("valence", "arousal", *FACTORS))
            writer.writerow((index, choose_image_split(index), int(row["expression"]), *numbers))


def is_finished(out: Path, recipe: Mapping[str, int]) -> bool:
    """Return whether `out` contains exactly this data set. Raises UserError if it contains anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        existing_recipe = read_json_object(out / RECIPE_FILE)
    except (OSError, UserError):
        raise UserError(f"{out}: is in use and contains no synthetic faces; choose another folder") from None
    for name, value in recipe.items():
        if existing_recipe.get(name) != value:
            raise UserError(
                f"{out}: contains faces generated with {name.replace('_', ' ')} {existing_recipe.get(name)}, "
                f"not {value}; choose another folder or remove it"
            )
    return True


def synthesize_faces(out: Path, count: int, seed: int, image_size: int = 112, workers: int | None = None) -> None:
    """Write `count` synthetic faces of `image_size` pixels to `out` in the layout of AffectNet's 8-class release.

    The same arguments produce the same files for any number of workers (default: one per core). The folder `out` is
    created only when it is complete; if it already exists with the same arguments, nothing is written.

    Raises UserError if an argument is out of range, the folder is in use, or the disk is full.
    """
    out = Path(out).absolute()
    for option, value, min_value, max_value in (
        ("--num-images", count, 2, 10**7),
        ("--seed", seed, 0, 2**63),
        ("--image-size", image_size, 16, 2048),
    ):
        if not min_value <= value <= max_value:
            raise UserError(f"{option} {value}: must be between {min_value} and {max_value}")
    recipe = {"format": RECIPE_VERSION, "count": count, "seed": seed, "image_size": image_size}
    if is_finished(out, recipe):
        logger.info(f"{out}: the {count} synthetic faces already exist")
        return
    remedy = "free some space or choose another folder; no files were left behind"
    with user_friendly_write_errors(out, remedy), partial_folder(out) as folder:
        write_dataset(folder, recipe, workers or count_workers())
        folder.replace(out)


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """Yield an empty, locked folder next to `out`; files left by a killed process are removed."""
    folder = out.with_name(f".{out.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, out)
    try:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def write_dataset(folder: Path, recipe: Mapping[str, int], workers: int) -> None:
    """Write the complete data set to one folder, with the true factors and the recipe last."""
    for set_folder in SET_FOLDERS.values():
        (folder / set_folder / "images").mkdir(parents=True)
        (folder / set_folder / "annotations").mkdir()
    count = recipe["count"]
    rows: list[dict[str, float]] = []
    with progress_bar("generating faces", count, "faces") as bar:
        for chunk in write_faces(folder, count, recipe["seed"], recipe["image_size"], workers):
            rows += chunk
            bar.advance(len(chunk))
    write_factors(folder / "factors.csv", rows)
    (folder / RECIPE_FILE).write_text(json.dumps(recipe) + "\n")
