"""Which accepted masks people look at all the same: a draw that anyone can repeat from a manifest row."""

from __future__ import annotations

import hashlib
import json

DRAWS = 2**64


def is_drawn(image_uri: str, image_etag: str, model_id: str, policy_id: str, audit_share: float) -> bool:
    """Whether the mask of this version of an image is audited; so is a share `audit_share` (0 to 1) of all.

    The draw is a digest and not a random number, so that a resumed run draws the same and anyone can check it
    from the manifest row. It is keyed with the policy, which those who name and fill the images do not know
    and cannot choose, and knows neither the mask nor its score. A larger share draws the same masks and more.
    """
    facts = json.dumps([model_id, image_uri, image_etag]).encode()
    digest = hashlib.blake2b(facts, digest_size=8, key=policy_id.encode(), person=b"segpipe audit").digest()
    return int.from_bytes(digest) < audit_share * DRAWS
