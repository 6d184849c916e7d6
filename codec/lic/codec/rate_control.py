"""Files of a wanted size or quality.

A model's rate points are coarse; between them lies the quantisation step that a file tells. The
networks see a picture once for each rate point that is tried. A step then costs quantisation and
entropy coding, and where quality counts a decoding.

A search walks on scores, which rise with the bits that are spent: the logarithm of a file's size,
PSNR, MS-SSIM in dB. Over the logarithm of the step they are nearly straight lines.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, Self, get_args

from lic.codec.bundle import Bundle
from lic.codec.container import CHUNK_OVERHEAD, Header, LicFile
from lic.codec.container.header import MAX_STEP
from lic.codec.errors import ConfigError, TargetError
from lic.codec.image_io import LazyPicture, Picture, encode_alpha
from lic.codec.latents import State
from lic.codec.library import family
from lic.codec.lossless import compress_lossless, has_a_chance
from lic.codec.metrics import MS_SSIM_LEAST_SIDE, ms_ssim, ms_ssim_db, psnr
from lic.codec.pipeline import Codec
from lic.codec.quantisation_step import has_steps, nearest_step
from lic.codec.results import Encoded
from lic.codec.stages import Stages
from lic.codec.tiling import Place, places

Kind = Literal["bpp", "size", "psnr", "ms-ssim"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class _Scale(NamedTuple):
    """How a kind's scores behave.

    Attributes:
        slope: of the score over -log2 of the step, about.
        near: a score as near as this is there.
        trials: at the most, in one rate point.
    """

    slope: float
    near: float
    trials: int


_SIZES: Final = _Scale(slope=0.8, near=0.001, trials=10)
_SCALES: Final[dict[Kind, _Scale]] = {
    "bpp": _SIZES,
    "size": _SIZES,
    "psnr": _Scale(slope=2.0, near=0.005, trials=7),
    "ms-ssim": _Scale(slope=2.5, near=0.005, trials=7),
}
# Scores further away than this are told to be so: 1 % of a size, a tenth of a dB.
_FAR: Final = {"bpp": 0.0145, "size": 0.0145, "psnr": 0.1, "ms-ssim": 0.1}
# Up to this step a rate point is better than the one below it in a smaller step; see `make
# rate-control`, which measures it.
SWITCH_STEP: Final = 1.75
# Below this one bits buy next to nothing: the networks' own loss is left.
SMALLEST_STEP: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a file is to come to.

    Attributes:
        kind: "bpp", bits per pixel of the whole file; "size", its bytes; "psnr" in dB and
            "ms-ssim", 0 to 1, of the decoded pixels.
        value: of it.
        strict: never above a size, never below a quality; otherwise the nearest is taken.

    Raises:
        ConfigError: no such kind, or a value that no file has.
    """

    kind: Kind
    value: float
    strict: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"target is {self.kind!r}; expected one of {', '.join(KINDS)}")
        most = 1.0 if self.kind == "ms-ssim" else math.inf
        if not 0 < self.value < most:
            expected = "between 0 and 1" if most == 1 else "a number above 0"
            raise ConfigError(f"target {self.kind} is {self.value:g}; expected {expected}")

    @property
    def of_size(self) -> bool:
        """Whether it is about bytes, not about quality."""
        return self.kind in ("bpp", "size")

    def told(self, value: float) -> str:
        """Return a value with its unit."""
        form = {"bpp": "{:.4f} bpp", "size": "{:,.0f} bytes", "psnr": "{:.3f} dB"}
        return form.get(self.kind, "MS-SSIM {:.5f}").format(value)

    def score(self, value: float, pixels: int) -> float:
        """Return what the search walks on, of a value for a picture of so many pixels."""
        if self.of_size:
            size = value if self.kind == "size" else value * pixels / 8
            return math.log2(size)
        return ms_ssim_db(value) if self.kind == "ms-ssim" else value


@dataclass(frozen=True, kw_only=True)
class Controlled:
    """A file, and what it came to.

    Attributes:
        encoded: the file; its stages are those of the whole search.
        target: what was asked for.
        reached: in the target's unit.
        trials: how many files were tried.
    """

    encoded: Encoded
    target: Target
    reached: float
    trials: int


class RateControl:
    """Codes pictures to a target with the rate points of a family. Threads may share it.

    Args:
        bundles: of one family, by rate point.
        **options: of `Codec`. Models are loaded when they are first tried, and kept.
    """

    def __init__(self, bundles: Sequence[Bundle], **options: Any) -> None:
        self.bundles = tuple(bundles)
        self._options = options
        self._codecs: dict[int, Codec] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, model: str | None = None, rate_points: Sequence[int] | None = None, **options: Any
    ) -> Self:
        """Return the control of an installed family or a bundle's path, as `open_codec` has it.

        Raises:
            ModelMismatchError: no such bundle.
            ConfigError: no such rate point.
        """
        return cls(family(model, rate_points), **options)

    @property
    def first(self) -> int:
        """The place of the bundle that is tried first."""
        return (len(self.bundles) - 1) // 2

    def codec(self, point: int) -> Codec:
        """Return the codec of one of the bundles, by its place."""
        with self._lock:
            if point not in self._codecs:
                self._codecs[point] = Codec(self.bundles[point], **self._options)
            return self._codecs[point]

    def compress(
        self,
        picture: Picture | LazyPicture,
        target: Target,
        *,
        lossless: bool | None = False,
        tile: int | None = None,
    ) -> Controlled:
        """Code a picture to a target.

        Args:
            picture: pixels and the metadata to keep, whose bytes count.
            target: what is wanted.
            lossless: None takes a lossless file where one has a chance and is smaller, or no
                larger than a target size.
            tile: as for `Codec.compress`.

        Raises:
            ConfigError: the models have no such tiles, or the picture is too small for MS-SSIM.
            TargetError: `strict`, and nothing meets the target.
            NumericsError: the network gave latents that cannot be coded.
        """
        if target.kind == "ms-ssim" and min(picture.width, picture.height) < MS_SSIM_LEAST_SIDE:
            raise ConfigError(
                f"a picture of {picture.width} x {picture.height} has no MS-SSIM to aim at; "
                f"expected sides of at least {MS_SSIM_LEAST_SIDE} px, or a target PSNR"
            )
        search = _Search(self, picture, target, tile)
        search.run()
        kept = _lossless(picture, search) if lossless is None else None
        return kept or search.result()


def _lossless(picture: Picture | LazyPicture, search: "_Search") -> Controlled | None:
    """Return the picture's lossless file where that is the better answer."""
    if not has_a_chance(picture.source):
        return None
    encoded, target = compress_lossless(picture), search.target
    size, pixels = len(encoded.data), picture.width * picture.height
    fits = target.of_size and math.log2(size) <= search.wanted
    if not fits and (size >= search.least() or (target.of_size and target.strict)):
        return None
    note = "stored losslessly, which is as small as it needs to be"
    reached: float = size
    if target.kind == "bpp":
        reached = 8 * size / pixels
    elif not target.of_size:
        reached = math.inf if target.kind == "psnr" else 1.0
    return Controlled(
        encoded=replace(encoded, notes=(*encoded.notes, note)),
        target=target,
        reached=reached,
        trials=len(search.trials) + 1,
    )


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One file that was tried, whole but for its alpha plane."""

    point: int
    step: float
    file: LicFile
    size: int
    value: float
    score: float

    @property
    def place(self) -> float:
        """What scores rise with."""
        return -math.log2(self.step)


class _Search:
    """The way to one file."""

    def __init__(
        self,
        control: RateControl,
        picture: Picture | LazyPicture,
        target: Target,
        tile: int | None,
    ) -> None:
        self.target = target
        self.trials: list[_Trial] = []
        self._control = control
        self._picture = picture
        self._tile = tile
        self._stages = Stages()
        self._pixels = picture.width * picture.height
        self.wanted = target.score(target.value, self._pixels)
        self._scale = _SCALES[target.kind]
        # Inside what is near enough, on the side that is allowed.
        side = 0.0 if not target.strict else -0.5 if target.of_size else 0.5
        self._aim = self.wanted + side * self._scale.near
        self._latents: dict[int, list[State]] = {}
        self._alpha = 0

    def run(self) -> None:
        """Find the last rate point that is not above the target, then the step.

        With steps each is tried in the largest that it is good for.
        """
        low, high = -1, len(self._control.bundles)
        while high - low > 1:
            middle = (low + high) // 2
            step = SWITCH_STEP if self._has_steps(middle) else 1.0
            if self._try(middle, step).score <= self._aim:
                low = middle
            else:
                high = middle
        # Where all are above, it is the first, and its steps grow further.
        chosen = max(low, 0)
        if self._has_steps(chosen):
            self._refine(next(trial for trial in self.trials if trial.point == chosen))

    def _has_steps(self, point: int) -> bool:
        codec = self._control.codec(point)
        return has_steps(codec.bundle, codec.backend)

    def _refine(self, start: _Trial) -> None:
        """Try steps of a rate point until one is near enough."""
        self._latents = {start.point: self._latents[start.point]}
        ends = -math.log2(MAX_STEP), -math.log2(SMALLEST_STEP)
        own = [start]
        while not self._near(own[-1]) and len(own) < self._scale.trials:
            place = self._next(own)
            step = nearest_step(2 ** -min(max(place, ends[0]), ends[1]))
            if any(step == trial.step for trial in own):
                return
            own.append(self._try(start.point, step))

    def _near(self, trial: _Trial) -> bool:
        return abs(trial.score - self._aim) <= self._scale.near / 2

    def _next(self, own: Sequence[_Trial]) -> float:
        """Return where the score should be right: on the line through the nearest on each side."""
        below = max((t for t in own if t.score <= self._aim), key=_by_score, default=None)
        above = min((t for t in own if t.score > self._aim), key=_by_score, default=None)
        if below and above and below.score < above.score:
            share = (self._aim - below.score) / (above.score - below.score)
            # Where one end stays and the other creeps, the middle is sooner there.
            share = share if len(own) % 4 else 0.5
            return below.place + share * (above.place - below.place)
        last = below or above
        assert last is not None, "there is a first trial"
        slope = self._scale.slope
        if len(own) > 1:
            run = own[-1].place - own[-2].place
            slope = max((own[-1].score - own[-2].score) / run, slope / 4)
        return last.place + (self._aim - last.score) / slope

    def _try(self, point: int, step: float) -> _Trial:
        """Code the picture, and where quality counts decode it."""
        codec = self._control.codec(point)
        header = codec.header(self._picture, self._tile, step)
        kept = self._has_steps(point)
        fresh: list[State] = []
        tiles = []
        for place, latents in self._analyses(codec, header, self._latents.get(point)):
            tiles.append(codec.code_tile(header, place, latents, self._stages))
            # A state with a context is used up, and takes kilobytes a pixel.
            if kept:
                fresh.append(latents)
            del latents
        if fresh:
            self._latents[point] = fresh
        file = LicFile(header=header, tiles=tuple(tiles))
        bare = replace(self._picture, alpha=None)
        size = len(codec.finish(bare, header, file.tiles, Stages()).data) + self._alpha_bytes()
        value = self._measured(codec, file, size)
        trial = _Trial(
            point=point,
            step=step,
            file=file,
            size=size,
            value=value,
            score=self.target.score(value, self._pixels),
        )
        self.trials.append(trial)
        return trial

    def _analyses(
        self, codec: Codec, header: Header, known: list[State] | None
    ) -> Iterator[tuple[Place, State]]:
        """Return every tile with its latents, which are known where a point was tried before."""
        if known:
            return zip(places(header), known, strict=True)
        return codec.analyze_tiles(header, self._picture.source, self._stages)

    def _alpha_bytes(self) -> int:
        """Return what the alpha plane adds to a file, which no step changes."""
        if self._picture.alpha is not None and not self._alpha:
            self._alpha = len(encode_alpha(self._picture.alpha)) + CHUNK_OVERHEAD
        return self._alpha

    def _measured(self, codec: Codec, file: LicFile, size: int) -> float:
        """Return a file's value in the target's unit."""
        if self.target.of_size:
            return 8 * size / self._pixels if self.target.kind == "bpp" else size
        decoded = codec.decompress(file)
        self._stages.add(decoded.stages)
        metric = psnr if self.target.kind == "psnr" else ms_ssim
        return metric(self._picture.pixels, decoded.picture.pixels)

    def _meets(self, trial: _Trial) -> bool:
        """Return whether a trial is on the side that `strict` allows."""
        if self.target.of_size:
            return trial.score <= self.wanted
        return trial.score >= self.wanted

    def result(self) -> Controlled:
        """Return the file of the best trial."""
        best = self._best()
        codec = self._control.codec(best.point)
        header, tiles = best.file.header, best.file.tiles
        encoded = codec.finish(self._picture, header, tiles, self._stages)
        notes = (*encoded.notes, *self._notes(best))
        return Controlled(
            encoded=replace(encoded, notes=notes),
            target=self.target,
            reached=best.value,
            trials=len(self.trials),
        )

    def least(self) -> float:
        """Return the bytes of the best trial's file; infinite where none is allowed."""
        try:
            return self._best().size
        except TargetError:
            return math.inf

    def _best(self) -> _Trial:
        if not self.target.strict:
            return min(self.trials, key=lambda trial: abs(trial.score - self.wanted))
        allowed = [trial for trial in self.trials if self._meets(trial)]
        if not allowed:
            pick = min if self.target.of_size else max
            nearest = pick(self.trials, key=_by_score)
            raise TargetError(
                f"{self._models()} comes to {self.target.told(nearest.value)} at the "
                f"{'least' if self.target.of_size else 'most'}; found a strict target of "
                f"{self.target.told(self.target.value)}: choose another target or model, or leave "
                "out strict"
            )
        if self.target.of_size:
            return max(allowed, key=_by_score)
        return min(allowed, key=lambda trial: trial.size)

    def _notes(self, best: _Trial) -> list[str]:
        """Return why a file is far from its target, if it is."""
        if abs(best.score - self.wanted) <= _FAR[self.target.kind]:
            return []
        if self._has_steps(best.point):
            why = "is as near as it comes"
        else:
            why = "has rate points only, of which this is the best"
        return [
            f"the target is {self.target.told(self.target.value)}, reached "
            f"{self.target.told(best.value)}: {self._models()} {why}"
        ]

    def _models(self) -> str:
        bundles = self._control.bundles
        return bundles[0].label if len(bundles) == 1 else bundles[0].manifest.name


def _by_score(trial: _Trial) -> float:
    return trial.score
