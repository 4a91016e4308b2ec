"""Drawing of a face as a pure function of its factors.

The geometry is in head units; shapes are painted at a higher resolution and averaged down.
"""

import colorsys
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
Color = tuple[int, int, int]

MAX_TILT = 0.28
"""Roll of the head in radians at head_tilt = 1."""
MAX_SHIFT = 0.13
"""Shift of the head, in half image widths, at pose = 1."""
ZOOM = 1.07
"""Half image widths per head unit."""

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


def interpolate_palette(colors: Sequence[Color], position: float) -> Color:
    """Return the color at `position` in [0, 1] along evenly spaced colors."""
    palette_position = float(np.clip(position, 0, 1)) * (len(colors) - 1)
    left = min(int(palette_position), len(colors) - 2)
    return blend_colors(colors[left], colors[left + 1], palette_position - left)


def blend_colors(first: Color, second: Color, share: float) -> Color:
    """Blend two colors; `share` in [0, 1] is the weight of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


@lru_cache(maxsize=64)
def cached_linspace(start: float, stop: float, count: int) -> NDArray[np.float64]:
    """Return evenly spaced numbers, cached because every face uses the same ones."""
    numbers = np.linspace(start, stop, count)
    numbers.setflags(write=False)
    return numbers


@lru_cache(maxsize=8)
def unit_circle(count: int) -> Points:
    """Return points on the unit circle [count, 2]."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    points = stack_points(np.cos(angle), np.sin(angle))
    points.setflags(write=False)
    return points


def stack_points(x: NDArray[np.float64], y: NDArray[np.float64]) -> Points:
    """Combine coordinates [n] and [n] into points [n, 2]."""
    points = np.empty((len(x), 2))
    points[:, 0], points[:, 1] = x, y
    return points


def ellipse_points(x: float, y: float, radius_x: float, radius_y: float, count: int = 32) -> Points:
    """Return points [count, 2] on an axis-aligned ellipse with center (x, y)."""
    return unit_circle(count) * (radius_x, radius_y) + (x, y)


def stroke_outline(line: Points, width: float, taper: float = 0.0) -> Points:
    """Return the outline [2 n, 2] of a stroke along `line` [n, 2]; `taper` in [0, 1] makes its end thinner."""
    tangent = np.empty_like(line)
    tangent[1:-1] = line[2:] - line[:-2]
    tangent[0], tangent[-1] = line[1] - line[0], line[-1] - line[-2]
    half = 0.5 * width * (1 - taper * cached_linspace(0, 1, len(line)) ** 2)
    half /= np.hypot(tangent[:, 0], tangent[:, 1]).clip(1e-9)
    offset = stack_points(-tangent[:, 1] * half, tangent[:, 0] * half)
    return np.concatenate([line + offset, (line - offset)[::-1]])


class Canvas:
    """An oversampled image; shapes are given in head units (x right, y down) and drawn in the head's pose."""

    def __init__(self, factors: Mapping[str, float], image_size: int, background: Color) -> None:
        self.oversampling = 4 if image_size <= 160 else 2
        self.size = image_size * self.oversampling
        self.factors = factors
        self.image = Image.new("RGB", (self.size, self.size), background)
        self.draw = ImageDraw.Draw(self.image)

    def fill_polygon(self, outline: Points, color: Color) -> None:
        """Fill the polygon `outline` [n, 2]."""
        self.draw.polygon(apply_pose(outline, self.factors, self.size).ravel().tolist(), fill=color)

    def draw_stroke(self, line: Points, width: float, color: Color, taper: float = 0.0) -> None:
        """Draw a line [n, 2] with round ends."""
        self.fill_polygon(stroke_outline(line, width, taper), color)
        for end, end_width in ((0, width), (-1, width * (1 - taper))):
            x, y = apply_pose(line[end], self.factors, self.size).tolist()
            self.draw.circle((x, y), end_width * ZOOM * self.size / 4, fill=color)

    def to_pixels(self) -> NDArray[np.uint8]:
        """Return the image averaged down to its final size, uint8 [H, W, 3]."""
        return np.asarray(self.image.reduce(self.oversampling))


def apply_pose(points: Points, factors: Mapping[str, float], size: int) -> Points:
    """Map points [..., 2] from head units to pixels of an image of `size`: roll about the head's center, then shift."""
    angle = MAX_TILT * factors["head_tilt"]
    scale = ZOOM * size / 2
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    x = (1 + MAX_SHIFT * factors["pose_x"]) * size / 2
    y = (1 + MAX_SHIFT * factors["pose_y"]) * size / 2
    posed: Points = points @ np.array(((cosine, sine), (-sine, cosine))) + (x, y)
    return posed


def head_half_width(factors: Mapping[str, float]) -> float:
    """Return half the width of the head in head units."""
    return 0.535 + 0.075 * factors["face_width"]


def head_outline(factors: Mapping[str, float], start: float = 0.0, stop: float = 2 * np.pi, count: int = 64) -> Points:
    """Return the outline of the head between two angles (0 is its right side, pi / 2 the chin).

    The outline is an ellipse with a narrower jaw.
    """
    angle = cached_linspace(start, stop, count)
    jaw = 1 - 0.16 * np.sin(angle).clip(0) ** 2
    x = head_half_width(factors) * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.86 * jaw
    return stack_points(x, HEAD_Y + HEAD_HALF_HEIGHT * np.sin(angle))


def eyelid_curves(factors: Mapping[str, float], side: int, count: int = 15) -> tuple[Points, Points]:
    """Return the upper and lower lid of one eye (side -1 is left, 1 is right), from the left to the right corner."""
    opening = 0.05 + factors["eye_opening"]
    position = cached_linspace(-1, 1, count)
    x = side * EYE_X + EYE_HALF_WIDTH * position
    bow = np.sqrt((1 - position**2).clip(0))
    return stack_points(x, EYE_Y - 0.165 * opening * bow), stack_points(x, EYE_Y + 0.095 * opening * bow)


def brow_curve(factors: Mapping[str, float], side: int, count: int = 9) -> Points:
    """Return one brow from its inner to its outer end; a positive slant lowers the inner end."""
    position = cached_linspace(0, 1, count)
    x = side * (0.105 + 0.31 * position)
    y = -0.285 - 0.09 * factors["brow_height"] + 0.165 * factors["brow_slant"] * (0.5 - position)
    return stack_points(x, y - 0.035 * np.sin(np.pi * position**0.8))


def mouth_curves(factors: Mapping[str, float], count: int = 17) -> tuple[Points, Points]:
    """Return the upper and lower edge of the mouth opening, from the left to the right corner.

    The edges coincide if the mouth is closed.
    """
    curvature, opening = factors["mouth_curvature"], factors["mouth_opening"]
    position = cached_linspace(-1, 1, count)
    half_width = 0.265 + 0.05 * curvature - 0.11 * opening * (1 - max(curvature, 0))
    middle = MOUTH_Y - 0.15 * curvature * (position**2 - 0.5)
    gap = opening * (1 - position**2).clip(0) ** 0.6
    x = half_width * position
    return stack_points(x, middle - 0.09 * gap), stack_points(x, middle + 0.20 * gap)


def face_landmarks(factors: Mapping[str, float], image_size: int) -> NDArray[np.float64]:
    """Return the standard 68 landmarks as 136 numbers x, y, x, y, ... in pixels."""
    lids = [eyelid_curves(factors, side, 5) for side in (-1, 1)]
    eyes = [np.concatenate([top[[0, 1, 3, 4]], bottom[[3, 1]]]) for top, bottom in lids]
    upper, lower = mouth_curves(factors, 13)
    nose = np.array([(0.0, y) for y in NOSE_BRIDGE_Y] + [(x, 0.21 - abs(x) / 5) for x in NOSE_BASE_X])
    lip_offset = np.array((0.0, 0.025))
    groups = [
        head_outline(factors, np.pi, 0, 17),
        brow_curve(factors, -1, 5)[::-1],
        brow_curve(factors, 1, 5),
        nose,
        *eyes,
        upper[::2] - lip_offset,
        lower[2:11:2][::-1] + lip_offset,
        upper[[1, 4, 6, 8, 11]],
        lower[[8, 6, 4]],
    ]
    return apply_pose(np.concatenate(groups), factors, image_size).ravel()


@lru_cache(maxsize=8)
def pixel_grid(image_size: int) -> NDArray[np.float32]:
    """Return the pixel centers [2, H, W] (x, y) in [-1, 1]."""
    centers = (np.arange(image_size, dtype=np.float32) + 0.5) * (2 / image_size) - 1
    return np.stack(np.meshgrid(centers, centers))


def apply_lighting(pixels: NDArray[np.uint8], factors: Mapping[str, float]) -> NDArray[np.uint8]:
    """Brighten pixels uint8 [H, W, 3] toward the light, with a linear gradient of up to 35 % along each axis."""
    x, y = pixel_grid(len(pixels))
    gain = 1 + 0.35 * (np.float32(factors["light_x"]) * x + np.float32(factors["light_y"]) * y)
    lit: NDArray[np.uint8] = np.clip(pixels * gain[:, :, None] + 0.5, 0, 255).astype(np.uint8)
    return lit


def background_color(factors: Mapping[str, float]) -> Color:
    """Return the background color; the hue goes from red to violet and does not wrap, so that it can be regressed."""
    red, green, blue = colorsys.hsv_to_rgb(
        0.78 * factors["background_hue"], 0.38, 0.45 + 0.5 * factors["background_brightness"]
    )
    return round(255 * red), round(255 * green), round(255 * blue)


def paint_behind(canvas: Canvas, factors: Mapping[str, float], skin: Color, hair: Color) -> None:
    """Paint the back hair, the shoulders, the neck and the ears."""
    half_width = head_half_width(factors)
    bottom = 0.05 + 0.95 * factors["hair_length"]
    angle = cached_linspace(np.pi, 2 * np.pi, 24)
    top = stack_points((half_width + 0.09) * np.cos(angle), HEAD_Y - 0.04 + 0.73 * np.sin(angle))
    width = half_width + 0.09 + 0.05 * factors["hair_length"]
    turn = cached_linspace(0, np.pi / 2, 8)
    right = stack_points(width - 0.14 * (1 - np.cos(turn)), bottom - 0.14 + 0.14 * np.sin(turn))
    canvas.fill_polygon(np.concatenate([top, right, (right * [-1, 1])[::-1]]), blend_colors(hair, INK, 0.25))
    canvas.fill_polygon(ellipse_points(0, 1.28, 0.82, 0.44), SHIRT)
    canvas.fill_polygon(
        np.array([(-0.2, 0.5), (0.2, 0.5), (0.23, 0.86), (0, 0.98), (-0.23, 0.86)]), blend_colors(skin, INK, 0.22)
    )
    for side in (-1, 1):
        canvas.fill_polygon(
            ellipse_points(side * (half_width + 0.005), 0.07, 0.075, 0.12), blend_colors(skin, INK, 0.1)
        )


def paint_head(canvas: Canvas, factors: Mapping[str, float], skin: Color, hair: Color) -> None:
    """Paint the head, the cheeks, the nose and the fringe.

    The hair is parted on one side, so a face differs from its horizontal flip.
    """
    canvas.fill_polygon(head_outline(factors), skin)
    blush = blend_colors(skin, (226, 92, 84), 0.2)
    for side in (-1, 1):
        canvas.fill_polygon(ellipse_points(side * 0.33, 0.2, 0.1, 0.07), blush)
    turn = cached_linspace(0.1, np.pi - 0.1, 9)
    nose = stack_points(0.062 * np.cos(turn), 0.165 + 0.04 * np.sin(turn))
    canvas.draw_stroke(nose, 0.03, blend_colors(skin, INK, 0.35))
    cap = head_outline(factors, np.pi * 0.99, 2.01 * np.pi, 32) * [1.04, 1.0] + [0, -0.035]
    half_width = head_half_width(factors)
    across = cached_linspace(1, -1, 21)
    parting = 0.35
    distance = np.where(across > parting, (across - parting) / (1 - parting), (parting - across) / (1 + parting))
    line = stack_points(half_width * across, -0.50 + 0.46 * distance**2.6)
    canvas.fill_polygon(np.concatenate([cap, line]), hair)
    shine = stack_points(
        half_width * cached_linspace(-0.62, 0.02, 11), -0.47 - 0.11 * np.sin(cached_linspace(0.5, 2.4, 11))
    )
    canvas.draw_stroke(shine, 0.028, blend_colors(hair, (255, 255, 255), 0.22), taper=0.8)


def paint_eyes(canvas: Canvas, factors: Mapping[str, float], skin: Color, brow_color: Color) -> None:
    """Paint the eyes with iris, pupil and highlight, clipped at the lids, and the brows."""
    for side in (-1, 1):
        upper, lower = eyelid_curves(factors, side)
        canvas.fill_polygon(np.concatenate([upper, lower[::-1]]), EYE_WHITE)
        for x, y, radius, color in (
            (0.0, 0.0, 0.098, IRIS),
            (0.0, 0.0, 0.058, INK),
            (0.03, -0.035, 0.026, EYE_WHITE),
        ):
            disc = ellipse_points(side * EYE_X + x, EYE_Y + y, radius, radius, 20)
            top = np.interp(disc[:, 0], upper[:, 0], upper[:, 1])
            disc[:, 1] = disc[:, 1].clip(top, np.interp(disc[:, 0], lower[:, 0], lower[:, 1]))
            canvas.fill_polygon(disc, color)
        canvas.draw_stroke(lower, 0.018, blend_colors(skin, INK, 0.45))
        canvas.draw_stroke(upper, 0.042, INK)
        canvas.draw_stroke(brow_curve(factors, side), 0.078, brow_color, taper=0.55)


def paint_mouth(canvas: Canvas, factors: Mapping[str, float], skin: Color) -> None:
    """Paint the lips, with the teeth and the tongue inside an open mouth."""
    upper, lower = mouth_curves(factors)
    lip = blend_colors(skin, LIP, 0.72)
    center = stack_points(upper[:, 0], 0.5 * (upper[:, 1] + lower[:, 1]))
    height = stack_points(0 * upper[:, 0], lower[:, 1] - upper[:, 1])
    if factors["mouth_opening"] > 0.02:
        canvas.fill_polygon(np.concatenate([upper, lower[::-1]]), MOUTH_INSIDE)
        canvas.fill_polygon(np.concatenate([upper, (upper + 0.38 * height)[::-1]]), TEETH)
        canvas.fill_polygon(np.concatenate([(lower - 0.28 * height)[3:-3], lower[3:-3][::-1]]), TONGUE)
    canvas.draw_stroke(upper, 0.042, lip)
    canvas.draw_stroke(lower, 0.054, lip)
    if factors["mouth_opening"] <= 0.1:
        canvas.draw_stroke(center, 0.02, blend_colors(LIP, INK, 0.7))


def paint_glasses(canvas: Canvas, factors: Mapping[str, float]) -> None:
    """Paint glasses: round frames, a bridge, and the temples to the ears."""
    half_width = head_half_width(factors)
    for side in (-1, 1):
        rim = ellipse_points(side * EYE_X, EYE_Y, 0.215, 0.205, 29)
        canvas.draw_stroke(np.concatenate([rim, rim[:2]]), 0.03, FRAME)
        canvas.draw_stroke(np.array([(side * 0.46, EYE_Y - 0.03), (side * half_width, EYE_Y - 0.05)]), 0.03, FRAME)
    canvas.draw_stroke(np.array([(-0.05, EYE_Y - 0.02), (0.0, EYE_Y - 0.035), (0.05, EYE_Y - 0.02)]), 0.03, FRAME)


def draw_face(factors: Mapping[str, float], image_size: int) -> NDArray[np.uint8]:
    """Draw one face, uint8 [H, W, 3] RGB; the same factors produce the same face at any `image_size` of 16 or more."""
    assert image_size >= 16, f"image_size {image_size}: must be at least 16"
    skin = interpolate_palette(SKIN, factors["skin_tone"])
    hair = interpolate_palette(HAIR, factors["hair_color"])
    canvas = Canvas(factors, image_size, background_color(factors))
    paint_behind(canvas, factors, skin, hair)
    paint_head(canvas, factors, skin, hair)
    paint_eyes(canvas, factors, skin, blend_colors(hair, INK, 0.6))
    if factors["glasses"] > 0.5:
        paint_glasses(canvas, factors)
    paint_mouth(canvas, factors, skin)
    return apply_lighting(canvas.to_pixels(), factors)
