"""The work pool that the deployments name, and its queue for what needs the networks."""

from __future__ import annotations

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkQueueFilter, WorkQueueFilterName
from prefect.workers.process import ProcessWorker

POOL = "segpipe"
COMPUTE_QUEUE = "compute"
AT_ONCE = 1  # one run has the device and most cores to itself; a second one would only share them


def make_pool(client: SyncPrefectClient) -> None:
    """Make a pool of processes with its compute queue, where they are missing; what is there stays."""
    if POOL not in {pool.name for pool in client.read_work_pools()}:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    named = WorkQueueFilter(name=WorkQueueFilterName(any_=[COMPUTE_QUEUE]))
    if not client.read_work_queues(work_pool_name=POOL, work_queue_filter=named):
        queue = client.create_work_queue(name=COMPUTE_QUEUE, work_pool_name=POOL)
        client.update_work_queue(queue.id, concurrency_limit=AT_ONCE)
