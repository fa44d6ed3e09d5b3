"""A field that comes later changes no id of what was there before (contract C13)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model

from segpipe.confidence.policy import from_json, sealed, to_json
from segpipe.digests import covered, shown
from segpipe.models.bundle import ModelCard, ModelSpec, model_digest, spec_json

FIXTURES = Path(__file__).parent
ABSENT = st.sampled_from([None, "", (), [], {}])
VALUES = st.one_of(st.integers(), st.booleans(), st.floats(allow_nan=False), st.text(), st.none())
CONTENT = st.dictionaries(st.text(min_size=1), VALUES)


@given(CONTENT, st.dictionaries(st.text(min_size=1), ABSENT))
def test_absent_later_fields_are_not_covered_and_everything_else_is(
    content: dict[str, Any], later: dict[str, Any]
) -> None:
    added = {name: value for name, value in later.items() if name not in content}
    assert covered(content | added, added.keys()) == content
    assert covered(content, ()) == content


@given(CONTENT, st.text(min_size=1), st.one_of(st.integers(), st.booleans(), st.text(min_size=1)))
def test_a_later_field_that_says_something_is_covered(
    content: dict[str, Any], name: str, value: object
) -> None:
    assert covered(content | {name: value}, {name})[name] == value


# Written by segpipe 0.1.0, whose ids these are.
OLD_POLICIES = {"bad_fraction": "2751f4fbd6d1", "mean_loss": "aba9aa9964f1", "nothing": "b972ec6c7397"}


@pytest.mark.parametrize(("kind", "policy_id"), OLD_POLICIES.items())
def test_a_policy_of_the_first_version_keeps_its_id_and_its_file(kind: str, policy_id: str) -> None:
    text = (FIXTURES / f"confidence/fixtures/policy-0.1-{kind}.json").read_text()
    policy = from_json(text)
    assert policy.policy_id == sealed(policy).policy_id == policy_id
    assert (policy.model_digest, policy.warnings) == (None, ())
    assert json.loads(to_json(policy)) == json.loads(text)


SPECS = [
    (
        ModelSpec(
            architecture="unet",
            classes=("road", "car", "sky"),
            ignore_index=255,
            working_size=(32, 48),
            mean=(0.5, 0.5, 0.5),
            standard_deviation=(0.25, 0.25, 0.25),
            shown_masks="hard",
        ),
        "c0d553b28309",
    ),
    (
        ModelSpec(
            architecture="plain",
            classes=("a", "é"),
            ignore_index=255,
            working_size=(64, 96),
            mean=(1e-05, 0.1, 0.1 + 0.2),
            standard_deviation=(1.0, 2.0, 0.25),
            shown_masks="soft",
        ),
        "d1d0ec936625",
    ),
]


@pytest.mark.parametrize(("spec", "model_id"), SPECS)
def test_a_model_of_the_first_version_keeps_its_id(spec: ModelSpec, model_id: str) -> None:
    digest = model_digest(spec, b"g", b"d")
    assert (len(digest), shown(digest)) == (64, model_id)


def test_a_model_json_of_the_first_version_is_read() -> None:
    card = ModelCard.model_validate_json((FIXTURES / "models/fixtures/model-0.1.json").read_bytes())
    assert (card.model_id, card.digest, card.spec) == ("b59f33544dcd", None, SPECS[0][0])


@given(st.one_of(ABSENT, st.integers(), st.text(min_size=1)))
def test_a_spec_of_a_later_version_has_its_old_digest_until_its_new_field_is_used(value: object) -> None:
    later = create_model("LaterSpec", __base__=ModelSpec, dropout=(Any, None))
    old = SPECS[0][0]
    new = later(**old.model_dump(), dropout=value)
    assert (spec_json(new) == spec_json(old)) == (not value and value != 0)
