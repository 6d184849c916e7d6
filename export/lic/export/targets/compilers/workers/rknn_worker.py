"""Compiles one ONNX graph for a Rockchip NPU; runs in the environment of rknn-toolkit2.

    python rknn_worker.py REQUEST.json

The request names the graph, an array of typical inputs, a folder, platforms as `configurations`,
and the file for the answer. The toolkit tells about operators in its log only, so that is
what is read.
"""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# "1 ConvRelu INT8 NPU (shapes) (shape) 53746/819200/819200 217 Conv:node_conv2d"
_ROW = re.compile(
    r"^D RKNN: \[[^]]*\] \d+ +(\w+) +(\w*) +(NPU|CPU|GPU) .* (\d+)/(\d+)/(\d+) +\d+ +(\w+):(.*?) *$"
)
_MEMORY = re.compile(r"Total (Internal|Weight) Memory Size: ([\d.]+)KB")
_ENDS = ("InputOperator", "OutputOperator")


def main(request_file: str) -> None:
    """Do what a request says; with a platform, be the process that compiles for it."""
    request = json.loads(Path(request_file).read_text())
    if len(sys.argv) > 2:
        build(request, sys.argv[2])
        return
    answer: dict[str, Any] = {
        "versions": {"rknn-toolkit2": version("rknn-toolkit2")},
        "results": {},
    }
    for platform in request["configurations"]:
        # The toolkit ends the process where it fails, and its library writes past Python's stdout.
        command = [sys.executable, __file__, request_file, platform]
        done = subprocess.run(
            command, capture_output=True, check=False, env={**os.environ, "NO_COLOR": "1"}
        )
        log = (done.stdout + done.stderr).decode(errors="replace")
        answer["results"][platform] = read(log, done.returncode)
    Path(request["answer"]).write_text(json.dumps(answer))


def build(request: dict[str, Any], platform: str) -> None:
    """Compile in int8, with the log on."""
    from rknn.api import RKNN

    folder = Path(request["folder"])
    names = []
    for number, x in enumerate(np.load(request["inputs"])):
        np.save(folder / f"input-{number}.npy", x)
        names.append(str(folder / f"input-{number}.npy"))
    (folder / "inputs.txt").write_text("\n".join(names) + "\n")
    os.chdir(folder)  # It writes check0.onnx and others where it is started.
    rknn = RKNN(verbose=True)
    rknn.config(target_platform=platform)
    failed = rknn.load_onnx(model=request["model"]) or rknn.build(
        do_quantization=True, dataset="inputs.txt"
    )
    sys.exit(1 if failed else 0)


def read(log: str, code: int) -> dict[str, Any]:
    """Return what a log says: operators with their place, and estimates."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", log)
    rows = [match.groups() for line in plain.splitlines() if (match := _ROW.match(line))]
    if code or not rows:
        errors = [
            line.strip()
            for line in plain.splitlines()
            if re.search(r"^\s*(\w*Error|[\w.]*InvalidArgument): (?!Traceback)|Got: ", line)
        ]
        return {"error": "; ".join(dict.fromkeys(errors)) or f"build ended with {code}"}
    operators = [
        {
            "operator": kind,
            "name": name,
            "placement": place.lower(),
            "reason": "",
            "cycles": int(total),
        }
        for kind, _, place, _, _, total, _, name in rows
        if kind not in _ENDS
    ]
    kib = {area.lower(): float(size) for area, size in _MEMORY.findall(plain)}
    cycles = sum(int(row[5]) for row in rows)
    return {"operators": operators, "estimates": {"cycles": cycles, "kib": kib}}


if __name__ == "__main__":
    main(sys.argv[1])
