"""Objects that move, as a line's camera sees them: printed gears, whole and with defects.

A gear has teeth, a bore with a keyway and two lines of print. From photograph to photograph it is
shifted and turned a little, and the light on it varies.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from skimage.morphology import convex_hull_image

SIDE = 256  # of a photograph, in pixels
FINER = 4  # drawn so many times as large, so that edges are smooth
GEARS = (150, 60, 20)  # photographs to learn from, good ones to test, bad ones of each kind
KINDS = ("missing tooth", "smudge", "misprint")
SHIFT = 8  # of the gear, in pixels at most
TURN = 5  # of the gear, in degrees at most
GAIN = 0.25  # of the light from photograph to photograph, at most
GRADIENT = 0.2  # of the light from the middle to an edge, at most
GRAIN = 0.04  # standard deviation of the surface's brightness, which no two have alike
NOISE = 3  # standard deviation of the camera's, in grey levels
VISIBLE = 12  # change of a pixel that belongs to a defect, in grey levels

BELT, METAL, INK, GREASE = 45, 170, 60, 70  # grey levels
TEETH, TIP, ROOT, BORE = 24, 106, 90, 20  # their number; radii in pixels
PRINT = ("KL-2047", "HAL 315")
LINES = (-42, 42)  # from the middle of the gear to that of each line, in pixels
ADVANCE, GRID, PEN = 12, 3.5, 2  # between glyphs, between points of their grid, of the pen

GLYPHS = {  # lines through points (column, row) of a grid of 3 x 5
    "0": "00 20 24 04 00",
    "1": "01 10 14",
    "2": "00 20 22 02 04 24",
    "3": "00 20 24 04, 02 22",
    "4": "00 02 22, 20 24",
    "5": "20 00 02 22 24 04",
    "6": "20 00 04 24 22 02",
    "7": "00 20 14",
    "8": "00 20 24 04 00, 02 22",
    "9": "22 02 00 20 24 04",
    "A": "04 01 10 21 24, 02 22",
    "E": "20 00 04 24, 02 12",
    "H": "00 04, 20 24, 02 22",
    "K": "00 04, 20 02 24",
    "L": "00 04 24",
    "T": "00 20, 10 14",
    "-": "02 22",
    " ": "",
}


def gears(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw gears to learn from, and to test good ones and then bad ones of a kind, with masks.

    All kinds of a seed have the same gears to learn from and the same good ones.
    """
    n_learn, n_good, n_bad = GEARS
    good, bad = np.random.default_rng(seed), np.random.default_rng([seed, KINDS.index(kind)])
    images, masks = photographs(n_learn + n_good, "good", good)
    spoiled, spots = photographs(n_bad, kind, bad)
    test = np.concatenate([images[n_learn:], spoiled])
    return images[:n_learn], test, np.concatenate([masks[n_learn:], spots])


def photographs(n: int, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw gears of a kind, uint8, and masks of their defects: (n, SIDE, SIDE) each."""
    images, masks = [], []
    whole = gear("good", rng)
    for _ in range(n):
        angle, shift = rng.uniform(-TURN, TURN), FINER * rng.uniform(-SHIFT, SHIFT, 2)
        scene, meant = (laid(each, angle, shift) for each in (gear(kind, rng), whole))
        images.append(lit(scene, rng))
        changed = abs(scene - meant) >= VISIBLE
        masks.append(convex_hull_image(changed) if changed.any() else changed)
    return np.stack(images), np.stack(masks)


def laid(image: Image.Image, angle: float, shift: np.ndarray) -> np.ndarray:
    """Turn and shift a gear, and bring it to the size of a photograph."""
    moved = image.rotate(angle, Image.Resampling.BILINEAR, translate=tuple(shift), fillcolor=BELT)
    return np.asarray(moved.reduce(FINER), np.float32)


def lit(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light a scene unevenly, and take a noisy photograph of it."""
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, GRADIENT)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    light = rng.uniform(1 - GAIN, 1 + GAIN) * (1 + slope * (x * np.cos(angle) + y * np.sin(angle)))
    grain = smooth_noise(rng, (SIDE // 4, SIDE // 4), (SIDE, SIDE))  # spots of four pixels
    noise = NOISE * rng.standard_normal(scene.shape)
    return np.clip(np.rint(light * (1 + GRAIN * grain) * scene + noise), 0, 255).astype(np.uint8)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Draw noise of a few pixels and enlarge it to a size (height, width)."""
    noise = Image.fromarray(rng.standard_normal(shape, dtype=np.float32))
    return np.asarray(noise.resize(size[::-1], Image.Resampling.BICUBIC))


def gear(kind: str, rng: np.random.Generator) -> Image.Image:
    """Draw a gear that is good or has a defect of a kind."""
    heights = np.ones(TEETH)
    if kind == "missing tooth":  # broken off, all of it or half
        heights[rng.integers(TEETH)] = rng.uniform(0, 0.5)
    image = blank(heights)
    if kind == "misprint":
        misprint(image, rng)
    else:
        write(image, PRINT)
    if kind == "smudge":
        smudge(image, rng)
    return image


def blank(heights: np.ndarray) -> Image.Image:
    """Draw a gear without print, with teeth of these heights, as shares of the usual one."""
    image = Image.new("L", (FINER * SIDE, FINER * SIDE), BELT)
    draw = ImageDraw.Draw(image)
    steps = np.array([-0.5, -0.3, -0.15, 0.15, 0.3, 0.5])  # of a tooth: its root, flanks and tip
    up = np.array([0, 0, 1, 1, 0, 0])
    angles = 2 * np.pi / TEETH * (np.arange(TEETH)[:, None] + steps)
    radii = ROOT + (TIP - ROOT) * heights[:, None] * up
    outline = (radii * [np.cos(angles), np.sin(angles)]).reshape(2, -1).T
    draw.polygon([at(point) for point in outline], fill=METAL)
    draw.ellipse([at((-BORE, -BORE)), at((BORE, BORE))], fill=BELT)
    draw.rectangle([at((-5, -BORE - 6)), at((5, 0))], fill=BELT)
    return image


def write(image: Image.Image, lines: tuple[str, ...]) -> None:
    """Print lines of glyphs."""
    for i, line in enumerate(lines):
        for j, glyph in enumerate(line):
            stroke(image, glyph, where(i, j))


def misprint(image: Image.Image, rng: np.random.Generator) -> None:
    """Print with a glyph that is another, missing, printed twice or out of its place."""
    line = int(rng.integers(len(PRINT)))
    glyphs = list(PRINT[line])
    place = int(rng.choice([i for i, glyph in enumerate(glyphs) if glyph.isalnum()]))
    glyph = glyphs[place]
    way = rng.choice(["other", "missing", "twice", "out of place"])
    if way == "other":
        glyphs[place] = str(rng.choice([one for one in GLYPHS if one.isalnum() and one != glyph]))
    elif way != "twice":
        glyphs[place] = " "
    write(image, (*PRINT[:line], "".join(glyphs), *PRINT[line + 1 :]))
    if way in ("twice", "out of place"):
        stroke(image, glyph, where(line, place) + away(rng.uniform(3.5, 5), rng))


def smudge(image: Image.Image, rng: np.random.Generator) -> None:
    """Put a little grease on a gear's face."""
    cover = Image.new("L", image.size)
    draw = ImageDraw.Draw(cover)
    middle = away(rng.uniform(BORE + 14, ROOT - 14), rng)
    thickness = int(255 * rng.uniform(0.3, 0.45))
    for _ in range(3):
        centre, half = middle + rng.uniform(-5, 5, 2), rng.uniform(3, 7, 2)
        draw.ellipse([at(centre - half), at(centre + half)], fill=thickness)
    image.paste(GREASE, mask=cover.filter(ImageFilter.GaussianBlur(1.5 * FINER)))


def away(distance: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a point (x, y) at a distance."""
    angle = rng.uniform(0, 2 * np.pi)
    return distance * np.array([np.cos(angle), np.sin(angle)])


def stroke(image: Image.Image, glyph: str, middle: np.ndarray) -> None:
    """Print a glyph."""
    draw = ImageDraw.Draw(image)
    for path in filter(None, GLYPHS[glyph].split(",")):
        points = [middle + GRID * (np.array(list(map(int, p))) - (1, 2)) for p in path.split()]
        ends = [at(point) for point in points]
        draw.line(ends, fill=INK, width=round(FINER * PEN), joint="curve")


def where(line: int, place: int) -> np.ndarray:
    """Return the middle of a glyph, from that of the gear."""
    return np.array([ADVANCE * (place - (len(PRINT[line]) - 1) / 2), LINES[line]])


def at(point: np.ndarray | tuple[float, float]) -> tuple[float, float]:
    """Return where a point (x, y) from the middle of the gear is drawn."""
    x, y = FINER * (SIDE / 2 + np.asarray(point))
    return float(x), float(y)
