"""The job of a worker: join the head's cluster, leave it cleanly, come back.

It outlives heads: when the cluster is gone it waits for the next generation, and sees to it that
there will be one. It ends when there is nothing left to do.
"""

import signal
import socket
import time
from dataclasses import replace

from fewscan.slurm import processes, ray_node
from fewscan.slurm.folder import Folder, Keeper, Launch, Rendezvous, WorkerReport, say
from fewscan.slurm.head_recovery import recover_head
from fewscan.slurm.network import is_reachable
from fewscan.slurm.ray_node import RayNode
from fewscan.slurm.schedulers import scheduler_for
from fewscan.storage.errors import ClusterError, DiskFullError

TICK_S = 2.0
"""Between two looks at the shared disk; signals are noticed at once."""
START_FAILURES = 3


class Worker:
    """One worker, from its start to its end."""

    def __init__(self, folder: Folder, launch: Launch) -> None:
        self.folder = folder
        self.launch = launch
        self.settings = launch.settings
        self.scheduler = scheduler_for(folder, launch.settings)
        self.share = self.scheduler.allocation("worker")
        self.closes_unix = self.share.closes_unix(self.settings)
        self.said = WorkerReport(
            self.share.job,
            self.share.node,
            socket.gethostname(),
            "waiting",
            None,
            self.share.ends_unix,
            time.time(),
        )
        self.keeper = Keeper((self._report_kept, self._write_report), (folder.launch, self._launch))

    def run(self) -> None:
        """Serve heads until the node is taken back, or the work is done."""
        self._report("waiting")
        waiting_since = time.monotonic()
        failures = 0
        while not self._over():
            self.keeper.look()
            head = self.folder.rendezvous()
            no_token = self.folder.token() is None  # its head writes it anew
            if head is None or not head.open or no_token or not is_reachable(head.address):
                if self._wait_for_head(waiting_since):
                    return
                continue
            try:
                node = ray_node.start_worker(self.folder, self.share, head)
            except (ClusterError, DiskFullError) as error:
                say(error)
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
            recover_head(self.folder, self.launch)
        if processes.stop_signal(TICK_S):
            self._go()
            return True
        return False

    def _serve(self, node: RayNode, head: Rendezvous) -> bool:
        """Stay in the cluster of `head`; True if the job is to end, False if the head is gone."""
        closed_since = None
        closing = False
        while node.alive():
            received = processes.stop_signal(TICK_S)
            if received or self._over():
                self._leave(node, received)
                return True
            self.keeper.look()
            if not closing and time.time() >= self.closes_unix:
                closing = True
                self._close(node, head)
            now = self.folder.rendezvous()
            if now is None:  # not to be read just now; if the head is gone, Ray ends here
                continue
            if now.generation != head.generation:
                break
            if not now.open:
                node.stop_file.touch()
                closed_since = closed_since or time.monotonic()
                if time.monotonic() - closed_since > self.share.grace_s:
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

    def _leave(self, node: RayNode, received: signal.Signals | None) -> None:
        """The node is wanted back, or the study is cancelled: tasks may checkpoint, Ray may move,
        then everything ends. If the study has come to its end by itself, nothing is waited for."""
        self._report("leaving")
        node.stop_file.touch()
        outcome = self.folder.outcome()
        if outcome is not None and not outcome.is_cancelled:
            ray_node.stop(node)
            return
        cancelled = outcome is not None
        allowed_s = self.share.seconds_to_stop(self.settings, received, cancelled)
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
        now = time.time()
        self.said = replace(self.said, phase=phase, generation=generation, since_unix=now)
        try:
            self._write_report()
        except DiskFullError as error:  # the keeper tries again
            say(error)

    def _report_kept(self) -> WorkerReport | None:
        kept = self.folder.report(self.share.job)
        return kept if kept == self.said else None

    def _write_report(self) -> None:
        self.folder.write_report(self.said)

    def _launch(self) -> None:
        self.folder.write_launch(self.launch)
