"""Whatever model.json, policy.json and a part's metadata hold: what reads them works or says one line."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from foreign_text import SHORT, changed, texts
from hypothesis import example, given
from hypothesis import strategies as st
from plain_policy import make_policy

from segpipe import storage
from segpipe.confidence.certify import BadFraction, MeanLoss
from segpipe.confidence.policy import ClassGuard, Policy, display_confidence, from_json, is_guarded, to_json
from segpipe.confidence.promise import promise
from segpipe.config import VerifySettings
from segpipe.errors import ModelError, PolicyError, SegpipeError
from segpipe.labeling.items import Legs, Threads
from segpipe.labeling.totals import read_totals, to_metadata
from segpipe.manifests.chain import Link, find_tip, link_metadata
from segpipe.manifests.schema import Row, rows_table
from segpipe.manifests.store import classes_of, part_uri, table_bytes
from segpipe.manifests.verification import verify
from segpipe.models.bundle import read_card
from tests.conftest import ROW_DEFAULTS

MODEL = json.loads((Path(__file__).parent.parent / "models/fixtures/model-0.1.json").read_text())


@SHORT
@given(texts(MODEL | {"digest": "b" * 64}))
@example(json.dumps(MODEL | {"bundle_version": "a\nb"}))
def test_model_json(text: str) -> None:
    storage.put("memory://foreign/model.json", text.encode(errors="surrogatepass"))
    try:
        spec = read_card("memory://foreign").spec
    except ModelError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most inputs are wrong, not all
        return
    assert min(spec.working_size) >= 32
    assert len(set(spec.classes)) == len(spec.classes) <= spec.ignore_index


def policy(target: BadFraction | MeanLoss) -> dict[str, Any]:
    scores = [number / 10 for number in range(60)]
    guards, confidences = [ClassGuard("car", 0, 0.1)], [[0.5]] * 60
    made = make_policy(
        scores, [0.9] * 60, "m" * 12, target, 0.9, "f" * 64, "2026-01-01", guards=guards,
        class_confidences=confidences, model_digest="m" * 64, warnings=["car has few pixels"],
    )  # fmt: skip
    return json.loads(to_json(made))


POLICIES = [policy(BadFraction(0.6, 0.1)), policy(MeanLoss(0.4))]


def resealed(content: Any) -> str:
    """With the id that belongs to it, as a forger would have it."""
    if not isinstance(content, dict):
        return json.dumps(content)
    covered = {name: value for name, value in content.items() if name not in ("policy_id", "schema_version")}
    canonical = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return json.dumps(content | {"policy_id": hashlib.sha256(canonical.encode()).hexdigest()[:12]})


@SHORT
@given(st.sampled_from(POLICIES).flatmap(lambda one: st.one_of(texts(one), changed(one).map(resealed))))
def test_policy_json(text: str) -> None:
    try:
        found = from_json(text)
    except PolicyError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert isinstance(found, Policy)
    assert 0 <= display_confidence(found, 1.0) <= 1
    assert promise(found)
    if all(guard.class_index < 4 for guard in found.guards):
        assert is_guarded(found, [0.5] * 4) in (True, False)
    assert from_json(to_json(found)) == found


METADATA = (
    to_metadata(1.5, Legs(1, 2, 3, 4, 5, 6), Threads(2, 2), None)
    | link_metadata(Link(1, None))
    | {"segpipe.schema_version": "2", "segpipe.classes": '["sky", "road"]'}
)
DRIFT = '{"n_scores": 9, "statistic": 0.1, "p_value": 0.5, "alarm": false, "false_alarm_rate": 0.01}'


def _metadata(name: str) -> st.SearchStrategy[tuple[str, str]]:
    said = DRIFT if name == "segpipe.drift" else METADATA[name]
    try:
        changes = texts(json.loads(said))
    except ValueError:
        changes = st.text()
    return changes.map(lambda text: (name, text))


@SHORT
@given(st.sampled_from(sorted(METADATA)).flatmap(_metadata), st.booleans())
def test_a_parts_metadata(change: tuple[str, str], is_left_out: bool) -> None:
    name, text = change
    metadata = METADATA | {name: text.encode(errors="replace").decode()}
    read_everywhere({key: said for key, said in metadata.items() if not (is_left_out and key == name)})


@pytest.mark.parametrize("name", ["segpipe.classes", "segpipe.drift", "segpipe.chain", "segpipe.legs"])
def test_metadata_nested_too_deeply(name: str) -> None:
    read_everywhere(METADATA | {name: "[" * 100_000})


def read_everywhere(metadata: dict[str, str]) -> None:
    table = rows_table([Row(**ROW_DEFAULTS)], ["sky", "road"]).replace_schema_metadata(metadata)
    uri = part_uri(output := "memory://foreign/output", date(2026, 1, 1), "r", 0)
    storage.put(uri, table_bytes(table))
    for read in (
        lambda: read_totals(uri),
        lambda: find_tip([uri]),
        lambda: classes_of(output),
        lambda: verify(output, VerifySettings(masks=0)),
    ):
        try:
            read()
        except SegpipeError as error:
            assert "\n" not in str(error)  # noqa: PT017
