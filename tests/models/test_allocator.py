"""Memory that a batch frees is there for the next one."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from segpipe.models.allocator import keep_freed_memory

def batch():  # as the networks do: large arrays, all freed at its end
    return sum(array.nbytes for array in [np.ones(5_000_000, np.uint8) for _ in range(20)])

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_a_later_batch(*arguments: str) -> int:
    """In a process of its own, since the setting is for the rest of a process."""
    command = [sys.executable, "-c", FAULTS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told")
def test_a_later_batch_faults_no_page_in_again() -> None:
    assert faults_of_a_later_batch("default") > 1000
    assert faults_of_a_later_batch("keep") < 100
