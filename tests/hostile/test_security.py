"""SECURITY.md names the numbers and the exceptions that the code has."""

import re
from pathlib import Path

import pytest

from lic.cli import options
from lic.cli.console import Exit, exit_code
from lic.codec.bundle import MANIFEST_LIMIT
from lic.codec.container import MAX_PAYLOAD, MAX_SIDE, Limits
from lic.codec.container.file import MAX_ANCILLARY_CHUNKS, MAX_STREAMS
from lic.codec.container.header import MAX_TILE_SIDE, MIN_TILE_SIDE
from lic.codec.entropy import rans
from lic.codec.image_io.lossless import FREE_PIXELS, MAX_PIXELS_PER_BYTE
from lic.codec.tiling import LARGEST_TILE_PIXELS
from tests.hostile import judging

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
LIMITS = {
    "width, height": f"1 to {MAX_SIDE:,} px",
    "pixels, unless `--max-pixels` says otherwise": f"{Limits().max_pixels:,}",
    "chunks beside the tiles": f"{MAX_ANCILLARY_CHUNKS:,}",
    **{f"`{kind.decode()}`": f"{size:,} bytes" for kind, size in MAX_PAYLOAD.items()},
    "tile sides": f"{MIN_TILE_SIDE:,} to {MAX_TILE_SIDE:,} px",
    "padded tile of a model with a context": f"{LARGEST_TILE_PIXELS:,} px",
    "streams of a tile": f"{MAX_STREAMS}",
    "embedded lossless picture of n bytes": f"{FREE_PIXELS:,} + {MAX_PIXELS_PER_BYTE:,} n px",
    "symbols that no length of stream has to allow for": f"{rans._FREE_SYMBOLS:,}",
    "part of the ideal length of the cheapest symbols that must be there": f"{rans._CERTAIN}",
    "manifest of a bundle": f"{MANIFEST_LIMIT:,} bytes",
}


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def flowing(text: str) -> str:
    return " ".join(text.split())


def test_its_limits_are_those_of_the_code() -> None:
    table = section("Limits").split("\n\n")[1]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    assert {name.strip(): value.strip() for name, value in rows} == LIMITS
    assert options.MAX_PIXELS == Limits().max_pixels
    assert f"manifest ({MANIFEST_LIMIT:,} bytes at most)" in flowing(PAGE)
    assert f"cannot claim {Limits().max_pixels:,} px" in flowing(PAGE)


def test_what_a_file_may_take_is_what_mutations_allow() -> None:
    text = flowing(section("How it is tried"))
    mib, kb = 2**20, 2**10
    assert (
        f"{1e6 * judging.SECONDS_PER_PIXEL[False]:g} us for every pixel that it claims "
        f"({1e6 * judging.SECONDS_PER_PIXEL[True]:g} us with networks), and "
        f"{judging.FREE_BYTES[False] // mib} MiB, and {judging.BYTES_PER_PIXEL[False]} bytes for "
        f"every pixel that so long a file can claim ({judging.FREE_BYTES[True] // mib} MiB and "
        f"{judging.BYTES_PER_PIXEL[True] // kb} kB with networks)"
    ) in text
    assert judging.GRACE == 1


def test_its_exit_codes_are_those_of_the_exceptions_that_decoding_raises() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", section("Limits"), re.MULTILINE)}
    raised = [*judging.DOCUMENTED, MemoryError]
    assert codes == {int(exit_code(kind())) for kind in raised}
    assert {Exit(code) for code in codes} <= set(Exit)
    for kind in raised:
        assert f"`{kind.__name__}`" in section("Limits")


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make ([a-z-]+)", PAGE))))
def test_its_commands_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_it_is_in_the_source_distribution_and_its_links_lead_somewhere() -> None:
    assert '"/SECURITY.md"' in (ROOT / "pyproject.toml").read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE):
        assert (ROOT / link).exists(), link
    assert "MEASURED" not in PAGE
