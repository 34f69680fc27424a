"""The job of a worker: join the head's cluster, leave it cleanly, come back.

It outlives heads: when the cluster is gone it waits for the next generation, and sees to it that
there will be one. It ends when there is nothing left to do.
"""

import signal
import socket
import time

from fewscan.slurm import processes, ray_node
from fewscan.slurm.folder import Folder, Launch, Rendezvous
from fewscan.slurm.head_recovery import recover_head
from fewscan.slurm.network import is_reachable
from fewscan.slurm.ray_node import RayNode
from fewscan.slurm.schedulers import scheduler_for
from fewscan.storage.atomic import write_json
from fewscan.storage.errors import ClusterError

TICK_S = 2.0
"""Between two looks at the shared disk; signals are noticed at once."""
START_FAILURES = 3


class Worker:
    """One worker, from its start to its end."""

    def __init__(self, folder: Folder, launch: Launch) -> None:
        self.folder = folder
        self.settings = launch.settings
        self.scheduler = scheduler_for(folder, launch.settings)
        self.share = self.scheduler.allocation("worker")
        self.closes_unix = self.share.closes_unix(self.settings)

    def run(self) -> None:
        """Serve heads until the node is taken back, or the work is done."""
        self._report("waiting")
        waiting_since = time.monotonic()
        failures = 0
        while not self._over():
            head = self.folder.rendezvous()
            if head is None or not head.open or not is_reachable(head.address):
                if self._wait_for_head(waiting_since):
                    return
                continue
            try:
                node = ray_node.start_worker(self.folder, self.share, head)
            except ClusterError:
                if processes.stop_signal(0):
                    self._go()
                    return
                failures += 1
                if failures == START_FAILURES:
                    raise
                continue
            failures = 0
            self._report("joined", head.generation)
            if self._serve(node, head):
                return
            self._report("waiting")
            waiting_since = time.monotonic()

    def _wait_for_head(self, since: float) -> bool:
        """One step of waiting; whether to end."""
        waited_s = time.monotonic() - since
        if waited_s > self.settings.wait_for_head_min * 60:
            self._report("ended")
            return True
        if waited_s > self.settings.poll_s:
            recover_head(self.folder)
        if processes.stop_signal(TICK_S):
            self._go()
            return True
        return False

    def _serve(self, node: RayNode, head: Rendezvous) -> bool:
        """Stay in the cluster of `head`; True if the job is to end, False if the head is gone."""
        closed_since = None
        closing = False
        while node.alive() and not self._over():
            received = processes.stop_signal(TICK_S)
            if received:
                self._leave(node, received)
                return True
            if not closing and time.time() >= self.closes_unix:
                closing = True
                self._close(node, head)
            now = self.folder.rendezvous()
            if now is None or now.generation != head.generation:
                break
            if not now.open:
                node.stop_file.touch()
                closed_since = closed_since or time.monotonic()
                if time.monotonic() - closed_since > self.settings.grace_s:
                    break
        ray_node.stop(node)
        if closing:  # what was there has ended, and with it the node
            self._go()
        return closing

    def _close(self, node: RayNode, head: Rendezvous) -> None:
        """Have Ray place nothing new here; what runs goes on until the warning.

        A driver that keeps a process for one task after another would go on to use it here: on
        such a cluster it must not.
        """
        self._report("closing", head.generation)
        left_s = max(1.0, self.share.ends_unix - time.time())
        ray_node.drain(self.folder, node, self.share.job, left_s)

    def _leave(self, node: RayNode, received: signal.Signals) -> None:
        """The node is wanted back: tasks may checkpoint, Ray may move, then everything ends."""
        grace_s, delay_s = self.settings.grace_s, self.settings.signal_delay_s
        allowed_s = processes.seconds_to_stop(grace_s, delay_s, received)
        self._report("leaving")
        node.stop_file.touch()
        if self._over():
            ray_node.stop(node)
            return
        ray_node.drain(self.folder, node, self.share.job, allowed_s)
        processes.await_end(node.process, allowed_s)
        ray_node.stop(node)
        self._go()

    def _go(self) -> None:
        """Have the job run again, unless the scheduler or the study has decided otherwise."""
        self._report("ended" if self._over() else "requeued")
        if not self._over():
            self.scheduler.requeue(self.share.job)

    def _over(self) -> bool:
        return self.folder.outcome() is not None

    def _report(self, phase: str, generation: int | None = None) -> None:
        report = {
            "job": self.share.job,
            "node": self.share.node,
            "host": socket.gethostname(),
            "phase": phase,
            "generation": generation,
            "ends_unix": self.share.ends_unix,
            "since_unix": time.time(),
        }
        write_json(self.folder.worker_file(self.share.job), report)
