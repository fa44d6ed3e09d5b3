"""Two runs over one OUTPUT at once, and a bucket that moves under a run."""

from __future__ import annotations

from collections import Counter

import pytest
from s3_proxy import Exchange, Request, pass_on

pytestmark = pytest.mark.faults

MASK, READ, PART = r"^PUT .*/masks/", r"^GET .*/raw/", r"^PUT .*/manifests/"


def requests(proxy, kind: str) -> Counter[str]:
    return Counter(request.path.partition("?")[0] for request in proxy.seen if request.matches(kind))


def test_a_nightly_and_a_triggered_run_label_each_image_once(labelling, proxy, bucket) -> None:
    processes = [labelling.start("out", run_id) for run_id in ("nightly", "triggered")]
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    bucket.assert_whole("out", {"nightly", "triggered"})
    for kind in (READ, MASK):
        assert len(requests(proxy, kind)) == 24
        assert set(requests(proxy, kind).values()) == {1}


def test_the_claim_of_a_dead_run_expires_and_the_next_says_so(labelling, proxy, bucket, waiting) -> None:
    dead = labelling.start("out", "dead", "--claim-seconds", "20")
    waiting(lambda: proxy.count(PART) >= 1, "the first part")
    dead.kill()
    dead.communicate()
    left = 24 - len(bucket.assert_finished_facts("out"))
    process = labelling.start("out", "next")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "waiting for run dead, which holds" in said
    assert "took over the claim of run dead, which fell silent" in said
    assert Counter(row["run_id"] for row in bucket.assert_finished_facts("out"))["next"] == left
    assert labelling.run("out", "dead")["labelled_elsewhere"] == left
    assert len(bucket.assert_finished_facts("out")) == 24


def test_an_image_replaced_or_deleted_while_the_run_is_on(labelling, proxy, bucket) -> None:
    moved: list[str] = []

    def move(exchange: Exchange) -> None:
        """At the first read: replace one image that has not been asked for, and delete another."""
        asked = {request.path for request in proxy.seen}
        unread = [key for key in bucket.images if f"/{bucket.name}/{key}" not in asked]
        moved.extend([unread[-1], unread[-2]])
        other = bucket.read(bucket.images[0])
        bucket.client.put_object(Bucket=bucket.name, Key=moved[0], Body=other)
        bucket.client.delete_object(Bucket=bucket.name, Key=moved[1])
        pass_on(exchange)

    def decide(request: Request):
        first = request.matches(READ) and sum(seen.matches(READ) for seen in proxy.seen) == 1
        return move if first else pass_on

    proxy.decide = decide
    summary = labelling.run("out", "r1", "--fetch-threads", "1")
    assert (summary["review"], summary["failed"], summary["reasons"]["storage"]) == (23, 1, 1)
    rows = {row["image_uri"]: row for row in bucket.assert_finished_facts("out")}
    replaced, deleted = (rows[f"s3://{bucket.name}/{key}"] for key in moved)
    now = bucket.client.head_object(Bucket=bucket.name, Key=moved[0])
    assert (replaced["image_etag"], replaced["image_bytes"]) == (now["ETag"].strip('"'), now["ContentLength"])
    assert (deleted["decision"], deleted["reason"], deleted["mask_uri"]) == ("failed", "storage", None)
    assert "does not exist" in deleted["error"]
