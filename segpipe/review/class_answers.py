"""What people said of masks under policies that promise something about classes, read from OUTPUT's views.

Left out is what says nothing of a policy's own decisions: masks of runs that all went to review, and of runs
whose accepted masks had no chance to be drawn.

For masks in review that people have not seen others may stand, which a queue has drawn at random: see
class_audit. A frame is what the first queue that drew any mask of a night drew from, of the parts that one
queue was the first to see: its order had chosen none of them. How many of a frame are drawn is chance; given
that, which ones are is a simple random sample, so those that are stand for all. Which queue it is depends on
its record alone and on no answer. A mask that has left the queue since counts by itself, and so does, beside
the frame it may have been in, one that somebody has decided without any queue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import duckdb

from segpipe.manifests.queues import Selected
from segpipe.manifests.reviews import ITEM_ID
from segpipe.review.class_audit import ClassAnswers, MaskAnswer, Unseen

# Over the views and the tables that the audit registers.
_DECIDED = """
    CREATE TEMP VIEW decided_by_policy AS
    SELECT coalesce(f.family, l.policy_id) AS family, coalesce(n.certificate, '') AS certificate, l.policy_id,
        l.labeled_at, epoch_us(l.labeled_at) // 86400000000 AS day, l.decision, l.audit, l.class_fractions,
        coalesce(l.inclusion_probability, 1) AS share, l.image_width::BIGINT * l.image_height AS pixels,
        r.verdict, r.final_class_pixels, p.since, q.drawn_by, q.chosen_by,
        l.image_uri, l.image_etag, l.model_id
    FROM (SELECT *, CASE WHEN decision = 'review' THEN $item_id END AS item_id FROM labels) l
    LEFT JOIN places q USING (item_id) LEFT JOIN seen_parts p USING (run_id, shard)
    LEFT JOIN families f USING (policy_id) LEFT JOIN names n USING (policy_id, image_uri)
    LEFT JOIN reviews r ON (r.image_uri, r.image_etag, r.model_id, r.draft_mask_sha256)
        = (l.image_uri, l.image_etag, l.model_id, l.mask_sha256)
    LEFT JOIN cutoffs c ON (c.family, c.certificate)
        = (coalesce(f.family, l.policy_id), coalesce(n.certificate, ''))
    WHERE l.reason IN ('confident', 'low_confidence', 'audit')
        AND (c.cutoff IS NULL OR l.labeled_at < c.cutoff)
        AND l.run_id NOT IN (
            SELECT run_id FROM labels WHERE decision = 'accepted' AND inclusion_probability = 0)"""
_IN_REVIEW = """
    CREATE TEMP VIEW in_review AS
    WITH sampled AS (
        SELECT *, min(drawn_by) OVER (PARTITION BY family, certificate, day, since) AS sample
        FROM decided_by_policy WHERE decision = 'review'
    ), framed AS (
        SELECT *, coalesce(drawn_by = sample, false) AS is_drawn,
            sample IS NOT NULL AND since IS NOT NULL AND (is_drawn OR (
                coalesce(chosen_by > sample, true) AND (verdict IS NOT NULL OR (
                    EXISTS (FROM latest t WHERE (t.image_uri, t.image_etag, t.model_id)
                        = (s.image_uri, s.image_etag, s.model_id))
                    AND NOT EXISTS (FROM reviews o WHERE o.final_mask_uri IS NOT NULL
                        AND (o.image_uri, o.image_etag) = (s.image_uri, s.image_etag)))))) AS in_frame
        FROM sampled s
    )
    SELECT *, CASE
        WHEN is_drawn THEN (count(*) FILTER (in_frame) OVER frame) / (count(*) FILTER (is_drawn) OVER frame)
        WHEN in_frame AND (verdict IS NULL OR coalesce(drawn_by, chosen_by) IS NOT NULL) THEN 0
        ELSE 1 END AS stands_for
    FROM framed WINDOW frame AS (PARTITION BY family, certificate, day, since)"""
_AUDITED = """
    SELECT *, 1::DOUBLE AS stands_for, false AS is_drawn FROM decided_by_policy
    WHERE list_contains($policies, policy_id) AND verdict IS NOT NULL AND decision = 'accepted' AND audit
    ORDER BY labeled_at"""
_REVIEWED = """
    FROM in_review WHERE list_contains($policies, policy_id) AND verdict IS NOT NULL ORDER BY labeled_at"""
_UNSEEN = """
    SELECT family, certificate, day, count(*) FILTER (verdict IS NULL) AS masks,
        coalesce(sum(stands_for) FILTER (verdict IS NULL), 0) AS stand_for,
        count(*) FILTER (verdict IS NULL AND NOT in_frame) AS alone,
        count(*) FILTER (in_frame) AS framed,
        count(*) FILTER (in_frame AND verdict IS NULL AND NOT is_drawn) AS stood_for
    FROM in_review WHERE list_contains($policies, policy_id) GROUP BY ALL"""


def read_class_answers(
    connection: duckdb.DuckDBPyConnection, policies: Sequence[str], selected: Selected
) -> dict[tuple[str, str], ClassAnswers]:
    """By the family that audits count under and the group with a certificate of its own.

    Masks count up to the oldest open audit. `selected` is what queues have drawn.
    """
    connection.register("places", selected.places())
    connection.register("seen_parts", selected.parts())
    connection.execute(_DECIDED.replace("$item_id", ITEM_ID))
    connection.execute(_IN_REVIEW)
    answers: defaultdict[tuple[str, str], list[MaskAnswer]] = defaultdict(list)
    for sql in (_AUDITED, _REVIEWED):
        for row in _rows(connection, sql, policies):
            answers[row["family"], row["certificate"]].append(_answer(row))
    unseen: defaultdict[tuple[str, str], dict[date, Unseen]] = defaultdict(dict)
    for row in _rows(connection, _UNSEEN, policies):
        counts = {name: row[name] for name in ("masks", "stand_for", "alone", "framed", "stood_for")}
        unseen[row["family"], row["certificate"]][_night(row)] = Unseen(**counts)
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
    return MaskAnswer(_night(row), share, true, shown, row["stands_for"], row["is_drawn"])
