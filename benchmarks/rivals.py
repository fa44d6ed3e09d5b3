"""The labelling job written the usual ways: a DataLoader loop, and a Ray Data pipeline.

Both take the same files and the same model as segpipe, write the same masks as indexed PNG and a Parquet
table, and give images per second from the first image in work to the last mask written: start-up and the
loading of the model are not counted.
"""

from __future__ import annotations

import os
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from segpipe.images import class_palette
from segpipe.models.device import choose_device
from segpipe.models.inference import predict
from segpipe.models.labeler import Labeler, load_without_policy
from segpipe.models.preprocess import normalise

BATCH = 8


def with_data_loader(paths: list[str], labeler: Labeler, folder: Path, batch_size: int = BATCH) -> float:
    """Decode in worker processes, everything else in the loop; images per second."""
    loader = DataLoader(
        _Images(paths, labeler.bundle.spec.working_size),
        batch_size=batch_size,
        num_workers=len(os.sched_getaffinity(0)),
        collate_fn=list,
    )
    folder.mkdir(parents=True)
    rows, started = [], 0.0
    for batch in loader:
        started = started or time.perf_counter()
        pixels = torch.from_numpy(np.stack([image for _, image, _ in batch]))
        masks, scores = _masks(labeler, pixels, [size for _, _, size in batch])
        for (path, _, _), mask, score in zip(batch, masks, scores, strict=True):
            rows.append(_write(path, mask, score, folder))
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    # The first batch was decoded before the clock started.
    return (len(paths) - batch_size) / (time.perf_counter() - started)


class _Images(Dataset):  # type: ignore[type-arg]
    def __init__(self, paths: list[str], size: tuple[int, int]) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, tuple[int, int]]:
        return self.paths[index], *_decode(Path(self.paths[index]).read_bytes(), self.size)


def _decode(data: bytes, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    image = Image.open(BytesIO(data)).convert("RGB")
    resized = image.resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(resized), (image.height, image.width)


@torch.inference_mode()
def _masks(
    labeler: Labeler, pixels: torch.Tensor, sizes: list[tuple[int, int]]
) -> tuple[list[np.ndarray], list[float]]:
    spec = labeler.bundle.spec
    batch = pixels.permute(0, 3, 1, 2).to(labeler.device)
    prediction = predict(labeler.bundle, normalise(batch, spec.mean, spec.standard_deviation), labeler.device)
    masks = [
        functional.interpolate(logits[None], size=size, mode="bilinear")[0].argmax(0).to(torch.uint8)
        for logits, size in zip(prediction.logits, sizes, strict=True)
    ]
    return [mask.cpu().numpy() for mask in masks], prediction.verdict.score.tolist()


def _write(path: str, mask: np.ndarray, score: float, folder: Path) -> dict[str, Any]:
    image = Image.fromarray(mask)
    image.putpalette(class_palette(256).tobytes())
    target = folder / f"{Path(path).name}.png"
    image.save(target)
    return {"image": path, "mask": str(target), "score": score}


def with_ray_data(paths: list[str], model: str, folder: Path) -> float:
    """Decode in tasks, label and write masks in an actor, rows by write_parquet; images per second."""
    import ray

    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", configure_logging=True)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        folder.mkdir(parents=True)
        size = load_without_policy(model, "cpu").bundle.spec.working_size
        gpus = 1 if choose_device("auto") == "cuda" else 0
        (
            ray.data.read_binary_files(paths, include_paths=True)
            .map(_decode_row, fn_kwargs={"size": size})
            .map_batches(
                _RayLabeler,
                fn_constructor_args=(model, str(folder)),
                batch_size=BATCH,
                num_gpus=gpus,
                compute=ray.data.ActorPoolStrategy(size=1),
            )
            .write_parquet(str(folder / "rows"))
        )
    finally:
        ray.shutdown()
    rows = pq.read_table(folder / "rows").to_pydict()
    return len(paths) / (max(rows["ended"]) - min(rows["started"]))


def _decode_row(row: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    pixels, (height, width) = _decode(row["bytes"], size)
    return {"path": row["path"], "pixels": pixels, "height": height, "width": width}


class _RayLabeler:
    def __init__(self, model: str, folder: str) -> None:
        # Ray gives an actor one thread unless it is told that the machine is its own.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.labeler, self.folder = load_without_policy(model, "auto"), Path(folder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        started = time.time()
        sizes = list(zip(batch["height"].tolist(), batch["width"].tolist(), strict=True))
        masks, scores = _masks(self.labeler, torch.from_numpy(np.stack(batch["pixels"])), sizes)
        written = zip(batch["path"], masks, scores, strict=True)
        rows = [_write(path, mask, score, self.folder) for path, mask, score in written]
        clock = {"started": [started] * len(rows), "ended": [time.time()] * len(rows)}
        return {name: [row[name] for row in rows] for name in rows[0]} | clock
