"""Imports point one way, the roots stay one namespace, and the run time needs neither torch."""

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPONENTS = ("codec", "trainers", "export", "cli")
ALLOWED = {
    "codec": {"codec"},
    "trainers": {"codec", "trainers"},
    "export": {"codec", "export"},
    "cli": {"codec", "trainers", "export", "cli"},
}
# Lower layers first; a module may import its own layer and those before it.
CODEC_LAYERS = (
    ("errors", "stages", "workers"),
    ("architectures", "container", "image_io", "tiling", "windows", "regions", "metrics"),
    ("entropy", "results", "manifest"),
    ("latents", "lossless", "nudges", "graph_plan"),
    ("models",),
    ("bundle", "backends", "library"),
    ("coding", "quantisation_step", "latent_tiles", "overlapping_tiles"),
    ("pipeline",),
    ("decoding",),
    ("codec_cache",),
    ("arrays", "pillow_plugin", "benchmark", "inspection", "rate_control"),
    ("self_test",),
)
TRAINERS_LAYERS = (
    ("sections",),
    ("model_options", "objective_options"),
    (
        "config", "schedules", "gamma", "files", "ranges", "tar_headers", "shards", "photos",
        "workers", "crop_manifest", "curves",
    ),
    (
        "recipes", "cautious", "gamma_plot", "groups", "needs", "search_space", "studies", "trials",
        "analysis_plots",
    ),
    (
        "losses", "optimizers", "context_fit", "context_data", "data", "prepare", "shard_writer",
        "precision", "guard", "ema", "stopping",
    ),
    ("models", "steps", "balance", "tasks"),
    (
        "objective", "start", "replacement", "widen", "scope", "qat", "spectral", "inter_scale",
        "checkpoints", "validation", "trackers", "reconstructions", "context_rate",
    ),
    ("balanced",),
    ("stepper",),
    ("loop",),
    ("runs", "int8_result"),
    ("sweep", "analysis", "analysis_report"),
)  # fmt: skip
TORCH_MODULES = ("lic.codec.models", "lic.codec.backends.torch_")
SLOW = ("torch", "onnxruntime", "numpy", "PIL", "rich", "onnx", "lightning_fabric")


def modules(component: str) -> Iterator[tuple[str, Path]]:
    root = ROOT / component
    for path in sorted((root / "lic").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path, *, module_level: bool = False) -> Iterator[str]:
    """Yield the names of modules that a file imports; at module level only if asked."""
    tree = ast.parse(path.read_text())
    for node in _module_level(tree) if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_level(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield statements that run on import, which those below TYPE_CHECKING do not."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            pending += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            pending += [*node.body, *node.orelse, *node.finalbody]


def test_no_root_hides_the_others() -> None:
    assert [c for c in COMPONENTS if (ROOT / c / "lic" / "__init__.py").exists()] == []


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_is_typed(component: str) -> None:
    assert (ROOT / component / "lic" / component / "py.typed").is_file()


@pytest.mark.parametrize("component", COMPONENTS)
def test_components_import_downwards(component: str) -> None:
    found = list(modules(component))
    assert found
    for name, path in found:
        used = {i.split(".")[1] for i in imports(path) if i.startswith("lic.")}
        assert used <= ALLOWED[component], f"{name} imports {used - ALLOWED[component]}"


@pytest.mark.parametrize(
    ("component", "layers"), [("codec", CODEC_LAYERS), ("trainers", TRAINERS_LAYERS)]
)
def test_layers_import_downwards(component: str, layers: tuple[tuple[str, ...], ...]) -> None:
    rank = {name: i for i, layer in enumerate(layers) for name in layer}
    for name, path in modules(component):
        parts = name.split(".")
        if len(parts) < 3:
            continue
        assert parts[2] in rank, f"{name} has no place in the layers"
        for used in imports(path):
            other = used.split(".")
            if other[:2] == ["lic", component] and len(other) > 2 and other[2] in rank:
                assert rank[other[2]] <= rank[parts[2]], f"{name} imports {used}, which is higher"


def test_the_command_line_imports_in_no_circle() -> None:
    found = dict(modules("cli"))
    graph = {name: found.keys() & set(imports(path)) - {name} for name, path in found.items()}
    graphlib.TopologicalSorter(graph).prepare()


def test_only_models_and_the_torch_backend_import_torch() -> None:
    for name, path in modules("codec"):
        heavy = {i.split(".")[0] for i in imports(path, module_level=True)}
        if not name.startswith(TORCH_MODULES):
            assert "torch" not in heavy, name


def _loaded_after(code: str) -> list[str]:
    script = f"import sys, json\n{code}\nsys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    names: list[str] = json.loads(done.stderr.strip().splitlines()[-1])
    return names


def test_help_and_info_load_nothing_slow(tmp_path: Path) -> None:
    import numpy as np

    from lic.codec.image_io import Picture
    from lic.codec.lossless import compress_lossless

    file = tmp_path / "x.lic"
    pixels = np.zeros((2, 3, 3), np.uint8)
    file.write_bytes(compress_lossless(Picture(pixels=pixels)).data)
    for arguments in (["--help"], ["info", str(file)], ["info", "--json", "-v", str(file)]):
        loaded = _loaded_after(f"from lic.cli.app import run\nassert run({arguments!r}) == 0")
        assert [m for m in SLOW if m in loaded] == [], arguments


def test_help_and_info_take_less_than_a_third_of_a_second(tmp_path: Path) -> None:
    """Processor time, the least of some runs: a core that others use too is slower for all."""
    import numpy as np

    from lic.codec.image_io import Picture
    from lic.codec.lossless import compress_lossless

    file = tmp_path / "x.lic"
    file.write_bytes(compress_lossless(Picture(pixels=np.zeros((2, 3, 3), np.uint8))).data)
    code = "from lic.cli.app import main; main()"
    for arguments in (["--help"], ["info", str(file)]):
        spent: list[float] = []
        while len(spent) < 3 or (min(spent) >= 0.3 and len(spent) < 12):
            process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
            spent.append(usage.ru_utime + usage.ru_stime)
        assert min(spent) < 0.3, (arguments, spent)


def test_importing_the_codec_loads_nothing_slow() -> None:
    assert [m for m in SLOW if m in _loaded_after("import lic.codec")] == []


def test_coding_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    """ONNX Runtime would: an identity of the machine, and a database of what to report."""
    photo = ROOT / "samples" / "kodim23.png"
    code = (
        "import sys; from lic.cli.app import run; "
        f"sys.exit(run(['compress', {str(photo)!r}, '--dry-run', '--backend', 'onnx']))"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY",)}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], env={**kept, **home}, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_picture_goes_there_and_back_with_torch_blocked(tmp_path: Path) -> None:
    photo = ROOT / "samples" / "kodim23.png"
    lic, png = tmp_path / "a.lic", tmp_path / "a.png"
    code = f"""
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "safetensors", "onnx", "lightning_fabric"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from lic.cli.app import run
assert run(["compress", {str(photo)!r}, "-o", {str(lic)!r}]) == 0
assert run(["decompress", {str(lic)!r}, "-o", {str(png)!r}]) == 0
"""
    assert "torch" not in _loaded_after(code)
    assert lic.stat().st_size < 100_000
    assert png.stat().st_size > 10_000


def test_public_names_exist() -> None:
    import lic.codec

    assert lic.codec.__all__
    for name in lic.codec.__all__:
        assert getattr(lic.codec, name) is not None
    with pytest.raises(AttributeError):
        _ = lic.codec.no_such_name
