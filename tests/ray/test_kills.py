"""Workers and drivers that are killed, frozen, told to stop: rows as planned, none doubled, digests true."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segpipe import storage
from segpipe.config import VerifySettings
from segpipe.errors import RunError
from segpipe.manifests.store import read_manifest
from segpipe.manifests.verification import verify

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])
PROCESS_SECONDS = 240


def assert_whole(bench: Any) -> None:
    rows = read_manifest(bench.output).to_pylist()
    assert sorted(row["image_uri"] for row in rows) == bench.uris
    assert verify(bench.output, VerifySettings()).findings == {}


def taken(bench: Any) -> list[int]:
    """The processes that have followed an order."""
    return [int(path.name.rpartition("-")[2]) for path in bench.orders.glob("taken-*")]


def order(bench: Any, *names: str) -> None:
    for name in names:
        (bench.orders / name).touch()


def test_a_worker_that_dies_in_the_middle_of_a_shard_is_replaced(by_ray) -> None:
    order(by_ray, "kill-1", "kill-2")
    assert by_ray.label().review == 24
    assert len(taken(by_ray)) == 2
    assert_whole(by_ray)


def test_a_shard_that_kills_every_worker_ends_the_run_and_says_so(by_ray) -> None:
    order(by_ray, *(f"kill-{number}" for number in range(9)))
    with pytest.raises(RunError, match=r"was lost 3 times.*resume with the same run id"):
        by_ray.label(workers="1")
    for left in by_ray.orders.glob("kill-*"):
        left.unlink()
    assert by_ray.label(workers="1").review == 24
    assert_whole(by_ray)


def test_a_frozen_worker_is_given_up_and_writes_nothing_when_it_thaws(by_ray) -> None:
    order(by_ray, "stop-1")
    assert by_ray.label().review == 24
    (frozen,) = taken(by_ray)
    before = _masks(by_ray)
    if _is_there(frozen):
        os.kill(frozen, signal.SIGCONT)
        deadline = time.monotonic() + 60
        while _is_there(frozen):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert _masks(by_ray) == before
    assert_whole(by_ray)


def _masks(bench: Any) -> dict[str, tuple[float, bytes]]:
    """When each was written, and what."""
    files = [path for path in Path(bench.output, "masks").rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime, path.read_bytes()) for path in files}


def _is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


DRIVER = """
import sys
from brightness import Brightness, served
from pathlib import Path
from segpipe.config import LabelSettings
from segpipe.errors import RunError
from segpipe.labeling.run import label_source
from segpipe.stopping import StoppedError, stop_on_signals
source, output, orders, settings = sys.argv[1:]
settings, model = LabelSettings.model_validate_json(settings), served(Path(orders))
try:
    with stop_on_signals(lambda status: print("cut short", flush=True)):
        label_source(source, output, Brightness(None, orders), settings, "r1", served=model)
except StoppedError as stop:
    print("stopped in order", flush=True)
    sys.exit(stop.status)
except RunError as error:
    print("RunError:", error, flush=True)
    sys.exit(1)
"""


@pytest.fixture
def driver() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """(bench) -> a run in a process of its own, which starts its own Ray."""
    started: list[subprocess.Popen[str]] = []

    def start(bench: Any, **environment: str) -> subprocess.Popen[str]:
        settings = bench.settings.model_copy(update={"claim_seconds": 30}).model_dump_json()
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, bench.source, bench.output, str(bench.orders), settings],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"PYTHONPATH": PATHS, "RAY_worker_niceness": "0"} | environment,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def _wait_for_a_part(bench: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PROCESS_SECONDS
    while not list(Path(bench.output).rglob("*.parquet"))[1:]:  # the plan is one
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_drivers_run_is_resumed_by_another(bench, driver) -> None:
    run = bench("ray")
    order(run, "slow-1")
    process = driver(run)
    _wait_for_a_part(run, process)
    process.kill()
    process.wait()
    done = read_manifest(run.output).num_rows
    assert 0 < done < 24
    again = driver(run)
    said, _ = again.communicate(timeout=PROCESS_SECONDS)
    assert again.returncode == 0, said
    assert_whole(run)


def test_a_driver_that_is_told_to_stop_ends_its_workers_and_lets_the_next_one_in(bench, driver) -> None:
    run = bench("ray")
    order(run, "slow-1")
    process = driver(run)
    _wait_for_a_part(run, process)
    process.terminate()
    said, _ = process.communicate(timeout=PROCESS_SECONDS)
    assert (process.returncode, "stopped in order" in said) == (143, True), said
    (claim,) = [found.uri for found in storage.list_objects(f"{run.output}/claims")]
    assert b'"released": true' in storage.read_bytes(claim)
    assert read_manifest(run.output).num_rows < 24
    again = driver(run)
    said, _ = again.communicate(timeout=PROCESS_SECONDS)
    assert again.returncode == 0, said
    assert_whole(run)


@pytest.mark.parametrize(
    "settings", [{"worker_gpus": 1.0}, {"device": "cuda"}, {"worker_gpus": 0.25, "device": "cuda"}]
)
def test_a_gpu_that_is_not_there_is_said_before_a_worker_starts(by_ray, settings) -> None:
    with pytest.raises(RunError, match=r"GPUs and the cluster has 0.*--device cpu"):
        by_ray.label(**settings)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://there:10001", "run segpipe on a node of the cluster"),
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1 can be joined"),
        ("somewhere", "RAY_ADDRESS is somewhere, not HOST:PORT"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_said_in_one_line(bench, driver, address: str, said: str) -> None:
    process = driver(bench("ray"), RAY_ADDRESS=address)
    words, _ = process.communicate(timeout=PROCESS_SECONDS)
    assert process.returncode == 1
    assert "RunError: " in words
    assert said in words


CLUSTER = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
print(cluster.address, cluster.head_node.all_processes["gcs_server"][0].process.pid, flush=True)
input()
cluster.shutdown()
"""


def test_a_token_that_is_wrong_is_said_with_the_remedy(bench, driver) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=os.environ | token,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as cluster:
        assert cluster.stdout
        address = cluster.stdout.readline().split()[0]
        other = token | {"RAY_ADDRESS": address, "RAY_AUTH_TOKEN": "fedcba9876543210" * 2}
        process = driver(bench("ray"), **other)
        words, _ = process.communicate(timeout=PROCESS_SECONDS)
        cluster.communicate("over\n", timeout=PROCESS_SECONDS)
    assert process.returncode == 1
    assert "RunError: no Ray cluster" in words, words
    assert "RAY_AUTH_TOKEN_PATH has to name its token" in words


def test_a_run_whose_head_is_killed_ends_in_one_line_and_is_resumed_on_another_cluster(bench, driver) -> None:
    run = bench("ray", images=48)
    order(
        run, *(f"slow-{number:02d}" for number in range(40))
    )  # 2 s for two images: longer than the head is waited for
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env=os.environ | {"PYTHONPATH": PATHS, "RAY_worker_niceness": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as cluster:
        assert cluster.stdout
        address, head = cluster.stdout.readline().split()
        process = driver(run, RAY_ADDRESS=address)
        _wait_for_a_part(run, process)
        os.kill(int(head), signal.SIGKILL)
        words, _ = process.communicate(timeout=PROCESS_SECONDS)
        cluster.communicate("over\n", timeout=PROCESS_SECONDS)
    assert process.returncode == 1
    assert f"RunError: the head of the Ray cluster, {address}, has not answered" in words
    assert "resume with the same run id" in words.splitlines()[-1]
    for path in run.orders.glob("slow-*"):
        path.unlink()
    again = driver(run)
    said, _ = again.communicate(timeout=PROCESS_SECONDS)
    assert again.returncode == 0, said
    assert_whole(run)
