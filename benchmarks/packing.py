"""Whether packing a shard's masks into one object would pay: objects a second against an S3 server.

    python benchmarks/packing.py --bucket NAME [--masks 2048]

Writes masks of 7 KB (street scenes of 480x360) with 16 writers, each mask as its own object and then 256 to
an object. The server is the one that AWS_ENDPOINT_URL names; the bucket must exist.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from machine import write_results

from segpipe import storage

MASK_BYTES, WRITERS, SHARD_MASKS = 7_000, 16, 256
INFERENCE_RATES = (20, 1_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--masks", type=int, default=2048)
    parser.add_argument("--server", default="S3 server", help="what the server is, for the results file")
    arguments = parser.parse_args()
    root = f"s3://{arguments.bucket}/packing-{uuid4().hex[:8]}"
    single = _measure(f"{root}/single", MASK_BYTES, arguments.masks)
    packed = _measure(f"{root}/packed", MASK_BYTES * SHARD_MASKS, arguments.masks // SHARD_MASKS * 4)
    figures = {
        "server": arguments.server,
        "single": single,
        "packed": packed | {"masks_per_second": packed["objects_per_second"] * SHARD_MASKS},
        "ratio": packed["objects_per_second"] * SHARD_MASKS / single["objects_per_second"],
        "share_of_one_core_at": {
            f"{rate} images/s": rate * single["cpu_seconds_per_object"] for rate in INFERENCE_RATES
        },
    }
    for name, value in figures.items():
        print(f"{name:22} {value}")
    write_results("packing", figures)


def _measure(root: str, size: int, n_objects: int) -> dict[str, float]:
    data = os.urandom(size)
    storage.put(f"{root}/warm", data)
    started, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda number: storage.put(f"{root}/{number}", data), range(n_objects)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"objects_per_second": n_objects / seconds, "cpu_seconds_per_object": cpu / n_objects}


if __name__ == "__main__":
    main()
