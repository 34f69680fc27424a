"""What Slurm is asked for: impossible combinations are refused before a job is submitted."""

import pickle

import pytest

from fewscan.slurm.settings import Settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_workers": 3, "max_workers": 2}, "min_workers 3 is more than max_workers 2"),
        ({"max_workers": 0}, "max_workers is 0"),
        ({"gpus": -1}, "gpus is -1"),
        ({"memory_gb": 0}, "memory_gb is 0"),
        ({"time_limit_min": 3}, "leaves no time to work"),
        ({"time_limit_min": 5, "closing_s": 200}, "no time to start anything"),
        ({"head_time_limit_min": 1}, "a time limit of 1 min"),
        ({"head": "none"}, "'none'"),
        ({"head": "worker", "head_partition": "cpu"}, "head_partition"),
        ({"sbatch": {"time": 5}}, "'time'"),
        ({"sbatch": {"--ntasks_per_node": 2}}, "--ntasks_per_node"),
        ({"partition": "gpu main"}, "contains a space"),
        ({"setup": ["module load\ncuda"]}, "one shell line"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**values)


def test_settings_survive_json_and_pickle() -> None:
    settings = Settings(gpus=2, setup=["module load cuda"], sbatch={"mail-type": "FAIL"})
    assert Settings(**settings.as_json()) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
