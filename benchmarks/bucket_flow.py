"""The whole path on a real S3 server: certify, put a validation split into a bucket, run the flow over it.

    python benchmarks/bucket_flow.py DATA --model BUNDLE [--server moto|environment]

Every second validation image certifies the threshold; the bucket gets all of them, and the quality of what
was accepted is measured on the others. `environment` takes the server that AWS_ENDPOINT_URL names. Prints
counts, images per second as a ratio to the generator and discriminator alone in the same run, and the first
rows; writes them below results/.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import fsspec
import numpy as np
import pandas as pd
from machine import write_results
from s3_server import s3_server

from segpipe import load_model, storage
from segpipe.confidence.promise import promise
from segpipe.config import CalibrateSettings
from segpipe.datasets import Sample, list_samples, open_dataset, read_sample, write_dataset
from segpipe.evaluation.calibration import calibrate
from segpipe.images import decode_mask
from segpipe.metrics import IOU_RULE, image_iou
from segpipe.models.inference import predict, prepare

ROWS_SHOWN = ["image_uri", "decision", "reason", "confidence", "discriminator_score", "mask_sha256"]


@click.command()
@click.argument("data")
@click.option("--model", required=True)
@click.option("--server", type=click.Choice(["moto", "environment"]), default="moto", show_default=True)
@click.option("--min-iou", default=0.5, show_default=True)
@click.option("--max-bad-fraction", default=0.1, show_default=True)
@click.option("--confidence", default=0.9, show_default=True)
def main(data: str, model: str, server: str, **target: float) -> None:
    """Certify MODEL and run the labelling flow over DATA's validation images in a bucket."""
    with tempfile.TemporaryDirectory() as folder, s3_server(server), _own_prefect(folder):
        bundle = f"{folder}/model"
        shutil.copytree(model, bundle)
        samples = list_samples(open_dataset(data), "val")
        policy = calibrate(
            CalibrateSettings(
                data=_calibration_half(data, samples[::2], folder),
                model=bundle,
                split="calibration",
                **target,
            )
        )
        bucket = f"segpipe-{uuid.uuid4().hex[:8]}"
        _upload(samples, bucket)
        summary = _run_flow(f"s3://{bucket}/raw", f"s3://{bucket}/labels", bundle)
        rows = pd.read_parquet(f"s3://{bucket}/labels/manifests").sort_values("image_uri")
        result = {
            "data": open_dataset(data).name,
            "server": server,
            "promise": promise(policy),
            **{
                name: summary[name] for name in ("planned", "accepted", "review", "failed", "seconds", "legs")
            },
            "images_per_second": summary["images_per_second"],
            "ratio_to_networks_alone": summary["images_per_second"] / _networks_alone(bundle, data, samples),
            **_quality_of_accepted(data, samples[1::2], rows, target["min_iou"]),
        }
        _report(result, rows)


def _report(result: dict[str, Any], rows: pd.DataFrame) -> None:
    for name, value in result.items():
        click.echo(f"{name:26} {value}")
    click.echo(rows[ROWS_SHOWN].head(5).to_string(index=False, max_colwidth=40))
    write_results(f"bucket_flow-{result['data']}-{result['server']}", result)


def _calibration_half(data: str, samples: list[Sample], folder: str) -> str:
    dataset, root = open_dataset(data), f"{folder}/calibration"
    write_dataset(root, dataset.name, dataset.classes, dataset.ignore_index)
    for sample in samples:
        for uri in (sample.image_uri, sample.mask_uri):
            kind, name = uri.rsplit("/", 2)[1:]
            storage.put(f"{root}/calibration/{kind}/{name}", storage.read_bytes(uri))
    return root


def _upload(samples: list[Sample], bucket: str) -> None:
    fsspec.filesystem("s3").mkdir(bucket)
    for sample in samples:
        key = sample.image_uri.rsplit("/", 1)[1]
        storage.put(f"s3://{bucket}/raw/{key}", storage.read_bytes(sample.image_uri))


def _run_flow(source: str, output: str, model: str) -> dict[str, Any]:
    from flows.label import label

    return label(source, output, model)  # type: ignore[return-value]


def _quality_of_accepted(
    data: str, samples: list[Sample], rows: pd.DataFrame, min_iou: float
) -> dict[str, Any]:
    """True quality of the accepted masks among images that did not certify the threshold."""
    dataset = open_dataset(data)
    masks = {
        Path(row.image_uri).stem: row.mask_uri for row in rows.itertuples() if row.decision == "accepted"
    }
    ious = []
    for sample in samples:
        if sample.key in masks:
            truth = read_sample(dataset, sample)[1]
            mask = decode_mask(storage.read_bytes(masks[sample.key]))
            ious.append(image_iou(truth, mask, len(dataset.classes), dataset.ignore_index, IOU_RULE))
    accepted = np.asarray(ious)
    return {
        "unseen_accepted": len(accepted),
        "unseen_accepted_bad": int((accepted < min_iou).sum()),
        "unseen_accepted_mean_iou": float(accepted.mean()) if len(accepted) else None,
    }


def _networks_alone(model: str, data: str, samples: list[Sample]) -> float:
    """Images a second through generator and discriminator, nothing else; median of seven batches."""
    labeler, dataset = load_model(model), open_dataset(data)
    images = [read_sample(dataset, sample)[0] for sample in samples[: labeler.batch_size]]
    batch = prepare(labeler.bundle, images, labeler.device)
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        predict(labeler.bundle, batch, labeler.device).verdict.score.sum().item()
        seconds.append(time.perf_counter() - started)
    return len(images) / float(np.median(seconds))


@contextmanager
def _own_prefect(folder: str) -> Iterator[None]:
    os.environ.update(PREFECT_HOME=f"{folder}/prefect", PREFECT_SERVER_ANALYTICS_ENABLED="false")
    yield


if __name__ == "__main__":
    main()
