"""One more node of a Ray cluster whose nodes are all on the loopback: `loopback_node.py HOST:PORT CPUS`, until SIGTERM.

`ray start` allows one node there; this does what ray.cluster_utils does.
"""

import signal
import sys
import time

from ray._private.node import Node
from ray._private.parameter import RayParams


def main(address: str, cpus: str) -> None:
    """Start it, and end it when asked to."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    parameters = RayParams(
        gcs_address=address,
        node_ip_address=address.partition(":")[0],
        num_cpus=int(cpus),
        num_gpus=0,
        object_store_memory=128 * 2**20,
        # Ports from Ray's range would be those of the other node, too.
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        dashboard_agent_listen_port=None,
        include_log_monitor=False,
    )
    node = Node(parameters, head=False, shutdown_at_exit=True, spawn_reaper=True)
    while not node.dead_processes():
        time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
