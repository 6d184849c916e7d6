"""The page in a real browser: it opens in silence, and everything on it that moves, moves."""

import base64
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lic.codec.benchmark.report.content import gather
from lic.codec.benchmark.report.page import make_page
from lic.codec.benchmark.report.reconstruct import reconstruct
from lic.codec.benchmark.report.views import make_views
from lic.codec.benchmark.schema import SpeedRun
from tests.codec.report.chromium import REQUIRED, chromium, log_of, missing, open_page, requests
from tests.codec.report.made import (
    NASTY,
    classic_curve,
    curve,
    rd_results,
    speed_results,
    speed_run,
    write_picture,
)

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.skipif(bool(missing()) and REQUIRED not in os.environ, reason=missing())

GAIN = 8


@pytest.fixture(scope="module")
def browser() -> Iterator["Chrome"]:
    assert not missing(), missing()
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, photo: NDArray[np.uint8]) -> Path:
    """A report with everything: two sets, published curves, speed, and a picture to look at."""
    folder = tmp_path_factory.mktemp("report")
    pictures = [("a.png", photo), (NASTY.replace("/", ""), photo[:, ::-1])]
    entries = tuple(write_picture(folder / name, pixels) for name, pixels in pictures)
    measured = [classic_curve(name, (10, 30, 60, 90), pictures) for name in ("JPEG", "WebP")]
    results = rd_results(*measured, curve(NASTY, 3, kind="lic"))
    results = replace(results, dataset=replace(results.dataset, pictures=entries))
    runs = [speed_run(n, ms, side=s) for n, ms in (("JPEG", 5), (NASTY, 50)) for s in (256, 512)]
    failed = SpeedRun(system=NASTY, setting="2", backend="onnx", device="cuda", error="no <b>GPU")
    content = gather(
        {
            NASTY: results,
            "other.json": rd_results(curve("JPEG"), name="Other", known=False),
            "speed.json": speed_results(*runs, failed),
        },
        lambda dataset: [curve("VVC VTM", 0.5, kind="published")] if dataset.known else [],
    )
    views = make_views(content.sections, folder, [], reconstruct)
    target = folder / "report.html"
    target.write_bytes(make_page(content, views, "lic bench report"))
    return target


@pytest.fixture
def opened(browser: "Chrome", page: Path) -> "Chrome":
    log_of(browser, "browser")
    requests(browser)
    open_page(browser, page)
    return browser


def one(driver: "Chrome", selector: str) -> "WebElement":
    return driver.find_element("css selector", selector)


def run(driver: "Chrome", script: str, *arguments: Any) -> Any:
    return driver.execute_script(f"return {script}", *arguments)


def column(driver: "Chrome", table: str, number: int) -> list[str]:
    found: list[str] = run(
        driver, "[...document.querySelectorAll(arguments[0])].map((cell) => cell.textContent)",
        f"{table} tbody tr > :nth-child({number})",
    )  # fmt: skip
    return found


def test_it_opens_in_silence_and_asks_nobody(opened: "Chrome", page: Path) -> None:
    for theme in ("light", "dark"):
        open_page(opened, page, theme=theme)
    assert log_of(opened, "browser") == []
    asked = [url for url in requests(opened) if not url.startswith(("data:", "blob:"))]
    assert set(asked) == {page.as_uri()}
    hidden = "[...document.querySelectorAll('main > section')].filter((s) => s.hidden).length"
    assert run(opened, hidden) == 0


def test_its_policy_stops_what_is_not_its_own(opened: "Chrome") -> None:
    run(opened, "document.body.append(Object.assign(new Image(), {src: 'https://example.org/x'}))")
    script = "const s = document.createElement('script'); s.textContent = 'window.injected = 1';"
    opened.execute_script(script + "document.body.append(s)")
    assert run(opened, "window.injected ?? null") is None
    outside = [url for url in requests(opened) if url.startswith("https:")]
    assert outside == []
    assert "Content Security Policy" in "".join(e["message"] for e in log_of(opened, "browser"))


def test_names_are_shown_and_never_run(opened: "Chrome") -> None:
    assert run(opened, "window.injected ?? null") is None
    assert run(opened, "document.querySelectorAll('[onerror], main b b, dd b').length") == 0
    chips = [chip.text for chip in opened.find_elements("css selector", ".chip")]
    assert NASTY in chips


@pytest.mark.parametrize("width", [390, 1024, 1440])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_sticks_out_sideways(browser: "Chrome", page: Path, width: int, theme: str) -> None:
    open_page(browser, page, width=width, theme=theme)
    assert run(browser, "document.documentElement.scrollWidth") <= width


def test_the_theme_follows_the_system_until_it_is_chosen(opened: "Chrome", page: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = run(opened, ground)
    open_page(opened, page, theme="dark")
    dark = run(opened, ground)
    assert light != dark
    one(opened, "#theme input[value=light]").click()
    assert run(opened, ground) == light
    open_page(opened, page, theme="dark")
    assert run(opened, ground) == light, "the choice is kept"
    one(opened, "#theme input[value=auto]").click()
    assert run(opened, ground) == dark


def test_curves_go_and_come(opened: "Chrome") -> None:
    drawn = "document.querySelectorAll('#rd-chart g[data-series]').length"
    before = run(opened, drawn)
    chip = one(opened, "#rd-legend .chip[data-system=JPEG]")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert run(opened, drawn) == before - 1
    chip.send_keys(" ")
    assert chip.get_attribute("aria-pressed") == "true"
    assert run(opened, drawn) == before


def test_points_tell_their_values_to_the_mouse_and_to_keys(opened: "Chrome") -> None:
    from selenium.webdriver import ActionChains, Keys

    mark = one(opened, "#rd-chart g[data-series=WebP] .mark")
    ActionChains(opened).move_to_element(mark).perform()
    tip = one(opened, "#rd-chart .tip")
    assert tip.is_displayed() and "WebP" in tip.text and "measured here" in tip.text
    assert "bits per pixel" in tip.text and "PSNR (dB)" in tip.text
    chart = one(opened, "#rd-chart svg")
    chart.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
    chart.send_keys(Keys.ARROW_RIGHT)
    first = tip.text
    chart.send_keys(Keys.ARROW_RIGHT)
    assert tip.is_displayed() and tip.text != first
    live = one(opened, "#rd-chart [aria-live]").get_attribute("textContent")
    assert live and "bits per pixel" in live


def test_points_tell_their_values_to_a_finger(browser: "Chrome", page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    open_page(browser, page, width=390)
    mark = one(browser, "#rd-chart g[data-series=WebP] .mark")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    box = run(browser, "arguments[0].getBoundingClientRect().toJSON()", mark)
    finger = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    for kind, points in (("touchStart", [finger]), ("touchEnd", [])):
        event = {"type": kind, "touchPoints": points}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)
    tip = one(browser, "#rd-chart .tip")
    assert tip.is_displayed() and "WebP" in tip.text
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_the_chart_zooms_to_a_box_and_back(opened: "Chrome") -> None:
    from selenium.webdriver import ActionChains

    ticks = "[...document.querySelectorAll('#rd-chart svg > text')].map((t) => t.textContent)"
    before = run(opened, ticks)
    chart = one(opened, "#rd-chart svg")
    ActionChains(opened).move_to_element_with_offset(
        chart, -150, -60
    ).click_and_hold().move_by_offset(120, 90).release().perform()
    assert run(opened, ticks) != before
    one(opened, "#rd-chart [aria-label='Show all again']").click()
    assert run(opened, ticks) == before


def test_quality_and_data_set_change_everything_below(opened: "Chrome") -> None:
    caption = "document.querySelector('#bd-table caption').textContent"
    assert "Kodak, PSNR:" in run(opened, caption)
    one(opened, "#rd-bar input[value=ms_ssim_db]").click()
    assert "Kodak, MS-SSIM:" in run(opened, caption)
    one(opened, "#data-set").send_keys("Other")
    assert "Other, MS-SSIM:" in run(opened, caption)
    assert "VVC VTM" not in one(opened, "#rd-legend").text


def test_times_meet_the_qualities_of_either_data_set(opened: "Chrome") -> None:
    """NASTY was measured on one of them only."""
    chart = "[aria-label^='Speed, memory'] g[data-series]"
    series = "[...document.querySelectorAll(arguments[0])].map((g) => g.dataset.series)"
    assert set(run(opened, series, chart)) == {"JPEG", NASTY}
    one(opened, "#speed-set").send_keys("Other")
    assert set(run(opened, series, chart)) == {"JPEG"}
    assert "means over Other." in one(opened, "#speed-body .key").text


def test_tables_sort_by_click_and_by_key(opened: "Chrome") -> None:
    table = "#files-body table"
    one(opened, "#files-body select").send_keys("all")
    head = opened.find_elements("css selector", f"{table} thead th")[3]
    button = head.find_element("css selector", "button")
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    sizes = [int(text.replace(",", "")) for text in column(opened, table, 4)]
    assert len(sizes) == 16 and sizes == sorted(sizes, reverse=True)
    button.send_keys("\n")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [int(t.replace(",", "")) for t in column(opened, table, 4)] == sorted(sizes)
    sorts = f"document.querySelectorAll('{table} [aria-sort]').length"
    assert run(opened, sorts) == 1


def clip(driver: "Chrome") -> str:
    return str(run(driver, "document.querySelector('.pane.right').style.clipPath"))


def test_the_divider_moves_by_key_and_by_drag(opened: "Chrome") -> None:
    from selenium.webdriver import ActionChains, Keys

    before = clip(opened)
    divider = one(opened, ".split input")
    for _ in range(20):
        divider.send_keys(Keys.ARROW_RIGHT)
    after = clip(opened)
    assert after != before and float(divider.get_attribute("value") or 0) == 60
    stage = one(opened, ".stage")
    ActionChains(opened).move_to_element_with_offset(
        stage, -100, 0
    ).click_and_hold().move_by_offset(-50, 0).release().perform()
    assert clip(opened) not in (before, after)
    assert float(divider.get_attribute("value") or 100) < 50


def test_pictures_zoom_and_pan(opened: "Chrome") -> None:
    from selenium.webdriver import ActionChains

    place = "document.querySelector('.pane.left img').style.transform"
    fitted = run(opened, place)
    one(opened, "#viewer [aria-label='Zoom in']").click()
    near = run(opened, place)
    assert near != fitted
    ActionChains(opened).move_to_element_with_offset(
        one(opened, ".stage"), 200, 0
    ).click_and_hold().move_by_offset(-80, 30).release().perform()
    assert run(opened, place) not in (fitted, near)
    one(opened, "#viewer [aria-label='Fit the picture']").click()
    assert run(opened, place) == fitted


def test_the_difference_is_exact(opened: "Chrome", photo: NDArray[np.uint8]) -> None:
    from PIL import Image
    from selenium.webdriver.support.ui import WebDriverWait

    versions = opened.find_elements("css selector", "#view-right option")
    chosen = next(each for each in versions if each.text.startswith("JPEG"))
    setting = int(chosen.text.split(",")[0].split()[1])
    chosen.click()
    one(opened, "#viewer input[value=difference]").click()
    WebDriverWait(opened, 10).until(
        lambda d: run(d, "document.querySelector('.stage').dataset.map")
    )
    png = run(opened, "document.querySelector('.pane.map canvas').toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(png.partition(",")[2]))) as image:
        found = np.asarray(image.convert("RGB"))
    buffer = io.BytesIO()
    options = {"quality": setting, "optimize": True, "subsampling": "4:2:0"}
    Image.fromarray(photo).save(buffer, "JPEG", **options)
    with Image.open(buffer) as image:
        back = np.asarray(image).astype(int)
    expected = np.minimum(255, np.abs(photo.astype(int) - back) * GAIN)
    np.testing.assert_array_equal(found, expected)


def test_failures_of_speed_are_told_apart_from_times(opened: "Chrome") -> None:
    body = one(opened, "#speed-body")
    assert "Not measured, and why" in body.text and "no <b>GPU" in body.text
    assert run(opened, "document.querySelectorAll('#speed-body .stack').length") == 4
    before = run(opened, "document.querySelector('#speed-body .axis-name').textContent")
    one(opened, "#speed-y").send_keys("Peak")
    assert run(opened, "document.querySelector('#speed-body .axis-name').textContent") != before
    offered = run(opened, "[...document.querySelector('#speed-x').options].map((o) => o.value)")
    assert {"decode", "decode-cpu", "encode-cpu", "memory", "bd-psnr"} <= set(offered)
