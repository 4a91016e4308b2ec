"""A drawn face as a pure function of its factors: geometry in head units, painted oversampled and averaged down."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
Colour = tuple[int, int, int]

MAX_TILT = 0.28
"""Roll of the head in radians at head_tilt = 1."""
MAX_SHIFT = 0.13
"""Shift of the head, in half image widths, at pose = 1."""
ZOOM = 1.07
"""Half image widths a head unit."""

SKIN = ((255, 226, 204), (240, 192, 150), (203, 142, 98), (148, 92, 60), (98, 60, 42))
HAIR = ((28, 24, 26), (78, 48, 32), (150, 76, 36), (206, 140, 62), (240, 214, 150))
INK = (38, 28, 32)
EYE_WHITE = (252, 250, 246)
IRIS = (62, 92, 110)
SHIRT = (92, 104, 134)
MOUTH_INSIDE = (96, 28, 38)
TEETH = (250, 246, 240)
TONGUE = (214, 96, 104)
LIP = (186, 58, 66)
FRAME = (44, 42, 56)

EYE_X, EYE_Y, EYE_HALF_WIDTH = 0.25, -0.03, 0.165
MOUTH_Y = 0.385
HEAD_Y, HEAD_HALF_HEIGHT = 0.06, 0.66
NOSE_BRIDGE_Y = (-0.02, 0.04, 0.10, 0.16)
NOSE_BASE_X = (-0.07, -0.035, 0.0, 0.035, 0.07)


def ramp(colours: Sequence[Colour], position: float) -> Colour:
    """The colour at `position` in [0, 1] along evenly spaced colours."""
    place = float(np.clip(position, 0, 1)) * (len(colours) - 1)
    left = min(int(place), len(colours) - 2)
    return blend(colours[left], colours[left + 1], place - left)


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """`share` in [0, 1] of the second colour in the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


@lru_cache(maxsize=64)
def even(start: float, stop: float, count: int) -> NDArray[np.float64]:
    """Evenly spaced numbers, kept: every face asks for the same ones."""
    numbers = np.linspace(start, stop, count)
    numbers.setflags(write=False)
    return numbers


@lru_cache(maxsize=8)
def circle(count: int) -> Points:
    """Points of the unit circle [count, 2]."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    points = curve(np.cos(angle), np.sin(angle))
    points.setflags(write=False)
    return points


def curve(x: NDArray[np.float64], y: NDArray[np.float64]) -> Points:
    """Coordinates [n] and [n] => points [n, 2]."""
    points = np.empty((len(x), 2))
    points[:, 0], points[:, 1] = x, y
    return points


def ellipse(x: float, y: float, radius_x: float, radius_y: float, count: int = 32) -> Points:
    return circle(count) * (radius_x, radius_y) + (x, y)


def ribbon(line: Points, width: float, taper: float = 0.0) -> Points:
    """The outline of a stroke along `line` [n, 2]; `taper` in [0, 1] thins its last point."""
    step = np.empty_like(line)
    step[1:-1] = line[2:] - line[:-2]
    step[0], step[-1] = line[1] - line[0], line[-1] - line[-2]
    half = 0.5 * width * (1 - taper * even(0, 1, len(line)) ** 2)
    half /= np.hypot(step[:, 0], step[:, 1]).clip(1e-9)
    offset = curve(-step[:, 1] * half, step[:, 0] * half)
    return np.concatenate([line + offset, (line - offset)[::-1]])


class Canvas:
    """Paints shapes given in head units (x right, y down) in the head's pose, oversampled."""

    def __init__(self, factors: Mapping[str, float], image_size: int, background: Colour) -> None:
        self.oversampling = 4 if image_size <= 160 else 2
        self.size = image_size * self.oversampling
        self.factors = factors
        self.image = Image.new("RGB", (self.size, self.size), background)
        self.draw = ImageDraw.Draw(self.image)

    def fill(self, outline: Points, colour: Colour) -> None:
        self.draw.polygon(pose(outline, self.factors, self.size).ravel().tolist(), fill=colour)

    def stroke(self, line: Points, width: float, colour: Colour, taper: float = 0.0) -> None:
        """A line with round ends."""
        self.fill(ribbon(line, width, taper), colour)
        for end, end_width in ((0, width), (-1, width * (1 - taper))):
            x, y = pose(line[end], self.factors, self.size).tolist()
            self.draw.circle((x, y), end_width * ZOOM * self.size / 4, fill=colour)

    def pixels(self) -> NDArray[np.uint8]:
        return np.asarray(self.image.reduce(self.oversampling))


def pose(points: Points, factors: Mapping[str, float], size: int) -> Points:
    """Head units => pixels of an image of `size`: rolled about the head's centre, then shifted; [..., 2]."""
    angle = MAX_TILT * factors["head_tilt"]
    scale = ZOOM * size / 2
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    x = (1 + MAX_SHIFT * factors["pose_x"]) * size / 2
    y = (1 + MAX_SHIFT * factors["pose_y"]) * size / 2
    placed: Points = points @ np.array(((cosine, sine), (-sine, cosine))) + (x, y)
    return placed


def head_half_width(factors: Mapping[str, float]) -> float:
    return 0.535 + 0.075 * factors["face_width"]


def head_outline(factors: Mapping[str, float], start: float = 0.0, stop: float = 2 * np.pi, count: int = 64) -> Points:
    """The head between two angles (0 = its right side, pi / 2 = the chin): an ellipse whose jaw is narrower."""
    angle = even(start, stop, count)
    jaw = 1 - 0.16 * np.sin(angle).clip(0) ** 2
    x = head_half_width(factors) * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.86 * jaw
    return curve(x, HEAD_Y + HEAD_HALF_HEIGHT * np.sin(angle))


def eyelids(factors: Mapping[str, float], side: int, count: int = 15) -> tuple[Points, Points]:
    """Upper and lower lid of one eye (side -1 left, 1 right), from the left corner to the right."""
    opening = 0.05 + factors["eye_opening"]
    place = even(-1, 1, count)
    x = side * EYE_X + EYE_HALF_WIDTH * place
    bow = np.sqrt((1 - place**2).clip(0))
    return curve(x, EYE_Y - 0.165 * opening * bow), curve(x, EYE_Y + 0.095 * opening * bow)


def brow(factors: Mapping[str, float], side: int, count: int = 9) -> Points:
    """One brow from its inner to its outer end; a positive slant lowers the inner end."""
    place = even(0, 1, count)
    x = side * (0.105 + 0.31 * place)
    y = -0.285 - 0.09 * factors["brow_height"] + 0.165 * factors["brow_slant"] * (0.5 - place)
    return curve(x, y - 0.035 * np.sin(np.pi * place**0.8))


def mouth(factors: Mapping[str, float], count: int = 17) -> tuple[Points, Points]:
    """Upper and lower edge of the mouth's opening, from its left corner to its right; they meet in a closed mouth."""
    curvature, opening = factors["mouth_curvature"], factors["mouth_opening"]
    place = even(-1, 1, count)
    half_width = 0.265 + 0.05 * curvature - 0.11 * opening * (1 - max(curvature, 0))
    middle = MOUTH_Y - 0.15 * curvature * (place**2 - 0.5)
    gap = opening * (1 - place**2).clip(0) ** 0.6
    x = half_width * place
    return curve(x, middle - 0.09 * gap), curve(x, middle + 0.20 * gap)


def landmarks(factors: Mapping[str, float], image_size: int) -> NDArray[np.float64]:
    """The usual 68 landmarks as 136 numbers x, y, x, y, ... in pixels."""
    lids = [eyelids(factors, side, 5) for side in (-1, 1)]
    eyes = [np.concatenate([top[[0, 1, 3, 4]], bottom[[3, 1]]]) for top, bottom in lids]
    upper, lower = mouth(factors, 13)
    nose = np.array([(0.0, y) for y in NOSE_BRIDGE_Y] + [(x, 0.21 - abs(x) / 5) for x in NOSE_BASE_X])
    lip = 0.025
    groups = [
        head_outline(factors, np.pi, 0, 17),
        brow(factors, -1, 5)[::-1],
        brow(factors, 1, 5),
        nose,
        *eyes,
        upper[::2] - [0, lip],
        lower[2:11:2][::-1] + [0, lip],
        upper[[1, 4, 6, 8, 11]],
        lower[[8, 6, 4]],
    ]
    return pose(np.concatenate(groups), factors, image_size).ravel()


@lru_cache(maxsize=8)
def grid(image_size: int) -> NDArray[np.float32]:
    """Pixel centres [2, H, W] (x, y) in [-1, 1]."""
    centres = (np.arange(image_size, dtype=np.float32) + 0.5) * (2 / image_size) - 1
    return np.stack(np.meshgrid(centres, centres))


def light(pixels: NDArray[np.uint8], factors: Mapping[str, float]) -> NDArray[np.uint8]:
    """Brighten towards the light: a linear gradient of up to 35 % along each axis."""
    x, y = grid(len(pixels))
    gain = 1 + 0.35 * (np.float32(factors["light_x"]) * x + np.float32(factors["light_y"]) * y)
    lit: NDArray[np.uint8] = np.clip(pixels * gain[:, :, None] + 0.5, 0, 255).astype(np.uint8)
    return lit


def background_colour(factors: Mapping[str, float]) -> Colour:
    """Hue from red (0) to violet (1): it does not wrap, so that the factor can be regressed."""
    red, green, blue = colorsys.hsv_to_rgb(
        0.78 * factors["background_hue"], 0.38, 0.45 + 0.5 * factors["background_brightness"]
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def paint_behind(canvas: Canvas, factors: Mapping[str, float], skin: Colour, hair: Colour) -> None:
    """Back hair, shoulders, neck and ears."""
    half_width = head_half_width(factors)
    bottom = 0.05 + 0.95 * factors["hair_length"]
    angle = even(np.pi, 2 * np.pi, 24)
    top = curve((half_width + 0.09) * np.cos(angle), HEAD_Y - 0.04 + 0.73 * np.sin(angle))
    width = half_width + 0.09 + 0.05 * factors["hair_length"]
    turn = even(0, np.pi / 2, 8)
    right = curve(width - 0.14 * (1 - np.cos(turn)), bottom - 0.14 + 0.14 * np.sin(turn))
    canvas.fill(np.concatenate([top, right, (right * [-1, 1])[::-1]]), blend(hair, INK, 0.25))
    canvas.fill(ellipse(0, 1.28, 0.82, 0.44), SHIRT)
    canvas.fill(np.array([(-0.2, 0.5), (0.2, 0.5), (0.23, 0.86), (0, 0.98), (-0.23, 0.86)]), blend(skin, INK, 0.22))
    for side in (-1, 1):
        canvas.fill(ellipse(side * (half_width + 0.005), 0.07, 0.075, 0.12), blend(skin, INK, 0.1))


def paint_head(canvas: Canvas, factors: Mapping[str, float], skin: Colour, hair: Colour) -> None:
    """Head, cheeks, nose and the fringe, whose parting on one side makes a mirrored face another face."""
    canvas.fill(head_outline(factors), skin)
    blush = blend(skin, (226, 92, 84), 0.2)
    for side in (-1, 1):
        canvas.fill(ellipse(side * 0.33, 0.2, 0.1, 0.07), blush)
    turn = even(0.1, np.pi - 0.1, 9)
    nose = curve(0.062 * np.cos(turn), 0.165 + 0.04 * np.sin(turn))
    canvas.stroke(nose, 0.03, blend(skin, INK, 0.35))
    cap = head_outline(factors, np.pi * 0.99, 2.01 * np.pi, 32) * [1.04, 1.0] + [0, -0.035]
    half_width = head_half_width(factors)
    across = even(1, -1, 21)
    parting = 0.35
    distance = np.where(across > parting, (across - parting) / (1 - parting), (parting - across) / (1 + parting))
    line = curve(half_width * across, -0.50 + 0.46 * distance**2.6)
    canvas.fill(np.concatenate([cap, line]), hair)
    shine = curve(half_width * even(-0.62, 0.02, 11), -0.47 - 0.11 * np.sin(even(0.5, 2.4, 11)))
    canvas.stroke(shine, 0.028, blend(hair, (255, 255, 255), 0.22), taper=0.8)


def paint_eyes(canvas: Canvas, factors: Mapping[str, float], skin: Colour, brow_colour: Colour) -> None:
    """Eyes with iris, pupil and catch-light, cut off by the lids, and the brows."""
    for side in (-1, 1):
        upper, lower = eyelids(factors, side)
        canvas.fill(np.concatenate([upper, lower[::-1]]), EYE_WHITE)
        for x, y, radius, colour in (
            (0.0, 0.0, 0.098, IRIS),
            (0.0, 0.0, 0.058, INK),
            (0.03, -0.035, 0.026, EYE_WHITE),
        ):
            disc = ellipse(side * EYE_X + x, EYE_Y + y, radius, radius, 20)
            top = np.interp(disc[:, 0], upper[:, 0], upper[:, 1])
            disc[:, 1] = disc[:, 1].clip(top, np.interp(disc[:, 0], lower[:, 0], lower[:, 1]))
            canvas.fill(disc, colour)
        canvas.stroke(lower, 0.018, blend(skin, INK, 0.45))
        canvas.stroke(upper, 0.042, INK)
        canvas.stroke(brow(factors, side), 0.078, brow_colour, taper=0.55)


def paint_mouth(canvas: Canvas, factors: Mapping[str, float], skin: Colour) -> None:
    """Lips around an opening that shows teeth above and the tongue below."""
    upper, lower = mouth(factors)
    lip = blend(skin, LIP, 0.72)
    centre = curve(upper[:, 0], 0.5 * (upper[:, 1] + lower[:, 1]))
    height = curve(0 * upper[:, 0], lower[:, 1] - upper[:, 1])
    if factors["mouth_opening"] > 0.02:
        canvas.fill(np.concatenate([upper, lower[::-1]]), MOUTH_INSIDE)
        canvas.fill(np.concatenate([upper, (upper + 0.38 * height)[::-1]]), TEETH)
        canvas.fill(np.concatenate([(lower - 0.28 * height)[3:-3], lower[3:-3][::-1]]), TONGUE)
    canvas.stroke(upper, 0.042, lip)
    canvas.stroke(lower, 0.054, lip)
    if factors["mouth_opening"] <= 0.1:
        canvas.stroke(centre, 0.02, blend(LIP, INK, 0.7))


def paint_glasses(canvas: Canvas, factors: Mapping[str, float]) -> None:
    """Round frames, a bridge, and the temples to the ears."""
    half_width = head_half_width(factors)
    for side in (-1, 1):
        rim = ellipse(side * EYE_X, EYE_Y, 0.215, 0.205, 29)
        canvas.stroke(np.concatenate([rim, rim[:2]]), 0.03, FRAME)
        canvas.stroke(np.array([(side * 0.46, EYE_Y - 0.03), (side * half_width, EYE_Y - 0.05)]), 0.03, FRAME)
    canvas.stroke(np.array([(-0.05, EYE_Y - 0.02), (0.0, EYE_Y - 0.035), (0.05, EYE_Y - 0.02)]), 0.03, FRAME)


def draw_face(factors: Mapping[str, float], image_size: int) -> NDArray[np.uint8]:
    """Draw one face, uint8 [H, W, 3] RGB; the same factors give the same face at any `image_size` (16 or more)."""
    assert image_size >= 16, f"a face needs 16 pixels, not {image_size}"
    skin = ramp(SKIN, factors["skin_tone"])
    hair = ramp(HAIR, factors["hair_colour"])
    canvas = Canvas(factors, image_size, background_colour(factors))
    paint_behind(canvas, factors, skin, hair)
    paint_head(canvas, factors, skin, hair)
    paint_eyes(canvas, factors, skin, blend(hair, INK, 0.6))
    if factors["glasses"] > 0.5:
        paint_glasses(canvas, factors)
    paint_mouth(canvas, factors, skin)
    return light(canvas.pixels(), factors)
