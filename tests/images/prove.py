"""Make an image of the Dockerfile, run it, and fail where it is not what the README promises.

    python -m tests.images.prove [--target runtime|cuda] [--arch amd64|arm64] [--image NAME]

--image proves one that is there already. Another architecture than this machine's is emulated,
and codes for this machine's image and the other way round. Needs root and Debian's packages
buildah and debootstrap; for emulation also qemu-user-static and binfmt-support.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lic.codec.container import parse
from lic.codec.decoding import decompress
from lic.codec.image_io import read_picture
from lic.codec.metrics import psnr
from tests.images.container import (
    Container,
    Fault,
    Stored,
    check_host,
    container,
    native,
)

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "samples" / "kodim23.png"
MODELS = ("bmshj2018-factorized-relu-lite", "bmshj2018-factorized-relu-128-192")
# Megabytes that a target may add to its base, None for any number.
LIMITS = {"runtime": 260, "cuda": None}
# A CUDA image is large twice while it is made: where it is built, and where it is copied to.
CUDA_FREE = 25 * 10**9
COMPILER = re.compile(
    r"(.*-)?(cc|gcc|g\+\+|c\+\+|cpp|clang(\+\+)?|tcc|rustc|as|ld|make)(-[\d.]+)?|cc1(plus)?|collect2"
)
# Both pictures of one file: engines may round to neighbouring levels.
PIXEL_GAP = 1
LEAST_PSNR = 30.0
# Threads of an emulated processor mostly wait for each other.
QUICKLY = ("--threads", "1", "-f", "--quiet")
STRANGER = "12345:12345"
INSIDE = """
import json, os, socket
def refused(path):
    try:
        open(path, "w").close()
    except OSError:
        return True
    os.unlink(path)
    return False
import lic.codec
print(json.dumps({
    "user": [os.getuid(), os.geteuid(), os.getgid()],
    "networks": [name for _, name in socket.if_nameindex()],
    "read_only": all(map(refused, ["/x", "/tmp/x", "/dev/x", "/opt/lic/x"])),
    "data": not refused("/data/x"),
    "embedded": sorted(os.listdir(os.path.join(os.path.dirname(lic.codec.__file__), "bundles"))),
}))
"""


def say(text: str) -> None:
    """Tell what has been shown."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def expect(ok: bool, message: str) -> None:
    """Fail unless something holds."""
    if not ok:
        raise Fault(message)


def build(target: str, architecture: str) -> tuple[Stored, Stored]:
    """Make an image, and its base if it is not there; returns the base and the image."""
    check_host(architecture)
    if target == "cuda":
        free = shutil.disk_usage("/var/lib").free
        expect(free > CUDA_FREE, f"{free / 1e9:.0f} GB are free under /var/lib, expected 25")
    subprocess.run(["sh", str(Path(__file__).with_name("base.sh")), architecture], check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    revision = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    name = f"lic:{target}-{architecture}"
    subprocess.run(
        [
            *("buildah", "bud", "--isolation", "chroot", "--network", "host", "--pull-never"),
            # The health check is Docker's; OCI's format has no place for it.
            *("--format", "docker", "--layers", "--arch", architecture, "--target", target),
            *("--build-arg", f"VERSION={project['version']}"),
            *("--build-arg", f"REVISION={revision or 'unknown'}"),
            *("--tag", name, str(ROOT)),
        ],
        check=True,
    )
    base = Stored.find(f"localhost/debian:bookworm-slim-{architecture}")
    return base, Stored.find(name)


def prove_files(box: Container, target: str) -> None:
    """Look at the image's configuration and files."""
    config = box.image.config
    entry = config.get("Entrypoint")
    expect(entry == ["lic"], f"the entry point is {entry}, expected ['lic']")
    labels = config.get("Labels") or {}
    for label in ("title", "description", "licenses", "version", "revision"):
        text = labels.get(f"org.opencontainers.image.{label}", "unknown")
        expect(text != "unknown", f"found no label {label}")
    names = [
        (Path(folder) / name).relative_to(box.root)
        for folder, _, files in os.walk(box.root)
        for name in files
    ]
    compilers = [
        str(n) for n in names if COMPILER.fullmatch(n.name) and "completions" not in str(n)
    ]
    expect(not compilers, f"found {', '.join(compilers[:5])}, expected no compiler")
    site = next((box.root / "opt/lic/lib").glob("python3*/site-packages"))
    expect(not list(site.glob("pip")), f"found pip in {site}, expected none")
    torch = (site / "torch").is_dir()
    expect(torch == (target == "cuda"), f"torch is {'' if torch else 'not '}there in {target}")
    say(f"no compiler, no pip, {'with' if torch else 'no'} torch")


def prove_isolation(box: Container) -> None:
    """Look around inside: also a proof that what follows is run as it is claimed."""
    seen = json.loads(box.run(["/opt/lic/bin/python", "-c", INSIDE]))
    expect(
        0 not in seen["user"], f"found user and group {seen['user']}, expected none to be root's"
    )
    expect(seen["networks"] == ["lo"], f"networks are {seen['networks']}, expected lo alone")
    expect(seen["read_only"] and seen["data"], "expected /data to be the only place to write to")
    expect(seen["embedded"] == sorted(MODELS), f"embedded models are {seen['embedded']}")
    say(f"user {seen['user'][0]}, read-only but for /data, no network, models embedded")


def prove_health(box: Container, target: str) -> None:
    """Run the image's own health check, and read what the self-test says."""
    check = box.image.config.get("Healthcheck") or {"Test": ["none"]}
    kind, *command = check["Test"]
    expect(kind == "CMD", f"the health check is of kind {kind}, expected CMD")
    # A warning, such as that an engine cannot write where it wants to, would be a fault. Without
    # /sys there is one, about the processor.
    told = box.run(["sh", "-c", f"{shlex.join(command)} 2>&1"])
    expect(box.emulated or not told, f"the health check says {told.strip()}, expected nothing")
    engines = ["onnx", "torch"] if target == "cuda" else ["onnx"]
    lines = [json.loads(line) for line in box.lic("verify", "--self-test", "--json").splitlines()]
    found = sorted((line["model"].split()[0], line["backend"]) for line in lines)
    expect(found == sorted((m, e) for m in MODELS for e in engines), f"self-test had {found}")
    kernels = {line["kernel"] for line in lines}
    expect(kernels == {"c"}, f"the entropy coder's kernel is {kernels}, expected the compiled one")
    say(f"health check and self-test: {', '.join(f'{m} on {e}' for m, e in found)}; C kernel")


def prove_cuda(box: Container) -> None:
    """See that whatever ONNX Runtime wants for a GPU can be loaded; running it takes a GPU."""
    provider = "/opt/lic/lib/python3*/site-packages/onnxruntime/capi/*_providers_cuda.so"
    wanted = box.run(["sh", "-c", f"ldd {provider}"]).splitlines()
    # The driver's library comes from the machine that has the GPU.
    missing = [x.strip() for x in wanted if "not found" in x and "libcuda.so" not in x]
    expect(bool(wanted) and not missing, f"the CUDA provider misses {', '.join(missing)}")
    say(f"the CUDA provider finds its {len(wanted)} libraries, apart from the driver's")


def make_photo(path: Path, *, small: bool) -> None:
    """Write the photo that is coded; a small part of it has as many operators to emulate."""
    with Image.open(PHOTO) as image:
        (image.crop((300, 100, 556, 292)) if small else image).save(path)
    path.chmod(0o444)


def prove_coding(boxes: list[Container]) -> None:
    """Code a photo in every container; every file decodes in all of them, and here."""
    photo = read_picture(boxes[0].data / "photo.png").pixels
    for model in MODELS:
        for writer in boxes:
            data = writer.data
            lic = f"{writer.image.architecture}.lic"
            writer.lic("compress", "photo.png", "-o", lic, "-m", model, *QUICKLY)
            (tile,) = parse((data / lic).read_bytes()).tiles
            pictures = {"here": decompress((data / lic).read_bytes()).picture.pixels}
            for reader in boxes:
                png = f"{reader.image.architecture}.png"
                # Both end with an error where the symbols' checksum is not the writer's.
                reader.lic("verify", lic, "--threads", "1", "--quiet")
                reader.lic("decompress", lic, "-o", png, *QUICKLY)
                pictures[reader.image.architecture] = read_picture(data / png).pixels
            quality = psnr(photo, pictures["here"])
            expect(quality > LEAST_PSNR, f"{model}: {quality:.2f} dB, expected {LEAST_PSNR}")
            levels = [p.astype(np.int16) for p in pictures.values()]
            gap = max(int(np.abs(a - b).max()) for a in levels for b in levels)
            expect(gap <= PIXEL_GAP, f"{model}: pixels are {gap} levels apart, expected at most 1")
            say(
                f"{model}: {(data / lic).stat().st_size} bytes of {writer.image.architecture}, "
                f"symbols {tile.symbols_crc:08x} on {', '.join(pictures)}, {quality:.2f} dB, "
                f"pixels at most {gap} level apart"
            )


def prove_measuring(box: Container) -> None:
    """Measure inside, and code for a user that the image does not know."""
    model = ("-m", MODELS[0], "-q", "3", "--backend", "onnx", "--codec", "jpeg", "--json")
    for row in _rows(box, "bench", "rd", "photo.png", *model, "--qualities", "80", "--no-cache"):
        expect(not row["failed"] and row["psnr"] > LEAST_PSNR, f"lic bench rd: {row}")
        say(f"lic bench rd: {row['system']}: {row['bpp']:.3f} bpp, {row['psnr']:.2f} dB")
    once = ("--threads", "1", "--size", "128x192", "--runs", "1", "--warmup", "0")
    for row in _rows(box, "bench", "speed", "photo.png", *model, *once):
        expect(row["error"] is None, f"lic bench speed: {row}")
        say(f"lic bench speed: {row['system']}: encode {row['encode']['wall']['median']:.0f} ms")
    box.lic("compress", "photo.png", "-o", "stranger.lic", "--quiet", user=STRANGER)
    owner = (box.data / "stranger.lic").stat().st_uid
    expect(f"{owner}" == STRANGER.split(":")[0], f"the file belongs to {owner}")
    say(f"any other user: {STRANGER}")


def _rows(box: Container, *arguments: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in box.lic(*arguments).splitlines()]
    expect(len(rows) == 2, f"lic {shlex.join(arguments)}: {len(rows)} rows, expected 2")
    return rows


def prove(target: str, architecture: str, name: str) -> None:
    """Prove an image; with a name, one that is there already."""
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Docker hands a user's own folder over; here anybody may write.
        data.chmod(0o777)
        make_photo(data / "photo.png", small=architecture != native())
        boxes: list[Container] = []
        for each in dict.fromkeys([native(), architecture]):
            if name and each == architecture:
                check_host(architecture)
                base = Stored.find(f"localhost/debian:bookworm-slim-{architecture}")
                image = Stored.find(name)
            else:
                base, image = build(target, each)
            boxes.append(stack.enter_context(container(image, data)))
        box = boxes[-1]
        adds, limit = box.image.over(base) / 1e6, LIMITS[target]
        expect(limit is None or adds <= limit, f"adds {adds:.1f} MB, expected at most {limit}")
        say(f"{box.image.name}: adds {adds:.1f} MB to {base.layers[0][1] / 1e6:.1f} MB")
        prove_files(box, target)
        prove_isolation(box)
        prove_health(box, target)
        if target == "cuda":
            prove_cuda(box)
        prove_coding(boxes)
        prove_measuring(box)


def main() -> int:
    """Prove what the arguments say and return the exit code."""
    parser = argparse.ArgumentParser(description="Make an image and prove it.")
    parser.add_argument("--target", choices=list(LIMITS), default="runtime")
    parser.add_argument("--arch", choices=["amd64", "arm64"], default=native())
    parser.add_argument("--image", default="", help="prove this one, which is there already")
    chosen = parser.parse_args()
    try:
        prove(chosen.target, chosen.arch, chosen.image)
    except (Fault, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"tests.images.prove: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
