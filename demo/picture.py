"""The README's picture: a drawn scene, its mask, the overlay and the confidence map, by the demo's own model.

`make demo` first, then `python -m demo.picture`.
"""

from __future__ import annotations

from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from demo import scenes
from segpipe.images import class_palette
from segpipe.models.labeler import Labeled, load_model

SEED = 11
HEIGHT, WIDTH = 192, 288
DPI = 110


def panels(image: np.ndarray, labeled: Labeled) -> dict[str, np.ndarray]:
    """Title to RGB or grey picture, in the order they are read."""
    colours = class_palette(len(scenes.CLASSES))[: len(scenes.CLASSES)]
    painted = np.asarray(colours, np.uint8)[labeled.mask]
    overlay = (0.5 * image + 0.5 * painted).astype(np.uint8)
    return {
        "image": image,
        "mask": painted,
        "overlay": overlay,
        f"confidence map (expected IoU {labeled.confidence:.2f})": labeled.confidence_map,
    }


def draw(pictures: dict[str, np.ndarray]) -> Figure:
    """The pictures side by side."""
    figure = Figure(figsize=(11, 2.2), layout="constrained")
    for axes, (title, picture) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.ndim == 2 else 255)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


@click.command()
@click.option("--workdir", type=Path, default=Path("demo-out"), show_default=True)
@click.option("--out", type=Path, default=Path("docs/scene.png"), show_default=True)
def main(workdir: Path, out: Path) -> None:
    """Label one scene with the demo's model and draw what came out."""
    mpl.use("agg")
    image, _ = scenes.draw_scene(np.random.default_rng(SEED), HEIGHT, WIDTH)
    (labeled,) = load_model(str(workdir / "model"), "cpu").label([image])
    draw(panels(image, labeled)).savefig(out, dpi=DPI)


if __name__ == "__main__":
    main()
