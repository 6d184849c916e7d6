"""The page holds what it is told, as data and never as markup, and asks nobody for anything."""

import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from lic.codec.benchmark.report import page
from lic.codec.benchmark.report.content import gather
from lic.codec.benchmark.report.page import SCRIPTS, embedded_json, make_page
from tests.codec.report.made import NASTY, curve, rd_results, speed_results, speed_run


class Elements(HTMLParser):
    """Every element of a page, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts[-1] += data


def made() -> str:
    results = rd_results(
        curve("JPEG"), curve(NASTY, 0.7, kind="lic", pictures=(NASTY,)),
        name=NASTY, pictures=(NASTY,),
    )  # fmt: skip
    speed = speed_results(speed_run(NASTY, 5))
    content = gather({NASTY: results, "speed.json": speed}, lambda _: ())
    return make_page(content, [], f"lic bench report {NASTY!r}").decode()


def test_names_stay_data() -> None:
    elements = Elements(made())
    assert [tag for tag, _ in elements.found].count("script") == 1 + len(SCRIPTS)
    assert "img" not in [tag for tag, _ in elements.found]
    data = json.loads(elements.scripts[0])
    assert data["title"] == data["sections"][0]["label"] == NASTY
    assert data["sections"][0]["curves"][0]["system"] == NASTY
    assert data["runs"][0]["system"] == NASTY
    assert data["runs"][0]["curves"] == [NASTY]


@pytest.mark.parametrize("text", ["</script>", "<!--", "]]>", "&lt;", "\u2028", "\u2029", NASTY])
def test_json_ends_nothing(text: str) -> None:
    embedded = embedded_json({text: text})
    assert json.loads(embedded) == {text: text}
    assert not set(embedded) & set("<>&\u2028\u2029")


def test_the_page_refers_to_nothing_outside_and_may_not() -> None:
    elements = Elements(made()).found
    references = [a[name] or "" for _, a in elements for name in ("src", "href") if name in a]
    assert [r for r in references if not r.startswith(("#", "data:"))] == []
    policy = next(a["content"] or "" for tag, a in elements if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy and policy.count("'sha256-") == len(SCRIPTS)
    assert "http" not in policy
    style = _template("page.css")
    assert "url(" not in style and "@import" not in style
    for name in SCRIPTS:
        script = _template(name).replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|</script|innerHTML|\bfetch\b|\bimport\b", script), name


def test_the_same_results_give_the_same_page() -> None:
    assert made() == made()


def test_rows_of_the_page_are_those_of_the_results() -> None:
    results = rd_results(curve("JPEG", pictures=("a.png", "b.png")), pictures=("a.png", "b.png"))
    data = page.page_data(gather({"a.json": results}, lambda _: ()), [], "")
    rows = data["sections"][0]["rows"]
    assert len(rows) == 8
    assert rows[0]["picture"] == "a.png" and rows[0]["psnr"] == 26
    assert rows[0]["ms_ssim_db"] == pytest.approx(10.9691, abs=1e-4)


def _template(name: str) -> str:
    return (files("lic.codec.benchmark.report") / name).read_text(encoding="utf-8")


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_stand_out_in_light_and_dark() -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for lines and controls."""
    pairs = re.findall(r"--([a-z0-9-]+): light-dark\((#\w{6}), (#\w{6})\)", _template("page.css"))
    colours = {name: (light, dark) for name, light, dark in pairs}
    text = ["ink", "soft", "accent", "warn", *(f"c{i}" for i in range(1, 9))]
    text += [f"p{i}" for i in range(1, 7)]
    for theme in (0, 1):
        for name in text:
            for ground in ("panel", "ground"):
                found = _contrast(colours[name][theme], colours[ground][theme])
                assert found >= 4.5, (name, ground, theme, found)
        for name in ("edge", "less", "more"):
            assert _contrast(colours[name][theme], colours["panel"][theme]) >= 3, (name, theme)
        assert _contrast(colours["on-accent"][theme], colours["accent"][theme]) >= 4.5
