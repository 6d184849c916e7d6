"""The Dockerfile takes all that it needs from the project; `make image` proves the rest."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def requirements(stage: str) -> list[str]:
    """Return what a stage's own script makes of pyproject.toml."""
    text = DOCKERFILE.split(f" AS {stage}\n")[1].split("\nFROM ")[0]
    (script,) = re.findall(r"python3 -c '(import tomllib;.*?)'", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", script.replace("\\\n", "")],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_the_runtime_has_the_dependencies_of_the_project_and_no_others() -> None:
    assert requirements("build-runtime") == PROJECT["project"]["dependencies"]


def test_cuda_has_torch_and_the_same_range_of_the_other_onnx_runtime() -> None:
    """Both packages of ONNX Runtime write the same files: the last one would win."""
    found = requirements("build-cuda")
    extras = PROJECT["project"]["optional-dependencies"]["torch"]
    assert [r for r in found if "onnxruntime" not in r] == [
        r for r in PROJECT["project"]["dependencies"] + extras if "onnxruntime" not in r
    ]
    (plain,) = (r for r in PROJECT["project"]["dependencies"] if "onnxruntime" in r)
    (gpu,) = (r for r in found if "onnxruntime" in r)
    assert gpu == plain.replace("onnxruntime", "onnxruntime-gpu[cuda,cudnn]", 1)


def test_what_the_wheel_is_made_of_reaches_the_build_and_nothing_else() -> None:
    """hatchling leaves out a folder that is not there without a word."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {Path(package).parts[0] for package in packages}
    needed |= {"pyproject.toml", "hatch_build.py", PROJECT["project"]["readme"]}
    needed |= set(PROJECT["project"]["license-files"])
    assert kept == needed
