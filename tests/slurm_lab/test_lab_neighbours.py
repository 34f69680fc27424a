"""Nodes that are shared, on a real Slurm: other studies, other users, strangers."""

import os
import subprocess
import sys
from collections.abc import Iterator

import lab
import pytest
from conftest import MakeStudy
from lab_study import LabStudy, until

from fewscan.slurm.folder import Folder

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
NODE = "n1"


@pytest.fixture
def strangers_ray(clean_nodes: None) -> Iterator[subprocess.Popen[bytes]]:
    """Another user's Ray on a node, on its default ports and in its default folder."""
    ray = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
    options = ["start", "--head", "--block", "--num-cpus=1", "--include-dashboard=false"]
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    user += [f"--{kind}-caps=+dac_read_search" for kind in ("inh", "ambient")]  # to read our Python
    command = lab.on_node(NODE, [*user, sys.executable, "-c", ray, *options])
    env = {"HOME": "/tmp", "PATH": os.environ["PATH"]}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, cwd="/", env=env, **quiet)
    try:
        until(lambda: any("raylet" in line for line in lab.processes_of(NODE).values()))
        yield process
    finally:
        lab.end_tree(process)
        subprocess.run(lab.on_node(NODE, ["rm", "-rf", "/tmp/ray"]))


def test_two_studies_and_a_strangers_ray_share_the_nodes(
    make_study: MakeStudy, strangers_ray: subprocess.Popen[bytes]
) -> None:
    ours = make_study(max_workers=2, memory_gb=1)
    theirs = make_study(max_workers=2, memory_gb=1, head="worker")
    for study in (ours, theirs):
        study.launch()
    for study in (ours, theirs):
        study.until_training(2)
    assert set(ours.jobs()).isdisjoint(theirs.jobs())
    refuses_who_has_no_token(ours, theirs)
    for study in (ours, theirs):
        study.finish()
    assert strangers_ray.poll() is None  # nobody ended it


def refuses_who_has_no_token(study: LabStudy, other: LabStudy) -> None:
    """Only a client with the study's own token gets an answer from its cluster."""
    head = Folder(study.cluster).rendezvous()
    assert head is not None
    tokens = {s: Folder(s.cluster).token_file for s in (study, other)}
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in tokens.values())
    without = ask(head.address, {})
    assert "answered" not in without
    assert "token" in without.lower()
    right, wrong = (
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": f.read_text()} for f in tokens.values()
    )
    assert "answered" not in ask(head.address, wrong)
    assert "answered" in ask(head.address, right)


def ask(address: str, variables: dict[str, str]) -> str:
    """What a client on a node says that asks a cluster's control store for its nodes."""
    program = f"""
import ray
client = ray._raylet.GcsClient(address="{address}")
print(len(client.get_cluster_resource_state()) > 0 and "answered")
"""
    done = subprocess.run(
        lab.on_node(NODE, [sys.executable, "-c", program]),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **variables},
    )
    return done.stdout + done.stderr
