"""All checks, one after the other; none stops another, none takes longer than it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from segpipe.concurrency import Stopwatch, each_within
from segpipe.config import DoctorSettings
from segpipe.doctor import machine, places, server
from segpipe.doctor.findings import Finding
from segpipe.errors import SegpipeError
from segpipe.redaction import redact

Check = tuple[str, Callable[[], Finding]]


def examine(settings: DoctorSettings) -> Iterator[Finding]:
    """Each check's finding, as soon as it is there."""
    for check in _checks(settings):
        yield from each_within(settings.seconds, _run, [check], partial(_no_answer, settings.seconds))


def _checks(settings: DoctorSettings) -> list[Check]:
    checks: list[Check] = [
        ("versions", machine.check_versions),
        ("adopted models", machine.check_extras),
        ("engine ray", machine.check_engines),
        ("device", machine.check_device),
        ("disk", partial(machine.check_disk, settings.output)),
        ("source", partial(places.check_source, settings.source)),
        ("output", partial(places.check_output, settings.output)),
        ("sources file", partial(places.check_sources_file, settings.sources)),
        ("their models", partial(places.check_their_models, settings.sources)),
        ("their outputs", partial(places.check_their_outputs, settings.sources)),
        ("model", partial(places.check_model, settings.model)),
        ("policy", partial(places.check_policy, settings.model)),
        ("prefect server", server.check_server),
        ("work pool", server.check_pool),
        ("deployments", server.check_deployments),
        ("clock", partial(server.check_clock, settings.output or settings.source)),
    ]
    return checks


def _run(check: Check, stopwatch: Stopwatch) -> Finding:
    name, look = check
    try:
        with stopwatch.running():
            return look()
    except SegpipeError as error:
        return Finding(name, "FAIL", redact(" ".join(str(error).split())))
    except Exception as error:  # a check that breaks must not hide the others
        found = redact(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return Finding(name, "FAIL", found, "this is a fault of segpipe or of the installation")


def _no_answer(seconds: float, check: Check) -> Finding:
    return Finding(
        check[0], "FAIL", f"no answer in {seconds:g} s", "is the server up, and the address right?"
    )
