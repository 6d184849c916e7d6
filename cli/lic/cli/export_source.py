"""What lic export is given: a bundle, a run, a checkpoint, or one that is int8 already."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lic.cli.weights import default_name, is_checkpoint, load_any, rate_of
from lic.codec.errors import ConfigError

if TYPE_CHECKING:
    from lic.codec.bundle import Bundle
    from lic.export.make_bundle import Description


def refuse(why: str, given: dict[str, Any]) -> None:
    """Refuse options that were given where they mean nothing."""
    for name, value in given.items():
        if value:
            raise ConfigError(f"{name} means nothing {why}; leave it out")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is exported: a bundle, or a checkpoint's model and what is known of it."""

    bundle: "Bundle | None" = None
    model: Any = None
    description: "Description | None" = None

    @property
    def label(self) -> str:
        """Family name and rate point."""
        if self.bundle:
            return self.bundle.label
        assert self.description
        return f"{self.description.name} q{self.description.rate_point}"

    def loaded(self) -> tuple[Any, str]:
        """Return the model as its bundle stores it, and that bundle's fingerprint."""
        if self.bundle:
            from lic.codec.backends.torch_backend import load_model

            return load_model(self.bundle), self.bundle.manifest.fingerprint
        from lic.export.make_bundle import freeze

        frozen = freeze(self.model)
        return frozen.model, frozen.fingerprint

    def whole(self, target: Path, dtype: str, *, force: bool) -> "Bundle":
        """Write a bundle with graphs."""
        from lic.export.make_bundle import add_graphs, make_bundle

        self._check_dtype(dtype)
        if self.bundle:
            return add_graphs(self.bundle, target, overwrite=force)
        assert self.description
        return make_bundle(
            self.model, target, self.description,
            dtype=cast(Any, dtype), graphs=True, overwrite=force,
        )  # fmt: skip

    @contextlib.contextmanager
    def ready(self, dtype: str = "float32", *, graphs: bool = False) -> Iterator["Bundle"]:
        """Give the bundle that others are made from; `graphs`: of models with a context, too."""
        from lic.export.make_bundle import make_bundle

        self._check_dtype(dtype)
        if self.bundle and (self.bundle.has_graphs or not graphs):
            yield self.bundle
            return
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "float"
            if graphs:
                yield self.whole(target, dtype, force=False)
                return
            assert self.description
            yield make_bundle(self.model, target, self.description, dtype=cast(Any, dtype))

    def _check_dtype(self, dtype: str) -> None:
        if self.bundle:
            refuse(f"with {self.bundle.label}, a bundle", {"--dtype": dtype != "float32"})


def find_source(source: str, rate: int | None) -> Source:
    """Return what a name or path stands for.

    Raises:
        ConfigError: no such bundle, or a rate point of a checkpoint.
    """
    from lic.codec.library import select
    from lic.export.make_bundle import Description

    path = Path(source)
    if not is_checkpoint(path):
        return Source(bundle=select(source, rate))
    refuse(f"with {source}, a checkpoint", {"--rate": rate})
    model, training = load_any(path)
    description = Description(
        name=default_name(model.config),
        rate_point=rate_of(training),
        lmbda=training.get("lmbda"),
        training=training,
    )
    return Source(model=model, description=description)


def is_int8(path: Path) -> bool:
    """Return whether a file holds a model that was trained and converted to int8."""
    from lic.codec.models.int8_files import is_converted

    return path.is_file() and is_converted(path)
