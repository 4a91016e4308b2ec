"""`featgan bench explore`: one step of a slider of the live page, against its forward passes alone."""

import tempfile
from functools import partial
from pathlib import Path

from featgan.bench.forward_passes import FRESH_BOX, Passes, make_run, make_shards
from featgan.bench.results import Bench, Goal, Row
from featgan.bench.timing import in_turn, scaled
from featgan.explore.edit_request import Ask
from featgan.explore.session import Session, open_session

STEPS = 5
"""Of one turn, each of another value."""


def run(image_size: int, dim: int, repeats: int) -> Bench:
    """Edit with a generator that has just begun to train; what the pictures show costs nothing."""
    with tempfile.TemporaryDirectory(prefix="featgan-bench-") as folder:
        path = make_run(Path(folder), make_shards(Path(folder), 100, image_size), FRESH_BOX, dim)
        row = measure_step(open_session([path]), path, repeats)
    return Bench("explore", [row], {"image_size": image_size, "dim": dim})


def measure_step(session: Session, run: Path, repeats: int) -> Row:
    """From a component's new value to the answer that the page gets: edited picture, what changed, the box's bars."""
    picture = session.pictures.sample(1)[0].id
    asks = [Ask(session="bench", picture=picture, pins={0: float(value)}, difference=True) for value in range(STEPS)]
    session.edit(asks[0])  # the picture's own features are asked once
    passes = Passes()
    with passes.counted():
        move(session, asks)
    found = in_turn({"fast": partial(move, session, asks), "ceiling": passes.alone(run, FRESH_BOX)}, repeats)
    return Row(
        "explore: a step of a slider",
        scaled(found["fast"], 1 / STEPS),
        ceiling=scaled(found["ceiling"], 1 / STEPS),
        goals=(Goal("value", 0.2),),
        ceiling_name=str(passes),
    )


def move(session: Session, asks: list[Ask]) -> None:
    """One after the other, as a slider is dragged."""
    for ask in asks:
        session.edit(ask)
