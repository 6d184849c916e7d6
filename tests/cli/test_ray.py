"""Folders on a Ray cluster: nothing is lost and nothing coded twice, whoever dies."""

import importlib.util
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lic.cli import batch
from lic.cli.console import Output
from lic.cli.folder_engine import Crew
from tests.cli import folder_work, killed

Lic = Callable[..., Any]

# Set by `make ray-check`: a check that was asked for may not be skipped.
REQUIRED = "LIC_RAY_REQUIRED"

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None and not os.environ.get(REQUIRED),
        reason="ray is not installed (pip install '.[ray]'); make ray-check insists on it",
    ),
    # Ray leaves the logs of its processes open, and forks while it has threads.
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two machines with one core each, both of them this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        patch.setenv("RAY_ADDRESS", made.address)
        made.add_node(num_cpus=1)
        made.wait_for_nodes()
        yield made
        made.shutdown()


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """Return what is said of each file, which is said once."""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_name = {Path(line["input"]).name: line for line in lines}
    assert len(by_name) == len(lines)
    return by_name


@pytest.mark.usefixtures("cluster")
def test_a_cluster_makes_what_one_thread_makes(lic: Lic, tmp_path: Path) -> None:
    killed.make_photos(tmp_path / "in", 8)
    (tmp_path / "in" / "bad.png").write_text("no picture")
    made = []
    for name, options in {"ray": ("--engine", "ray"), "one": ("-j", 1, "--threads", 1)}.items():
        done = lic("compress", tmp_path / "in", "-o", tmp_path / name, *options, "--json")
        assert done.code == 8 and "8 of 9 done" in done.err
        lines = [json.loads(line) for line in done.out.splitlines()]
        assert len(lines) == 9
        assert [line["exit_code"] for line in lines if "error" in line] == [3]
        found = (tmp_path / name).rglob("*.lic")
        made.append({path.relative_to(tmp_path / name): path.read_bytes() for path in found})
    assert made[0] == made[1] and len(made[0]) == 8
    assert lic("compress", tmp_path / "in", "--engine", "ray", "-m", "nosuch").code == 5


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("force", [False, True])
def test_the_death_of_a_worker_loses_nothing_and_codes_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], force: bool
) -> None:
    """One dies over a file, one after having written its result, one over every try."""
    jobs = folder_work.jobs(tmp_path, "cccocccacccdccc")
    if force:
        (tmp_path / "out").mkdir()
        for job in jobs:
            assert job.target
            job.target.write_bytes(b"old")
    crew = Crew(engine="ray", workers=2, threads=1)
    open_work = folder_work.copying(tmp_path / "log")
    out = Output(as_json=True)
    assert batch.run(jobs, open_work, out, crew.work_off, force=force) == 8
    lines = told(capsys)
    assert len(lines) == 15
    errors = {name: line["error"] for name, line in lines.items() if "error" in line}
    assert list(errors) == ["11d"] and "3 workers ended over it" in errors["11d"]
    # Coded once each, though two of them were begun twice or had lost their worker.
    coded = Counter(line.split()[0] for line in (tmp_path / "log").read_text().splitlines())
    assert coded == Counter(lines.keys() - {"11d"})
    assert lines["07a"] == {
        "input": str(jobs[7].source), "output": str(jobs[7].target), "bytes": 1000
    }  # fmt: skip
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    wanted = {name: name[-1:].encode() * 1000 for name in coded}
    assert found == wanted | ({"11d": b"old"} if force else {})


def test_the_death_of_a_machine_loses_nothing_and_codes_nothing_twice(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its core is gone as well: there is room for one worker only from then on."""
    jobs = folder_work.jobs(tmp_path, "s" * 30)
    open_work = folder_work.copying(tmp_path / "log")
    crew = Crew(engine="ray", workers=0, threads=1)
    extra = max(cluster.worker_nodes, key=id)
    places: set[str] = set()

    def work_off(*arguments: Any) -> Iterator[tuple[batch.Job, batch.Outcome]]:
        for number, found in enumerate(crew.work_off(*arguments)):
            if number == 12:
                lines = (tmp_path / "log").read_text().splitlines()
                places.update(line.split()[1] for line in lines)
                cluster.remove_node(extra, allow_graceful=False)
            yield found

    run: Any = work_off
    assert batch.run(jobs, open_work, Output(as_json=True), run) == 0
    assert len(places) == 2
    lines = told(capsys)
    assert len(lines) == 30 and not any("error" in line for line in lines.values())
    coded = Counter(line.split()[0] for line in (tmp_path / "log").read_text().splitlines())
    assert coded == Counter(lines.keys())
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(lines)


def test_no_cluster_is_said(lic: Lic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed.make_photos(tmp_path / "in", 2)
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    done = lic("compress", tmp_path / "in", "-o", tmp_path / "out", "--engine", "ray")
    assert done.code == 2 and "--engine ray: no cluster" in done.err
