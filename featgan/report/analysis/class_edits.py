"""What each answer looks like: the edits towards each of the box's answers, beside how its answer moves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from featgan.metrics.bootstrap import Floats, as_floats
from featgan.report.analysis.predictions import Answer
from featgan.report.edits.rendering import Rendering, Seen
from featgan.report.edits.sweeps import Sweep

TINTED = 0.1
"""Change of the whole picture's mean colour, as a share of the range, that a person sees at once."""

LEADING = {
    "class": "The picture moved, in the classifier's numbers, from the mean of its own answer to that of each other",
    "head": "The picture moved straight along the classifier's weights for each answer, far enough for it to say so",
}
"""Groups of sweeps that ask for one answer a frame, the more telling first, and what they do to the picture.

Pictures that share an answer are where the generator has been; along the weights alone it is asked for what no picture
has shown it, and from a picture that the box is sure of it does not get there.
"""


@dataclass(frozen=True)
class Tile:
    """One answer that was asked of one source."""

    text: str  # how much the box gave it before and gives it after
    is_own: bool  # whether it was the answer before; never where the outputs do not exclude each other
    is_reached: bool  # whether it has become the answer, and was not before


@dataclass(frozen=True)
class Tiles:
    """The edits of a sweep towards each answer, and what the box says to them."""

    sweep: Sweep
    what: str
    own: tuple[str, ...]  # the box's answer to each untouched source, in words
    tiles: tuple[tuple[Tile | None, ...], ...]  # [N][T]; None where the box has no such answer
    colours: Floats  # change of the mean colour from source to edit, as shares of the range [N, T, 3]

    def shares(self) -> dict[str, float]:
        """Share of the sources with another answer that get the one asked for, where one output is the answer."""
        if not any(self.own):
            return {}
        columns = zip(self.sweep.headings, zip(*self.tiles, strict=True), strict=True)
        found = {name: [tile.is_reached for tile in column if tile and not tile.is_own] for name, column in columns}
        return {name: sum(reached) / len(reached) for name, reached in found.items() if reached}

    def tinted(self) -> dict[str, str]:
        """The answers towards which most sources with another answer change their whole colour or light, and how."""
        found = {}
        for place, (name, column) in enumerate(zip(self.sweep.headings, zip(*self.tiles, strict=True), strict=True)):
            others = [index for index, tile in enumerate(column) if tile and not tile.is_own]
            moved = self.colours[others, place]
            if others and float(np.median(np.abs(moved).max(1))) >= TINTED:
                found[name] = name_tint(np.median(moved, 0))
        return found

    def reached(self) -> list[int]:
        """How many of the answers each source gets [N]."""
        return [sum(tile.is_reached for tile in row if tile is not None) for row in self.tiles]


def build_tiles(
    renderings: Sequence[Rendering], answer: Answer | None, source_seen: Seen | None, images: Tensor
) -> Tiles | None:
    """Of the most telling sweep that there is; None without one, or without a box that has names for its answers."""
    if answer is None or source_seen is None or not answer.names:
        return None
    for group, what in LEADING.items():
        swept = (each for each in renderings if each.sweep.group == group and each.seen is not None)
        # Classes may be the labels', which the box has no answers for.
        found = next((each for each in swept if set(each.sweep.headings) & set(answer.names)), None)
        if found is not None and found.seen is not None:
            before, after = (answer.shown(each.outputs) for each in (source_seen, found.seen))
            names = found.sweep.headings
            tiles = tuple(
                tuple(tile_of(answer, name, own[0], frame) for name, frame in zip(names, frames, strict=True))
                for own, frames in zip(before, after, strict=True)
            )
            colours = (found.frames.float().mean((3, 4)) - images.float().mean((2, 3))[:, None]) / 255
            own_answers = tuple(name_answer(answer, own[0]) for own in before)
            return Tiles(found.sweep, what, own_answers, tiles, as_floats(colours))
    return None


def tile_of(answer: Answer, name: str, before: Floats, after: Floats) -> Tile | None:
    """What the outputs [O] as shown say to the answer `name`."""
    if name not in answer.names:
        return None
    output = answer.names.index(name)
    is_own, is_now = (answer.kind == "expression" and int(np.argmax(each)) == output for each in (before, after))
    text = " \N{RIGHTWARDS ARROW} ".join(answer.say(float(each[output])) for each in (before, after))
    return Tile(text, is_own, is_now and not is_own)


def name_tint(change: Floats) -> str:
    """Change of the mean red, green and blue in words: `redder and darker`; else `another colour`."""
    light = float(change.mean())
    rises = "".join(name for name, each in zip("rgb", change - light, strict=True) if each >= TINTED / 2)
    colour = {"r": "redder", "g": "greener", "b": "bluer", "rg": "yellower"}.get(rises, "")
    level = "" if abs(light) < TINTED / 2 else "brighter" if light > 0 else "darker"
    return " and ".join(word for word in (colour, level) if word) or "another colour"


def name_answer(answer: Answer, shown: Floats) -> str:
    """`happy`, where one of the outputs [O] is the answer; else nothing."""
    return answer.names[int(np.argmax(shown))] if answer.kind == "expression" else ""
