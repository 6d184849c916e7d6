"""What lic bench writes is read back as it was, and anything else is refused by name."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lic.codec.benchmark.schema import (
    FORMAT,
    VERSION,
    Curve,
    Dataset,
    DatasetPicture,
    DirectionTimes,
    Machine,
    Point,
    RdResults,
    Row,
    SpeedResults,
    SpeedRun,
    Times,
    from_plain,
    read_results,
)
from lic.codec.errors import ConfigError

ROW = Row(
    picture="trip/ä.png", bytes=1000, bpp=0.1 + 0.2, psnr=30.0, psnr_y=31.5, ms_ssim=0.9,
    sha256="ab" * 32,
)  # fmt: skip
MACHINE = Machine(cpu="a cpu", cores=2, memory=None, system="Linux", versions={"lic": "0.1"})
RD = RdResults(
    command="lic bench rd photos",
    machine=MACHINE,
    dataset=Dataset(
        name="photos",
        known=False,
        pictures=(DatasetPicture(name="trip/ä.png", sha256="cd" * 32, width=160, height=120),),
    ),
    curves=(
        Curve(
            system="JPEG",
            kind="classic",
            points=(
                Point(setting="10", rows=(ROW,), mean={"bpp": 0.3, "lpips": None}),
                Point(setting="20", rows=(Row(picture="trip/ä.png", error="no"),)),
            ),
            details={"options": {"quality": [1, 2.5, None, True]}},
        ),
        Curve(system="VTM", kind="published", points=(), source="a paper"),
    ),
)
TIMES = Times(median=1.0, p90=2.0, p95=2.5, p99=3.0)
DIRECTION = DirectionTimes(wall=TIMES, cpu=TIMES, stages={"read": TIMES}, mpx_per_s=4.0)
SPEED = SpeedResults(
    command="lic bench speed",
    machine=MACHINE,
    runs=(
        SpeedRun(
            system="a", setting="1", backend="onnx", device="cpu", encode=DIRECTION,
            fallbacks=("Conv",), kmac_per_pixel={"encode": 3.5},
        ),
        SpeedRun(system="a", setting="1", backend="torch", device="cuda", error="no GPU"),
    ),
)  # fmt: skip


@pytest.mark.parametrize("results", [RD, SPEED])
def test_what_is_written_is_what_is_read(results: RdResults | SpeedResults) -> None:
    data = results.to_bytes()
    assert read_results(data, "a.json") == results
    assert type(results).from_bytes(data, "a.json") == results
    assert read_results(data, "a.json").to_bytes() == data
    values = json.loads(data)
    assert (values["format"], values["version"]) == (FORMAT, VERSION) == ("lic-bench", 1)


def test_whole_numbers_are_numbers() -> None:
    data = RD.to_bytes().replace(b'"psnr": 30.0', b'"psnr": 30')
    read = RdResults.from_bytes(data, "a.json")
    assert read == RD and type(read.curves[0].points[0].rows[0].psnr) is float


def test_new_keys_have_defaults_and_old_files_go_without() -> None:
    """All that the first files of version 1 had to have."""
    values = json.loads(RD.to_bytes())
    row = {"picture": "a.png"}
    values["curves"] = [{"system": "a", "kind": "lic", "points": [{"setting": "1", "rows": [row]}]}]
    values["machine"] = {"cpu": "a", "cores": 1, "memory": 1, "system": "b"}
    values["dataset"] = {"name": "a", "known": True, "pictures": []}
    read = RdResults.from_bytes(json.dumps(values).encode(), "a.json")
    assert read.curves[0].points[0].rows == (Row(picture="a.png"),)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_written(value: float) -> None:
    point = replace(RD.curves[0].points[0], rows=(replace(ROW, psnr=value),))
    broken = replace(RD, curves=(replace(RD.curves[0], points=(point,)),))
    with pytest.raises(ValueError, match="JSON"):
        broken.to_bytes()


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_what_is_no_number_is_not_read_either(text: bytes) -> None:
    data = RD.to_bytes().replace(b'"psnr": 30.0', b'"psnr": ' + text)
    with pytest.raises(ConfigError, match=r"a\.json: is not what lic bench writes.*finite"):
        read_results(data, "a.json")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x89LIC\r\n\x1a\n", b"\xff\xfe\x00", b"[]", b"3", b"null", b'"lic-bench"', b"{}",
        b'{"format": "lic-bench"}', b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000,
    ],
)  # fmt: skip
def test_other_files_are_refused(data: bytes) -> None:
    for read in (read_results, RdResults.from_bytes, SpeedResults.from_bytes):
        with pytest.raises(ConfigError, match=r"a\.json: is not what lic bench writes"):
            read(data, "a.json")


def test_truncated_files_are_refused() -> None:
    data = RD.to_bytes()
    for length in range(0, len(data) - 2, 7):
        with pytest.raises(ConfigError, match=r"a\.json"):
            read_results(data[:length], "a.json")


def _set(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place: Any = values
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    place[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", "is 'other' version 1; expected 'lic-bench' version 1"),
        ("version", 2, "is 'lic-bench' version 2; expected 'lic-bench' version 1"),
        ("version", True, "version True; expected"),
        ("version", [], r"version \[\]; expected"),
        ("kind", "size", "kind is 'size'; expected"),
        ("kind", None, "kind is None; expected"),
        ("command", 3, r"a\.json\.command: is '3'; expected str"),
        ("machine", [], r"a\.json\.machine: is '\[\]'; expected an object"),
        ("machine.cores", True, r"machine\.cores: is 'True'; expected int"),
        ("machine.cores", 2.0, r"machine\.cores: is '2.0'; expected int"),
        ("machine.memory", "much", r"machine\.memory: is 'much'; expected int"),
        ("machine.versions", {"a": 1}, r"versions\.a: is '1'; expected str"),
        ("machine.versions", [], r"versions: is '\[\]'; expected an object"),
        ("machine.accelerators", "gpu", "accelerators: is 'gpu'; expected a list"),
        ("machine.more", 1, r"a\.json\.machine: has 'more', which nothing reads"),
        ("later", 1, r"a\.json: has 'later', which nothing reads; is it of a newer lic"),
        ("dataset.known", 1, r"known: is '1'; expected bool"),
        ("dataset.pictures", {}, r"pictures: is '\{\}'; expected a list"),
        ("curves.0.kind", "new", "kind: is 'new'; expected 'lic' or 'classic' or 'published'"),
        ("curves.0.details", None, "details: is 'None'; expected an object"),
        ("curves.0.points.0.mean", {"bpp": "0"}, r"points\[0\]\.mean\.bpp: is '0'; expected float"),
        ("curves.0.points.0.rows.0.psnr", True, r"rows\[0\]\.psnr: is 'True'; expected float"),
        ("curves.0.points.0.rows.0.psnr", 10**400, r"rows\[0\]\.psnr: is '1000+'; expected float"),
        ("curves.0.points.0.rows.0.bytes", 1.5, r"rows\[0\]\.bytes: is '1\.5'; expected int"),
    ],
)
def test_wrong_values_are_refused_by_name(path: str, value: Any, message: str) -> None:
    values = json.loads(RD.to_bytes())
    _set(values, path, value)
    with pytest.raises(ConfigError, match=message):
        read_results(json.dumps(values).encode(), "a.json")


@pytest.mark.parametrize(
    "remove",
    [
        lambda v: v.pop("command"),
        lambda v: v["machine"].pop("cpu"),
        lambda v: v["dataset"]["pictures"][0].pop("sha256"),
        lambda v: v["curves"][0].pop("points"),
        lambda v: v["curves"][0]["points"][0].pop("setting"),
        lambda v: v["curves"][0]["points"][0]["rows"][0].pop("picture"),
    ],
)
def test_missing_keys_are_refused_by_name(remove: Callable[[Any], object]) -> None:
    values = json.loads(RD.to_bytes())
    remove(values)
    with pytest.raises(ConfigError, match=r"a\.json.*: lacks '\w+'"):
        read_results(json.dumps(values).encode(), "a.json")


def test_one_kind_is_not_read_as_the_other() -> None:
    with pytest.raises(ConfigError, match="kind is 'speed'; expected 'rd'"):
        RdResults.from_bytes(SPEED.to_bytes(), "a.json")
    with pytest.raises(ConfigError, match="kind is 'rd'; expected 'speed'"):
        SpeedResults.from_bytes(RD.to_bytes(), "a.json")


def test_parts_are_read_like_the_whole() -> None:
    assert from_plain(Row, {"picture": "a", "bpp": 1}, "x") == Row(picture="a", bpp=1.0)
    with pytest.raises(ConfigError, match="x: has 'size', which nothing reads"):
        from_plain(Row, {"picture": "a", "size": 1}, "x")
