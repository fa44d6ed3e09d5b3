"""The range of pixel values that a run's model brings images to, by the run's own files."""

from __future__ import annotations

from segpipe.errors import RunError
from segpipe.image_range import ImageRange, checked_range
from segpipe.manifests.run_files import planned_header, read_record, record_uri
from segpipe.redaction import redact


def range_of_run(output: str, run_id: str) -> ImageRange | None:
    """None: the model has none, the run is of a version that knew none, or its files are gone.

    The plan is asked where run.json is gone, or damaged, which is said. Raises RunError where what is asked
    is damaged, StorageError.
    """
    record = read_record(output, run_id) or planned_header(output, run_id) or {}
    if (found := record.get("image_range")) is None:
        return None
    try:
        return checked_range(found)
    except (ValueError, TypeError) as error:
        uri = redact(record_uri(output, run_id))
        raise RunError(f"{uri} is damaged ({type(error).__name__}): restore or remove it") from error
