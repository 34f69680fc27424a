"""The job of the head: a new Ray cluster, the driver beside it, and the number of workers.

Every start is a new generation. Nothing is kept in the process: when the head is taken away, the
next one reads the folder and starts the driver again, which resumes by itself.

Only two things end the study: the driver says that it is over, or the set-up is broken. Whatever
passes (a full disk, a driver or a Ray that was killed) is waited for, and begun again.
"""

import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from fewscan.slurm import processes, ray_node
from fewscan.slurm.allocation import Allocation
from fewscan.slurm.elastic import Elastic
from fewscan.slurm.folder import (
    ClusterOutcome,
    Folder,
    HeadRecord,
    Keeper,
    Launch,
    Rendezvous,
    ensure_token,
    say,
    tail,
    write_token,
)
from fewscan.slurm.job_script import with_users_path
from fewscan.slurm.ray_node import RayNode
from fewscan.slurm.scheduler import PENDING
from fewscan.slurm.schedulers import scheduler_for
from fewscan.slurm.session import Session
from fewscan.slurm.temporary_folder import job_folder
from fewscan.storage.errors import ClusterError, DiskFullError, FewscanError, disk_full_explained

TICK_S = 1.0
INTERRUPT_S = 3
"""For a driver that ignores the stop file: from SIGINT to SIGKILL."""
STABLE_S = 60
"""A Ray head, or a driver, that lived so long was not broken from the start."""
PAUSE_S = 10.0
"""Before what was ended by something that passes is begun again."""


class HeadJob:
    """One head job, from its start to its end."""

    def __init__(self, folder: Folder, launch: Launch) -> None:
        self.folder = folder
        self.launch = launch
        self.settings = launch.settings
        self.scheduler = scheduler_for(folder, launch.settings)
        self.share = self.scheduler.allocation("head")
        self.token = folder.token()

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
            processes.end_descendants()
            say(error)
            disk_is_full = isinstance(error, DiskFullError)
            if processes.stop_signal(PAUSE_S if disk_is_full else 0):
                self.scheduler.requeue(self.share.job)
                return
            if disk_is_full:
                continue
            failures = 1 if time.monotonic() - began > STABLE_S else failures + 1
            if isinstance(error, HopelessError) or failures >= self.settings.early_deaths:
                self._finish(ClusterOutcome("failed", str(error), self._own_log()))
                raise error

    def _generation(self) -> bool:
        """Serve one generation; False if its Ray head ended by itself."""
        self._have_token()
        takes_tasks = self.settings.head == "worker"
        node = ray_node.start_head(self.folder, self.share, takes_tasks=takes_tasks)
        try:
            watcher = ray_node.watch(self.folder, node)
            ray_node.await_joined(node, self.share.job)
            return self._serve(node, watcher, self._announce(node))
        finally:
            ray_node.stop(node)

    def _have_token(self) -> None:
        """No Ray starts without: what became unreadable is written anew, by who needs it first."""
        if self.token is None:
            ensure_token(self.folder.token_file)
            self.token = self.folder.token()
        elif self.folder.token() != self.token:
            write_token(self.folder.token_file, self.token)

    def _serve(self, node: RayNode, watcher: subprocess.Popen[bytes], here: Rendezvous) -> bool:
        elastic = Elastic(self.folder, self.launch, node.activity_file)
        driver = Driver(self.folder, self.launch, self.share, node)
        keeper = self._keeper(here)
        next_look = time.monotonic()
        while node.alive():
            received = processes.stop_signal(TICK_S)
            outcome = self.folder.outcome()
            if received or (outcome is not None and outcome.is_cancelled):
                self._leave(node, driver, here, received)
                return True
            if outcome is not None:
                return True
            try:
                ended = driver.look()
                if ended is not None:
                    self._finish(ended)
                    return True
                if watcher.poll() is not None:
                    watcher = ray_node.watch(self.folder, node)
                keeper.look()
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + self.settings.poll_s
                    self._tick(elastic)
            except DiskFullError as error:
                say(error)
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

    def _keeper(self, here: Rendezvous) -> Keeper:
        """Of the files that say who the head is, and where."""
        folder, began_unix = self.folder, time.time()

        def write_launch() -> None:
            folder.write_launch(self.launch)

        def write_head_job() -> None:
            folder.write_head_job(HeadRecord(self.share.job, began_unix, 0))

        def write_rendezvous() -> None:
            folder.write_rendezvous(here)

        def own_token() -> str | None:
            return self.token if folder.token() == self.token else None

        def write_own_token() -> None:
            write_token(folder.token_file, self.token or "")

        return Keeper(
            (folder.launch, write_launch),
            (folder.head_job, write_head_job),
            (folder.rendezvous, write_rendezvous),
            (own_token, write_own_token),
        )

    def _leave(
        self, node: RayNode, driver: "Driver", here: Rendezvous, received: signal.Signals | None
    ) -> None:
        """The node is wanted back: tasks and driver may checkpoint, then the job may run again."""
        try:
            self.folder.write_rendezvous(
                Rendezvous(here.generation, here.address, here.job, open=False)
            )
        except DiskFullError as error:
            say(error)
        node.stop_file.touch()
        cancelled = self.folder.outcome() is not None
        outcome = driver.stop(self.share.seconds_to_stop(self.settings, received, cancelled))
        if outcome is not None and self.folder.outcome() is None:
            with suppress(DiskFullError):  # then the next head finds out again
                self.folder.write_outcome(outcome)
        ray_node.stop(node)
        if self.folder.outcome() is None:
            self.scheduler.requeue(self.share.job)

    def _own_log(self) -> str:
        return str(self.scheduler.log_of(self.share.job))

    def _finish(self, outcome: ClusterOutcome) -> None:
        """Write down how it ended, as soon as there is room for it; running workers read it."""
        say(f"{outcome.state}: {outcome.detail}")
        while self.folder.outcome() is None:
            try:
                self.folder.write_outcome(outcome)
            except DiskFullError as error:
                say(error)
                if processes.stop_signal(PAUSE_S):  # the next head finds out again
                    self.scheduler.requeue(self.share.job)
                    return
        try:
            jobs = self.scheduler.look()
            waiting = {it.id for it in jobs if it.role == "worker" and it.state == PENDING}
            self.scheduler.cancel(waiting)
            # A node that is missed later would bring a job back that has nothing to do any more.
            self.scheduler.run_no_more(it.id for it in jobs if it.id not in waiting)
        except ClusterError as error:
            say(error)


class Driver:
    """The program that the cluster is there for: started beside the head, and again if killed."""

    def __init__(self, folder: Folder, launch: Launch, share: Allocation, node: RayNode) -> None:
        self._folder = folder
        self._launch = launch
        self._share = share
        self._node = node
        self._log = folder.driver_log
        self._deaths = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._start_at = time.monotonic()

    def look(self) -> ClusterOutcome | None:
        """Start it when it is time; what its end means for the study, None while that goes on.

        One that was killed, ended without a reason, or was stopped by something that passes, is
        started again after a pause; so is one that lost its Ray, by the next generation.
        """
        if self._process is None:
            if time.monotonic() >= self._start_at:
                self._process = self._start()
            return None
        code = self._process.poll()
        if code is None:
            return None
        outcome = self._over()
        if outcome is not None:
            return outcome
        processes.await_end(self._node.process, INTERRUPT_S)
        if not self._node.alive():
            return None
        passes = code == Session.TRY_AGAIN
        # A long life excuses a kill alone: an error of its own may come late each time.
        lived = code < 0 and time.monotonic() - self._began > STABLE_S
        self._deaths = 0 if passes else 1 if lived else self._deaths + 1
        if code == Session.REFUSED or self._deaths >= self._launch.settings.early_deaths:
            return ClusterOutcome(
                "failed", f"the driver ended with {_words(code)}:\n{self._last()}", str(self._log)
            )
        say(f"the driver ended with {_words(code)}; it is started again in {PAUSE_S:.0f} s")
        self._process, self._start_at = None, time.monotonic() + PAUSE_S
        return None

    def stop(self, wait_s: float) -> ClusterOutcome | None:
        """Wait for it to stop by itself, then make it; how the study ended, if it has."""
        if self._process is None:
            return None
        processes.await_end(self._process, max(1.0, wait_s - INTERRUPT_S))
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            processes.await_end(self._process, INTERRUPT_S)
        return self._over()

    def _start(self) -> subprocess.Popen[bytes]:
        folder, launch, node = self._folder, self._launch, self._node
        session = Session(
            folder=folder.root,
            demand_file=folder.demand_file,
            stop_file=node.stop_file,
            closes_unix=self._share.closes_unix(launch.settings),
            temporary_folder=job_folder(),
        )
        environment = {
            **with_users_path(ray_node.ray_environment(folder)),
            "TMPDIR": str(node.temporary),
            "RAY_ADDRESS": node.address,
            **session.variables(),
        }
        self._began = time.monotonic()
        where = launch.cwd
        if not Path(where).is_dir():
            raise HopelessError(
                "the directory of the launch is not on the head's node",
                where=f"{where} on {self._share.node}",
                expected="a directory on the shared disk",
                remedy="give the sweep command in a directory that all nodes have",
            )
        with disk_full_explained(self._log):
            return processes.start(launch.driver, self._log, environment, cwd=where)

    def _over(self) -> ClusterOutcome | None:
        """What the driver says if there is nothing left to do, well or not."""
        assert self._process is not None
        if self._process.returncode == 0:
            return ClusterOutcome("done", "the driver ended with exit code 0", str(self._log))
        if self._process.returncode == Session.INCOMPLETE:
            said = "the driver has done what it could; some of its work failed"
            return ClusterOutcome("incomplete", f"{said}:\n{self._last()}", str(self._log))
        return None

    def _last(self) -> str:
        return tail(self._log, 10)


def _words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


class HopelessError(ClusterError):
    """Trying again would end the same way."""

    @classmethod
    def of(cls, error: ClusterError) -> "HopelessError":
        return cls(error.found, where=error.where, expected=error.expected, remedy=error.remedy)
