"""What people said of masks under policies that promise something about classes, read from OUTPUT's views.

Left out is what says nothing of a policy's own decisions: masks of runs that all went to review, and of runs
whose accepted masks had no chance to be drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import duckdb

from segpipe.review.class_audit import ClassAnswers, MaskAnswer

# Over the views and the tables that the audit registers.
_DECIDED = """
    CREATE TEMP VIEW decided_by_policy AS
    SELECT coalesce(f.family, l.policy_id) AS family, coalesce(n.certificate, '') AS certificate, l.policy_id,
        l.labeled_at, epoch_us(l.labeled_at) // 86400000000 AS day, l.decision, l.audit, l.class_fractions,
        coalesce(l.inclusion_probability, 1) AS share, l.image_width::BIGINT * l.image_height AS pixels,
        r.verdict, r.final_class_pixels
    FROM labels l LEFT JOIN families f USING (policy_id) LEFT JOIN names n USING (policy_id, image_uri)
    LEFT JOIN reviews r ON (r.image_uri, r.image_etag, r.model_id, r.draft_mask_sha256)
        = (l.image_uri, l.image_etag, l.model_id, l.mask_sha256)
    LEFT JOIN cutoffs c ON (c.family, c.certificate)
        = (coalesce(f.family, l.policy_id), coalesce(n.certificate, ''))
    WHERE l.reason IN ('confident', 'low_confidence', 'audit')
        AND (c.cutoff IS NULL OR l.labeled_at < c.cutoff)
        AND l.run_id NOT IN (
            SELECT run_id FROM labels WHERE decision = 'accepted' AND inclusion_probability = 0)"""
_ANSWERS = """
    FROM decided_by_policy
    WHERE list_contains($policies, policy_id) AND verdict IS NOT NULL AND (decision = 'review' OR audit)
    ORDER BY labeled_at"""
_UNSEEN = """
    SELECT family, certificate, day, count(*) AS masks FROM decided_by_policy
    WHERE list_contains($policies, policy_id) AND verdict IS NULL AND decision = 'review' GROUP BY ALL"""


def read_class_answers(
    connection: duckdb.DuckDBPyConnection, policies: Sequence[str]
) -> dict[tuple[str, str], ClassAnswers]:
    """By the family that audits count under and the group with a certificate of its own.

    Masks count up to the oldest open audit.
    """
    if not policies:
        return {}
    connection.execute(_DECIDED)
    answers: defaultdict[tuple[str, str], list[MaskAnswer]] = defaultdict(list)
    for row in _rows(connection, _ANSWERS, policies):
        answers[row["family"], row["certificate"]].append(_answer(row))
    unseen: defaultdict[tuple[str, str], dict[date, int]] = defaultdict(dict)
    for row in _rows(connection, _UNSEEN, policies):
        unseen[row["family"], row["certificate"]][_night(row)] = row["masks"]
    return {name: ClassAnswers(answers[name], unseen[name]) for name in [*answers, *unseen]}


def _rows(connection: duckdb.DuckDBPyConnection, sql: str, policies: Sequence[str]) -> list[dict[str, Any]]:
    return connection.sql(sql, params={"policies": policies}).to_arrow_table().to_pylist()


def _night(row: Mapping[str, Any]) -> date:
    return date(1970, 1, 1) + timedelta(row["day"])


def _answer(row: Mapping[str, Any]) -> MaskAnswer:
    fractions, pixels = row["class_fractions"], row["pixels"]
    shown = None if fractions is None or pixels is None else [round(part * pixels) for part in fractions]
    # An earlier version counted no classes, but who left a mask as it was says that its classes are right.
    true = shown if row["verdict"] == "accepted" else row["final_class_pixels"]
    share = row["share"] if row["decision"] == "accepted" else None
    return MaskAnswer(_night(row), share, true, shown)
