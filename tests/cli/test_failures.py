"""Every failure: its own message and exit code, nothing lost, nothing half-written."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lic.cli.app import run
from lic.cli.console import EXITS, Exit
from lic.codec.errors import LicError

Lic = Callable[..., Any]
SteppingDown = Callable[[], AbstractContextManager[None]]


def left_behind(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_every_error_has_an_exit_code() -> None:
    def kinds(of: type[LicError]) -> set[type[LicError]]:
        return set(of.__subclasses__()).union(*(kinds(k) for k in of.__subclasses__()))

    assert set(EXITS) == kinds(LicError)


def test_exit_codes_never_move() -> None:
    assert {e.name: int(e) for e in Exit} == {
        "OK": 0, "UNEXPECTED": 1, "USAGE": 2, "INPUT": 3, "CORRUPT": 4, "MODEL": 5, "LIMIT": 6,
        "OUTPUT": 7, "BATCH": 8, "WORK": 9, "INTERRUPTED": 130,
    }  # fmt: skip


def test_unreadable_pictures(lic: Lic, png: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(png.read_bytes()[: png.stat().st_size // 2])
    text = tmp_path / "text.png"
    text.write_text("hello")
    empty = tmp_path / "empty.png"
    empty.touch()
    before = left_behind(tmp_path)
    for path in (cut, text, empty, tmp_path / "missing.png"):
        done = lic("compress", path)
        assert done.code == 3, path
        assert len(done.err.strip()) > 20
    assert left_behind(tmp_path) == before


def test_picture_over_the_limit(lic: Lic, png: Path) -> None:
    done = lic("compress", png, "--max-pixels", 1000)
    assert (
        done.code == 6
        and "1536" in done.err.replace(",", "")
        and "1000" in done.err.replace(",", "")
    )
    assert lic("compress", png).code == 0
    assert lic("decompress", png.with_suffix(".lic"), "-f", "--max-pixels", 1000).code == 6
    assert lic("verify", png.with_suffix(".lic"), "--max-pixels", 1000).code == 6


def test_existing_output_is_kept(lic: Lic, png: Path) -> None:
    target = png.with_suffix(".lic")
    target.write_bytes(b"precious")
    done = lic("compress", png)
    assert done.code == 7 and str(target) in done.err and "-f" in done.err
    assert target.read_bytes() == b"precious"
    assert lic("compress", png, "-f").code == 0
    assert target.read_bytes() != b"precious"
    before = png.read_bytes()
    assert lic("decompress", target).code == 7
    assert png.read_bytes() == before


def test_input_is_never_its_own_output(lic: Lic, png: Path) -> None:
    before = png.read_bytes()
    assert lic("compress", png, "-o", png, "-f").code == 2
    assert png.read_bytes() == before


def test_folder_that_cannot_be_written(
    lic: Lic, png: Path, tmp_path: Path, stepping_down: SteppingDown
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    with stepping_down():
        done = lic("compress", png, "-o", locked / "a.lic")
    assert done.code == 7 and "locked" in done.err
    assert left_behind(locked) == set()
    done = lic("compress", png, "-o", png / "a.lic")
    assert done.code == 7


def test_models_that_do_not_fit(
    lic: Lic, png: Path, tmp_path: Path, tiny_bundle: Path, tiny_bundle_2: Path
) -> None:
    file, back = tmp_path / "a.lic", tmp_path / "back.png"
    assert lic("compress", png, "-o", file, "-m", tiny_bundle).code == 0
    missing = lic("decompress", file, "-o", back)
    assert missing.code == 5 and "not installed" in missing.err and "tiny-relu" in missing.err
    wrong = lic("decompress", file, "-o", back, "-m", tiny_bundle_2)
    assert wrong.code == 5 and "was made with model" in wrong.err
    assert lic("decompress", file, "-o", back, "-m", tmp_path).code == 5
    assert lic("compress", png, "-m", "no-such-model", "-o", tmp_path / "x.lic").code == 5
    changed = tmp_path / "changed"
    shutil.copytree(tiny_bundle, changed)
    weights = bytearray((changed / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "weights.safetensors").write_bytes(weights)
    done = lic("decompress", file, "-o", back, "-m", changed)
    assert done.code == 5 and "weights.safetensors" in done.err
    assert lic("models", "show", changed).code == 5
    assert not back.exists()
    assert lic("decompress", file, "-o", back, "-m", tiny_bundle).code == 0


def test_unknown_version(lic: Lic, png: Path, tmp_path: Path) -> None:
    import struct
    import zlib

    assert lic("compress", png).code == 0
    data = bytearray(png.with_suffix(".lic").read_bytes())
    data[16] = 2
    data[48:52] = struct.pack("<I", zlib.crc32(bytes(data[12:48])))
    png.with_suffix(".lic").write_bytes(data)
    done = lic("decompress", png.with_suffix(".lic"), "-o", tmp_path / "b.png")
    assert done.code == 4 and "version" in done.err
    assert not (tmp_path / "b.png").exists()


def test_other_symbols_than_the_encoders(lic: Lic, png: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from lic.codec.container import parse, serialize

    assert lic("compress", png).code == 0
    file = parse(png.with_suffix(".lic").read_bytes())
    tile = replace(file.tiles[0], symbols_crc=file.tiles[0].symbols_crc ^ 1)
    (tmp_path / "n.lic").write_bytes(serialize(replace(file, tiles=(tile,))))
    done = lic("decompress", tmp_path / "n.lic")
    assert done.code == 5 and "other symbols" in done.err
    assert not (tmp_path / "n.png").exists()


def test_a_batch_goes_on_and_lists_failures(lic: Lic, png: Path, tmp_path: Path) -> None:
    tree = tmp_path / "in"
    tree.mkdir()
    for name in ("a", "c"):
        (tree / f"{name}.png").write_bytes(png.read_bytes())
    (tree / "b.png").write_text("no picture")
    done = lic("compress", tree, "-o", tmp_path / "out")
    assert done.code == 8 and "b.png" in done.err and "2 of 3" in done.err
    assert left_behind(tmp_path / "out") == {"a.lic", "c.lic"}


def test_inputs_that_differ_in_their_suffix_keep_it(lic: Lic, png: Path, tmp_path: Path) -> None:
    tree = tmp_path / "in"
    tree.mkdir()
    for name in ("a.png", "b.png", "a.x.png"):
        (tree / name).write_bytes(png.read_bytes())
    for name in ("a.jpg", "a.x.jpg"):
        with Image.open(png) as image:
            image.save(tree / name)
    assert lic("compress", tree, "-o", tmp_path / "out").code == 0
    assert left_behind(tmp_path / "out") == {
        "a.png.lic", "a.jpg.lic", "b.lic", "a.x.png.lic", "a.x.jpg.lic",
    }  # fmt: skip


def test_two_inputs_for_one_output(lic: Lic, png: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(png.read_bytes())
    out = tmp_path / "out"
    done = lic("compress", tmp_path / "one" / "a.png", tmp_path / "two" / "a.png", "-o", out)
    assert done.code == 2 and "both" in done.err
    assert not out.exists()


def test_another_spelling_of_the_input_is_still_the_input(
    lic: Lic, png: Path, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    link = tmp_path / "link.png"
    link.symlink_to(png)
    before = png.read_bytes()
    for target in (tmp_path / "sub" / ".." / png.name, png.with_name(png.name.upper()), link):
        assert lic("compress", png, "-o", target, "-f").code == 2, target
        assert png.read_bytes() == before


def test_a_slash_makes_a_folder(lic: Lic, png: Path, tmp_path: Path) -> None:
    assert lic("compress", png, "-o", f"{tmp_path / 'new'}/").code == 0
    assert left_behind(tmp_path / "new") == {"photo.lic"}


def test_a_batch_on_a_terminal_still_writes_json_to_stdout(png: Path, tmp_path: Path) -> None:
    import json
    import pty

    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.png").write_bytes(png.read_bytes())
    terminal, side = pty.openpty()
    code = "from lic.cli.app import main; main()"
    arguments = ["compress", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=side, timeout=120
    )
    os.close(side)
    os.close(terminal)
    assert done.returncode == 0
    assert {json.loads(line)["width"] for line in done.stdout.splitlines()} == {48}
    assert len(done.stdout.splitlines()) == 2


def test_quiet_still_names_failures(lic: Lic, png: Path, tmp_path: Path) -> None:
    tree = tmp_path / "in"
    tree.mkdir()
    (tree / "a.png").write_bytes(png.read_bytes())
    (tree / "b.png").write_text("no picture")
    done = lic("compress", tree, "-o", tmp_path / "out", "--quiet")
    assert done.code == 8
    assert done.err.count("b.png") == 1 and "a.png" not in done.err


def test_a_single_failure_is_json_too(lic: Lic, tmp_path: Path) -> None:
    import json

    (tmp_path / "a.png").write_text("no picture")
    done = lic("compress", tmp_path / "a.png", "--json")
    assert done.code == 3
    assert json.loads(done.out)["exit_code"] == 3


def test_json_and_data_do_not_share_stdout(lic: Lic, png: Path) -> None:
    done = lic("compress", png, "-o", "-", "--json")
    assert done.code == 2 and done.out == ""


def test_folders_that_may_not_be_entered(
    lic: Lic, png: Path, tmp_path: Path, stepping_down: SteppingDown
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "a.png").write_bytes(png.read_bytes())
    locked.chmod(0)
    with stepping_down():
        assert lic("compress", locked / "a.png").code == 3
        assert lic("compress", png, "-o", locked / "a.lic").code == 7
    locked.chmod(0o755)


def test_a_pipe_is_written_to_and_not_replaced(lic: Lic, png: Path, tmp_path: Path) -> None:
    import stat
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    assert lic("compress", png, "-o", pipe, "-f").code == 0
    reader.join(timeout=30)
    assert received[0].startswith(b"\x89LIC")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_full_device(png: Path) -> None:
    code = "from lic.cli.app import main; main()"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "compress", str(png), "-o", "-"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
        )
    assert done.returncode == 7 and b"stdout" in done.stderr


def test_results_have_the_users_permissions(lic: Lic, png: Path, tmp_path: Path) -> None:
    tree = tmp_path / "in"
    tree.mkdir()
    for i in range(12):
        (tree / f"{i}.png").write_bytes(png.read_bytes())
    before = os.umask(0o027)
    try:
        assert lic("compress", tree, "-o", tmp_path / "out", "-j", 4).code == 0
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o640}


def test_results_of_a_batch_do_not_pile_up_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    from lic.cli import batch
    from lic.cli.console import Output
    from lic.cli.folder_engine import Crew

    jobs = [batch.Job(source=None, target=tmp_path / f"{i}.bin") for i in range(60)]

    def work(_: batch.Job) -> batch.Done:
        return batch.Done(data=bytes(2**20), values={}, text="")

    tracemalloc.start()
    crew = Crew(engine="threads", workers=1, threads=1)
    assert batch.run(jobs, lambda: work, Output(-1), crew.work_off) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_a_user_without_a_home_has_the_embedded_model(png: Path, tmp_path: Path) -> None:
    code = "from lic.cli.app import main; main()"
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_DATA_HOME")}
    script = (
        f"import pathlib\ndef no(*_): raise RuntimeError('no home')\npathlib.Path.home = no\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "compress", str(png), "-o", str(tmp_path / "a.lic")],
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0


def test_names_that_the_terminal_cannot_show(png: Path, tmp_path: Path) -> None:
    odd = tmp_path / "写真.png"
    odd.write_bytes(png.read_bytes())
    code = "from lic.cli.app import main; main()"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    for arguments in (["compress", odd], ["info", odd.with_suffix(".lic")]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], env=environment,
            capture_output=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_usage_errors(lic: Lic, png: Path, tmp_path: Path) -> None:
    for arguments in (
        ["compress"],
        ["compress", png, "--no-such-option"],
        ["compress", png, "--backend", "cobol"],
        ["compress", png, "--device", "abacus"],
        ["compress", png, "-"],
        ["compress", "-"],
        ["compress", tmp_path, "-o", "-"],
        ["nonsense"],
        ["decompress", png, "--threads", "-1"],
        ["decompress", png, "--format", "heic"],
        ["compress", png, "--metadata", "gps"],
        ["compress", png, "--lossless", "-q", "2"],
        ["compress", png, "--lossless", "--tile", "512"],
        ["compress", png, "--tile", "250"],
        ["decompress", png, "--region", "1,2,3"],
        ["compress", png, "--backend", "torch", "--device", "mps"],
    ):
        assert lic(*arguments).code == 2, arguments


def test_unknown_output_format(lic: Lic, png: Path, tmp_path: Path) -> None:
    assert lic("compress", png).code == 0
    done = lic("decompress", png.with_suffix(".lic"), "-o", tmp_path / "a.docx")
    assert done.code == 7 and "docx" in done.err
    assert not (tmp_path / "a.docx").exists()


def test_not_enough_memory_is_a_limit(lic: Lic, png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lic.codec.pipeline import Codec

    def explode(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Codec, "compress", explode)
    done = lic("compress", png)
    assert done.code == 6 and "memory" in done.err


def test_a_bug_is_one_line_unless_asked(
    png: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lic.codec.pipeline import Codec

    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(Codec, "compress", explode)
    assert run(["compress", str(png)]) == 1
    quiet = capsys.readouterr().err
    assert "planted" in quiet and "Traceback" not in quiet
    assert run(["compress", str(png), "-vv"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(
    lic: Lic, png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = png.with_suffix(".lic")
    target.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    before = left_behind(png.parent)
    done = lic("compress", png, "-f")
    assert done.code == 7 and "No space left" in done.err
    assert target.read_bytes() == b"old"
    assert left_behind(png.parent) == before


def test_other_symbols_give_no_picture(
    lic: Lic, tmp_path: Path, large_photo: Any, tiny_hpcm_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A decoder that computes other entropy parameters, as another device may."""
    import torch

    from lic.codec.backends import torch_backend

    Image.fromarray(large_photo[:120, :300]).save(tmp_path / "a.png")
    assert lic("compress", tmp_path / "a.png", "-m", tiny_hpcm_bundle).code == 0
    real = torch_backend.load_model

    def changed(*arguments: Any) -> Any:
        model = real(*arguments)
        with torch.no_grad():
            model.get_parameter("h_s.branch.4.bias").add_(0.5)
        return model

    monkeypatch.setattr(torch_backend, "load_model", changed)
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.png").write_bytes(b"old")
    for name in ("new.png", "old.png"):
        target = ("-o", out / name, "-f", "-m", tiny_hpcm_bundle)
        done = lic("decompress", tmp_path / "a.lic", *target)
        assert done.code == 5
        assert "gave other symbols" in done.err and "other entropy parameters" in done.err
    assert left_behind(out) == {"old.png"}
    assert (out / "old.png").read_bytes() == b"old"
    monkeypatch.undo()
    assert lic("decompress", tmp_path / "a.lic", *target).code == 0
    assert (out / "old.png").read_bytes() != b"old"


def test_ctrl_c_in_the_middle_of_a_folder(tmp_path: Path) -> None:
    tree, out = tmp_path / "in", tmp_path / "out"
    tree.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    for i in range(200):
        Image.fromarray(noise).save(tree / f"{i:03}.bmp")
    process = subprocess.Popen(
        [sys.executable, "-c", "from lic.cli.app import main; main()", "compress", tree, "-o", out],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("*.lic")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err and "Traceback" not in err
    finished = left_behind(out)
    assert 0 < len(finished) < 200
    assert all(name.endswith(".lic") and not name.startswith(".") for name in finished)
    for path in out.glob("*.lic"):
        assert run(["verify", "--structure", "--quiet", str(path)]) == 0
