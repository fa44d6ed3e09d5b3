"""`make demo`: the whole path on drawn street scenes, in a folder of its own, in under three minutes.

Draws labelled scenes and a raw bucket, trains, certifies a threshold, runs the label flow on a Prefect server
that lives as long as the demo, and compares what was accepted with the truth that only the demo knows.
"""

from __future__ import annotations

import io
import logging
import os
import shlex
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import binom

from demo import scenes
from segpipe import storage
from segpipe.config import CalibrateSettings, TrainSettings
from segpipe.errors import RunError, SegpipeError
from segpipe.images import decode_mask
from segpipe.redaction import redact

if TYPE_CHECKING:
    from segpipe.confidence.policy import Policy

SEED = 0
MARKER = ".segpipe-demo"
EPOCHS = 18
IMAGE_SIZE = "64x96"
MIN_IOU, MAX_BAD_FRACTION, CONFIDENCE = 0.6, 0.05, 0.95
# Good and degraded scenes of each part. The promise holds for images like the calibration images, so those
# and the bucket have the same mix.
TRAIN, VALIDATION, CALIBRATION, BUCKET = (240, 48), (40, 8), (600, 120), (150, 30)


@dataclass(frozen=True)
class Places:
    """The folders of one demo."""

    workdir: Path

    @property
    def labelled(self) -> str:
        """The labelled data set."""
        return str(self.workdir / "labelled")

    @property
    def bucket(self) -> str:
        """The raw images."""
        return str(self.workdir / "bucket")

    @property
    def model(self) -> str:
        """The model bundle."""
        return str(self.workdir / "model")

    @property
    def output(self) -> str:
        """Masks and manifest."""
        return str(self.workdir / "output")

    @property
    def prefect(self) -> str:
        """The home of the demo's Prefect server, so that the user's own is not touched."""
        return str(self.workdir / "prefect")


@dataclass(frozen=True)
class Outcome:
    """How many images got one decision, and how good their masks truly are (0 to 1, None: no mask)."""

    decision: str
    images: int
    mean_iou: float | None
    bad: int


@click.command()
@click.option(
    "--workdir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for everything the demo makes; an earlier demo in it is replaced.",
)
def main(workdir: Path) -> None:
    """Draw street scenes, train, certify, label a bucket under Prefect and compare with the truth."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        _run(_fresh_places(workdir), console)
    except SegpipeError as error:
        raise click.ClickException(redact(str(error))) from None


def _run(places: Places, console: Console) -> None:
    started = time.monotonic()
    _keep_quiet(places)
    _heading(console, 1, "Draw street scenes: a labelled data set, and a raw bucket with broken files in it")
    truth = draw(places)
    _heading(console, 2, "Train: first the adversarial game, then the discriminator learns to judge masks")
    train(places)
    _heading(console, 3, "Certify a threshold on labelled scenes the model has not seen")
    policy = calibrate(places)
    _heading(console, 4, "Label the bucket: the Prefect flow, on a server that starts now")
    summary = label_bucket(places)
    outcomes = compare(places, truth)
    _report(console, places, policy, summary, outcomes)
    console.print(f"\nDone in {time.monotonic() - started:.0f} s.")


def draw(places: Places) -> dict[str, np.ndarray]:
    """Draw all scenes; returns the true mask of every image in the bucket that shows a scene, by key."""
    rng = np.random.default_rng(SEED)
    for split, (good, degraded) in (("train", TRAIN), ("val", VALIDATION), ("calibration", CALIBRATION)):
        scenes.write_labelled(places.labelled, split, good, degraded, rng)
    truth = scenes.write_raw_bucket(places.bucket, *BUCKET, rng)
    scenes.write_broken_files(places.bucket, rng)
    return truth | scenes.write_odd_images(places.bucket, rng)


def train(places: Places) -> None:
    """Train the default networks for as long as a demo may take."""
    from segpipe.training.run import train as train_model

    train_model(
        TrainSettings(
            data=places.labelled, model=places.model, epochs=EPOCHS, image_size=IMAGE_SIZE, seed=SEED
        )
    )


def calibrate(places: Places) -> Policy:
    """Certify the demo's promise."""
    from segpipe.evaluation.calibration import calibrate as calibrate_model

    settings = CalibrateSettings(
        model=places.model,
        data=places.labelled,
        split="calibration",
        min_iou=MIN_IOU,
        max_bad_fraction=MAX_BAD_FRACTION,
        confidence=CONFIDENCE,
    )
    return calibrate_model(settings)


def label_bucket(places: Places) -> dict[str, Any]:
    """Run the label flow as a deployment would; returns its summary. Raises RunError when it fails."""
    from flows.label import label

    state: Any = label(places.bucket, places.output, places.model, return_state=True)
    if not state.is_completed():
        raise RunError(f"the label flow ended as {state.name}: {state.message}")
    return state.result()


def compare(places: Places, truth: dict[str, np.ndarray]) -> list[Outcome]:
    """Hold every mask in the manifest against the scene's true mask."""
    from segpipe.manifests.query import query

    rows = query(places.output, "SELECT image_uri, mask_uri, decision FROM latest").to_pylist()
    return [
        _outcome(places, decision, [row for row in rows if row["decision"] == decision], truth)
        for decision in ("accepted", "review", "failed")
    ]


def _outcome(
    places: Places, decision: str, rows: list[dict[str, str]], truth: dict[str, np.ndarray]
) -> Outcome:
    from segpipe.metrics import IOU_RULE, image_iou

    ious = [
        image_iou(
            truth[row["image_uri"].removeprefix(f"{places.bucket}/")],
            decode_mask(storage.read_bytes(row["mask_uri"])),
            len(scenes.CLASSES),
            scenes.IGNORE_INDEX,
            IOU_RULE,
        )
        for row in rows
        if row["mask_uri"]
    ]
    mean = float(np.mean(ious)) if ious else None
    return Outcome(decision, len(rows), mean, sum(iou < MIN_IOU for iou in ious))


def _report(
    console: Console, places: Places, policy: Policy, summary: dict[str, Any], outcomes: list[Outcome]
) -> None:
    from segpipe.confidence.promise import promise

    console.print()
    console.print(_outcome_table(outcomes))
    console.print(f"[bold]Promise[/bold]   {promise(policy)}")
    console.print(f"[bold]Truth[/bold]     {_verdict(outcomes[0])}")
    console.print(f"[bold]Failed[/bold]    {_failures(places)}")
    console.print(f"[bold]Speed[/bold]     {summary['images_per_second']:.0f} images a second")
    console.print(f"[bold]Manifest[/bold]  {_shown(places.output)}/manifests")
    console.print("\n[bold]Next[/bold]")
    for command in _next_commands(places):
        console.print(f"  {command}", markup=False)


def _outcome_table(outcomes: list[Outcome]) -> Table:
    table = Table("decision", title="What became of the bucket", title_justify="left")
    for column in ("images", "true mean IoU", f"bad (IoU < {MIN_IOU})"):
        table.add_column(column, justify="right")
    for outcome in outcomes:
        quality = ("-", "-") if outcome.mean_iou is None else (f"{outcome.mean_iou:.3f}", _share(outcome))
        table.add_row(outcome.decision, str(outcome.images), *quality)
    return table


def _share(outcome: Outcome) -> str:
    return f"{outcome.bad} ({outcome.bad / outcome.images:.1%})"


def _verdict(accepted: Outcome) -> str:
    if not accepted.images:
        return "nothing was accepted, so nothing bad was"
    return f"{accepted.bad} of {accepted.images} accepted masks are bad: {_held(accepted)}"


def _held(accepted: Outcome) -> str:
    """Of masks that are as good as promised so few may show more bad ones by chance."""
    by_chance = int(binom.ppf(CONFIDENCE, accepted.images, MAX_BAD_FRACTION))
    if accepted.bad <= MAX_BAD_FRACTION * accepted.images:
        return "kept"
    if accepted.bad <= by_chance:
        return f"nothing against the promise, as up to {by_chance} of so few may be chance"
    return f"not kept this time, which may happen in {1 - CONFIDENCE:.0%} of calibrations"


def _failures(places: Places) -> str:
    from segpipe.manifests.query import query

    rows = query(places.output, "SELECT image_uri, reason FROM failures ORDER BY image_uri").to_pylist()
    return ", ".join(
        f"{row['image_uri'].removeprefix(places.bucket + '/')} ({row['reason']})" for row in rows
    )


def _next_commands(places: Places) -> list[str]:
    segpipe = _shown(str(Path(sys.executable).with_name("segpipe")))
    bucket, output, model = (_shown(place) for place in (places.bucket, places.output, places.model))
    doubtful = "SELECT image_uri, decision, confidence FROM latest ORDER BY confidence LIMIT 10"
    commands = (
        [segpipe, "query", output, doubtful],
        [segpipe, "evaluate", "--model", model, "--data", _shown(places.labelled), "--split", "calibration"],
        [segpipe, "label", bucket, output, "--model", model],
    )
    return [shlex.join(command) for command in commands]


def _shown(path: str) -> str:
    """The path as one would type it from here."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def _fresh_places(workdir: Path) -> Places:
    """An empty work folder; RunError rather than touch a folder that no demo made."""
    places = Places(workdir.expanduser().resolve())
    marker = places.workdir / MARKER
    if places.workdir.exists() and any(places.workdir.iterdir()) and not marker.exists():
        raise RunError(f"{workdir} holds other files: give the demo an empty or a new folder with --workdir")
    for folder in (places.labelled, places.bucket, places.model, places.output, places.prefect):
        shutil.rmtree(folder, ignore_errors=True)
    places.workdir.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return places


def _keep_quiet(places: Places) -> None:
    """Give Prefect a home of its own before it is imported, and let only progress reach the terminal."""
    os.environ.pop("PREFECT_API_URL", None)
    os.environ.update(
        PREFECT_HOME=places.prefect,
        PREFECT_PROFILES_PATH=f"{places.prefect}/profiles.toml",
        PREFECT_LOGGING_LEVEL="ERROR",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="true",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",  # 10 s as a rule, more on a busy machine
        DO_NOT_TRACK="1",
    )
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # headings and progress stay in order in a log file
    if not sys.stderr.isatty():
        logging.basicConfig(format="%(message)s")
        logging.getLogger("segpipe").setLevel(logging.INFO)


def _heading(console: Console, number: int, text: str) -> None:
    console.print(f"\n[bold]{number}. {text}[/bold]")


if __name__ == "__main__":
    main()
