"""The dataclasses of `lic.trainers.config` as options of a command."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from lic.cli.console import Output
from lic.codec.errors import ConfigError
from lic.trainers.config import OPTIONS, SECTIONS, TrainConfig
from lic.trainers.needs import told_needs
from lic.trainers.sections import Need, option_name

# In the order of help, which begins with what every run wants.
PANELS = {
    "model": "Model", "activation": "Non-linearities", "replacement": "Replacement",
    "run": "Length", "data": "Data", "loss": "Loss", "optimizer": "Optimisation",
    "objective": "Objective", "gamma": "Forgetting of task weights",
    "spectral": "Spectral regularisation", "finetune": "Layers", "precision": "Precision",
    "qat": "Quantisation-aware training", "watch": "Watching", "checkpoint": "Checkpoints",
    "bundle": "Bundle",
}  # fmt: skip
_FIRST = ("Arguments", "Run")


class SectionedCommand(TyperCommand):
    """A command whose help lists options section by section."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one list for each panel that the options name."""
        panels: dict[str, list[tuple[str, str]]] = {
            title: [] for title in (*_FIRST, *PANELS.values())
        }
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = getattr(parameter, "rich_help_panel", None)
                arguments = parameter.param_type_name == "argument"
                panels[title or _FIRST[not arguments]].append(record)
        for title, rows in panels.items():
            if not rows:
                continue
            with formatter.section(title):
                formatter.write_dl(rows)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a command has of the options of training.

    Attributes:
        sections: whose options it has.
        omit: those of them that mean nothing to it.
        choices: values of options of which it has not all.
        more: what it adds to the help of options.
        defaults: what it calls the defaults of options that no value tells.
    """

    sections: tuple[str, ...]
    omit: frozenset[str] = frozenset()
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The names of its options."""
        every = {item.name for section in self.sections for item in fields(SECTIONS[section])}
        return frozenset(every - self.omit)

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that an option has for other commands.

        Raises:
            ConfigError: it is one.
        """
        choices = self.choices.get(name, (value,))
        if value not in choices:
            raise ConfigError(
                f"{option_name(name)} is {value!r}; expected one of {', '.join(choices)}"
            )


def with_config(
    recipe: TrainConfig, offer: Offer, shared: type
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `offer` and those that `shared` is made of.

    The command gets `given`, what of the offer was asked for by name, and `run`, a `shared`.
    Help shows the recipe's values as defaults.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        common = inspect.signature(shared).parameters
        own = inspect.signature(command).parameters
        options = {
            item.name: _parameter(recipe, offer, name, item)
            for name in offer.sections
            for item in fields(SECTIONS[name])
            if item.name in offer.names
        }

        def call(**arguments: Any) -> None:
            values = {name: arguments.pop(name) for name in options}
            given = {k: v for k, v in values.items() if v is not None and v != []}
            for name, value in given.items():
                offer.check(name, value)
            run = shared(**{name: arguments.pop(name) for name in common})
            command(run=run, given=given, **arguments)

        kept = [p for name, p in own.items() if name not in ("run", "given")]
        every = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in (*common.values(), *kept, *options.values())
        ]
        call.__doc__ = command.__doc__
        call.__name__ = command.__name__
        call.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in every}
        return call

    return decorate


def _parameter(
    recipe: TrainConfig, offer: Offer, section: str, item: "Field[Any]"
) -> inspect.Parameter:
    default = getattr(getattr(recipe, section), item.name)
    choices = offer.choices.get(item.name, item.metadata["choices"])
    name = option_name(item.name)
    kind: Any = list[str] if isinstance(default, tuple) else type(default)
    is_flag = isinstance(default, bool)
    short = item.metadata["short"]
    about = typer.Option(
        *([short] if short else []),
        f"{name}/--no-{name[2:]}" if is_flag else name,
        help=_help(recipe, offer, item, default),
        metavar=_metavar(choices, item.metadata["count"]),
        show_default=False,
        rich_help_panel=PANELS[section],
    )
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, about],
    )


def _metavar(choices: tuple[str, ...], count: tuple[int, ...]) -> str | None:
    """Return what stands for the value, where its kind alone does not say it."""
    counts = [number for number in count if number]
    if counts:
        return ",".join("N" * counts[0]) if len(counts) == 1 else "N,N,..."
    return "|".join(choices) if choices and len(choices) < 8 else None


def _help(recipe: TrainConfig, offer: Offer, item: "Field[Any]", default: Any) -> str:
    """Return what an option is for, beside which others, and its default."""
    needs = {
        other: need
        for other, need in item.metadata["needs"].items()
        if need is not False and not _always_met(recipe, offer, other, need)
    }
    words = {True: "on", False: "off"}
    told = words[default] if isinstance(default, bool) else default
    told = offer.defaults.get(item.name, told)
    parts = (
        item.metadata["help"],
        offer.more.get(item.name, ""),
        f"[with {told_needs(needs)}]" if needs else "",
        "" if told in ("", ()) else f"[default: {told}]",
    )
    return " ".join(filter(None, parts))


def _always_met(recipe: TrainConfig, offer: Offer, name: str, need: Need) -> bool:
    """Return whether no value that a command takes for an option stands against a need."""
    if isinstance(need, bool):
        return False
    if name in offer.names:
        return set(offer.choices.get(name, OPTIONS[name].metadata["choices"])) <= set(need)
    return recipe.by_name()[name] in need


def read_config(path: Path | None, base: TrainConfig) -> tuple[TrainConfig, frozenset[str]]:
    """Return the options of a TOML file, and the names of those that stand in it.

    What it leaves out is as in `base`; without a file all are.

    Raises:
        ConfigError: missing, no TOML, or holding what is no option.
    """
    import tomllib

    if path is None:
        return base, frozenset()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        config = TrainConfig.from_dict(values, base)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no TOML ({error})") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    sections = (values[name] for name in SECTIONS if name in values)
    return config, frozenset(name for section in sections for name in section)


def write_config(config: TrainConfig, path: Path, out: Output) -> None:
    """Write all options as TOML that `read_config` takes back.

    Raises:
        OutputError: it cannot be written.
    """
    import tomli_w

    from lic.cli.outputs import write_output

    data = tomli_w.dumps(config.to_dict()).encode()
    write_output(data, path, force=True)
    out.note(f"options -> {path}")
