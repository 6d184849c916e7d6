"""Images as buildah has them, run as strictly as anybody may: nothing but the mounted folder can be
written to, not even /tmp, there is no network, and the user has no rights of root.

Mount and network namespaces and a plain chroot do that on any Linux, for an emulated processor
too. There /proc and /sys are left out: they describe the host's processor, and ONNX Runtime, which
looks there for the one it runs on, crashes at what it finds.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}
EMULATION = {"qemu-aarch64-static": "qemu-user-static", "update-binfmts": "binfmt-support"}
# Arguments: the image's root, the mounted folder, "native" or "emulated", UID:GID, a command.
ISOLATE = """
root=$1 data=$2 processor=$3 user=$4
shift 4
mount --bind "$root" "$root"
mount -t tmpfs -o mode=755,size=1m tmpfs "$root/dev"
for device in null zero full random urandom; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -o remount,ro "$root/dev"
mount --bind "$data" "$root/data"
if [ "$processor" = native ]; then
    mount -t proc -o ro proc "$root/proc"
    mount -t sysfs -o ro sysfs "$root/sys"
fi
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$user" "$root" env -i --chdir=/data "$@"
"""


class Fault(Exception):
    """What an image does, and what it should."""


def native() -> str:
    """Return this machine's architecture by the name that images have."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def check_host(architecture: str) -> None:
    """Refuse a machine that cannot make and run images of an architecture.

    Raises:
        Fault: names the packages to install.
    """
    needed = TOOLS if architecture == native() else {**TOOLS, **EMULATION}
    missing = sorted({needed[tool] for tool in needed if shutil.which(tool) is None})
    if missing:
        raise Fault(f"not installed: {', '.join(missing)}; apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise Fault("found an ordinary user, expected root: debootstrap and mounts need it")


def buildah(*arguments: str) -> str:
    """Run buildah and return what it says.

    Raises:
        Fault: it failed.
    """
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Fault(f"buildah {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An image in buildah's storage.

    Attributes:
        name: with tag.
        architecture: amd64 or arm64.
        config: user, entry point, environment and so on, in Docker's words.
        layers: digest and bytes of each, unpacked, from the base up.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    layers: list[tuple[str, int]]

    @classmethod
    def find(cls, name: str) -> "Stored":
        """Return an image by its name."""
        told = json.loads(buildah("inspect", "--type", "image", name))
        layers = json.loads(told["Manifest"])["layers"]
        return cls(
            name=name,
            architecture=told["OCIv1"]["architecture"],
            config=told["Docker"]["config"],
            layers=[(layer["digest"], layer["size"]) for layer in layers],
        )

    def over(self, base: "Stored") -> int:
        """Return the bytes that this adds to a base; what it deletes there counts for nothing.

        Raises:
            Fault: it is not built on the base.
        """
        if self.layers[: len(base.layers)] != base.layers:
            raise Fault(f"{self.name} is not built on {base.name}")
        return sum(size for _, size in self.layers[len(base.layers) :])


@dataclass(frozen=True, kw_only=True)
class Container:
    """An image's files where they can be run.

    Attributes:
        image: whose.
        root: its mounted files.
        data: the folder that containers find under /data.
    """

    image: Stored
    root: Path
    data: Path

    @property
    def emulated(self) -> bool:
        """Whether this is for another processor than this machine's."""
        return self.image.architecture != native()

    def lic(self, *arguments: str, user: str = "") -> str:
        """Run the entry point with arguments, and return its standard output."""
        return self.run([*self.image.config["Entrypoint"], *arguments], user=user)

    def run(self, command: Sequence[str], *, user: str = "") -> str:
        """Run a command as the image's user, or as UID:GID, and return its standard output.

        Raises:
            Fault: it failed.
        """
        processor = "emulated" if self.emulated else "native"
        user = user or self.image.config["User"]
        done = subprocess.run(
            [
                *("unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork"),
                *("sh", "-euc", ISOLATE, "sh", str(self.root), str(self.data), processor, user),
                *self.image.config["Env"],
                *command,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Fault(
                f"{self.image.name}: {' '.join(command)}: exit code {done.returncode}, expected 0: "
                f"{(done.stderr.strip() or done.stdout.strip())[-2000:]}"
            )
        # An emulated ONNX Runtime complains at every start that it does not know its processor.
        if not self.emulated:
            sys.stderr.write(done.stderr)
        return done.stdout


@contextmanager
def container(image: Stored, data: Path) -> Iterator[Container]:
    """Give an image's files for a while."""
    name = buildah("from", "--pull-never", "--arch", image.architecture, image.name).strip()
    try:
        yield Container(image=image, root=Path(buildah("mount", name).strip()), data=data)
    finally:
        buildah("rm", name)
