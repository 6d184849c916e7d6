"""What the README tells people to type works as it is written."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.core import TyperGroup

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PILLOW = (ROOT / "codec" / "PILLOW.md").read_text()
GUIDE = (ROOT / "export" / "GUIDE.md").read_text()


def _section(title: str) -> str:
    start = README.index(f"\n## {title}\n")
    end = README.find("\n## ", start + 4)
    return README[start:end]


def _commands(text: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with photo.png and photos/, as the README assumes."""
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    with Image.open(ROOT / "samples" / "kodim23.png") as image:
        small = image.crop((300, 100, 460, 220))
    for name in ("photo.png", "photos/a.png", "photos/trip/b.jpg"):
        small.save(tmp_path / name)
    return tmp_path


def test_commands_of_the_section_on_use(photos: Path) -> None:
    commands = _commands(_section("Use"))
    assert len(commands) > 8
    lic = f"{shlex.quote(sys.executable)} -c 'from lic.cli.app import main; main()'"
    for command in commands:
        assert command.startswith("lic ")
        done = subprocess.run(
            lic + command[3:], shell=True, cwd=photos, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (command, done.stderr)
    assert (photos / "piped.lic").read_bytes().startswith(b"\x89LIC")
    assert (photos / "pictures" / "trip" / "b.webp").is_file()


def test_commands_of_the_training_guide(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With few steps and small models, in the order they come; in one process, which is faster."""
    import torch

    from lic.cli.app import run
    from lic.codec.models import FactorizedConfig, FactorizedPrior
    from lic.codec.models.bmshj2018 import SIZES
    from lic.codec.models.hpcm_config import SIZES as HPCM_SIZES
    from tests.trainers.small_runs import MINI

    monkeypatch.chdir(photos)
    monkeypatch.setitem(SIZES, "lite", (8, 12))
    monkeypatch.setitem(HPCM_SIZES, "tiny", replace(MINI, placement="upstream"))
    torch.manual_seed(0)
    model = FactorizedPrior(FactorizedConfig(N=8, M=12))
    torch.save(model.state_dict(), photos / "bmshj2018-factorized.pth.tar")
    (photos / "photos").rename(photos / "PHOTOS")
    with Image.open(ROOT / "samples" / "kodim23.png") as image:
        for i in range(12):
            image.crop((40 * i, 0, 40 * i + 160, 160)).save(photos / "PHOTOS" / f"{i}.png")
    few = " --steps 2 --batch 1 --device cpu --start random"
    commands = _commands((ROOT / "trainers" / "GUIDE.md").read_text())
    assert len(commands) > 8
    for command in commands:
        command = command.replace("--size 4", "--size lite").replace("--size base", "--size tiny")
        if command.startswith("lic train bmshj2018") and "--resume" not in command:
            command += few.replace(" --start random", "") if "--init" in command else few
        if command.startswith("lic train hpcm"):
            command += few.replace(" --start random", "") + " --crop 128"
            if "--size" in command:
                command += " --placement corrected"
        if command.startswith("lic train sweep"):
            command = command.replace("steps=4000", "steps=2 --set batch=1 --set start=random")
            command += " --device cpu"
        if command.startswith("lic train relu"):
            command += few.replace(" --start random", "")
        if "--qat" in command:
            command += " --qat-calibration-steps 1"
        assert run(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)
    assert (photos / "runs" / "int8" / "int8.safetensors").is_file()


def test_commands_of_the_export_guide(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from lic.cli.app import run
    from lic.codec.models import FactorizedConfig, FactorizedPrior

    monkeypatch.chdir(photos)
    torch.manual_seed(0)
    model = FactorizedPrior(FactorizedConfig(N=8, M=12))
    torch.save(model.state_dict(), photos / "bmshj2018-factorized.pth.tar")
    (photos / "photos").rename(photos / "PHOTOS")
    commands = _commands(GUIDE)
    assert len(commands) > 8
    for command in commands:
        if command.startswith("lic "):
            arguments = shlex.split(command)[1:]
            if "rd" in arguments:
                arguments += ["--calib-count", "1"]
            assert run(arguments) == 0, (command, capsys.readouterr().err)
    assert (photos / "npu" / "decoder.onnx").is_file()
    with Image.open(photos / "photo.png") as image:
        image.convert("RGB").resize((256, 256)).save(photos / "photo256.png")
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(code, {})
    assert run(["verify", "device.lic"]) == 0
    with Image.open(photos / "device.png") as image:
        assert image.size == (256, 256)


def test_commands_of_the_benchmark_guide(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With two small pictures in place of Kodak, few settings, made-up times, in this process."""
    from lic.cli.app import run
    from lic.codec.benchmark import rd, speed
    from lic.codec.benchmark.schema import SpeedRun
    from lic.codec.workers import spread
    from tests.codec.report.made import direction

    def measure(tasks: Any, **_: Any) -> Iterator[SpeedRun]:
        for task, source in tasks:
            both = direction(5.0, source.pixels().size)
            yield replace(task.row(), encode=both, decode=both)

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.chdir(photos)
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos / "cache"))
    monkeypatch.setattr(rd, "spread", lambda work, pieces, _: spread(work, pieces, 0))
    (photos / "KODAK").mkdir()
    with Image.open(ROOT / "samples" / "kodim23.png") as image:
        for i in range(2):
            image.crop((200 * i, 0, 200 * i + 170, 170)).save(photos / "KODAK" / f"{i}.png")
    commands = _commands((ROOT / "codec" / "BENCH.md").read_text())
    assert len(commands) > 8
    for command in commands:
        if not command.startswith("lic "):
            continue
        if " bench rd " in command and "--qualities" not in command:
            command += " --codec jpeg --qualities 10,30,50,70"
        # Only Kodak itself goes without saying.
        if " bench report " in command:
            command = command.replace('--anchor "VVC VTM"', "").replace("kodim23", "0")
            command = command.replace("kodim04", "1")
        elif "--anchor" in command or "published:" in command:
            command += " --dataset Kodak"
        arguments = shlex.split(command.replace("4096x4096", "512x512"))[1:]
        assert run(arguments) == 0, (command, capsys.readouterr().err)
    for made in ("results.json", "speed.json", "report.html", "pictures.html", "paper.html"):
        assert (photos / made).is_file()


@pytest.mark.parametrize(
    "page", ["README.md", "trainers/GUIDE.md", "export/GUIDE.md", "codec/BENCH.md"]
)
def test_every_option_of_an_example_is_one(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands of training go on to where work would begin, so that their values count as well."""
    from lic.cli import sweep
    from lic.cli.app import run
    from lic.cli.training import Run

    def enough(*_: object) -> None:
        raise typer.Exit

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").touch()
    monkeypatch.setattr(Run, "_open", enough)
    monkeypatch.setattr(sweep, "_check_pictures", enough)
    trained = 0
    for line in _commands((ROOT / page).read_text()):
        program, *arguments = shlex.split(line, comments=True)
        if program == "lic":
            _parse(arguments)
        if arguments[:1] == ["train"] and not {"analyze", "--resume"} & set(arguments):
            assert run(arguments) == 0, (line, capsys.readouterr().err)
            trained += 1
    assert trained > 8 or page in ("export/GUIDE.md", "codec/BENCH.md")


def _parse(arguments: list[str]) -> None:
    """Parse a command line of lic without running it."""
    from lic.cli import bench, data, export, export_check, train
    from lic.cli.app import app

    command = typer.main.get_command(app)
    later = {
        "train": train.app,
        "data": data.app,
        "bench": bench.app,
        "export": export.app,
    }
    if arguments[:2] == ["export", "check"]:
        later["check"] = export_check.app
        arguments = arguments[1:]
    while isinstance(command, TyperGroup):
        name, *arguments = arguments
        command = typer.main.get_command(later[name]) if name in later else command.commands[name]
    command.make_context("lic", arguments)


def test_the_python_example(photos: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=photos, check=True, timeout=120)
    with Image.open(photos / "python.png") as image:
        assert image.size == (160, 120)


def test_the_examples_of_the_pillow_guide(photos: Path) -> None:
    """In the order they come, in one process: later ones use what earlier ones made."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PILLOW, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=photos, check=True, timeout=120, capture_output=True
    )
    assert done.stdout.decode() == "(160, 120) RGB 1\n"
    sizes = {path.stem: path.stat().st_size for path in photos.glob("*.lic")}
    assert sizes["small"] < sizes["photo"] < sizes["large"] < sizes["exact"]
    assert sizes["described"] > sizes["photo"]
    with Image.open(photos / "thumbnail.jpg") as image:
        assert image.size == (64, 48)


def test_the_pillow_guide_names_every_option_and_setting() -> None:
    """And those only, of which tables and the text on arrays tell."""
    import inspect

    from lic.codec import decode, encode, pillow_plugin

    for function in (encode, decode):
        for name in inspect.signature(function).parameters:
            assert name in ("pixels", "data", "limits") or f"`{name}`" in PILLOW
    source = inspect.getsource(pillow_plugin)
    options = set(re.findall(r"options\.get\(\"(\w+)\"", source))
    table = PILLOW[PILLOW.index("| option |") : PILLOW.index("Every mode")]
    listed = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in row.split(", ")}
    assert {name.strip("`") for name in listed} == options - {"append_images"}
    for name in ("BACKEND", "DEVICE", "THREADS"):
        assert hasattr(pillow_plugin, name) and f"pillow_plugin.{name} = " in PILLOW


def test_exit_codes_are_those_of_the_program() -> None:
    from lic.cli.app import app
    from lic.cli.console import Exit

    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", _section("Use"), re.MULTILINE)}
    assert listed == {int(code) for code in Exit}
    assert app.info.epilog is not None
    assert {int(code) for code in re.findall(r"(\d+) \w", str(app.info.epilog))} == listed


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)", README)) <= targets


def test_links_lead_somewhere() -> None:
    for page in (
        "README.md",
        "CONTRIBUTING.md",
        "codec/FORMAT.md",
        "codec/BENCH.md",
        "codec/PILLOW.md",
        "export/GUIDE.md",
    ):
        # Indented lines are code, where v[i](p) is no link.
        text = re.sub(r"^    .*$", "", (ROOT / page).read_text(), flags=re.MULTILINE)
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in link:
                assert ((ROOT / page).parent / link).exists(), (page, link)


def test_nothing_is_left_to_be_filled_in() -> None:
    for page in (
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "codec/FORMAT.md",
        "export/GUIDE.md",
        "codec/BENCH.md",
        "codec/PILLOW.md",
    ):
        text = (ROOT / page).read_text()
        left = [c for c in re.findall(r"<!-- ([\w-]+) -->", text)]
        assert left == [], page
