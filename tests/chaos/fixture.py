"""A small valid example of every file that featgan reads or writes, and copies of it that scenarios may damage."""

import hashlib
import io
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos.outcomes import TRACEBACK_MARKS
from tests.chaos.processes import CommandSettings, run_command

CONFIG = """\
run_dir: new
dataset: {shards: shards, feature_cache: blackbox, condition: {encoding: components, ccc_reduction: mean}}
generator: {dim: 4, num_blocks: 1}
discriminator: {dim: 4, num_layers: 3}
training: {precision: fp32, steps: 2, batch_size: 4, n_critic: 1, log_every: 1, checkpoint_every: 1, sample_every: 2,
  num_workers: 0}
evaluation: {every: 1}
"""
LABEL_CONFIG = """\
run_dir: new
dataset: {shards: shards, condition: {kind: expression}}
generator: {dim: 4, num_blocks: 1}
discriminator: {dim: 4, num_layers: 3}
training: {precision: fp32, steps: 1, batch_size: 4, n_critic: 1, num_workers: 1}
"""
CLUSTER = """\
executor: slurm
partition: short,long
account: lab
time: "1-02:00:00"
nodes: 2
gpus_per_node: 1
cpus_per_task: 4
mem: 32GB
parameters: {exclusive: true}
setup: [module load cuda]
"""
BUILD_COMMANDS = (
    "featgan synthesize affectnet --num-images 48 --image-size 32",
    "featgan pack affectnet affectnet --out shards --image-size 16 --images-per-shard 20 --workers 1",
    "featgan blackbox fit --shards shards --out classifier --epochs 1 --width 0.125",
    "featgan extract --shards shards --blackbox classifier --num-components 3",
    "featgan train config.yaml run_dir=runs/a training.steps=3",
    "featgan evaluate runs/a --suite quick",
    "featgan evaluate runs/a --suite quick --step 2",
    "featgan evaluate runs/a --suite quick --step 1",
    "featgan render runs/a --num-images 1 --num-components 1 --video none --component-name 1=glasses",
)
OWNER = {"token": "0" * 32, "host": "node1", "boot": "", "pid": 1, "started": "1", "job": "", "restart": ""}
VOLATILE_NAMES = ("tensorboard", "training.lock", ".verified.json", "events.out", "partial.json")
"""Parts of paths whose files change with every run."""


def build_fixture(folder: Path) -> None:
    """Build the example in an empty folder. Raises RuntimeError if a command fails."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "label.yaml").write_text(LABEL_CONFIG)
    (folder / "cluster.yaml").write_text(CLUSTER)
    for command in BUILD_COMMANDS:
        result = run_command(command.split(), folder, folder.with_name("output"), CommandSettings())
        if result.exit_code or any(mark in result.stderr for mark in TRACEBACK_MARKS):
            raise RuntimeError(f"{command}: exit code {result.exit_code}\n{result.stdout}{result.stderr}{result.log}")
    write_side_files(folder / "runs" / "a")
    if run_python(write_image_sources, folder) or run_python(write_network_files, folder):
        raise RuntimeError("the fixture cannot be written")


def run_python(function: Any, folder: Path) -> int:
    """Call a function in a fork, since this process must not run any tensor operation; return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function(folder)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def write_side_files(run: Path) -> None:
    """Write the files of jobs, claims and locks, as an earlier process leaves them."""
    job = run / "jobs" / "001-train"
    job.mkdir(parents=True)
    info = {"kind": "train", "id": "4711", "name": "featgan-train-a", "log": "", "cluster": {"executor": "slurm"}}
    (job / "job.json").write_text(json.dumps(info, indent=1) + "\n")
    attempts = [{"time": 1.7e9 + number, "code": 1, "step": number, "restart": str(number)} for number in range(2)]
    (job / "attempts.jsonl").write_text("".join(json.dumps(attempt) + "\n" for attempt in attempts))
    (job / "verdict.txt").write_text("not restarted: failed 3 times at step 2 (exit code 1)\n")
    evaluations = run / "evaluations"
    owner = json.dumps(OWNER).encode().ljust(512)
    (evaluations / "step-00000001-standard.claim").write_bytes(owner)
    failures = {"failures": [{"time": 1.7e9, "reason": "the process ended with exit code 1"}]}
    (evaluations / "step-00000001-standard.failed").write_text(json.dumps(failures, indent=1))
    (run / "training.lock").write_bytes(owner)
    for name in ("step-00000001-standard.claim", "training.lock"):
        path = evaluations / name if (evaluations / name).exists() else run / name
        os.utime(path, (1.6e9, 1.6e9))


def write_image_sources(folder: Path) -> None:
    """Write small data sets in the layouts `folder`, `csv`, `celeba`, `affectnet-csv`, `-lists` and `-plus`."""
    from PIL import Image

    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (24, 20, 3), np.uint8)) for _ in range(12)]
    suffixes = ("png", "jpg", "webp", "bmp", "gif", "tif")
    for number, image in enumerate(images):
        path = folder / "folder" / ("happy" if number < 6 else "sad") / f"image{number}.{suffixes[number % 6]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, exif=exif_bytes() if path.suffix in (".jpg", ".png", ".webp", ".tif") else b"")
    for layout in ("csv", "celeba", "affectnet-csv", "affectnet-lists", "affectnet-plus", "images"):
        images_folder = folder / layout / IMAGE_FOLDERS.get(layout, "images")
        images_folder.mkdir(parents=True)
        for number in range(6):
            images[number].save(images_folder / f"{number}.jpg")
    write_tables(folder)


IMAGE_FOLDERS = {"affectnet-lists": "train", "affectnet-plus": "train", "images": "."}


def exif_bytes() -> bytes:
    """Return EXIF data that rotate an image by 90 degrees."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def write_tables(folder: Path) -> None:
    """Write the label tables of the data sets."""
    rows = [f"images/{number}.jpg,{'happy' if number % 2 else 'sad'},0.5,-0.5,{number % 2}" for number in range(6)]
    (folder / "csv" / "labels.csv").write_text("\n".join(["path,expression,valence,arousal,glasses", *rows]) + "\n")
    celeba = [f"{number}.jpg {1 - number % 2 * 2} -1 1" for number in range(6)]
    (folder / "celeba" / "list_attr_celeba.txt").write_text("\n".join(["6", "Male Smiling Young", *celeba]) + "\n")
    partition = "\n".join(f"{number}.jpg {number % 2}" for number in range(6))
    (folder / "celeba" / "list_eval_partition.txt").write_text(partition + "\n")
    identity = "\n".join(f"{number}.jpg {number // 2}" for number in range(6))
    (folder / "celeba" / "identity_CelebA.txt").write_text(identity + "\n")
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    faces = [f"{number}.jpg,2,2,16,16,{';'.join(['1.5'] * 136)},{number},0.1,-0.2" for number in range(6)]
    (folder / "affectnet-csv" / "training.csv").write_text("\n".join([header, *faces]) + "\n")
    lists = folder / "affectnet-lists"
    (lists / "_affectnet_train_emotiw.txt").write_text("".join(f"{number}.jpg {number}\n" for number in range(6)))
    (lists / "_affectnet_train_va.txt").write_text("".join(f"{number}.jpg 0.{number} -0.5\n" for number in range(6)))
    for number in range(6):
        labels = {"Human-Label": number, "Metadata": {"Valence": 0.1, "Arousal": 0.2}, "Soft-Label": [0.5, 0.5]}
        (folder / "affectnet-plus" / "train" / f"{number}.json").write_text(json.dumps(labels))


def write_network_files(folder: Path) -> None:
    """Write the same small network as TorchScript, ONNX, and weights of torchvision and timm."""
    import torch
    import torchvision

    from tests.blackbox.small_network import SIZE, SmallNetwork, save_onnx

    warnings.simplefilter("ignore")  # torch.jit is deprecated, but users have its files
    torch.manual_seed(0)
    network = SmallNetwork().eval()
    traced = torch.jit.trace(network, torch.zeros(1, 3, SIZE, SIZE))
    traced.save(str(folder / "network.pt"))
    torch.jit.script(network).save(str(folder / "scripted.pt"))
    save_onnx(network, folder / "network.onnx")
    weights = torchvision.models.shufflenet_v2_x0_5(num_classes=8).state_dict()
    torch.save(weights, folder / "weights.pth")


class Overlay:
    """A copy of parts of the fixture in the folder of one job; absolute paths in files are adapted."""

    def __init__(self, fixture: Path, folder: Path) -> None:
        assert len(str(fixture)) == len(str(folder)), "paths in binary files keep their length"
        self.fixture, self.folder = fixture, folder
        self.output = folder.with_name(f"{folder.name}-output")

    def create_copy(self, names: tuple[str, ...]) -> Path:
        """Remove the previous copy, copy the files and folders, and return the folder."""
        remove_tree(self.folder)
        remove_tree(self.output)
        self.folder.mkdir(parents=True)
        for name in names:
            source = self.fixture / name
            if source.is_dir():
                shutil.copytree(source, self.folder / name, symlinks=True)
            elif source.exists():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, self.folder / name)
        self.adapt_paths()
        return self.folder

    def adapt_paths(self) -> None:
        """Replace the path of the fixture by that of the copy, in files that contain it."""
        before, after = os.fsencode(self.fixture), os.fsencode(self.folder)
        for path in walk_files(self.folder):
            if path.suffix in (".json", ".yaml", ".html"):
                content = path.read_bytes()
                if before in content:
                    path.write_bytes(content.replace(before, after))
                    reseal_file(path)


def remove_tree(folder: Path) -> None:
    """Remove a folder, also if it contains folders without permissions."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o700)
        shutil.rmtree(folder)


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder, in sorted order, without following symbolic links."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def reseal_file(path: Path) -> None:
    """Store the size and the hash of a file in the manifest of its folder, so that checks of the content are reached.

    Files that are not listed in a manifest stay as they are.
    """
    manifest_path = path.parent / ("classifier.json" if path.suffix == ".safetensors" else "manifest.json")
    if path.name == "classifier.safetensors":
        update_classifier(path, manifest_path)
        return
    manifest_path = path.parent / "manifest.json"
    if path == manifest_path or not manifest_path.is_file() or not path.is_file():
        return
    try:
        manifest = json.loads(manifest_path.read_bytes())
        entries = list_entries(manifest)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return
    if path.name in entries:
        content = path.read_bytes()
        entries[path.name] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest_path.write_text(json.dumps(manifest, indent=1))


def update_classifier(path: Path, metadata_path: Path) -> None:
    """Store the hash of the weights in classifier.json."""
    try:
        metadata = json.loads(metadata_path.read_bytes())
        metadata["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError, TypeError):
        return
    metadata_path.write_text(json.dumps(metadata))


def list_entries(manifest: Any) -> dict[str, dict[str, Any]]:
    """Return the entries of a manifest with size and hash, by file name."""
    entries: dict[str, dict[str, Any]] = {}
    if isinstance(manifest.get("files"), dict):
        entries |= manifest["files"]
    for name, split in (manifest.get("splits") or {}).items():
        entries |= {shard["name"]: shard for shard in split["shards"]}
        if isinstance(split.get("index"), dict):
            entries[split["index"].get("name", f"{name}.index.npz")] = split["index"]
    return entries


def digest_tree(folder: Path) -> dict[str, str]:
    """Return the hash of the results below a folder by relative path, without files that differ between equal runs.

    Tensors in safetensors files are hashed by name, since their order in the file is not fixed.
    """
    digests = {}
    for path in walk_files(folder):
        name = str(path.relative_to(folder))
        if not any(part in name for part in VOLATILE_NAMES) and not path.name.startswith("."):
            digests[name] = digest_content(path)
    return digests


def digest_content(path: Path) -> str:
    """Return the hash of the content of a result, without times and without the order of its parts."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        tensors = {
            name: hashlib.sha256(content[8 + size :][slice(*entry["data_offsets"])]).hexdigest()
            for name, entry in header.items()
            if name != "__metadata__"
        }
        content = json.dumps(tensors, sort_keys=True).encode()
    elif path.suffix == ".npz":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = b"".join(name.encode() + archive.read(name) for name in sorted(archive.namelist()))
    elif path.suffix == ".json":
        content = json.dumps(remove_times(json.loads(content)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def remove_times(value: Any) -> Any:
    """Remove times, speeds and the hashes of files that contain them from a JSON value."""
    if isinstance(value, dict):
        return {key: remove_times(item) for key, item in value.items() if not is_volatile_key(key)}
    return [remove_times(item) for item in value] if isinstance(value, list) else value


def is_volatile_key(key: str) -> bool:
    """Return whether the value of a key differs between equal runs."""
    return key in ("time", "sha256") or "second" in key or "per_second" in key or "date" in key
