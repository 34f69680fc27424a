"""A child of the head's supervisor that asks Ray what every node is doing.

    python -P -m fewscan.slurm.ray_watch ADDRESS FILE

Writes, every few seconds, `{job: {"status": …, "idle_s": …}}`. Here and in `ray_drain`, in
processes of their own, Ray is imported; the supervisor never does.
"""

import sys
import time
from pathlib import Path
from typing import Any

from fewscan.slurm.ray_node import JOB_LABEL
from fewscan.storage.atomic import write_json

INTERVAL_S = 2.0


def nodes(client: Any) -> dict[str, Any]:
    """Ray's nodes by job: id, status (RUNNING, IDLE, DRAINING, DEAD) and idle seconds."""
    from ray.core.generated import autoscaler_pb2

    reply = autoscaler_pb2.GetClusterResourceStateReply()
    reply.ParseFromString(client.get_cluster_resource_state())
    found = {}
    for node in reply.cluster_resource_state.node_states:
        status = autoscaler_pb2.NodeStatus.Name(node.status)
        if JOB_LABEL in node.labels and status != "DEAD":
            idle_s = node.idle_duration_ms / 1000
            found[node.labels[JOB_LABEL]] = {
                "node_id": node.node_id.hex(),
                "status": status,
                "idle_s": idle_s,
            }
    return found


def main(address: str, file: Path) -> None:
    """Write until killed."""
    import ray

    client = ray._raylet.GcsClient(address=address)
    while True:
        write_json(file, nodes(client))
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
