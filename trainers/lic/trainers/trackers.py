"""Where the metrics of a run go: lines of JSON, a table and curves always, others on demand.

metrics.jsonl is what a run knows of its past; the table and the curves are made of it. A resumed
run drops what was written after the checkpoint that it goes on from, and does it again.

Shapes: H W pixels.
"""

import csv
import importlib
import io
import json
import math
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from lic.codec.errors import ConfigError
from lic.trainers.config import WatchConfig
from lic.trainers.curves import draw_curves
from lic.trainers.files import write_whole, writing

METRICS: Final = "metrics.jsonl"
TABLE: Final = "metrics.csv"
CURVES: Final = "curves.png"
EVENTS: Final = "tensorboard"
WANDB_ID: Final = "wandb-id.txt"

# Without validation, which else sets the pace.
SECONDS_BETWEEN_CURVES: Final = 60.0

Row = dict[str, float | None]


class Tracker(Protocol):
    """Takes what a run tells on its way."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of a step, some of them or all; a step may come more than once."""
        ...

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Take a picture (H, W, 3)."""
        ...

    def close(self) -> None:
        """Finish what is under way; a second time does nothing."""
        ...


def build_trackers(
    folder: Path, config: WatchConfig, options: Mapping[str, Any], *, resume_step: int = 0
) -> list[Tracker]:
    """Return the trackers of a run, for the first of its processes only.

    Args:
        folder: of the run.
        config: which ones beside those that are always there.
        options: the run's, as plain values, for those that show them.
        resume_step: step that the run goes on from; what was told of later ones is dropped.

    Raises:
        ConfigError: a package that is not installed, or W&B does not start.
        OutputError: the folder cannot be written.
    """
    lines = folder / METRICS
    made: list[Tracker] = [
        Jsonl(lines, resume_step), Csv(folder / TABLE, lines), Curves(folder / CURVES, lines)
    ]  # fmt: skip
    if config.tensorboard:
        made.append(TensorBoard(folder / EVENTS, options, resume_step))
    if config.wandb:
        made.append(WandB(folder, config.wandb_project, options, resume_step))
    return made


def read_metrics(path: Path) -> list[Row]:
    """Return the rows of a run's metrics.jsonl; None is what was no finite number.

    Empty where there is no file. Lines that are no metrics, as a crash leaves one, are left out.
    """
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [row for row in map(_row, lines) if row]


def _row(line: bytes) -> Row:
    """Return the metrics of a line, nothing where it has no step."""
    try:
        row = json.loads(line)
        return row if isinstance(row["step"], int) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


class Jsonl:
    """One JSON object a line: the step and the values that came with it."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                self._forget_later(resume_step)

    def _forget_later(self, step: int) -> None:
        before = self._path.read_bytes()
        lines = [line for line in before.splitlines() if _step(_row(line)) <= step]
        after = b"".join(line + b"\n" for line in lines)
        if after != before:
            write_whole(self._path, lambda file: file.write(after))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line."""
        row = {"step": step, **{name: _plain(v) for name, v in values.items() if name != "step"}}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Leave pictures to the folder of reconstructions."""

    def close(self) -> None:
        """Do nothing: every line was written at once."""


def _step(row: Row) -> float:
    step = row.get("step")
    return math.inf if step is None else step


def _plain(value: float) -> float | None:
    """Return a number that JSON has; it knows neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


class Csv:
    """The same as a table, one row a step; made anew where a step or column does not fit behind."""

    def __init__(self, path: Path, source: Path) -> None:
        self._path = path
        self._source = source
        self._columns: list[str] = []
        self._step = -1
        self._rebuild()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row, or write the table again; the source has the values already."""
        row = {**values, "step": step}
        if step <= self._step or not row.keys() <= set(self._columns):
            self._rebuild()
        else:
            with writing(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(_table([row], self._columns))
        self._step = step

    def _rebuild(self) -> None:
        steps: dict[float, Row] = {}
        for row in read_metrics(self._source):
            steps.setdefault(_step(row), {}).update(row)
        self._columns = list(dict.fromkeys(name for row in steps.values() for name in row))
        header = dict(zip(self._columns, self._columns, strict=True))
        text = _table([header, *steps.values()], self._columns) if steps else ""
        with writing(self._path):
            write_whole(self._path, lambda file: file.write(text.encode()))

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Leave pictures to the folder of reconstructions."""

    def close(self) -> None:
        """Do nothing: every row was written at once."""


def _table(rows: Iterable[Mapping[str, Any]], columns: list[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = [row.get(name) for name in columns]
        writer.writerow([cell if isinstance(cell, str) else _cell(cell) for cell in cells])
    return text.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)


class Curves:
    """The same as a picture, drawn again with every validation and at the end."""

    def __init__(self, path: Path, source: Path) -> None:
        self._path = path
        self._source = source
        self._drawn = time.monotonic()
        self._stale = False

    def log(self, step: int, values: Mapping[str, float]) -> None:  # noqa: ARG002
        """Draw, where it is time; the source has the values already."""
        self._stale = True
        waited = time.monotonic() - self._drawn
        if waited > SECONDS_BETWEEN_CURVES or any(name.startswith("val_") for name in values):
            self._draw()

    def _draw(self) -> None:
        image = draw_curves(read_metrics(self._source))
        with writing(self._path):
            write_whole(self._path, lambda file: image.save(file, "PNG"))
        self._drawn, self._stale = time.monotonic(), False

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Leave pictures to the folder of reconstructions."""

    def close(self) -> None:
        """Draw what came since."""
        if self._stale:
            self._draw()


class TensorBoard:
    """Events for `tensorboard --logdir`; those after the resumed step are hidden by it."""

    def __init__(self, folder: Path, options: Mapping[str, Any], resume_step: int) -> None:
        package = _optional("torch.utils.tensorboard", "tensorboard", "--tensorboard")
        with writing(folder):
            self._writer: Any = package.SummaryWriter(
                str(folder), purge_step=resume_step + 1, flush_secs=10
            )
            text = json.dumps(options, indent=1)
            self._writer.add_text("options", f"```\n{text}\n```", resume_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a scalar each, those of the validation apart from those of the training."""
        for name, value in values.items():
            if name != "step":
                self._writer.add_scalar(_tag(name), value, step)

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Write a picture (H, W, 3)."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still under way."""
        self._writer.close()


def _tag(name: str) -> str:
    return f"validation/{name[4:]}" if name.startswith("val_") else f"training/{name}"


class WandB:
    """A run at Weights & Biases, or on the disk alone with WANDB_MODE=offline.

    The run's name is that of its folder. Source code, git's state and the terminal's output are
    left out of what is uploaded.
    """

    def __init__(
        self, folder: Path, project: str, options: Mapping[str, Any], resume_step: int
    ) -> None:
        wandb = _optional("wandb", "wandb", "--wandb")
        identity = _wandb_id(folder / WANDB_ID, resume_step)
        try:
            offline = wandb.setup().settings.mode == "offline"
            self._run: Any = wandb.init(
                project=project,
                name=folder.resolve().name,
                dir=str(folder),
                id=identity,
                # Offline there is nobody to ask; the id joins the parts when they are synchronised.
                resume=None if offline else "allow",
                config=dict(options),
                settings=wandb.Settings(console="off", disable_git=True, save_code=False),
            )
        # Of its own, of the network, of the service that it starts: any kind.
        except Exception as error:
            raise ConfigError(
                f"--wandb: W&B does not start ({error}); log in with 'wandb login', set "
                "WANDB_MODE=offline, or leave out --wandb"
            ) from error
        self._picture = wandb.Image
        # W&B's own count of steps never goes back, which a resumed run does.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values."""
        named = {_tag(name): value for name, value in values.items() if name != "step"}
        self._run.log({**named, "step": step})

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Send a picture (H, W, 3)."""
        self._run.log({name: self._picture(pixels), "step": step})

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()


def _wandb_id(path: Path, resume_step: int) -> str:
    """Return the id that a resumed run has, or a new one."""
    known = path.read_text().strip() if resume_step and path.is_file() else ""
    if known.isalnum():
        return known
    new = secrets.token_hex(8)
    with writing(path):
        write_whole(path, lambda file: file.write(f"{new}\n".encode()))
    return new


def _optional(module: str, package: str, option: str) -> Any:
    """Return a module of a package that not everyone has.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"{option} needs {package}; in lic's own folder: pip install '.[watch]', or leave out "
            f"{option}"
        ) from None
