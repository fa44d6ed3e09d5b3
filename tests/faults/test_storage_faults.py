"""Storage that fails now and then costs nothing; storage that is down ends the run in words."""

from __future__ import annotations

import pytest
from s3_proxy import RandomFaults, Request, cut_short, lose_the_answer, pass_on, refuse, reset, stay_silent

pytestmark = pytest.mark.faults

FAULTS = {
    "503": refuse(503, "SlowDown"),
    "reset": reset,
    "timed out": stay_silent,
    "cut short": cut_short,
    "answer lost": lose_the_answer,
}
IMPATIENT = {"SEGPIPE_STORAGE_ANSWER_SECONDS": "1"}


@pytest.mark.parametrize("seed", [1, 2])
def test_with_a_tenth_of_the_requests_failing_nothing_is_lost_or_doubled(
    labelling, proxy, bucket, seed: int
) -> None:
    faults = proxy.decide = RandomFaults(10, seed, FAULTS)
    summary = labelling.run("out", "r1", "--claim-seconds", "30", **IMPATIENT)
    assert (summary["planned"], summary["review"], summary["failed"]) == (24, 24, 0)
    bucket.assert_whole("out", {"r1"})
    assert set(faults.met) == set(FAULTS)


@pytest.mark.parametrize("down", [refuse(503, "SlowDown"), stay_silent], ids=["answers 503", "is silent"])
def test_a_bucket_that_goes_down_ends_the_run_in_one_line_and_a_resume_finishes_it(
    labelling, proxy, bucket, down
) -> None:
    def decide(request: Request):
        return down if proxy_parts(proxy) >= 2 else pass_on

    proxy.decide = decide
    process = labelling.start("out", "r1", "--max-failure-rate", "0.05", **IMPATIENT)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    (line,) = [line for line in said.splitlines() if line.startswith("segpipe: ")]
    assert said.endswith(f"{line}\n")
    assert "Traceback" not in said
    assert "r1" in line or "out/" in line
    rows = bucket.assert_finished_facts("out")
    assert [row for row in rows if row["decision"] == "failed"] == []

    proxy.decide = lambda request: pass_on
    labelling.run("out", "r1")
    bucket.assert_whole("out", {"r1"})


def proxy_parts(proxy) -> int:
    """How many parts have been sent; called under the proxy's lock."""
    return sum(request.matches(r"^PUT .*/manifests/") for request in proxy.seen)


def test_a_bucket_that_is_down_from_the_start_is_said_in_one_line(labelling, proxy, bucket) -> None:
    proxy.decide = lambda request: refuse(503, "ServiceUnavailable")
    process = labelling.start("out", "r1")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    (line,) = said.splitlines()
    assert line.startswith("segpipe: s3://")
    assert "ServiceUnavailable" in line
    assert bucket.keys("out/") == []
