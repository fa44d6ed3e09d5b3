"""Where a run's masks go and whose rows they are, as plain data that other processes can be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from segpipe import storage
from segpipe.errors import NotFoundError, RunError, StorageError
from segpipe.images import class_palette
from segpipe.labeling.items import Target


@dataclass(frozen=True)
class Place:
    """Where the images of a run come from and its masks go; fields as those of Target."""

    source: str
    output: str
    masks_root: str
    confidence_maps_root: str | None
    run_id: str
    model_id: str
    n_classes: int
    stamps_from: datetime


def target_of(place: Place, require_claim: Callable[[], None]) -> Target:
    """What labelling needs of the place; require_claim raises when the run must not write."""
    return Target(
        masks_root=place.masks_root,
        confidence_maps_root=place.confidence_maps_root,
        run_id=place.run_id,
        model_id=place.model_id,
        palette=class_palette(place.n_classes),
        require_claim=require_claim,
        stamps_from=place.stamps_from,
        require_source=partial(_require_images, place),
    )


def _require_images(place: Place) -> None:
    """Raise RunError when SOURCE has no object any more: that an image is gone says nothing about it then."""
    try:
        if any(not found.uri.startswith(f"{place.output}/") for found in storage.list_objects(place.source)):
            return
        why = "is empty now"
    except NotFoundError:
        why = "is gone"
    except StorageError:  # one may not list it, say: nothing is known, and what fails has its own limit
        return
    raise RunError(
        f"{place.source} {why}, so run {place.run_id} stops before it fails all its images; bring it back "
        "and resume with the same run id"
    )
