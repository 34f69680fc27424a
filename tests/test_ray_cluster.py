"""The Ray of a sweep."""

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


def test_workers_do_not_import_from_the_working_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", PROGRAM, str(tmp_path / "study")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 2
    assert not {"", str(tmp_path)} & set(done.stdout.split("\n")[:-1])
