#!/bin/sh
# Makes the image debian:bookworm-slim for one architecture with debootstrap, where no container
# registry can be reached: the Dockerfile starts from it. Nothing happens where it is there already.
#
#     tests/images/base.sh [amd64|arm64]
#
# One architecture at a time can carry the name, so each is kept under a name of its own, too, and
# the one asked for gets it.
set -eu

here=$(dpkg --print-architecture 2>/dev/null || true)
arch=${1:-$here}
name=localhost/debian:bookworm-slim
own=$name-$arch

missing=""
need() {
    command -v "$1" >/dev/null || missing="$missing $2"
}
need buildah buildah
need debootstrap debootstrap
if [ "$arch" != "$here" ]; then
    need qemu-aarch64-static qemu-user-static
    need update-binfmts binfmt-support
fi
if [ -n "$missing" ]; then
    echo "tests/images/base.sh: not installed:$missing; apt-get install$missing" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "tests/images/base.sh: debootstrap needs root, this is user $(id -un)" >&2
    exit 1
fi

if [ "$arch" != "$here" ]; then
    # The kernel keeps the emulator open itself, so the image need not hold it.
    mountpoint -q /proc/sys/fs/binfmt_misc ||
        mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    update-binfmts --enable qemu-aarch64
fi
if buildah inspect --type image "$own" >/dev/null 2>&1; then
    buildah tag "$own" "$name"
    exit 0
fi

root=$(mktemp -d)
container=""
finish() {
    [ -z "$container" ] || buildah rm "$container" >/dev/null
    rm -rf "$root"
}
trap finish EXIT

echo "making $own, which takes some minutes"
if [ "$arch" = "$here" ]; then
    debootstrap --variant=minbase bookworm "$root" >"$root.log"
else
    debootstrap --arch="$arch" --foreign --variant=minbase bookworm "$root" >"$root.log"
    chroot "$root" /debootstrap/debootstrap --second-stage >>"$root.log"
fi || {
    tail -n 5 "$root.log" >&2
    echo "tests/images/base.sh: debootstrap failed, see $root.log" >&2
    exit 1
}
rm "$root.log"

# What Debian's own slim image leaves out, now and when packages are added; licences stay. Without
# this the base would be larger, and what is built on it would seem smaller.
cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<'RULES'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-include /usr/share/locale/locale.alias
path-exclude /usr/share/man/*
RULES
find "$root/usr/share/doc" ! -type d ! -name copyright -delete
find "$root/usr/share/doc" -type d -empty -delete
find "$root/usr/share/info" "$root/usr/share/man" -mindepth 1 -delete
find "$root/usr/share/locale" -mindepth 1 ! -name locale.alias -delete
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/log/*.log

# The host's extra certificate authorities and settings of pip, so that installs work behind a proxy.
mkdir -p "$root/usr/local/share/ca-certificates"
cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
cp /etc/pip.conf "$root/etc/pip.conf" 2>/dev/null || true

container=$(buildah from --arch "$arch" scratch)
buildah add --quiet "$container" "$root" / >/dev/null
buildah config --arch "$arch" --cmd bash "$container"
buildah commit --quiet "$container" "$own" >/dev/null
buildah tag "$own" "$name"
