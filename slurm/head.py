"""The job of the head: a new Ray cluster, the driver beside it, and the number of workers.

Every start is a new generation. Nothing is kept in the process: when Slurm takes the head away, the
next one reads the folder and starts the driver again, which resumes by itself.
"""

import signal
import subprocess
import time

from fewscan.slurm import cluster, jobs, processes
from fewscan.slurm.allocation import Allocation
from fewscan.slurm.cluster import RayNode
from fewscan.slurm.elastic import Elastic
from fewscan.slurm.folder import Folder, Launch, Rendezvous, tail
from fewscan.slurm.inside import INCOMPLETE
from fewscan.slurm.worker import allowed, await_end
from fewscan.storage.errors import ClusterError, DiskFullError, FewscanError

TICK_S = 1.0
INTERRUPT_S = 3
"""For a driver that ignores the stop file: from SIGINT to SIGKILL."""
STABLE_S = 300
"""A Ray head that lived so long was not broken from the start."""


class Head:
    """One head job, from its start to its end."""

    def __init__(self, folder: Folder, launch: Launch) -> None:
        self.folder = folder
        self.launch = launch
        self.settings = launch.settings
        self.share = Allocation.here(self.settings.head_limit_min)

    def run(self) -> None:
        """Serve generations until the driver has ended, Slurm takes over, or it is hopeless."""
        failures = 0
        while self.folder.outcome() is None:
            began = time.monotonic()
            try:
                if self._generation():
                    return
                error: FewscanError = ClusterError("Ray's head processes ended by themselves")
            except FewscanError as raised:
                error = raised
            if processes.stop_signal(0):
                jobs.requeue_if_running(self.share.job)
                return
            failures = 1 if time.monotonic() - began > STABLE_S else failures + 1
            processes.end_descendants()
            hopeless = isinstance(error, (HopelessError, DiskFullError))
            if hopeless or failures >= self.settings.early_deaths:
                self._finish("failed", str(error))
                raise error

    def _generation(self) -> bool:
        """Serve one generation; False if its Ray head ended by itself."""
        node = cluster.start_head(
            self.folder, self.share, takes_tasks=self.settings.head == "worker"
        )
        try:
            watcher = cluster.watch(self.folder, node)
            cluster.await_joined(node, self.share.job)
            here = self._announce(node)
            driver = self._start_driver(node, here)
            return self._serve(node, watcher, driver, here)
        finally:
            cluster.stop(node)

    def _serve(
        self,
        node: RayNode,
        watcher: subprocess.Popen[bytes],
        driver: subprocess.Popen[bytes],
        here: Rendezvous,
    ) -> bool:
        elastic = Elastic(self.folder, self.launch, node.activity_file)
        next_look = time.monotonic()
        while node.alive():
            received = processes.stop_signal(TICK_S)
            if received:
                self._leave(node, driver, here, received)
                return True
            if self.folder.outcome() is not None:
                return True
            if driver.poll() is not None and self._ended(driver, node):
                return True
            if watcher.poll() is not None:
                watcher = cluster.watch(self.folder, node)
            if time.monotonic() >= next_look:
                self._tick(elastic)
                next_look = time.monotonic() + self.settings.poll_s
        return False

    def _tick(self, elastic: Elastic) -> None:
        try:
            elastic.tick()
        except ClusterError as error:
            raise HopelessError.of(error) from error

    def _announce(self, node: RayNode) -> Rendezvous:
        before = self.folder.rendezvous()
        generation = 1 if before is None else before.generation + 1
        here = Rendezvous(generation, node.address, self.share.job, open=True)
        self.folder.write_rendezvous(here)
        return here

    def _start_driver(self, node: RayNode, here: Rendezvous) -> subprocess.Popen[bytes]:
        environment = {
            **cluster.ray_environment(self.folder),
            "TMPDIR": str(node.temporary),
            "RAY_ADDRESS": node.address,
            "ELASTIC_FOLDER": str(self.folder.root),
            "ELASTIC_DEMAND_FILE": str(self.folder.demand_file),
            "ELASTIC_STOP_FILE": str(node.stop_file),
            "ELASTIC_CLOSES_UNIX": f"{self.share.closes_unix(self.settings):.0f}",
            "ELASTIC_GENERATION": str(here.generation),
        }
        command, log = self.launch.driver, self.folder.driver_log
        return processes.start(command, log, environment, cwd=self.launch.cwd)

    def _ended(self, driver: subprocess.Popen[bytes], node: RayNode) -> bool:
        """The driver's own end is the end of everything; one that lost its Ray head is not."""
        if self._is_over(driver):
            return True
        await_end(node.process, INTERRUPT_S)
        if node.alive():
            last = tail(self.folder.driver_log, 10)
            self._finish("failed", f"the driver ended with exit code {driver.returncode}:\n{last}")
            return True
        return False

    def _is_over(self, driver: subprocess.Popen[bytes]) -> bool:
        """Whether the driver says that there is nothing left to do, well or not."""
        if driver.returncode == 0:
            self._finish("done", "the driver ended with exit code 0")
        elif driver.returncode == INCOMPLETE:
            last = tail(self.folder.driver_log, 10)
            said = "the driver has done what it could; some of its work failed"
            self._finish("incomplete", f"{said}:\n{last}")
        return driver.returncode in (0, INCOMPLETE)

    def _leave(
        self,
        node: RayNode,
        driver: subprocess.Popen[bytes],
        here: Rendezvous,
        received: signal.Signals,
    ) -> None:
        """Slurm wants the head: tasks and driver may checkpoint, then Slurm may run it again."""
        self.folder.write_rendezvous(
            Rendezvous(here.generation, here.address, here.job, open=False)
        )
        node.stop_file.touch()
        allowed_s = allowed(self.settings.grace_s, self.settings.signal_delay_s, received)
        await_end(driver, max(1.0, allowed_s - INTERRUPT_S))
        if driver.poll() is None:
            driver.send_signal(signal.SIGINT)
            await_end(driver, INTERRUPT_S)
        self._is_over(driver)
        cluster.stop(node)
        if self.folder.outcome() is None:
            jobs.requeue_if_running(self.share.job)

    def _finish(self, state: str, detail: str) -> None:
        """Write down how it ended. Running workers read it and end; without it they are ended."""
        log = self.folder.driver_log if "driver" in detail else self.folder.job_log(self.share.job)
        print(f"{state}: {detail}", flush=True)
        states = ["PENDING"]
        try:
            self.folder.write_outcome(state, detail, log)
        except DiskFullError as error:
            states = list(jobs.ALIVE)
            print(error, flush=True)
        try:
            found = jobs.query(self.folder, self.settings)
            jobs.cancel(job.id for job in found if job.role == "worker" and job.state in states)
        except ClusterError as error:
            print(error, flush=True)


class HopelessError(ClusterError):
    """Trying again would end the same way."""

    @classmethod
    def of(cls, error: ClusterError) -> "HopelessError":
        return cls(error.found, where=error.where, expected=error.expected, remedy=error.remedy)
