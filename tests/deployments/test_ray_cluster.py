"""The file for KubeRay: its pods fit Kubernetes, it names the Ray that is pinned, and no secret is in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = yaml.safe_load((ROOT / "deployments/kubernetes/ray.yaml").read_text())
GROUPS = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.get("groupName", "head"))
def test_its_pods_fit_kubernetes_schemas(group: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": group["template"]["spec"]}
    kubernetes_validate.validate(pod, "1.33", strict=True)
    assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_it_is_of_the_version_that_is_pinned_and_asks_for_a_token() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    assert CLUSTER["spec"]["rayVersion"] == pinned[1]
    for group in GROUPS:
        (container,) = group["template"]["spec"]["containers"]
        given = {one["name"]: one for one in container["env"]}
        assert given["RAY_AUTH_MODE"]["value"] == "token"
        assert given["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert "secretKeyRef" in given["AWS_SECRET_ACCESS_KEY"]["valueFrom"]
