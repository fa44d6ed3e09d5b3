"""What fails for good is a row that waits for a change or the user; a run where too much failed says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from segpipe import storage
from segpipe.errors import ArchivedError, DeniedError, RunError, StorageError
from segpipe.labeling.giving_up import require_few_failures
from segpipe.labeling.run import finish_run, label_run, label_source, start_run
from segpipe.labeling.run_record import load_plan
from segpipe.manifests.query import query
from segpipe.manifests.store import read_manifest

KINDS = {"denied": DeniedError, "archived": ArchivedError}


@dataclass
class Refusals:
    """URIs that storage refuses to read, and what it raises; asked counts what was asked for."""

    errors: dict[str, StorageError] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Refusals:
    found, read = Refusals(), storage.read

    def refusing(uri: str, *more: int) -> storage.Blob:
        found.asked[uri] += 1
        if uri in found.errors:
            raise found.errors[uri]
        return read(uri, *more)

    monkeypatch.setattr(storage, "read", refusing)
    return found


def reasons(output: str) -> Counter[str]:
    return Counter(read_manifest(output)["reason"].to_pylist())


@pytest.mark.parametrize("reason", ["denied", "archived"])
def test_a_lasting_refusal_of_one_object_is_a_row_and_the_run_goes_on_behind_it(
    source, output, settings, make_labeler, picture, refusals, reason: str
) -> None:
    uris = [f"{source}/{number:02d}.png" for number in range(80)]
    for number, uri in enumerate(uris):
        storage.put(uri, picture(number))
    refusals.errors = {uri: KINDS[reason](f"{uri} is refused; ask for it") for uri in uris[:70]}
    summary = label_source(source, output, make_labeler(), settings)
    assert (summary.review, summary.failed, summary.reasons[reason]) == (10, 70, 70)
    found = query(output, f"SELECT * FROM failures WHERE image_uri = '{uris[0]}'").to_pylist()[0]
    listed = {item.uri: item for item in storage.list_objects(source)}[uris[0]]
    assert (found["decision"], found["reason"]) == ("failed", reason)
    assert (found["image_etag"], found["image_bytes"]) == (listed.etag, listed.size)
    assert found["error"] == f"{uris[0]} is refused; ask for it"


def test_the_next_plan_leaves_a_denied_image_alone_until_it_changes(
    source, output, settings, make_labeler, fill, refusals, picture
) -> None:
    uris = fill(source, 3)
    refusals.errors = {uri: DeniedError("no") for uri in uris[:2]}
    label_source(source, output, make_labeler(), settings)
    again = label_source(source, output, make_labeler(), settings)
    assert (again.planned, again.already_done, refusals.asked[uris[0]]) == (0, 3, 1)
    storage.put(uris[0], picture(3, 8, 8))
    refusals.errors = {}
    assert label_source(source, output, make_labeler(), settings).planned == 1
    assert query(output, "FROM failures").num_rows == 1


@pytest.mark.parametrize(
    ("retry", "tried", "left"),
    [
        ((), 1, {"denied", "unreadable"}),
        (("denied",), 2, {"unreadable"}),
        (("unreadable",), 2, {"denied"}),
        (("denied", "unreadable"), 3, set()),
        (("archived",), 1, {"denied", "unreadable"}),
    ],
)
def test_what_failed_is_tried_again_for_the_reasons_given_and_always_after_storage_failed(
    source, output, settings, make_labeler, fill, refusals, picture, monkeypatch, retry, tried, left
) -> None:
    denied, down, damaged, _ = fill(source, 4)
    good = storage.read_bytes(damaged)
    refusals.errors = {denied: DeniedError("no"), down: StorageError("no answer")}
    etag = {item.uri: item.etag for item in storage.list_objects(source)}[damaged]
    with monkeypatch.context() as patch:
        read, torn = storage.read, storage.Blob(good[:20], etag)
        patch.setattr(storage, "read", lambda uri, *more: torn if uri == damaged else read(uri, *more))
        label_source(source, output, make_labeler(), settings)
    assert reasons(output) == {"denied": 1, "storage": 1, "unreadable": 1, "no_policy": 1}
    refusals.errors = {}
    again = label_source(source, output, make_labeler(), settings.model_copy(update={"retry": retry}))
    assert (again.planned, again.retried, again.review) == (tried, tried, tried)
    assert set(query(output, "SELECT reason FROM failures")["reason"].to_pylist()) == left


def test_what_failed_last_decides_whether_a_refused_image_is_tried_again(
    source, output, settings, make_labeler, fill, refusals
) -> None:
    uris = fill(source, 1)
    retrying = settings.model_copy(update={"retry": ("denied",)})
    for error, asked, planned in [
        (DeniedError("no"), settings, 1),
        (DeniedError("no"), settings, 0),
        (StorageError("no answer"), retrying, 1),
        (DeniedError("no"), settings, 1),  # storage had failed last, which every plan tries again
        (DeniedError("no"), settings, 0),
    ]:
        refusals.errors = {uris[0]: error}
        assert label_source(source, output, make_labeler(), asked).planned == planned


def test_an_archived_object_is_labelled_once_the_listing_gives_it_a_class_that_can_be_read(
    s3_bucket: str, settings, make_labeler, picture
) -> None:
    import boto3

    s3, source, output = boto3.client("s3"), f"s3://{s3_bucket}/in", f"s3://{s3_bucket}/out"
    storage.put(f"{source}/warm.png", picture(9))
    s3.put_object(Bucket=s3_bucket, Key="in/cold.png", Body=picture(10), StorageClass="GLACIER")
    for planned in (2, 0):
        assert label_source(source, output, make_labeler(), settings).planned == planned
    assert reasons(output) == {"no_policy": 1, "archived": 1}
    (failure,) = query(output, "FROM failures").to_pylist()
    assert "cold.png" in failure["error"]
    assert "restore it" in failure["error"]
    warmed = {"Bucket": s3_bucket, "Key": "in/cold.png"}
    s3.restore_object(**warmed, RestoreRequest={"Days": 1})
    assert label_source(source, output, make_labeler(), settings).planned == 0  # no listing tells of it
    s3.copy_object(CopySource=warmed, **warmed, StorageClass="STANDARD_IA")
    again = label_source(source, output, make_labeler(), settings)
    assert (again.planned, again.retried, again.review) == (1, 1, 1)


@pytest.mark.parametrize(
    ("column", "value", "planned"),
    [
        ("storage_class", "STANDARD", 1),
        ("storage_class", "GLACIER_IR", 1),
        ("storage_class", "DEEP_ARCHIVE", 0),
        ("storage_class", "INTELLIGENT_TIERING", 0),
        ("storage_class", "", 0),
        ("note", "STANDARD", 0),
    ],
)
def test_what_a_list_says_about_the_class_of_an_archived_object(
    source, output, settings, make_labeler, fill, refusals, column: str, value: str, planned: int
) -> None:
    uris = fill(source, 1)
    etag = {item.uri: item.etag for item in storage.list_objects(source)}[uris[0]]
    refusals.errors = {uris[0]: ArchivedError("cold")}
    label_source(source, output, make_labeler(), settings)
    listed = f"{source}-list.csv"
    storage.put(listed, f"uri,etag,{column}\n{uris[0]},{etag},{value}\n".encode())
    listing = settings.model_copy(update={"inventory": listed})
    assert label_source(source, output, make_labeler(), listing).planned == planned


def test_a_list_without_etags_leaves_a_denied_image_alone(
    source, output, settings, make_labeler, fill, refusals
) -> None:
    uris = fill(source, 1)
    refusals.errors = {uris[0]: DeniedError("no")}
    label_source(source, output, make_labeler(), settings)
    storage.put(f"{source}-list.csv", f"uri\n{uris[0]}\n".encode())
    listing = settings.model_copy(update={"inventory": f"{source}-list.csv"})
    assert label_source(source, output, make_labeler(), listing).planned == 0


def test_a_resumed_run_still_tries_what_it_was_planned_to_try_again(
    source, output, settings, make_labeler, fill, refusals
) -> None:
    uris = fill(source, 2)
    refusals.errors = {uris[0]: DeniedError("no")}
    label_source(source, output, make_labeler(), settings)
    start_run(source, output, make_labeler(), settings.model_copy(update={"retry": ("denied",)}), "again")
    refusals.errors = {}
    plan = load_plan(output, "again")
    assert plan is not None
    label_run(plan, make_labeler(), settings)  # the settings of the resume do not ask for it
    assert finish_run(plan).review == 1


def test_a_plan_of_an_earlier_version_tries_storage_failures_again(
    source, output, settings, make_labeler, fill, refusals, monkeypatch
) -> None:
    from segpipe.labeling import run_record

    uris = fill(source, 2)
    refusals.errors = {uris[0]: StorageError("no answer")}
    label_source(source, output, make_labeler(), settings)
    header = run_record._header
    with monkeypatch.context() as patch:
        patch.setattr(
            run_record,
            "_header",
            lambda plan: {name: value for name, value in header(plan).items() if name != "retry"},
        )
        start_run(source, output, make_labeler(), settings, "old")
    refusals.errors = {}
    plan = load_plan(output, "old")
    assert plan is not None
    assert plan.retry == ()
    label_run(plan, make_labeler(), settings)
    assert finish_run(plan).review == 1


def test_a_list_whose_object_may_not_even_be_asked_about_stops_no_plan(
    source, output, settings, make_labeler, fill, refusals, monkeypatch
) -> None:
    uris = fill(source, 2)
    label_source(source, output, make_labeler(), settings)
    listed = f"{source}-list.csv"
    storage.put(listed, f"uri,etag\n{uris[0]},another\n".encode())

    def refuse(uri: str) -> str:
        raise DeniedError(f"{uri} is denied")

    monkeypatch.setattr(storage, "etag", refuse)
    refusals.errors = {uris[0]: DeniedError("no")}
    listing = settings.model_copy(update={"inventory": listed})
    assert label_source(source, output, make_labeler(), listing).reasons == {"denied": 1}
    assert label_source(source, output, make_labeler(), listing).planned == 0


# --- the verdict at the end ---------------------------------------------------------------------------------


@pytest.fixture
def labelled(source, output, settings, make_labeler, fill, refusals) -> Callable[..., object]:
    """(good, denied, broken) -> the summary of a run over so many images of each kind."""

    def label(good: int, denied: int, broken: int):
        uris = fill(source, good + denied)
        refusals.errors = {uri: DeniedError("no") for uri in uris[good:]}
        for number in range(broken):
            storage.put(f"{source}/broken-{number}.png", b"")
        return label_source(source, output, make_labeler(), settings, "r1")

    return label


@pytest.mark.parametrize(
    ("good", "denied", "broken", "rate", "fails"),
    [
        (0, 0, 3, 0.5, True),
        (0, 3, 0, 0.5, True),
        (1, 1, 1, 0.5, True),
        (2, 1, 1, 0.5, False),  # half, and no more
        (3, 0, 1, 0.2, True),
        (3, 0, 1, 0.25, False),
        (0, 2, 1, 1.0, False),
        (1, 0, 0, 0.01, False),
    ],
)
def test_a_run_of_any_size_is_judged_by_the_share_of_its_failures(
    labelled, good: int, denied: int, broken: int, rate: float, fails: bool
) -> None:
    summary = labelled(good, denied, broken)
    if not fails:
        require_few_failures(summary, rate)
        return
    with pytest.raises(RunError, match=r"images of run r1 failed"):
        require_few_failures(summary, rate)


def test_the_verdict_is_one_line_with_shares_reasons_and_remedy(labelled) -> None:
    with pytest.raises(
        RunError,
        match=r"^3 of the 4 images of run r1 failed \(2 denied, 1 unreadable\), more than --max-failure-rate "
        r"0\.5; .*label again with --retry REASON, which tries them once more$",
    ):
        require_few_failures(labelled(1, 2, 1), 0.5)


def test_a_run_without_an_image_is_no_failure(source, output, settings, make_labeler, fill) -> None:
    fill(source, 2)
    label_source(source, output, make_labeler(), settings)
    require_few_failures(label_source(source, output, make_labeler(), settings), 0.01)
