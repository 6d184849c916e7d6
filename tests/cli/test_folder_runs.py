"""Folders: whoever codes the files, each is told of once, and nothing is lost or left over."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import pytest

from lic.cli import batch, parts
from lic.cli.console import Output
from lic.cli.folder_engine import AHEAD, Crew, choose_crew
from lic.codec.errors import ConfigError, ModelMismatchError, WorkerError
from tests.cli import folder_work, killed
from tests.trainers.processes import environment, family, wait_for_the_end

Lic = Callable[..., Any]

needs_proc = pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="looks at processes through /proc"
)

PROCESSES = Crew(engine="processes", workers=2, threads=1)
THREADS = Crew(engine="threads", workers=2, threads=1)


def told(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """Return what JSON says of each file, and what people are told."""
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    by_name = {Path(line["input"]).name: line for line in lines}
    assert len(by_name) == len(lines), "a file is told of twice"
    return by_name, captured.err


def test_processes_make_what_one_thread_makes(lic: Lic, tmp_path: Path) -> None:
    killed.make_photos(tmp_path / "in", 10)
    (tmp_path / "in" / "0" / "bad.png").write_text("no picture")
    made = {}
    for name, options in {"one": ("-j", 1, "--threads", 1), "two": ("-j", 2)}.items():
        out = tmp_path / name
        done = lic("compress", tmp_path / "in", "-o", out, *options, "--json")
        assert done.code == 8
        lines = [json.loads(line) for line in done.out.splitlines()]
        assert len({line["input"] for line in lines}) == len(lines) == 11
        assert [Path(line["input"]).name for line in lines if "error" in line] == ["bad.png"]
        summary, failures = done.err.splitlines()[-2:]
        assert summary.startswith("10 of 11 done, in ")
        assert failures == f"1 failed: {tmp_path / 'in' / '0' / 'bad.png'}"
        made[name] = {p.relative_to(out): p.read_bytes() for p in out.rglob("*.lic")}
        assert lic("decompress", out, "-o", tmp_path / f"{name}-back", *options).code == 0
        back = tmp_path / f"{name}-back"
        made[f"{name}-back"] = {p.relative_to(back): p.read_bytes() for p in back.rglob("*.png")}
    assert len(made["one"]) == len(made["one-back"]) == 10
    assert made["one"] == made["two"] and made["one-back"] == made["two-back"]
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_costs_its_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = folder_work.jobs(tmp_path, "cccdccwcccfcccc")
    open_work = folder_work.copying(tmp_path / "log")
    assert batch.run(jobs, open_work, Output(as_json=True), PROCESSES.work_off) == 8
    lines, err = told(capsys)
    assert len(lines) == 15
    errors = {name: line["error"] for name, line in lines.items() if "error" in line}
    assert set(errors) == {"03d", "06w", "10f"}
    assert errors["03d"].endswith("03d: its process was ended by SIGKILL (often: out of memory)")
    assert "ZeroDivisionError: planted" in errors["10f"]
    assert "12 of 15 done" in err and "3 failed: " in err and "06w" in err.splitlines()[-1]
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    # What the one that died while writing had written is gone, too.
    assert found == {name: b"c" * 1000 for name in lines.keys() - errors.keys()}
    # The other three codings were by four processes, of which two died.
    assert len({line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}) >= 2


def test_where_no_process_lives_or_no_model_is_the_run_ends(tmp_path: Path) -> None:
    jobs = folder_work.jobs(tmp_path, "c" * 30)
    with pytest.raises(WorkerError, match="10 processes ended before one file was done"):
        batch.run(jobs, folder_work.dying, Output(-1), PROCESSES.work_off)
    for crew in (PROCESSES, THREADS):
        with pytest.raises(ModelMismatchError, match="no such model here"):
            batch.run(jobs, folder_work.missing, Output(-1), crew.work_off)
    assert not (tmp_path / "out").exists()
    assert multiprocessing.active_children() == []


def test_results_that_come_to_exist_are_skipped_where_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another machine works on the same folder."""
    jobs = folder_work.jobs(tmp_path, "cec")
    open_work = folder_work.copying(tmp_path / "log")
    skip = {"skip_existing": True}
    assert batch.run(jobs, open_work, Output(), THREADS.work_off, **skip) == 0
    assert "2 of 3 done, 1 skipped whose result has come to exist" in told(capsys)[1]
    assert (tmp_path / "out" / "01e").read_bytes() == b"else"
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    assert batch.run(jobs, open_work, Output(), THREADS.work_off) == 8
    assert "exists already" in told(capsys)[1]


class Watched(Sequence[batch.Job]):
    """Jobs that remember how far somebody has looked."""

    def __init__(self, jobs: Sequence[batch.Job]) -> None:
        self.jobs, self.furthest = jobs, -1

    def __len__(self) -> int:
        return len(self.jobs)

    @overload
    def __getitem__(self, index: int) -> batch.Job: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[batch.Job]: ...
    def __getitem__(self, index: int | slice) -> batch.Job | Sequence[batch.Job]:
        assert isinstance(index, int)
        self.furthest = max(self.furthest, index)
        return self.jobs[index]


@pytest.mark.parametrize("crew", [PROCESSES, THREADS], ids=["processes", "threads"])
def test_few_files_are_held_at_a_time(crew: Crew, tmp_path: Path) -> None:
    watched = Watched(folder_work.jobs(tmp_path, "c" * 40))
    open_work = folder_work.copying(tmp_path / "log")
    task = batch.Task(open_work, force=False, skip_existing=False, write=True)
    most = 0
    for number, _ in enumerate(crew.work_off(watched, task)):
        most = max(most, watched.furthest - number)
    assert number == 39 and most <= AHEAD * crew.workers


def test_only_abandoned_files_of_our_own_are_swept_up(tmp_path: Path) -> None:
    abandoned, file = parts.create(tmp_path)
    file.close()
    others = [".lic-0123.part", "lic-0123456789abcdef.part", ".lic-0123456789abcdeg.part"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".lic-0123456789abcdef.part").mkdir()
    os.mkfifo(tmp_path / ".lic-1123456789abcdef.part")
    (tmp_path / ".lic-2123456789abcdef.part").symlink_to(tmp_path / others[0])
    part, file = parts.create(tmp_path)
    before = set(tmp_path.iterdir())
    assert parts.sweep([tmp_path, tmp_path / "nowhere"], before=time.time() - 60) == 0
    assert parts.sweep([tmp_path]) == 1
    assert set(tmp_path.iterdir()) == before - {abandoned}
    with file:
        file.write(b"whole")
        parts.publish(part, file, tmp_path / "result")
    assert (tmp_path / "result").read_bytes() == b"whole"
    assert parts.sweep([tmp_path]) == 0 and not part.exists()


def test_the_next_run_sweeps_up(lic: Lic, tmp_path: Path) -> None:
    killed.make_photos(tmp_path / "in", 2)
    (tmp_path / "out" / "0").mkdir(parents=True)
    part, file = parts.create(tmp_path / "out" / "0")
    arguments = ("compress", tmp_path / "in", "-o", tmp_path / "out", "-j", 1)
    assert "half-written" not in lic(*arguments).err and part.exists()
    file.close()
    done = lic(*arguments, "--skip-existing")
    assert done.code == 0 and "removed 1 half-written file" in done.err
    assert not part.exists()


def test_who_works_off_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lic.cli.folder_engine.usable_cores", lambda: 8)
    monkeypatch.setattr("lic.cli.folder_engine.memory_bytes", lambda: 12 * 2**30)

    def chosen(jobs: int = 0, files: int = 100, **more: Any) -> tuple[str, int, int]:
        options = {"engine": "auto", "device": "cpu", "threads": 0, **more}
        crew = choose_crew(options.pop("engine"), jobs, files=files, **options)
        return crew.engine, crew.workers, crew.threads

    assert chosen() == ("processes", 6, 1)
    assert chosen(files=8) == ("processes", 2, 4)
    assert chosen(files=7) == ("threads", 1, 0)
    assert chosen(1) == ("threads", 1, 0)
    assert chosen(16, threads=3) == ("processes", 16, 3)
    assert chosen(device="cuda") == ("threads", 1, 0)
    assert chosen(3, device="cuda") == ("threads", 3, 2)
    assert chosen(4, engine="threads") == ("threads", 4, 2)
    assert chosen(1, engine="processes") == ("processes", 1, 0)
    monkeypatch.setattr("lic.cli.folder_engine.memory_bytes", lambda: None)
    assert chosen()[1] == 1
    with pytest.raises(ConfigError, match="--engine is 'steam'; expected one of auto, processes"):
        chosen(engine="steam")


@needs_proc
def test_processes_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    """Whatever they are at: the next run has their files."""
    code = (
        "import sys; from pathlib import Path; from tests.cli.folder_work import run_in_processes\n"
        "run_in_processes(Path(sys.argv[1]), 'zz')"
    )
    command = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=environment())
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*z"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = family(command.pid)
    command.kill()
    command.wait()
    assert len(processes) >= 2 and wait_for_the_end(processes)


@needs_proc
def test_killed_runs_leave_whole_results_and_go_on(tmp_path: Path) -> None:
    """`make killed` does so 200 times."""
    seen = killed.prove(tmp_path, count=3, photos=12, seed=int(time.time()))
    assert sum(seen[victim] for victim in killed.VICTIMS) == 3


def test_ray_is_asked_for_where_it_is_missing(
    lic: Lic, png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lic.cli.extras.find_spec", lambda _: None)
    done = lic("compress", png, "--engine", "ray")
    assert done.code == 2 and "needs ray" in done.err and "'.[ray]'" in done.err
