"""A child of a supervisor that tells Ray that its node is being taken away.

    python -P -m fewscan.slurm.ray_drain ADDRESS JOB SECONDS FILE

FILE is made when Ray has agreed. With the reason "preemption", what fails on the node is retried
without being counted as failed. Ray ends the node by itself as soon as nothing runs there any more.
"""

import sys
import time
from pathlib import Path

from fewscan.slurm.ray_watch import nodes


def main(address: str, job: str, seconds: float, agreed: Path) -> None:
    """Drain the node of `job`; exits with Ray's reason if it is refused."""
    import ray
    from ray.core.generated import autoscaler_pb2

    client = ray._raylet.GcsClient(address=address)
    node = nodes(client).get(job)
    if node is None:
        sys.exit(f"job {job} has no node in the cluster at {address}")
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + seconds) * 1000)
    accepted, refusal = client.drain_node(node["node_id"], reason, "taken by Slurm", deadline_ms)
    if not accepted:
        sys.exit(refusal)
    agreed.touch()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
