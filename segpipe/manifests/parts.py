"""Where the committed parts of OUTPUT lie."""

from __future__ import annotations

from segpipe import storage
from segpipe.errors import NotFoundError


def manifests_root(output: str) -> str:
    """The folder that holds the parts of OUTPUT and nothing else."""
    return storage.join(output, "manifests")


def list_parts(output: str) -> list[storage.StoredObject]:
    """Every committed part of OUTPUT; empty when nothing has been labelled."""
    return list_parquet(manifests_root(output))


def list_parquet(root: str) -> list[storage.StoredObject]:
    """The Parquet objects below a folder, sorted by key; empty when the folder does not exist."""
    try:
        return [found for found in storage.list_objects(root) if found.key.endswith(".parquet")]
    except NotFoundError:
        return []
