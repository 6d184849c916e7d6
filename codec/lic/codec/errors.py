"""Every failure that lic reports on purpose.

LicError
├── ImageError           the input picture cannot be read
├── BitstreamError       the .lic data is corrupt, truncated or from an unknown version
├── ModelMismatchError   the bundle is missing, changed, or not the one the file asks for
├── NumericsError        latents that cannot be coded, or symbols that differ from the encoder's
├── LimitError           a size limit was exceeded; nothing was allocated
│   └── TargetError      no file is as small, or as good, as was strictly asked for
├── OutputError          the result exists already or cannot be written
├── ConfigError          an option has a value that cannot work
├── WorkerError          a process that was at work on a file ended
├── ExportError          a graph could not be exported or failed its check
└── TrainingError        a training run cannot start or go on

A message says what was found, what was expected, and what to do. Exit codes belong to the command
line.
"""


class LicError(Exception):
    """Base of every error that lic raises on purpose."""


class ImageError(LicError):
    """The input picture cannot be read."""


class BitstreamError(LicError):
    """The .lic data is corrupt, truncated or of an unknown version."""


class ModelMismatchError(LicError):
    """The bundle is missing, was changed, or is not the one the file was made with."""


class NumericsError(LicError):
    """Latents that cannot be coded, or symbols that differ from the encoder's."""


class LimitError(LicError):
    """A size limit was exceeded; nothing was allocated."""


class TargetError(LimitError):
    """No file is as small, or as good, as was strictly asked for."""


class OutputError(LicError):
    """The result exists already or cannot be written."""


class ConfigError(LicError):
    """An option has a value that cannot work."""


class WorkerError(LicError):
    """A process that was at work on a file ended."""


class ExportError(LicError):
    """A graph could not be exported or failed its check."""


class TrainingError(LicError):
    """A training run cannot start or go on."""


class UnreachableError(TrainingError):
    """A server of photos gave no answer, however often it was asked."""
