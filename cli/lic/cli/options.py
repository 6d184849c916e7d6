"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Inputs = Annotated[list[str], typer.Argument(help="Files or folders; - is stdin.")]
OutputPath = Annotated[
    str | None,
    typer.Option("-o", "--output", help="File, folder for several inputs, or - for stdout."),
]
ModelName = Annotated[
    str | None, typer.Option("-m", "--model", help="Name or path of a bundle; see 'lic models'.")
]
RatePoint = Annotated[
    int | None,
    typer.Option(
        "-q", "--rate", help="The model's rate point, 1 is smallest. Default: its middle."
    ),
]
BackendOption = Annotated[str, typer.Option(help="auto, onnx or torch.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or a provider of ONNX Runtime.")]
Precision = Annotated[
    str,
    typer.Option(
        help="float32, or bfloat16 for the transforms of models with a context: for CUDA. Entropy "
        "coding stays in float32."
    ),
]
Threads = Annotated[int, typer.Option(min=0, help="Threads of one operator; 0 = automatic.")]
Force = Annotated[bool, typer.Option("-f", "--force", help="Overwrite existing results.")]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Leave out inputs whose result exists.")
]
Jobs = Annotated[
    int,
    typer.Option(
        "-j", "--jobs", min=0,
        help="Files at a time; 0 = automatic: a process for each core, fewer where files or memory "
        "are few.",
    ),
]  # fmt: skip
Engine = Annotated[
    str,
    typer.Option(
        help="Of several files: processes, threads (one device for all), ray (a cluster), or auto: "
        "processes on CPUs with -j above 1."
    ),
]
MaxPixels = Annotated[
    int, typer.Option(min=0, help="Refuse larger pictures; 0 = no limit of lic's own.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per result on stdout.")]
Verbose = Annotated[
    int, typer.Option("-v", "--verbose", count=True, help="More detail; -vv with tracebacks.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Errors only.")]
Folder = Annotated[Path, typer.Argument(help="Folder of pictures.")]
Photos = Annotated[
    Path, typer.Argument(help="Folder of pictures or of tar shards, or an index of shards.")
]

MAX_PIXELS = 2**28
