"""Packages that only some commands need."""

from importlib.util import find_spec

from lic.codec.errors import ConfigError


def require(extra: str, *packages: str) -> None:
    """Check that packages of an extra are installed, without importing them.

    Raises:
        ConfigError: one is missing; the message says what to install.
    """
    for package in packages:
        if find_spec(package) is None:
            raise ConfigError(
                f"this command needs {package}; in lic's own folder: pip install '.[{extra}]'"
            )
