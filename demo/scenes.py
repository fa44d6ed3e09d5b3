"""Procedural street scenes with their true masks, for the demo and the tests.

A scene is a street seen by a pinhole camera: everything is placed in metres, drawn from far to near with
Pillow, and every stroke goes to the picture and to the mask alike. Light differs from scene to scene (clear,
overcast, dusk, night, fog), and so does the traffic, so some scenes are much harder to label than others.
The same generator state gives the same scene.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageDraw

from segpipe import storage
from segpipe.datasets import Dataset, write_dataset, write_sample
from segpipe.degradations import degrade
from segpipe.progress import track

CLASSES = ("sky", "building", "road", "sidewalk", "tree", "car", "person")
SKY, BUILDING, ROAD, SIDEWALK, TREE, CAR, PERSON = range(len(CLASSES))
IGNORE_INDEX = 255
HEIGHT, WIDTH = 96, 128

SUPERSAMPLING = 2
FARTHEST = 160.0
DETAIL_DEPTH = 32.0  # metres; beyond it windows and leaves are smaller than a pixel

Colour = tuple[float, float, float]
Point = tuple[float, float, float]  # x right of the road's middle, y up, z ahead, in metres


@dataclass(frozen=True)
class Light:
    """What the air and the sun do to a scene; colours and grain in grey levels, visibility in metres."""

    zenith: Colour
    horizon: Colour
    tint: Colour
    visibility: float
    grain: float
    lamps: bool

    def through_air(self, colour: Colour, depth: float) -> tuple[int, int, int]:
        """The colour after `depth` metres of haze (Koschmieder's law)."""
        clear = math.exp(-depth / self.visibility)
        red, green, blue = colour
        far_red, far_green, far_blue = self.horizon
        return (
            min(255, int(red * clear + far_red * (1.0 - clear))),
            min(255, int(green * clear + far_green * (1.0 - clear))),
            min(255, int(blue * clear + far_blue * (1.0 - clear))),
        )


LIGHTS = (
    Light((86, 142, 214), (190, 214, 236), (1.05, 1.0, 0.94), 900.0, 3.0, False),  # clear
    Light((160, 168, 178), (204, 207, 210), (0.80, 0.83, 0.88), 350.0, 4.0, False),  # overcast
    Light((72, 80, 134), (236, 158, 108), (0.80, 0.60, 0.54), 420.0, 6.0, True),  # dusk
    Light((8, 10, 24), (38, 36, 50), (0.32, 0.31, 0.40), 260.0, 8.0, True),  # night
    Light((176, 180, 184), (188, 190, 192), (0.80, 0.82, 0.84), 26.0, 4.0, True),  # fog
)
LIGHT_PROBABILITIES = (0.42, 0.24, 0.14, 0.11, 0.09)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera looking along the street; position in metres, the rest in pixels."""

    x: float
    height: float
    focal: float
    width: float
    centre: float
    horizon: float

    def project(self, point: Point) -> tuple[float, float]:
        """World point (metres) to image position (pixels, column and row)."""
        x, y, z = point
        scale = self.focal / z
        return self.centre + scale * (x - self.x), self.horizon - scale * (y - self.height)

    def nearest_visible(self, x: float) -> float:
        """The depth at which something at `x` enters the image from its side, in metres."""
        margin = self.centre if x < self.x else self.width - self.centre
        return self.focal * abs(x - self.x) / margin

    def highest_visible(self, z: float) -> float:
        """The height at the image's top edge at depth `z`, in metres."""
        return self.height + self.horizon * z / self.focal


@dataclass(frozen=True)
class Canvas:
    """The picture and its mask; both get every stroke, at SUPERSAMPLING times the final size."""

    camera: Camera
    light: Light
    picture: ImageDraw.ImageDraw
    shadows: ImageDraw.ImageDraw
    labels: ImageDraw.ImageDraw

    def fill(self, corners: list[Point], colour: Colour, label: int) -> None:
        """Fill a polygon that reflects the scene's light."""
        self.glow(corners, self.lit(colour), label)

    def glow(self, corners: list[Point], colour: Colour, label: int) -> None:
        """Fill a polygon that shines by itself, as a lamp does."""
        outline = [self.camera.project(corner) for corner in corners]
        self.picture.polygon(outline, fill=self.light.through_air(colour, corners[0][2]))
        self.labels.polygon(outline, fill=label)

    def disc(self, centre: Point, radius: float, colour: Colour, label: int) -> None:
        """Fill a ball of `radius` metres that reflects the scene's light."""
        column, row = self.camera.project(centre)
        pixels = radius * self.camera.focal / centre[2]
        box = [column - pixels, row - pixels, column + pixels, row + pixels]
        self.picture.ellipse(box, fill=self.light.through_air(self.lit(colour), centre[2]))
        self.labels.ellipse(box, fill=label)

    def shade(self, corners: list[Point], opacity: float) -> None:
        """Darken the picture below a polygon; a shadow has no class of its own."""
        outline = [self.camera.project(corner) for corner in corners]
        self.shadows.polygon(outline, fill=(0, 0, 0, round(255 * opacity)))

    def lit(self, colour: Colour) -> Colour:
        """The colour of a surface under the scene's light."""
        tint = self.light.tint
        return colour[0] * tint[0], colour[1] * tint[1], colour[2] * tint[2]


@dataclass(frozen=True)
class Street:
    """The ground plan: half the road's width and each sidewalk's width, in metres."""

    road: float
    sidewalk: float

    @property
    def front(self) -> float:
        """Distance of the house fronts from the road's middle."""
        return self.road + self.sidewalk


WALLS: tuple[Colour, ...] = (
    (176, 92, 70),
    (206, 190, 160),
    (160, 158, 156),
    (192, 170, 132),
    (140, 116, 104),
    (214, 208, 200),
)
PAINTS: tuple[Colour, ...] = (
    (190, 32, 36),
    (36, 72, 156),
    (226, 226, 226),
    (46, 48, 54),
    (150, 154, 160),
    (214, 176, 40),
)
AUTUMN: Colour = (176, 122, 44)
CIRCLE = [(math.cos(angle), math.sin(angle)) for angle in np.linspace(0.0, 2 * np.pi, 10, endpoint=False)]

Thing = tuple[float, Callable[[Canvas], None]]  # depth of the nearest point, and how to draw it


def draw_scene(
    rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH
) -> tuple[np.ndarray, np.ndarray]:
    """One street scene: HxWx3 uint8 image and HxW uint8 mask of indices into CLASSES."""
    light = _draw_light(rng)
    street = Street(road=rng.uniform(3.2, 5.4), sidewalk=rng.uniform(2.4, 5.5))
    camera = _draw_camera(street, height * SUPERSAMPLING, width * SUPERSAMPLING, rng)
    picture = _sky(light, camera.horizon / SUPERSAMPLING, height, width, rng)
    labels = Image.new("L", picture.size, SKY)
    canvas = Canvas(
        camera, light, ImageDraw.Draw(picture), ImageDraw.Draw(picture, "RGBA"), ImageDraw.Draw(labels)
    )
    _draw_ground(canvas, street, rng)
    for layer in (_blocks(street, rng), _in_front(street, rng)):
        for _, draw in sorted(layer, key=lambda thing: thing[0], reverse=True):
            draw(canvas)
    mask = np.asarray(labels)[1::SUPERSAMPLING, 1::SUPERSAMPLING]
    return _expose(np.asarray(picture.reduce(SUPERSAMPLING)), light, rng), np.ascontiguousarray(mask)


def _draw_light(rng: np.random.Generator) -> Light:
    light = LIGHTS[rng.choice(len(LIGHTS), p=LIGHT_PROBABILITIES)]
    warmth, brightness = rng.normal(0.0, 0.04), rng.normal(1.0, 0.08)
    red, green, blue = light.tint
    tint = (red * brightness * (1.0 + warmth), green * brightness, blue * brightness * (1.0 - warmth))
    return replace(light, tint=tint, visibility=light.visibility * rng.uniform(0.7, 1.4))


def _draw_camera(street: Street, rows: int, columns: int, rng: np.random.Generator) -> Camera:
    return Camera(
        x=rng.uniform(-0.5, 0.5) * street.road,
        height=rng.uniform(1.3, 2.1),
        focal=columns * rng.uniform(0.75, 1.0),
        width=columns,
        centre=columns * rng.uniform(0.36, 0.64),
        horizon=rows * rng.uniform(0.40, 0.54),
    )


def _sky(light: Light, horizon: float, height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Sky gradient with clouds over the whole canvas; it is smooth, so it is drawn small and enlarged."""
    fade = np.clip(np.arange(height) / horizon, 0.0, 1.0)[:, None, None]
    gradient = np.array(light.zenith) * (1.0 - fade) + np.array(light.horizon) * fade
    clouds = np.clip(_smooth_noise(height, width, 7, rng) - rng.uniform(-0.1, 0.6), 0.0, 0.7)[:, :, None]
    cloud_colour = np.minimum(255.0, np.array(light.horizon) * 1.12)
    sky = (gradient * (1.0 - clouds) + cloud_colour * clouds).astype(np.uint8)
    return Image.fromarray(sky).resize((width * SUPERSAMPLING, height * SUPERSAMPLING))


def _draw_ground(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    asphalt, paving = rng.uniform(62, 104), rng.uniform(128, 182)
    paving_colour = (paving, paving * rng.uniform(0.92, 0.99), paving * rng.uniform(0.82, 0.96))
    for near, far in _depth_bands(0.8, FARTHEST, 14):
        worn, tiles = rng.normal(asphalt, 3.0), rng.uniform(0.93, 1.07)
        tiled = (paving_colour[0] * tiles, paving_colour[1] * tiles, paving_colour[2] * tiles)
        _fill_ground(canvas, -90.0, 90.0, near, far, tiled, SIDEWALK)
        _fill_ground(canvas, -street.road, street.road, near, far, (worn, worn, worn * 1.04), ROAD)
    for side in (-1.0, 1.0):
        _draw_kerb(canvas, side * street.road, paving)
    _draw_lane_marks(canvas, street, rng)
    if rng.random() < 0.25:
        _draw_crossing(canvas, street, rng.uniform(5.0, 14.0))
    if not canvas.light.lamps and rng.random() < 0.5:
        _draw_building_shadow(canvas, street, rng)


def _depth_bands(nearest: float, farthest: float, count: int) -> list[tuple[float, float]]:
    """Bands of about equal height in the image, far to near, so haze grows smoothly with the distance."""
    edges = np.geomspace(nearest, farthest, count + 1).tolist()
    return list(itertools.pairwise(edges))[::-1]


def _fill_ground(
    canvas: Canvas, left: float, right: float, near: float, far: float, colour: Colour, label: int
) -> None:
    corners = [(left, 0.0, near), (right, 0.0, near), (right, 0.0, far), (left, 0.0, far)]
    canvas.fill(corners, colour, label)


def _draw_kerb(canvas: Canvas, x: float, paving: float) -> None:
    bright = min(235.0, paving * 1.25)
    for near, far in _depth_bands(0.8, 60.0, 5):
        edges = sorted((x, x * 1.05))
        _fill_ground(canvas, edges[0], edges[1], near, far, (bright, bright, bright), SIDEWALK)


def _draw_lane_marks(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    paint = (228.0, 226.0, 214.0) if rng.random() < 0.8 else (222.0, 184.0, 62.0)
    start = rng.uniform(1.0, 6.0)
    for near in np.arange(start, 60.0, 6.0).tolist():
        _fill_ground(canvas, -0.09, 0.09, near, near + 2.6, paint, ROAD)
    if rng.random() < 0.5:
        for side in (-1.0, 1.0):
            middle = side * (street.road - 0.4)
            _fill_ground(canvas, middle - 0.06, middle + 0.06, 0.8, 70.0, (205.0, 205.0, 198.0), ROAD)


def _draw_crossing(canvas: Canvas, street: Street, near: float) -> None:
    for left in np.arange(-street.road + 0.3, street.road - 0.6, 1.1).tolist():
        _fill_ground(canvas, left, left + 0.55, near, near + 3.0, (222.0, 222.0, 214.0), ROAD)


def _draw_building_shadow(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    side = rng.choice([-1.0, 1.0])
    outer, reach = side * 90.0, side * rng.uniform(-0.4, 0.9) * street.road
    for near in np.arange(0.8, 70.0, 16.0).tolist():
        edge = reach + side * rng.uniform(-1.0, 1.0)
        far = near + rng.uniform(11.0, 16.0)
        canvas.shade([(outer, 0.0, near), (edge, 0.0, near), (edge, 0.0, far), (outer, 0.0, far)], 0.35)


def _blocks(street: Street, rng: np.random.Generator) -> Iterator[Thing]:
    """What lines the street; seen from the road it hides nothing that stands in front of it."""
    yield from _skyline(rng)
    for side in (-1.0, 1.0):
        yield from _lots(street, side, rng)


def _in_front(street: Street, rng: np.random.Generator) -> Iterator[Thing]:
    """What stands on the sidewalks and the road."""
    for side in (-1.0, 1.0):
        yield from _street_trees(street, side, rng)
    yield from _cars(street, rng)
    yield from _people(street, rng)


def _skyline(rng: np.random.Generator) -> Iterator[Thing]:
    x = -120.0
    while x < 120.0:
        width, height = rng.uniform(10.0, 26.0), rng.uniform(6.0, 30.0)
        depth = FARTHEST - rng.uniform(0.0, 20.0)
        if rng.random() < 0.75:
            yield depth, partial(_draw_far_block, x=x, width=width, height=height, depth=depth, rng=rng)
        else:
            yield depth, partial(_draw_hedge, x=x, end=x + width, height=height / 3, depth=depth, rng=rng)
        x += width


def _lots(street: Street, side: float, rng: np.random.Generator) -> Iterator[Thing]:
    """Houses and small parks along one side of the street."""
    near = rng.uniform(1.5, 7.0)
    while near < FARTHEST * 0.75:
        length = rng.uniform(7.0, 18.0)
        front = side * (street.front + rng.uniform(0.0, 1.5))
        if rng.random() < 0.76:
            yield near, partial(_draw_house, front=front, side=side, near=near, length=length, rng=rng)
        else:
            yield near, partial(_draw_park, front=front, side=side, near=near, length=length, rng=rng)
        near += length + (rng.uniform(1.0, 4.0) if rng.random() < 0.3 else 0.0)


def _draw_far_block(
    canvas: Canvas, x: float, width: float, height: float, depth: float, rng: np.random.Generator
) -> None:
    colour = _wall_colour(rng)
    canvas.fill(_upright(x, x + width, 0.0, height, depth), colour, BUILDING)


def _draw_hedge(
    canvas: Canvas, x: float, end: float, height: float, depth: float, rng: np.random.Generator
) -> None:
    canvas.fill(_upright(x, end, 0.0, height * 0.6, depth), _leaf_colour(rng), TREE)
    for middle in np.linspace(x, end, 5).tolist():
        centre = (middle, height * rng.uniform(0.45, 0.75), depth)
        canvas.disc(centre, abs(end - x) / 6, _leaf_colour(rng), TREE)


def _draw_house(
    canvas: Canvas, front: float, side: float, near: float, length: float, rng: np.random.Generator
) -> None:
    """A house: the wall along the street, the wall that faces us, windows, a shop or a socle below."""
    floors = int(rng.integers(2, 8))
    height, far, wall = 3.2 * floors + 0.8, near + length, _wall_colour(rng)
    canvas.fill(_upright(front, front + side * 14.0, 0.0, height, near), _scaled(wall, 0.8), BUILDING)
    canvas.fill(_wall(front, near, far, 0.0, height), wall, BUILDING)
    canvas.fill(_wall(front, near, far, 0.0, rng.uniform(0.4, 2.8)), _wall_colour(rng), BUILDING)
    canvas.fill(_wall(front, near, far, height - 0.5, height), _scaled(wall, 0.6), BUILDING)
    if near < DETAIL_DEPTH:
        _draw_windows(canvas, front, near, far, floors, rng)


def _draw_windows(
    canvas: Canvas, front: float, near: float, far: float, floors: int, rng: np.random.Generator
) -> None:
    pitch, glass = rng.uniform(2.2, 3.6), rng.uniform(40.0, 120.0)
    first = near + 0.7 + pitch * max(0.0, (canvas.camera.nearest_visible(front) - near) // pitch)
    for bottom in (3.2 * floor + 1.1 for floor in range(floors)):
        if bottom > canvas.camera.highest_visible(far):
            return
        for z in np.arange(first, far - 1.4, pitch).tolist():
            window = _wall(front, z, z + pitch * 0.5, bottom, bottom + 1.6)
            if canvas.light.lamps and rng.random() < 0.4:
                canvas.glow(window, (235.0, rng.uniform(180.0, 215.0), 120.0), BUILDING)
            else:
                shine = glass * rng.uniform(0.7, 1.4)
                canvas.fill(window, (shine * 0.85, shine, shine * 1.15), BUILDING)


def _draw_park(
    canvas: Canvas, front: float, side: float, near: float, length: float, rng: np.random.Generator
) -> None:
    """A hedge along the street with trees behind it."""
    far, leaves = near + length, _leaf_colour(rng)
    for z in np.linspace(far - 2.0, near + 2.0, 2).tolist():
        _draw_tree(canvas, front + side * rng.uniform(2.0, 5.0), z, rng)
    height = rng.uniform(1.0, 2.2)
    canvas.fill(_upright(front, front + side * 14.0, 0.0, height, near), _scaled(leaves, 0.8), TREE)
    canvas.fill(_wall(front, near, far, 0.0, height), leaves, TREE)


def _street_trees(street: Street, side: float, rng: np.random.Generator) -> Iterator[Thing]:
    if rng.random() < 0.4:
        return
    x = side * (street.road + 0.9)
    for z in np.arange(rng.uniform(5.0, 14.0), 70.0, rng.uniform(9.0, 18.0)).tolist():
        yield z, partial(_draw_tree, x=x, z=z, rng=rng)


def _draw_tree(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    trunk, crown, leaves = rng.uniform(2.0, 3.2), rng.uniform(1.2, 2.2), _leaf_colour(rng)
    canvas.shade(_ground_patch(x, z, crown * 0.7, crown * 0.8), 0.2)
    canvas.fill(_upright(x - 0.14, x + 0.14, 0.0, trunk + 0.5, z), (84.0, 66.0, 50.0), TREE)
    canvas.disc((x, trunk + crown, z), crown, _scaled(leaves, 0.8), TREE)
    for _ in range(9 if z < DETAIL_DEPTH else 3):
        right, up = (rng.normal(0.0, 0.5, 2) * crown).tolist()
        lightness = 0.85 + 0.3 * up / crown + rng.uniform(-0.1, 0.1)
        clump = (x + right, trunk + crown + up, z)
        canvas.disc(clump, crown * rng.uniform(0.3, 0.6), _scaled(leaves, lightness), TREE)


def _cars(street: Street, rng: np.random.Generator) -> Iterator[Thing]:
    """Traffic in two lanes and cars parked at the kerbs; one scene in six is dense."""
    dense = rng.random() < 1 / 6
    for direction in (-1.0, 1.0):
        lane, parked = direction * street.road * 0.42, direction * (street.road - 1.0)
        yield from _queue(lane, 8.0 if dense else 26.0, direction, rng)
        if street.road > 4.4 and rng.random() < 0.6:
            yield from _queue(parked, 7.0 if dense else 13.0, direction, rng)


def _queue(x: float, headway: float, direction: float, rng: np.random.Generator) -> Iterator[Thing]:
    """Cars one behind the other, `headway` metres apart on average, never into each other."""
    z = rng.uniform(5.5, 5.5 + headway)
    while z < 45.0:
        yield z, partial(_draw_car, x=x + rng.normal(0.0, 0.15), z=z, direction=direction, rng=rng)
        z += max(5.5, rng.normal(headway, headway / 3))


def _draw_car(canvas: Canvas, x: float, z: float, direction: float, rng: np.random.Generator) -> None:
    """A car as a body and a cabin; on the right (direction 1) it shows its tail, on the left its front."""
    width, length = rng.uniform(1.7, 1.95), rng.uniform(3.7, 4.6)
    roof = rng.uniform(1.4, 1.65) if rng.random() < 0.85 else rng.uniform(2.0, 2.4)
    left, right, waist, paint = x - width / 2, x + width / 2, 0.62 * roof, _car_colour(rng)
    canvas.shade(_ground_patch(x, z + length / 2, width * 0.62, length * 0.55), 0.5)
    flank = right if x < canvas.camera.x else left
    _draw_car_flank(canvas, flank, z, length, waist, roof, paint)
    canvas.fill(_upright(left + 0.05, left + 0.3, 0.0, 0.4, z), (22.0, 22.0, 24.0), CAR)
    canvas.fill(_upright(right - 0.3, right - 0.05, 0.0, 0.4, z), (22.0, 22.0, 24.0), CAR)
    canvas.fill(_upright(left, right, 0.24, waist, z), paint, CAR)
    canvas.fill(_upright(left, right, 0.24, 0.4, z), _scaled(paint, 0.5), CAR)
    _draw_cabin_end(canvas, left, right, waist, roof, z, paint)
    _draw_car_lamps(canvas, left, right, waist, z, direction)


def _draw_car_flank(
    canvas: Canvas, x: float, z: float, length: float, waist: float, roof: float, paint: Colour
) -> None:
    far, shaded = z + length, _scaled(paint, 0.75)
    canvas.fill(_wall(x, z, far, 0.26, waist), shaded, CAR)
    canvas.fill([(x, waist, z), (x, waist, far - 0.9), (x, roof, far - 1.6), (x, roof, z + 0.5)], shaded, CAR)
    canvas.fill(_wall(x, z + 0.55, far - 1.6, waist + 0.06, roof - 0.1), (38.0, 46.0, 56.0), CAR)
    for hub in (z + 0.7, far - 0.8):
        canvas.fill(_wheel(x, hub, 0.33), (20.0, 20.0, 22.0), CAR)
        canvas.fill(_wheel(x, hub, 0.17), (140.0, 142.0, 146.0), CAR)


def _draw_cabin_end(
    canvas: Canvas, left: float, right: float, waist: float, roof: float, z: float, paint: Colour
) -> None:
    canvas.fill(_trapezoid(left + 0.06, right - 0.06, waist, roof, 0.18, z), _scaled(paint, 0.92), CAR)
    pane = _trapezoid(left + 0.2, right - 0.2, waist + 0.05, roof - 0.1, 0.12, z)
    canvas.fill(pane, (44.0, 54.0, 66.0), CAR)


def _draw_car_lamps(
    canvas: Canvas, left: float, right: float, waist: float, z: float, direction: float
) -> None:
    shine = (205.0, 30.0, 26.0) if direction > 0 else (250.0, 246.0, 224.0)
    paint = canvas.glow if canvas.light.lamps else canvas.fill
    paint(_upright(left + 0.04, left + 0.34, waist - 0.26, waist - 0.08, z), shine, CAR)
    paint(_upright(right - 0.34, right - 0.04, waist - 0.26, waist - 0.08, z), shine, CAR)


def _people(street: Street, rng: np.random.Generator) -> Iterator[Thing]:
    """Walkers on the sidewalks, now and then one who crosses the road."""
    for _ in range(rng.poisson(4.5)):
        z = rng.uniform(3.5, 13.0)
        if rng.random() < 0.82:
            x = rng.choice([-1.0, 1.0]) * (street.road + rng.uniform(0.4, 1.0) * street.sidewalk)
        else:
            x = rng.uniform(-0.9, 0.9) * street.road
        yield z, partial(_draw_person, x=x, z=z, rng=rng)


def _draw_person(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    tall, stride = rng.uniform(1.5, 1.9), rng.uniform(0.02, 0.28)
    coat, trousers = _cloth_colour(rng), _cloth_colour(rng)
    skin = _scaled((226.0, 178.0, 148.0), rng.uniform(0.45, 1.05))
    hip, shoulder = 0.48 * tall, 0.83 * tall
    canvas.shade(_ground_patch(x, z, 0.35, 0.3), 0.35)
    for step in (-stride, stride):
        leg = [(x - 0.1, hip, z), (x + 0.12, hip, z), (x + step + 0.09, 0.0, z), (x + step - 0.08, 0.0, z)]
        canvas.fill(leg, trousers, PERSON)
    for side in (-1.0, 1.0):
        arm = [
            (x + side * 0.16, shoulder, z),
            (x + side * 0.27, shoulder - 0.05, z),
            (x + side * (0.24 + stride / 2), hip, z),
            (x + side * (0.14 + stride / 2), hip, z),
        ]
        canvas.fill(arm, _scaled(coat, 0.8), PERSON)
    torso = [
        (x - 0.2, shoulder, z),
        (x + 0.2, shoulder, z),
        (x + 0.17, hip - 0.08, z),
        (x - 0.17, hip - 0.08, z),
    ]
    canvas.fill(torso, coat, PERSON)
    canvas.disc((x, 0.925 * tall, z), 0.125, skin, PERSON)
    canvas.fill(_upright(x - 0.1, x + 0.1, 0.95 * tall, tall, z), _cloth_colour(rng), PERSON)


def _upright(left: float, right: float, bottom: float, top: float, z: float) -> list[Point]:
    """A rectangle that faces the camera."""
    return [(left, bottom, z), (right, bottom, z), (right, top, z), (left, top, z)]


def _trapezoid(left: float, right: float, bottom: float, top: float, slant: float, z: float) -> list[Point]:
    """Faces the camera; each upper corner is `slant` metres inside its lower one."""
    return [(left, bottom, z), (right, bottom, z), (right - slant, top, z), (left + slant, top, z)]


def _wall(x: float, near: float, far: float, bottom: float, top: float) -> list[Point]:
    """A rectangle along the street."""
    return [(x, bottom, near), (x, bottom, far), (x, top, far), (x, top, near)]


def _ground_patch(x: float, z: float, half_width: float, half_length: float) -> list[Point]:
    """An ellipse on the ground."""
    return [(x + half_width * right, 0.0, max(0.8, z + half_length * ahead)) for right, ahead in CIRCLE]


def _wheel(x: float, z: float, radius: float) -> list[Point]:
    """A disc along the street that stands on the ground at `z`."""
    return [(x, 0.33 + radius * up, z + radius * ahead) for up, ahead in CIRCLE]


def _wall_colour(rng: np.random.Generator) -> Colour:
    return _scaled(WALLS[rng.integers(len(WALLS))], rng.uniform(0.75, 1.1))


def _leaf_colour(rng: np.random.Generator) -> Colour:
    if rng.random() < 0.12:
        return _scaled(AUTUMN, rng.uniform(0.75, 1.15))
    summer = (rng.uniform(46.0, 84.0), rng.uniform(98.0, 134.0), rng.uniform(36.0, 58.0))
    return _scaled(summer, rng.uniform(0.75, 1.15))


def _car_colour(rng: np.random.Generator) -> Colour:
    return _scaled(PAINTS[rng.integers(len(PAINTS))], rng.uniform(0.8, 1.1))


def _cloth_colour(rng: np.random.Generator) -> Colour:
    red, green, blue = rng.uniform(20.0, 220.0, 3).tolist()
    return red, green, blue


def _scaled(colour: tuple[float, float, float], gain: float) -> Colour:
    return colour[0] * gain, colour[1] * gain, colour[2] * gain


def _expose(picture: np.ndarray, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Surface texture and sensor grain over the drawn colours."""
    rows, columns = picture.shape[:2]
    patches = 1.0 + 0.07 * _smooth_noise(rows, columns, 16, rng)[:, :, None]
    fine = 1.0 + 0.035 * rng.standard_normal((rows, columns, 1), dtype=np.float32)
    grain = light.grain * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture * patches * fine + grain, 0.0, 255.0).astype(np.uint8)


def _smooth_noise(rows: int, columns: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Noise in about [-1, 1] that changes over 1/`cells` of the width."""
    coarse = Image.fromarray(rng.uniform(-1.0, 1.0, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((columns, rows), Image.Resampling.BICUBIC))


def write_labelled(
    root: str,
    split: str,
    n_good: int,
    n_degraded: int,
    rng: np.random.Generator,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> Dataset:
    """Write a split of `n_good` scenes as drawn and `n_degraded` degraded ones, with their masks."""
    dataset = write_dataset(root, "streets", CLASSES, IGNORE_INDEX)
    with track(n_good + n_degraded, f"draw {split}", "scenes") as progress:
        for number, (image, mask) in enumerate(_scenes(n_good, n_degraded, rng, height, width)):
            write_sample(dataset, split, f"{number:05d}", image, mask)
            progress.advance()
    return dataset


def write_raw_bucket(
    source: str,
    n_good: int,
    n_degraded: int,
    rng: np.random.Generator,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> dict[str, np.ndarray]:
    """Write unlabelled JPEG images, as a fleet of cameras would upload them, and return the truth.

    The truth is the mask (HxW uint8) of each image by its key in the bucket, for measuring afterwards; it is
    not written. Good and degraded scenes are shuffled.
    """
    truth: dict[str, np.ndarray] = {}
    with track(n_good + n_degraded, "draw bucket", "scenes") as progress:
        for number, (image, mask) in enumerate(_scenes(n_good, n_degraded, rng, height, width)):
            key = f"camera-{number % 4 + 1}/{number:05d}.jpg"
            storage.put(storage.join(source, key), _encoded(Image.fromarray(image), "JPEG", quality=95))
            truth[key] = mask
            progress.advance()
    return truth


def write_odd_images(
    source: str, rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH
) -> dict[str, np.ndarray]:
    """Write valid images in unusual encodings, below odd/, and return their true masks by key.

    Each must be labelled like any other: EXIF-rotated, palette, alpha, CMYK, 16 bits a channel, progressive,
    a PNG named .jpg. The mask of the EXIF-rotated image has the displayed orientation.
    """
    encodings: dict[str, Callable[[Image.Image], bytes]] = {
        "odd/exif-rotated.jpg": _exif_rotated,
        "odd/palette.png": lambda image: _encoded(image.quantize(256), "PNG"),
        "odd/alpha.png": lambda image: _encoded(_with_alpha(image), "PNG"),
        "odd/cmyk.jpg": lambda image: _encoded(image.convert("CMYK"), "JPEG", quality=95),
        "odd/16-bit.png": _sixteen_bit_png,
        "odd/progressive.jpg": lambda image: _encoded(image, "JPEG", quality=95, progressive=True),
        "odd/png-named.jpg": lambda image: _encoded(image, "PNG"),
    }
    truth: dict[str, np.ndarray] = {}
    for key, encode in encodings.items():
        image, truth[key] = draw_scene(rng, height, width)
        storage.put(storage.join(source, key), encode(Image.fromarray(image)))
    return truth


def write_broken_files(source: str, rng: np.random.Generator) -> list[str]:
    """Write files that no one can label, below broken/, and return their keys.

    A truncated JPEG, an empty file, a text named .jpg, and a PNG of some hundred bytes that declares
    50000x50000 pixels (a decompression bomb).
    """
    image = Image.fromarray(draw_scene(rng)[0])
    whole = _encoded(image, "JPEG", quality=95)
    contents = {
        "broken/truncated.jpg": whole[: len(whole) // 2],
        "broken/empty.jpg": b"",
        "broken/text.jpg": b"this is not an image\n",
        "broken/bomb.png": _png(50_000, 50_000, 8, zlib.compress(bytes(50_000))),
    }
    for key, data in contents.items():
        storage.put(storage.join(source, key), data)
    return sorted(contents)


def _scenes(
    n_good: int, n_degraded: int, rng: np.random.Generator, height: int, width: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    degraded = rng.permutation(np.arange(n_good + n_degraded) < n_degraded).tolist()
    for is_degraded in degraded:
        image, mask = draw_scene(rng, height, width)
        yield (degrade(image, rng) if is_degraded else image), mask


def _exif_rotated(image: Image.Image) -> bytes:
    """The image stored turned a quarter, with the EXIF tag that turns it back for display."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # display turned 90 degrees clockwise
    return _encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


def _with_alpha(image: Image.Image) -> Image.Image:
    opaque = image.copy()
    opaque.putalpha(255)
    return opaque


def _sixteen_bit_png(image: Image.Image) -> bytes:
    """RGB at 16 bits a channel, which Pillow reads but does not write."""
    samples = np.asarray(image).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return _png(image.width, image.height, 16, zlib.compress(rows))


def _png(width: int, height: int, bit_depth: int, compressed: bytes) -> bytes:
    """An RGB PNG of the given header and data, whether or not they agree (PNG specification, section 11)."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", compressed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, data) for kind, data in chunks)


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _encoded(image: Image.Image, encoding: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, encoding, **options)
    return buffer.getvalue()
