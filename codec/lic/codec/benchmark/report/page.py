"""The page: template, style, scripts, data and pictures in one file.

Nothing in it may reach the network: the page's own policy forbids everything but its own scripts,
by their digests, and pictures that it brings along.
"""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from lic.codec.benchmark.quality import METRICS, Metric, points_of
from lic.codec.benchmark.report.content import Content, Section, curve_of
from lic.codec.benchmark.report.deltas import LITTLE_OVERLAP, deltas
from lic.codec.benchmark.report.views import View
from lic.codec.benchmark.schema import Curve, SpeedRun
from lic.codec.benchmark.speed import size_of

# In this order: each uses those before it.
SCRIPTS = ("base.js", "chart.js", "tables.js", "speed.js", "viewer.js", "page.js")
# JSON may hold what ends a script in HTML, or a line in old JavaScript.
_UNSAFE = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def make_page(content: Content, views: Sequence[View], command: str) -> bytes:
    """Return the HTML file of a report; `command` makes it again."""
    style = _template("page.css")
    scripts = [_template(name) for name in SCRIPTS]
    parts = {
        "policy": _policy(scripts),
        "title": html.escape(_title(content)),
        "style": f"<style>\n{style}</style>",
        "scripts": "".join(f"<script>\n{script}</script>\n" for script in scripts),
        "data": embedded_json(page_data(content, views, command)),
    }
    page = _template("page.html")
    for name, text in parts.items():
        # Once: what was put in before is not looked through again.
        before, mark, after = page.partition(f"<!--{name}-->")
        assert mark, name
        page = before + text + after
    return page.encode()


def embedded_json(values: Any) -> str:
    """Return JSON that ends no script element, whatever names are in it."""
    text = json.dumps(values, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character, escaped in _UNSAFE.items():
        text = text.replace(character, escaped)
    return text


def page_data(content: Content, views: Sequence[View], command: str) -> dict[str, Any]:
    """Return everything that the scripts draw."""
    return {
        "title": _title(content),
        "version": version("lic"),
        "command": command,
        "littleOverlap": LITTLE_OVERLAP,
        "sections": [_section(section) for section in content.sections],
        "runs": [_run(content, number, run) for number, run in content.runs],
        "sources": [asdict(source) for source in content.sources],
        "views": [asdict(view) for view in views],
    }


def _title(content: Content) -> str:
    names = [section.label for section in content.sections]
    return " and ".join(names) if names else "Speed"


def _section(section: Section) -> dict[str, Any]:
    dataset = section.dataset
    return {
        "label": section.label,
        "known": dataset.known,
        "remark": dataset.remark,
        "pictures": [asdict(picture) for picture in dataset.pictures],
        "metrics": [{**asdict(metric), "axis": metric.axis} for metric in section.metrics],
        "anchors": section.anchors,
        "curves": [_curve(curve, section) for curve in section.curves],
        "deltas": {m.key: [asdict(d) for d in deltas(section, m)] for m in section.metrics},
        "rows": [row for curve in section.measured for row in _rows(curve)],
    }


def _run(content: Content, source: int, run: SpeedRun) -> dict[str, Any]:
    """Return a run, and for each data set the curve that tells its rate and quality."""
    curves = [curve_of(section, run) for section in content.sections]
    told = {"source": source, "curves": [curve.system if curve else None for curve in curves]}
    return {**told, **asdict(run), "size": size_of(run)}


def _curve(curve: Curve, section: Section) -> dict[str, Any]:
    return {
        "system": curve.system,
        "kind": curve.kind,
        "source": curve.source,
        "details": curve.details,
        "shown": curve in section.shown,
        "points": {metric.key: _points(curve, metric) for metric in section.metrics},
        "means": {point.setting: point.mean for point in curve.points},
    }


def _points(curve: Curve, metric: Metric) -> list[tuple[str, float, float]]:
    """Return (setting, bpp, quality)."""
    return [
        (point.setting, round(rate, 6), round(quality, 6))
        for point, rate, quality in points_of(curve, metric)
    ]


def _rows(curve: Curve) -> list[dict[str, Any]]:
    """Return what the table of pictures shows; digests are in the results."""
    rows = []
    for point in curve.points:
        for row in point.rows:
            numbers = asdict(row)
            found = {metric.key: metric.of(numbers) for metric in METRICS}
            named = {"system": curve.system, "setting": point.setting, "picture": row.picture}
            rows.append({**named, "bytes": row.bytes, "bpp": row.bpp, "error": row.error, **found})
    return rows


def _policy(scripts: Sequence[str]) -> str:
    digests = (hashlib.sha256(f"\n{script}".encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    rules = (
        "default-src 'none'",
        "img-src data: blob:",
        "style-src 'unsafe-inline'",
        f"script-src {allowed}",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(rules)}">'


def _template(name: str) -> str:
    return (files("lic.codec.benchmark.report") / name).read_text(encoding="utf-8")
