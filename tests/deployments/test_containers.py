"""Container and cluster files, as far as no container engine is needed: lint, parse, run."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from local_stack import csrf_headers, free_port, wait_for
from postgres import PASSWORD, find_programs, postgres
from prefect.client.orchestration import PrefectClient
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.settings import Settings
from prefect_kubernetes.settings import KubernetesSettings
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration
from pydantic_settings import BaseSettings

from deployments.pool import POOL

ROOT = Path(__file__).resolve().parents[2]
CONTAINERS, KUBERNETES = ROOT / "deployments" / "containers", ROOT / "deployments" / "kubernetes"
DOCKERFILE = (CONTAINERS / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
TEMPLATE = json.loads((KUBERNETES / "work-pool.json").read_text())
MANIFESTS = [
    manifest
    for name in ("worker.yaml", "deploy.yaml")
    for manifest in yaml.safe_load_all((KUBERNETES / name).read_text())
]
PODS = [
    manifest["spec"]["template"]["spec"] for manifest in MANIFESTS if "template" in manifest.get("spec", {})
]
POD_OF_RUN = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
EXAMPLE = dict(
    line.removeprefix("#").split("=", 1)
    for line in (CONTAINERS / "env.example").read_text().splitlines()
    if re.match(r"#?[A-Z_]+=", line)
)
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)(?::?([-?])([^}]*))?\}")
# The variables that say where the login lies hold none.
NAMED_LOGIN = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
SECRET = re.compile(rf"^(?!{NAMED_LOGIN}).*(PASSWORD|SECRET|KEY|TOKEN|WEBHOOK|AUTH)")
LOGIN = "segpipe:login-of-a-test-4711"


def instruction(name: str) -> list[Any]:
    """The JSON list of the Dockerfile's last CMD, or of the command in its HEALTHCHECK."""
    flat = DOCKERFILE.replace("\\\n", " ")
    pattern = r"^CMD (\[.*\])$" if name == "CMD" else r"^HEALTHCHECK .*CMD (\[.*\])$"
    return json.loads(re.findall(pattern, flat, re.MULTILINE)[-1])


def copied() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def setting_names(kind: type[BaseSettings]) -> set[str]:
    """The environment variables of a settings class and of those nested in it."""
    names: set[str] = set()
    prefix = kind.model_config.get("env_prefix", "")
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseSettings):
            names |= setting_names(field.annotation)
        aliases = getattr(field.validation_alias, "choices", [field.validation_alias])
        names |= {f"{prefix}{name}".upper()} | {str(alias).upper() for alias in aliases if alias}
    return names


# --- image ---


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    command = [Path(sys.executable).with_name("hadolint"), CONTAINERS / "Dockerfile"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr


def test_what_the_image_copies_is_there_and_nothing_else_gets_into_the_build() -> None:
    ignored = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#"
    ]
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied())
    assert set(copied()) == let_in
    assert ignored[0] == "*"
    assert any(fnmatch("deployments/containers/.env", line.replace("**/", "*/")) for line in ignored)
    git_ignored = subprocess.run(
        ["git", "check-ignore", "deployments/containers/.env"], cwd=ROOT, capture_output=True, check=False
    )
    assert git_ignored.returncode in (0, 128)  # 128: no git checkout


def test_versions_are_those_that_were_tested() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = re.search(r"^ARG PYTHON_VERSION=(.+)$", DOCKERFILE, re.MULTILINE)
    assert python is not None
    assert f"Programming Language :: Python :: {python[1]}" in project["classifiers"]
    assert f"Python {python[1]}," in constraints.splitlines()[0]
    installs = [line for line in DOCKERFILE.splitlines() if "pip install" in line]
    assert len(installs) == 2
    assert all("-c constraints.txt" in line for line in installs)
    assert f"moto=={SERVICES['s3']['image'].partition(':')[2]}" in constraints.splitlines()
    assert re.fullmatch(r"postgres:\d+\.\d+-\w+", SERVICES["postgres"]["image"])
    assert "kubernetes" in project["optional-dependencies"]


def test_the_image_runs_as_nobody_in_particular_and_kubernetes_as_the_same() -> None:
    user = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[-1]
    for pod in [*PODS, POD_OF_RUN]:
        assert pod["securityContext"]["runAsNonRoot"]
        assert (str(pod["securityContext"]["runAsUser"]), str(pod["securityContext"]["runAsGroup"])) == user


# --- compose ---


def test_every_variable_of_compose_is_in_the_example_and_in_the_docs() -> None:
    text = (CONTAINERS / "compose.yaml").read_text()
    unset = {name for service in SERVICES.values() for name, value in environment(service) if value is None}
    used = {name for name, _, _ in VARIABLE.findall(text)} | unset
    docs = (ROOT / "docs" / "operations-containers.md").read_text()
    assert used == set(EXAMPLE)
    assert [name for name in used if f"`{name}`" not in docs] == []


def environment(service: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(service.get("environment", {}).items())


def test_every_setting_that_is_passed_exists() -> None:
    known = setting_names(Settings) | setting_names(KubernetesSettings)
    names = {name for service in SERVICES.values() for name, _ in environment(service)}
    names |= {one["name"] for pod in [*PODS, POD_OF_RUN] for one in pod["containers"][0]["env"]}
    documented = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert [name for name in names if name.startswith("PREFECT_") and name not in known] == []
    assert [name for name in names if name.startswith("SEGPIPE_") and name not in documented] == []


def test_no_secret_is_written_down() -> None:
    for service in SERVICES.values():
        for name, value in environment(service):
            assert not SECRET.search(name) or value is None or VARIABLE.fullmatch(value), name
    assert not [name for name, value in EXAMPLE.items() if SECRET.search(name) and value]
    for pod in [*PODS, POD_OF_RUN]:
        for one in pod["containers"][0]["env"]:
            assert not SECRET.search(one["name"]) or "secretKeyRef" in one["valueFrom"], one["name"]


def test_nothing_starts_without_a_login() -> None:
    asked = {"server": "PREFECT_SERVER_API_AUTH_STRING"} | dict.fromkeys(
        ("deploy", "worker"), "PREFECT_API_AUTH_STRING"
    )
    for service, name in asked.items():
        # What compose refuses to go on without.
        assert SERVICES[service]["environment"][name].startswith("${PREFECT_API_AUTH_STRING:?"), service
    for pod in PODS:
        given = {one["name"]: one for one in pod["containers"][0]["env"]}
        assert "optional" not in given["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]


def test_a_run_s_job_names_the_login_s_secret_and_does_not_hold_it() -> None:
    given = {one["name"]: one for one in PODS[0]["containers"][0]["env"]}
    named = {"name": given[f"{NAMED_LOGIN}_NAME"]["value"], "key": given[f"{NAMED_LOGIN}_KEY"]["value"]}
    assert named == given["PREFECT_API_AUTH_STRING"]["valueFrom"]["secretKeyRef"]


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_services_wait_for_what_they_need_and_can_say_that_they_are_well() -> None:
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            healthy = how["condition"] == "service_healthy"
            assert not healthy or "test" in SERVICES[needed]["healthcheck"], (name, needed)
        optional = [needed for needed in service.get("depends_on", {}) if "profiles" in SERVICES[needed]]
        assert all(service["depends_on"][needed]["required"] is False for needed in optional)
    assert SERVICES["worker"]["depends_on"]["deploy"]["condition"] == "service_completed_successfully"


# --- Kubernetes ---


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: f"{manifest['kind']}")
def test_manifests_fit_kubernetes_schemas(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_prefect_takes_the_template_and_would_refuse_a_variable_that_is_not_there() -> None:
    WorkPoolCreate(name=POOL, type="kubernetes", base_job_template=TEMPLATE)
    broken = copy.deepcopy(TEMPLATE)
    del broken["variables"]["properties"]["gpus"]
    with pytest.raises(ValueError, match="gpus"):
        WorkPoolCreate(name=POOL, type="kubernetes", base_job_template=broken)


def test_the_template_has_what_the_worker_of_this_version_expects() -> None:
    default = KubernetesWorker.get_default_base_job_template()
    assert default["variables"]["properties"].keys() <= TEMPLATE["variables"]["properties"].keys()
    assert default["job_configuration"].keys() == TEMPLATE["job_configuration"].keys()
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(TEMPLATE["variables"]["properties"])
    assert all(field["description"] for field in TEMPLATE["variables"]["properties"].values())


def job(values: dict[str, Any]) -> dict[str, Any]:
    """The Job that the worker would start."""
    server = PrefectClient("http://127.0.0.1:1/api")  # only asked for blocks, and there are none
    made = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(TEMPLATE, values, client=server)
    )
    made.env["PREFECT_API_URL"] = "http://server:4200/api"
    made._populate_env_in_manifest()
    made._populate_image_if_not_present()
    made._populate_command_if_not_present()
    made._populate_generate_name_if_not_present()
    return made.job_manifest


@pytest.mark.parametrize("gpus", [0, 1])
def test_the_job_of_a_run_fits_kubernetes_schema_and_has_its_secrets(gpus: int) -> None:
    manifest = job({"gpus": gpus, "image": "registry/segpipe:1", "storage_secret": "my-keys"})
    kubernetes_validate.validate(manifest, "1.33", strict=True)
    pod = manifest["spec"]["template"]["spec"]
    container = pod["containers"][0]
    given = {one["name"]: one for one in container["env"]}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus
    assert given["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "my-keys"
    assert given["PREFECT_API_URL"]["value"] == "http://server:4200/api"
    assert pod["terminationGracePeriodSeconds"] == 60
    assert manifest["metadata"]["namespace"] == MANIFESTS[0]["metadata"]["namespace"]


def test_manifests_and_compose_name_the_pool_that_the_deployments_use() -> None:
    prefect_file = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())
    assert {one["work_pool"]["name"] for one in prefect_file["deployments"]} == {POOL}
    for command in (instruction("CMD"), PODS[0]["containers"][0]["args"]):
        assert command[command.index("--pool") + 1] == POOL


# --- the same commands by hand ---


def command_of(service: str) -> list[str]:
    return [part.replace("$$", "$") for part in SERVICES[service].get("command", instruction("CMD"))]


def environment_of(service: str, places: dict[str, str], values: dict[str, str]) -> dict[str, str]:
    """What compose would pass, with this machine's places in place of the containers'."""
    own = {
        name: resolved(value, values) for name, value in environment(SERVICES[service]) if value is not None
    }
    for there, here in places.items():
        own = {name: value.replace(there, here) for name, value in own.items()}
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    path = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    return inherited | own | {"PATH": path, "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}


def resolved(text: str, values: dict[str, str]) -> str:
    return VARIABLE.sub(lambda found: values.get(found[1]) or (found[3] if found[2] == "-" else ""), text)


@pytest.fixture
def running() -> Iterator[ExitStack]:
    # A suite started in the background ignores SIGINT; a worker that does so too hangs on SIGTERM.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with ExitStack() as stack:
        yield stack
    signal.signal(signal.SIGINT, before)


def start(
    running: ExitStack, command: list[str], environment: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    output = running.enter_context(log.open("wb"))
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    running.callback(lambda: (process.kill(), process.wait()))
    return process


def is_well(check: list[str], places: dict[str, str]) -> bool:
    for there, here in places.items():
        check = [part.replace(there, here) for part in check]
    return subprocess.run([sys.executable, *check[1:]], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Stack:
    """The services of compose on this machine: what they are given, and where they are and write."""

    running: ExitStack
    folder: Path
    programs: Path
    database: int
    port: int
    health: int

    @property
    def places(self) -> dict[str, str]:
        """What compose's services name, and where it is here."""
        places = {"http://server:4200": f"http://127.0.0.1:{self.port}", "4200": str(self.port)}
        return places | {"8080": str(self.health), "/tmp/prefect-ui": str(self.folder / "ui")}

    def environment(self, service: str) -> dict[str, str]:
        """What compose would pass a service, and a home of its own."""
        values = EXAMPLE | {"POSTGRES_PASSWORD": PASSWORD, "SEGPIPE_TIMEZONE": "Europe/Berlin"}
        values |= {"PREFECT_API_AUTH_STRING": LOGIN, "PORT": str(self.port)}
        home = {"PREFECT_HOME": str(self.folder / "home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        return environment_of(service, self.places, values) | home

    def database_is_ready(self) -> bool:
        check = SERVICES["postgres"]["healthcheck"]["test"][1:]
        ready = [str(self.programs / check[0]), *check[1:], "--port", str(self.database)]
        return subprocess.run(ready, capture_output=True, check=False).returncode == 0

    def start_server(self) -> None:
        command = [
            part.replace("4200", str(self.port)).replace("0.0.0.0", "127.0.0.1")
            for part in command_of("server")
        ]
        hosts = {"PREFECT_SERVER_DATABASE_HOST": "127.0.0.1"}
        hosts |= {"PREFECT_SERVER_DATABASE_PORT": str(self.database)}
        hosts |= {"PREFECT_SERVER_DATABASE_NAME": "postgres"}  # as the test's server calls it
        start(self.running, command, self.environment("server") | hosts, self.folder / "server.log")
        check = SERVICES["server"]["healthcheck"]["test"][1:]
        wait_for(lambda: is_well(check, self.places), "the server", 180)

    def start_worker(self) -> subprocess.Popen[bytes]:
        port_of_health = {"PREFECT_WORKER_WEBSERVER_PORT": str(self.health)}
        environment = self.environment("worker") | port_of_health
        worker = start(self.running, command_of("worker"), environment, self.folder / "worker.log")
        wait_for(lambda: is_well(instruction("HEALTHCHECK"), self.places), "the worker", 120)
        return worker

    def run_as_deployer(self, command: list[str]) -> None:
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment("deploy"), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def client(self) -> httpx.Client:
        url, login = f"http://127.0.0.1:{self.port}/api", httpx.BasicAuth(*LOGIN.split(":"))
        return self.running.enter_context(httpx.Client(base_url=url, auth=login, timeout=30))


@pytest.mark.server
def test_the_commands_of_compose_make_a_stack_on_postgresql(running: ExitStack, tmp_path: Path) -> None:
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    stack = Stack(running, tmp_path, programs, free_port(), free_port(), free_port())
    running.enter_context(postgres(programs, stack.database))
    assert stack.database_is_ready()
    stack.start_server()
    assert not (tmp_path / "home" / "prefect.db").exists()

    for _ in range(2):  # again, as after an update
        stack.run_as_deployer(command_of("deploy"))
    client = stack.client()
    found = client.post("/deployments/filter", json={}, headers=csrf_headers(client)).json()
    prefect_file = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())
    assert {one["name"] for one in found} == {one["name"] for one in prefect_file["deployments"]}

    worker = stack.start_worker()
    pool = f"/work_pools/{POOL}"
    wait_for(lambda: client.get(pool).json()["status"] == "READY", "the pool", 60)
    site = f"http://127.0.0.1:{stack.port}"
    assert httpx.get(f"{site}/api{pool}", timeout=30).status_code == 401
    assert client.get(pool, headers={"Host": "elsewhere.example"}).status_code == 400
    assert "<title>" in httpx.get(f"{site}/", timeout=30, follow_redirects=True).text

    asked = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    worker.wait(int(SERVICES["worker"]["stop_grace_period"].removesuffix("s")))
    assert time.monotonic() - asked < 30

    create = ["work-pool", "create", "cluster", "--type", "kubernetes"]
    create += ["--base-job-template", str(KUBERNETES / "work-pool.json")]
    stack.run_as_deployer([sys.executable, "-m", "prefect", "--no-prompt", *create])
    stored = client.get("/work_pools/cluster").json()["base_job_template"]
    assert stored["job_configuration"] == TEMPLATE["job_configuration"]
