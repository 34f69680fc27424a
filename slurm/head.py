"""The job of the head: a new Ray cluster, the driver beside it, and the number of workers.

Every start is a new generation. Nothing is kept in the process: when the head is taken away, the
next one reads the folder and starts the driver again, which resumes by itself.
"""

import signal
import subprocess
import time

from fewscan.slurm import processes, ray_node
from fewscan.slurm.elastic import Elastic
from fewscan.slurm.folder import Folder, Launch, Rendezvous, tail
from fewscan.slurm.job_script import with_users_path
from fewscan.slurm.ray_node import RayNode
from fewscan.slurm.scheduler import PENDING
from fewscan.slurm.schedulers import scheduler_for
from fewscan.slurm.session import Session
from fewscan.storage.errors import ClusterError, DiskFullError, FewscanError

TICK_S = 1.0
INTERRUPT_S = 3
"""For a driver that ignores the stop file: from SIGINT to SIGKILL."""
STABLE_S = 300
"""A Ray head that lived so long was not broken from the start."""


class HeadJob:
    """One head job, from its start to its end."""

    def __init__(self, folder: Folder, launch: Launch) -> None:
        self.folder = folder
        self.launch = launch
        self.settings = launch.settings
        self.scheduler = scheduler_for(folder, launch.settings)
        self.share = self.scheduler.allocation("head")

    def run(self) -> None:
        """Serve generations until the driver has ended, the node goes, or it is hopeless."""
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
                self.scheduler.requeue(self.share.job)
                return
            failures = 1 if time.monotonic() - began > STABLE_S else failures + 1
            processes.end_descendants()
            hopeless = isinstance(error, (HopelessError, DiskFullError))
            if hopeless or failures >= self.settings.early_deaths:
                self._finish("failed", str(error))
                raise error

    def _generation(self) -> bool:
        """Serve one generation; False if its Ray head ended by itself."""
        takes_tasks = self.settings.head == "worker"
        node = ray_node.start_head(self.folder, self.share, takes_tasks=takes_tasks)
        try:
            watcher = ray_node.watch(self.folder, node)
            ray_node.await_joined(node, self.share.job)
            here = self._announce(node)
            driver = self._start_driver(node)
            return self._serve(node, watcher, driver, here)
        finally:
            ray_node.stop(node)

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
                watcher = ray_node.watch(self.folder, node)
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

    def _start_driver(self, node: RayNode) -> subprocess.Popen[bytes]:
        session = Session(
            folder=self.folder.root,
            demand_file=self.folder.demand_file,
            stop_file=node.stop_file,
            closes_unix=self.share.closes_unix(self.settings),
            temporary_folder=node.temporary,
        )
        environment = {
            **with_users_path(ray_node.ray_environment(self.folder)),
            "TMPDIR": str(node.temporary),
            "RAY_ADDRESS": node.address,
            **session.variables(),
        }
        command, log = self.launch.driver, self.folder.driver_log
        return processes.start(command, log, environment, cwd=self.launch.cwd)

    def _ended(self, driver: subprocess.Popen[bytes], node: RayNode) -> bool:
        """The driver's own end is the end of everything; one that lost its Ray head is not."""
        if self._is_over(driver):
            return True
        processes.await_end(node.process, INTERRUPT_S)
        if node.alive():
            last = tail(self.folder.driver_log, 10)
            self._finish("failed", f"the driver ended with exit code {driver.returncode}:\n{last}")
            return True
        return False

    def _is_over(self, driver: subprocess.Popen[bytes]) -> bool:
        """Whether the driver says that there is nothing left to do, well or not."""
        if driver.returncode == 0:
            self._finish("done", "the driver ended with exit code 0")
        elif driver.returncode == Session.INCOMPLETE:
            last = tail(self.folder.driver_log, 10)
            said = "the driver has done what it could; some of its work failed"
            self._finish("incomplete", f"{said}:\n{last}")
        return driver.returncode in (0, Session.INCOMPLETE)

    def _leave(
        self,
        node: RayNode,
        driver: subprocess.Popen[bytes],
        here: Rendezvous,
        received: signal.Signals,
    ) -> None:
        """The node is wanted back: tasks and driver may checkpoint, then the job may run again."""
        self.folder.write_rendezvous(
            Rendezvous(here.generation, here.address, here.job, open=False)
        )
        node.stop_file.touch()
        grace_s, delay_s = self.settings.grace_s, self.settings.signal_delay_s
        allowed_s = processes.seconds_to_stop(grace_s, delay_s, received)
        processes.await_end(driver, max(1.0, allowed_s - INTERRUPT_S))
        if driver.poll() is None:
            driver.send_signal(signal.SIGINT)
            processes.await_end(driver, INTERRUPT_S)
        self._is_over(driver)
        ray_node.stop(node)
        if self.folder.outcome() is None:
            self.scheduler.requeue(self.share.job)

    def _finish(self, state: str, detail: str) -> None:
        """Write down how it ended. Running workers read it and end; without it they are ended."""
        of_driver = "driver" in detail
        log = self.folder.driver_log if of_driver else self.scheduler.log_of(self.share.job)
        print(f"{state}: {detail}", flush=True)
        written = True
        try:
            self.folder.write_outcome(state, detail, log)
        except DiskFullError as error:
            written = False
            print(error, flush=True)
        try:
            workers = [job for job in self.scheduler.look() if job.role == "worker"]
            self.scheduler.cancel(j.id for j in workers if j.state == PENDING or not written)
        except ClusterError as error:
            print(error, flush=True)


class HopelessError(ClusterError):
    """Trying again would end the same way."""

    @classmethod
    def of(cls, error: ClusterError) -> "HopelessError":
        return cls(error.found, where=error.where, expected=error.expected, remedy=error.remedy)
