"""A network with published weights: text detection of PaddleOCR, adopted, labelled with and exported.

    pip download --no-deps rapidocr==3.10.0 && unzip rapidocr-*.whl
    python benchmarks/published_network.py rapidocr/models/PP-OCRv6_det_small.onnx [--folder FOLDER]

Draws pages with lines of text, adopts the network (one channel, the probability of text), labels new pages,
compares the masks with what onnxruntime makes of the same pixels, and exports them as COCO. Prints the
figures and writes results/.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import numpy as np
import onnxruntime
from machine import write_results
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from segpipe.config import AdoptSettings, CalibrateSettings, LabelSettings
from segpipe.datasets import Dataset, write_dataset, write_sample
from segpipe.evaluation.calibration import calibrate
from segpipe.evaluation.measure import evaluate
from segpipe.exchange.export import export
from segpipe.labeling.run import label_source
from segpipe.models.labeler import Labeler, load_model
from segpipe.models.preprocess import resize_image
from segpipe.training.adopt import adopt

HEIGHT, WIDTH = 320, 480
SPLITS = {"judging": 40, "calibration": 60, "test": 20}
MIN_IOU, BAD = 0.5, 0.1
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "seven", "wizards")
# What PaddleOCR's own preprocessing takes off and divides by, in BGR.
MEAN, DEVIATION = "0.406,0.456,0.485", "0.225,0.224,0.229"


@click.command()
@click.argument("network", type=click.Path(exists=True, dir_okay=False))
@click.option("--folder", help="Where data, model and labels go; unset: a temporary one.")
@click.option("--epochs", default=10, show_default=True, help="Of the judge.")
def main(network: str, folder: str | None, epochs: int) -> None:
    """Draw, adopt, label, compare and export."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(folder or temporary)
        data = draw_set(root / "data")
        found = adopt(settings(network, data, f"{root}/model", epochs))
        quality = evaluate(f"{root}/model", data.root, "test", "cpu")
        calibrate(calibration(data, f"{root}/model"))
        run = label_source(
            str(root / "data/test/images"),
            str(root / "labels"),
            load_model(f"{root}/model", "cpu"),
            LabelSettings(),
        )
        exported = export(f"{root}/labels", f"{root}/coco", "coco", "train")
        figures = {
            "text_iou": quality.per_class_iou["text"],
            "mean_iou_on_judging": found.mean_iou,
            "equal_to_onnxruntime": equal_share(network, load_model(f"{root}/model", "cpu"), root),
            "accepted": run.accepted,
            "review": run.review,
            "failed": run.failed,
            "exported": exported.images,
        }
    for name, value in figures.items():
        click.echo(f"{name:24} {value}")
    write_results("published_network", figures)


def settings(network: str, data: Dataset, model: str, epochs: int) -> AdoptSettings:
    return AdoptSettings(
        path=network,
        data=data.root,
        split="judging",
        model=model,
        output="probabilities",
        channel_order="bgr",
        mean=MEAN,
        deviation=DEVIATION,
        image_size=f"{HEIGHT}x{WIDTH}",
        class_map=class_map(data),
        epochs=epochs,
        device="cpu",
    )


def class_map(data: Dataset) -> str:
    """The network's outputs have no names, so they are called by their numbers."""
    path = Path(data.root.removeprefix("file://")) / "class-map.json"
    path.write_text(json.dumps({"classes": {"0": "page", "1": "text"}}))
    return str(path)


def calibration(data: Dataset, model: str) -> CalibrateSettings:
    return CalibrateSettings(
        model=model,
        data=data.root,
        split="calibration",
        min_iou=MIN_IOU,
        max_bad_fraction=BAD,
        confidence=0.9,
    )


def draw_set(folder: Path) -> Dataset:
    """Pages of text, whose lines are the class."""
    data = write_dataset(str(folder), "pages", ("page", "text"), 255)
    draws = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for number in range(count):
            write_sample(data, split, f"{number:02}", *page(draws))
    return data


def page(draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lines of words on uneven paper, and where they are."""
    paper = draws.integers(170, 256, 3)
    image = Image.new("RGB", (WIDTH, HEIGHT), tuple(int(value) for value in paper))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    pen, path = ImageDraw.Draw(image), font_manager.findfont("DejaVu Sans")
    top = int(draws.integers(10, 40))
    while top < HEIGHT - 50:
        font = ImageFont.truetype(path, int(draws.integers(16, 34)))
        text = " ".join(draws.choice(WORDS, int(draws.integers(1, 5))))
        place = int(draws.integers(5, 60)), top
        left, upper, right, lower = pen.textbbox(place, text, font=font)
        pen.text(place, text, font=font, fill=tuple(int(value) for value in draws.integers(0, 90, 3)))
        mask[int(upper) : int(lower), int(left) : min(int(right), WIDTH)] = 1
        top = int(lower) + int(draws.integers(8, 50))
    pixels = np.asarray(image) + draws.normal(0, 5, (HEIGHT, WIDTH, 1))
    return pixels.clip(0, 255).astype(np.uint8), mask


def equal_share(network: str, labeler: Labeler, root: Path) -> float:
    """Share of pixels where segpipe's mask is what onnxruntime says above one half."""
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    mean, deviation = (np.array([float(one) for one in text.split(",")]) for text in (MEAN, DEVIATION))
    same = []
    for path in sorted((root / "data/test/images").iterdir()):
        image = np.asarray(Image.open(path).convert("RGB"))
        pixels = resize_image(image, labeler.bundle.spec.working_size)[:, :, ::-1]
        given = ((pixels / 255 - mean) / deviation).transpose(2, 0, 1)[None].astype(np.float32)
        (found,) = session.run(None, {session.get_inputs()[0].name: given})
        (labelled,) = labeler.label([image])
        same.append(labelled.mask == (found[0, 0] > 0.5))
    return float(np.mean(same))


if __name__ == "__main__":
    main()
