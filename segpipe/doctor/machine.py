"""This machine: what is installed, what computes, how much room there is."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from segpipe import storage
from segpipe.doctor.findings import Finding
from segpipe.kinds import FOREIGN_GENERATORS

LEAST_FREE_BYTES = 2 * 10**9  # a plan of many millions of images spills to disk


def check_versions() -> Finding:
    """The installed packages against what segpipe declares to work with."""
    needed = [Requirement(text) for text in requires("segpipe") or []]
    unfit = [text for one in needed if "extra" not in str(one.marker) and (text := _unfit(one))]
    if unfit:
        return Finding(
            "versions", "FAIL", ", ".join(unfit), "pip install -c constraints.txt -e . puts it right"
        )
    shown = ", ".join(f"{name} {version(name)}" for name in ("segpipe", "torch", "prefect"))
    return Finding("versions", "ok", f"python {platform.python_version()}, {shown}")


def check_extras() -> Finding:
    """Whether models can be loaded whose generator segpipe did not build."""
    loadable = f"{' and '.join(FOREIGN_GENERATORS)} can be loaded"
    return _extras("adopted models", FOREIGN_GENERATORS, loadable, "such a model is used")


def check_engines() -> Finding:
    """Whether images can be labelled in several workers."""
    return _extras("engine ray", ["ray"], "label --engine ray can start workers", "workers are to label")


def _extras(name: str, extras: Iterable[str], usable: str, where: str) -> Finding:
    needed = [Requirement(text) for text in requires("segpipe") or []]
    problems = {
        extra: [text for one in needed if _is_of(one, extra) and (text := _unfit(one))] for extra in extras
    }
    lacking = [extra for extra, found in problems.items() if found]
    if not lacking:
        return Finding(name, "ok", usable)
    return Finding(
        name,
        "skip",
        ", ".join(text for extra in lacking for text in problems[extra]),
        f"pip install 'segpipe[{','.join(lacking)}]' where {where}",
    )


def _is_of(needed: Requirement, extra: str) -> bool:
    return needed.marker is not None and needed.marker.evaluate({"extra": extra})


def _unfit(needed: Requirement) -> str | None:
    try:
        found = version(needed.name)
    except PackageNotFoundError:
        return f"{needed.name} is missing"
    fits = needed.specifier.contains(found.partition("+")[0], prereleases=True)
    return None if fits else f"{needed.name} {found} is not {needed.specifier}"


def check_device() -> Finding:
    """What the networks would run on."""
    import torch

    if torch.cuda.is_available():
        bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
        return Finding("device", "ok", f"{torch.cuda.get_device_name()}, {bf16} bfloat16")
    if torch.version.cuda is not None:
        return Finding(
            "device", "warn", "torch is built for CUDA and sees no GPU", "look at nvidia-smi and the driver"
        )
    return Finding("device", "ok", f"CPU, {torch.get_num_threads()} threads, no CUDA in this torch")


def check_disk(output: str | None) -> Finding:
    """Room for temporary files, and for OUTPUT where it is on this machine."""
    folders = [Path(tempfile.gettempdir())]
    if output is not None and "://" not in (place := storage.normalise(output)):
        folders.append(_existing(Path(place)))
    free = {folder: shutil.disk_usage(folder).free for folder in folders}
    shown = ", ".join(f"{bytes_ / 10**9:.1f} GB free in {folder}" for folder, bytes_ in free.items())
    if min(free.values()) < LEAST_FREE_BYTES:
        return Finding("disk", "warn", shown, "make room, or point TMPDIR at a larger disk")
    return Finding("disk", "ok", shown)


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())
