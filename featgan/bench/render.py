"""`featgan bench render`: a report of every component's film, against its forward passes alone."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from featgan.bench.forward_passes import FRESH_BOX, Passes, make_run, make_shards, replaced, timing
from featgan.bench.results import Bench, Goal, Row, Table
from featgan.bench.timing import Costs, in_turn
from featgan.report import render as rendering
from featgan.report.edits.sweeps import FILM_LEVELS

PARTS = {
    "open_run": "open the model, the shards, the box",
    "choose_sources": "decode the sources",
    "render_sweep": "edit, and show the box",
    "build_report": "reckon what the page says",
    "write_renders": "draw grids and animations into renders/",
    "write_page": "encode films, write the page",
}
"""What a rendering consists of, by the functions that it calls."""

MOST_TURNS = 3


def run(image_size: int, num_images: int, num_components: int, dim: int, repeats: int) -> Bench:
    """Render a generator that has just begun to train; what the pictures show costs nothing."""
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        shards = make_shards(Path(folder), max(num_images, 100), image_size)
        row, table = measure_report(make_run(Path(folder), shards, FRESH_BOX, dim), num_images, num_components, repeats)
    settings = {"image_size": image_size, "num_images": num_images, "num_components": num_components, "dim": dim}
    return Bench("render", [row], settings, [table])


def measure_report(run: Path, num_images: int, num_components: int, repeats: int) -> tuple[Row, Table]:
    """A first report counts its passes; in the others each part is timed."""
    report = partial(
        rendering.render_run, run, directions=("quantiles",), num_images=num_images, num_components=num_components
    )
    passes, seconds = Passes(), dict[str, float]()
    with passes.counted():
        report()
    sides: dict[str, Callable[[], object]] = {"fast": report, "ceiling": passes.alone(run, FRESH_BOX)}
    places = {(rendering, name): timing(getattr(rendering, name), seconds, name) for name in PARTS}
    turns = min(repeats, MOST_TURNS)
    with replaced(places):
        found = in_turn(sides, turns, warmups=0)
    parts = part_rows(seconds, turns, found)
    row = Row(
        f"render: {num_images} images x {num_components} components x {len(FILM_LEVELS)} frames",
        found["fast"],
        ceiling=found["ceiling"],
        goals=(Goal("multiple", 1.3),),
        ceiling_name=str(passes),
        rest=", ".join(f"{name} {share}" for name, _, share in parts[:-2]),
    )
    return row, Table("Where the time of a report goes", ("part", "seconds", "share"), parts)


def part_rows(seconds: dict[str, float], turns: int, found: dict[str, Costs]) -> tuple[tuple[str, ...], ...]:
    """Each part's mean over the turns, and its share of the whole."""
    whole = sum(found["fast"].values)
    parts = {PARTS[name]: spent for name, spent in seconds.items()}
    parts |= {"everything else": whole - sum(parts.values()), "together": whole}
    rows = [(name, f"{spent / turns:.2f}", f"{100 * spent / whole:.0f} %") for name, spent in parts.items()]
    passes = sum(found["ceiling"].values)
    return (*rows, ("passes alone", f"{passes / turns:.2f}", f"{100 * passes / whole:.0f} %"))
