"""Whether the answers that grown policies rest on are still there."""

from __future__ import annotations

from collections.abc import Iterable

import duckdb

from segpipe.confidence.policy import Policy
from segpipe.manifests.drawn import counted_draws
from segpipe.manifests.findings import Findings

TABLE = """
    CREATE TABLE drawn (policy_id VARCHAR, labeled_at TIMESTAMPTZ, image_uri VARCHAR, image_etag VARCHAR,
        model_id VARCHAR, draft_mask_sha256 VARCHAR)"""
ADD_ROWS = """
    INSERT INTO drawn
    SELECT policy_id, labeled_at, image_uri, image_etag, model_id, mask_sha256 FROM $counted""".replace(
    "$counted", counted_draws("new")
)
_ANSWERED = """
    SELECT count(*)
    FROM drawn SEMI JOIN review_parts USING (image_uri, image_etag, model_id, draft_mask_sha256)
    WHERE list_contains($family, policy_id)
        AND labeled_at <= coalesce(TRY_CAST($until AS TIMESTAMPTZ), 'infinity')"""


def check_evidence(
    grown: Iterable[Policy], kept: Iterable[Policy], connection: duckdb.DuckDBPyConnection, found: Findings
) -> None:
    """Find each grown policy with fewer answers up to the last that it counted; over TABLE and review_parts.

    Never too few by chance: answers are changed and added, and none is ever taken back.
    """
    grown, kept = list(grown), list(kept)
    for policy in grown:
        growth = policy.growth
        assert growth is not None  # as in all that have grown
        assert growth.evidence is not None
        family = [one.policy_id for one in (*kept, *grown) if one.family == policy.family]
        parameters = {"family": family, "until": growth.evidence.until}
        ((there,),) = connection.execute(_ANSWERED, parameters).fetchall()
        if there < growth.evidence.drawn:
            found.add(
                "review",
                f"policies/{policy.family}, number {growth.number}",
                f"the policy stands on {growth.evidence.drawn} answers, {there} are there: put the parts of "
                "reviews/ back, or run segpipe review pull",
            )
