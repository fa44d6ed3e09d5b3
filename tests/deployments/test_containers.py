"""Container and cluster files, as far as they can be checked without an engine or a cluster."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = ROOT / "deployments"
DOCKERFILE = DEPLOYMENTS / "containers" / "Dockerfile"
KUBERNETES_VERSION = "1.30"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOYMENTS / "containers" / "compose.yaml").read_text()))


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def test_the_dockerfile_has_no_lint() -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout == ""


def test_the_image_has_the_tested_torch_and_what_it_copies_reaches_the_build() -> None:
    text = DOCKERFILE.read_text()
    assert f"ARG TORCH_VERSION={pinned('torch')}" in text
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for name in line.split()]
    assert copied
    for name in copied:
        assert (ROOT / name).exists()
        assert name in let_through


def test_no_file_with_secrets_reaches_the_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert any(fnmatch.fnmatch("deployments/containers/.env", pattern) for pattern in ignored)
    assert (
        subprocess.run(["git", "check-ignore", "-q", "deployments/containers/.env"], cwd=ROOT).returncode == 0
    )


def test_every_variable_of_the_compose_file_is_explained_in_the_example() -> None:
    text = (DEPLOYMENTS / "containers" / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    example = (DEPLOYMENTS / "containers" / "example.env").read_text()
    assert used - {"SEGPIPE_IMAGE"} == set(re.findall(r"^(\w+)=", example, re.MULTILINE))


def test_services_wait_for_what_exists_and_listen_on_loopback(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for service in services.values():
        for needed, condition in service.get("depends_on", {}).items():
            assert needed in services
            healthy = condition["condition"] == "service_healthy"
            assert not healthy or "healthcheck" in services[needed]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"]
    assert services["s3"]["image"] == f"motoserver/moto:{pinned('moto')}"


@pytest.mark.parametrize("service", ["server", "worker"])
def test_the_commands_know_their_options(compose: dict[str, Any], service: str) -> None:
    command = compose["services"][service]["command"]
    program = [part for part in command[:3] if not part.startswith("-")]
    done = subprocess.run(
        [sys.executable, "-m", *program, "--help"], capture_output=True, text=True, check=True
    )
    for option in [part for part in command if part.startswith("--")]:
        assert re.search(rf"{option}\b", done.stdout), option


def test_the_registration_names_what_is_there(compose: dict[str, Any]) -> None:
    command = compose["services"]["register"]["command"][-1]
    assert "python -m deployments.register --ui-url" in command
    (file,) = re.findall(r"--prefect-file (\S+)", command)
    assert (ROOT / file).exists()


def test_the_worker_of_the_cluster_is_valid() -> None:
    for resource in yaml.safe_load_all((DEPLOYMENTS / "kubernetes" / "worker.yaml").read_text()):
        kubernetes_validate.validate(resource, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_pod_made_by_the_template_is_valid(gpus: int) -> None:
    template = json.loads((DEPLOYMENTS / "kubernetes" / "work-pool.json").read_text())
    WorkPoolCreate(name="segpipe", type="kubernetes", base_job_template=template)  # placeholders are defined
    properties = template["variables"]["properties"]
    defaults = {name: one["default"] for name, one in properties.items() if one.get("default") is not None}
    given = {
        "name": "label-s3-raw",
        "command": ["prefect", "flow-run", "execute"],
        "env": [{"name": "PREFECT_API_URL", "value": "http://server/api"}],
        "labels": {"app": "segpipe"},
        "gpus": gpus,
    }
    job = apply_values(template["job_configuration"], defaults | given)["job_manifest"]
    kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
    assert container["envFrom"] == [{"secretRef": {"name": "segpipe"}}]
    assert pod["terminationGracePeriodSeconds"] >= 30
    assert pod["securityContext"]["runAsNonRoot"]
