"""A bucket of images on a real S3 server, looked at without segpipe."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq


@dataclass
class Bucket:
    """A bucket with images under raw/; looked at past the proxy and without segpipe."""

    client: Any
    name: str
    images: list[str]

    @property
    def source(self) -> str:
        return f"s3://{self.name}/raw"

    def keys(self, prefix: str) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def rows(self, output: str) -> list[dict[str, Any]]:
        parts = self.keys(f"{output}/manifests/")
        assert all(part.endswith(".parquet") for part in parts)
        return [row for part in parts for row in pq.read_table(io.BytesIO(self.read(part))).to_pylist()]

    def claim(self, output: str) -> dict[str, Any]:
        """The newest claim."""
        return json.loads(self.read(self.keys(f"{output}/claims/")[-1]))

    def assert_finished_facts(self, output: str) -> list[dict[str, Any]]:
        """At any moment: no image twice, and behind each row a mask that hashes to what the row says."""
        rows = self.rows(output)
        uris = [row["image_uri"] for row in rows]
        assert len(set(uris)) == len(uris)
        labelled = [row for row in rows if row["decision"] != "failed"]
        assert len({row["mask_uri"] for row in labelled}) == len(labelled)
        for row in labelled:
            mask = self.read(row["mask_uri"].removeprefix(f"s3://{self.name}/"))
            assert hashlib.sha256(mask).hexdigest() == row["mask_sha256"]
        return rows

    def assert_whole(self, output: str, run_ids: set[str]) -> list[dict[str, Any]]:
        """At the end also: every image labelled, one part per shard of the plans, and nothing else left."""
        rows = self.assert_finished_facts(output)
        assert sorted(row["image_uri"] for row in rows) == [f"s3://{self.name}/{key}" for key in self.images]
        assert {row["decision"] for row in rows} == {"review"}
        masks = {row["mask_uri"].removeprefix(f"s3://{self.name}/") for row in rows}
        parts = {part.rpartition("/")[2] for part in self.keys(f"{output}/manifests/")}
        assert parts == {f"{row['run_id']}-{row['shard']:05d}.parquet" for row in rows}
        records = {
            f"{output}/runs/{run_id}/{name}" for run_id in run_ids for name in ("plan.parquet", "run.json")
        }
        others = (
            masks | records | set(self.keys(f"{output}/manifests/")) | set(self.keys(f"{output}/claims/"))
        )
        assert set(self.keys(f"{output}/")) == others
        assert self.claim(output)["released"]
        assert "Uploads" not in self.client.list_multipart_uploads(Bucket=self.name)
        return rows
