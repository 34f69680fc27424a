"""`ray start` without the process that asks hosts which nobody has named.

    python -P -m fewscan.slurm.ray_start --head …

Even without a dashboard and with usage statistics off, Ray 2.60 starts the dashboard's process: it
asks the metadata addresses of three clouds where it runs, and on a cluster it tells Ray's makers
that statistics are off. No setting keeps it from that; nothing here needs the process.
"""

import sys


def leave_out_dashboard() -> None:
    """Have Ray nodes that this process starts do without it."""
    from ray._private import services

    services.start_api_server = lambda *_, **__: (None, None)


def listen_here_alone() -> None:
    """The same, and its nodes listen on 127.0.0.1 alone, as Ray's do where it knows no clusters."""
    from ray._private import ray_constants

    leave_out_dashboard()
    ray_constants.ENABLE_RAY_CLUSTER = False


if __name__ == "__main__":
    from ray.scripts.scripts import main

    leave_out_dashboard()
    sys.argv[1:1] = ["start"]
    main()
