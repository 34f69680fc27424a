"""The Ray of a sweep."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from fewscan.harness.ray_cluster import local_ray
from fewscan.storage.runs import StudyFolder
folder = StudyFolder(Path(sys.argv[1]))
folder.prepare()
with local_ray(folder, print):
    import ray
    print("\\n".join(ray.get(ray.remote(lambda: sys.path).remote())))
"""
LATE_WORKER = "import os, sys, time; time.sleep(2); os.makedirs(sys.argv[1].split('=')[1])"


def test_workers_import_from_elsewhere_and_an_earlier_rays_late_worker_leaves_nothing(
    tmp_path: Path,
) -> None:
    study = tmp_path / "study"
    digest = hashlib.sha256(str(study).encode()).hexdigest()[:8]
    earlier = Path("/tmp") / f"fewscan-{digest}-earlier"
    earlier.mkdir(mode=0o755)  # as Ray makes it, where it is gone
    late = subprocess.Popen([sys.executable, "-c", LATE_WORKER, f"--temp-dir={earlier}/ray"])

    command = [sys.executable, "-P", "-c", PROGRAM, str(study)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 2
    assert not {"", str(tmp_path)} & set(done.stdout.split("\n")[:-1])
    late.wait(10)
    assert not [*Path("/tmp").glob(f"fewscan-{digest}-*")]


AT_THE_END = """
import gc, sys, weakref
from pathlib import Path
from fewscan.harness.ray_cluster import local_ray
from fewscan.storage.runs import StudyFolder

class Trial:
    pass

def shut_down():
    print("left", left() is not None)
    really()

folder = StudyFolder(Path(sys.argv[1]))
folder.prepare()
gc.disable()
with local_ray(folder, print):
    import ray
    trial = Trial()
    trial.itself, trial.reference = trial, ray.put(0)
    left = weakref.ref(trial)
    del trial
    really, ray.shutdown = ray.shutdown, shut_down
"""


def test_nothing_of_rays_is_left_for_another_thread_to_free_while_it_goes_down(
    tmp_path: Path,
) -> None:
    """Ray would end the process with exit code 1 (seen: a study's driver, all its runs done)."""
    command = [sys.executable, "-P", "-c", AT_THE_END, str(tmp_path / "study")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "left False\n"), done.stderr
