"""The file for KubeRay: its pods fit Kubernetes, its own kind KubeRay, it names the Ray that is pinned, and
no secret is in it."""

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


def test_its_own_kind_has_the_fields_that_kuberay_knows() -> None:
    """Names and bounds as in KubeRay's types of ray.io/v1, of which a cluster refuses or drops others."""
    assert (CLUSTER["apiVersion"], CLUSTER["kind"]) == ("ray.io/v1", "RayCluster")
    assert CLUSTER.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert re.fullmatch(r"[a-z][-a-z0-9]{0,48}[a-z0-9]", CLUSTER["metadata"]["name"])  # the operator's rule
    assert CLUSTER["spec"].keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    head, *workers = GROUPS
    pod = {"rayStartParams", "template"}
    assert head.keys() == pod
    for group in workers:
        assert group.keys() == pod | {"groupName", "replicas", "minReplicas", "maxReplicas"}
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert all(group["template"].keys() == {"spec"} for group in GROUPS)


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
