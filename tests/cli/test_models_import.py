"""lic models import: which model a file holds, and what its bundle is called."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lic.cli.training import starting_model
from lic.cli.weights import default_name
from lic.codec.backends.torch_backend import load_model
from lic.codec.bundle import Bundle
from lic.codec.errors import ConfigError
from lic.codec.models import (
    HPCM,
    FactorizedPrior,
    HyperpriorConfig,
    ScaleHyperprior,
    factorized_config,
    hpcm_config,
)
from lic.trainers.config import TrainConfig

Lic = Callable[..., Any]


@pytest.fixture
def hpcm_file(tmp_path: Path, tiny_hpcm: HPCM) -> Path:
    """A file as published ones are: from several GPUs, without adaptive vectors."""
    path = tmp_path / "hpcm.pth.tar"
    state = tiny_hpcm.state_dict()
    kept = {f"module.{k}": v for k, v in state.items() if not k.startswith("adaptive_params")}
    torch.save(kept, path)
    return path


@pytest.fixture
def factorized_file(tmp_path: Path, tiny_model: FactorizedPrior) -> Path:
    path = tmp_path / "factorized.pth"
    torch.save(tiny_model.state_dict(), path)
    return path


@pytest.fixture
def hyperprior_file(tmp_path: Path) -> Path:
    path = tmp_path / "hyperprior.pth"
    torch.save(ScaleHyperprior(HyperpriorConfig(N=8, M=12)).state_dict(), path)
    return path


@pytest.mark.parametrize("arch", [(), ("--arch", "hpcm-tiny")])
def test_an_hpcm_file_becomes_a_bundle_that_codes(
    lic: Lic,
    hpcm_file: Path,
    tmp_path: Path,
    png: Path,
    monkeypatch: pytest.MonkeyPatch,
    arch: tuple[str, ...],
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    done = lic("models", "import", hpcm_file, *arch, "--lmbda", 0.013, "--json")
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert (values["name"], values["rate_point"], values["metric"]) == ("hpcm-tiny", 4, "mse")
    assert values["graphs"] == {} and values["config"] == hpcm_config("tiny").to_dict()
    assert values["training"] == {"imported_from": "hpcm.pth.tar"}
    assert lic("models", "show", "hpcm-tiny", "-q", 4).code == 0
    assert lic("compress", png, "-m", "hpcm-tiny").code == 0
    assert lic("decompress", png.with_suffix(".lic"), "-o", tmp_path / "back.png").code == 0


def test_the_weights_are_those_of_the_file(
    hpcm_file: Path, tiny_hpcm_bundle: Path, no_export: dict[str, Any], lic: Lic
) -> None:
    assert lic("models", "import", hpcm_file).code == 0
    expected = load_model(Bundle.open(tiny_hpcm_bundle)).state_dict()
    for name, value in no_export["model"].state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("options", "name", "metric", "rate"),
    [
        ((), "hpcm-tiny", "mse", 1),
        (("--lmbda", 0.0018), "hpcm-tiny", "mse", 1),
        (("--lmbda", 0.0483), "hpcm-tiny", "mse", 6),
        (("--lmbda", 0.02), "hpcm-tiny", "mse", 1),
        (("--lmbda", 0.0483, "-q", 2), "hpcm-tiny", "mse", 2),
        (("--lmbda", 2.4), "hpcm-tiny-ms-ssim", "ms-ssim", 1),
        (("--lmbda", 60.5, "--metric", "ms-ssim"), "hpcm-tiny-ms-ssim", "ms-ssim", 6),
        (("--lmbda", 8.73, "--metric", "mse"), "hpcm-tiny", "mse", 1),
        (("--lmbda", 8.73, "--name", "mine"), "mine", "ms-ssim", 3),
        (("--placement", "corrected"), "hpcm-tiny-corrected", "mse", 1),
    ],
)
def test_lambda_says_metric_and_rate_point_of_hpcm(
    lic: Lic,
    hpcm_file: Path,
    no_export: dict[str, Any],
    options: tuple[Any, ...],
    name: str,
    metric: str,
    rate: int,
) -> None:
    assert lic("models", "import", hpcm_file, *options).code == 0
    description = no_export["description"]
    assert (description.name, description.metric, description.rate_point) == (name, metric, rate)
    assert no_export["target"].parts[-2:] == (name, str(rate))


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ((), "no --lmbda: rate point 1 of mse; set them with -q and --metric"),
        (("-q", 2), ""),
        (("--lmbda", 0.013), ""),
        (("--lmbda", 2.4, "--metric", "ms-ssim"), ""),
        (("--lmbda", 0.05), "0.05 is none of the published lambdas (mse: 0.0018, 0.0035, "),
        (("--lmbda", 0.05), "31.73, 60.5); rate point 1, set it with -q"),
        (("--lmbda", 0.05, "-q", 3), ""),
        (("--lmbda", 2.4, "--metric", "mse"), "2.4 is a published lambda of ms-ssim, but --metric"),
        (("--lmbda", 2.4, "--metric", "mse"), "rate point 1, set it with -q"),
    ],
)
def test_a_rate_point_that_lambda_does_not_say_is_told(
    lic: Lic,
    hpcm_file: Path,
    no_export: dict[str, Any],
    options: tuple[Any, ...],
    note: str,
) -> None:
    done = lic("models", "import", hpcm_file, *options, "--json")
    assert done.code == 0 and no_export
    assert note in done.err if note else done.err == ""


def test_an_existing_bundle_is_kept_and_the_options_named(
    lic: Lic, hpcm_file: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    done = lic("models", "import", hpcm_file, "-o", folder)
    assert done.code == 7 and no_export == {}
    assert f"{folder}: exists already; -f overwrites it, -o chooses another" in done.err
    assert lic("models", "import", hpcm_file, "-o", folder, "-f").code == 0


def test_an_installed_bundle_is_kept_and_the_options_named(
    lic: Lic, hpcm_file: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    (tmp_path / "data" / "lic" / "bundles" / "hpcm-tiny" / "3").mkdir(parents=True)
    done = lic("models", "import", hpcm_file, "-q", 3)
    assert done.code == 7 and no_export == {}
    assert "-f overwrites it, --name or -q choose another" in done.err


def test_a_folder_without_a_model_is_named_with_what_it_lacks(
    lic: Lic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = lic("models", "import", ".")
    assert done.code == 5 and f"{tmp_path}: holds no model; expected checkpoints/" in done.err
    assert "manifest.json" in done.err


def test_lambda_says_nothing_of_other_models(
    lic: Lic, factorized_file: Path, hyperprior_file: Path, no_export: dict[str, Any]
) -> None:
    for file, name in (
        (factorized_file, "bmshj2018-factorized-relu-8-12"),
        (hyperprior_file, "bmshj2018-hyperprior-gdn-8-12"),
    ):
        assert lic("models", "import", file, "--lmbda", 0.013).code == 0
        description = no_export["description"]
        assert (description.name, description.rate_point, description.lmbda) == (name, 1, 0.013)


def test_every_family_has_a_name_of_its_own() -> None:
    names = [default_name(hpcm_config(size)) for size in ("base", "large", "phi", "tiny")]
    names.append(default_name(replace(hpcm_config("base"), N=192)))
    names.append(default_name(hpcm_config("base", "corrected"), "ms-ssim"))
    assert names == [
        "hpcm-base", "hpcm-large", "hpcm-phi", "hpcm-tiny", "hpcm-192-320",
        "hpcm-base-corrected-ms-ssim",
    ]  # fmt: skip
    assert default_name(factorized_config("lite", "relu")) == "bmshj2018-factorized-relu-lite"


@pytest.mark.parametrize(
    ("kind", "arch", "message"),
    [
        ("hpcm", "bmshj2018-factorized", "are those of hpcm, but --arch is bmshj2018-factorized"),
        ("hpcm", "hpcm-base", "HPCM tiny; expected base; leave out --arch or name hpcm-tiny"),
        ("factorized", "hpcm-base", "those of bmshj2018-factorized, but --arch is hpcm-base"),
        ("factorized", "bmshj2018-hyperprior", "are those of bmshj2018-factorized, but --arch"),
        ("hyperprior", "bmshj2018-factorized", "are those of bmshj2018-hyperprior, but --arch"),
    ],
)
def test_a_file_of_another_architecture_is_refused_by_name(
    lic: Lic,
    hpcm_file: Path,
    factorized_file: Path,
    hyperprior_file: Path,
    no_export: dict[str, Any],
    kind: str,
    arch: str,
    message: str,
) -> None:
    file = {"hpcm": hpcm_file, "factorized": factorized_file, "hyperprior": hyperprior_file}[kind]
    done = lic("models", "import", file, "--arch", arch)
    assert done.code == 5
    assert str(file) in done.err and message in done.err
    assert no_export == {}


def test_bundles_of_other_kinds_are_refused_too(
    lic: Lic, tiny_bundle: Path, tiny_hpcm_bundle: Path, no_export: dict[str, Any]
) -> None:
    done = lic("models", "import", tiny_bundle, "--arch", "hpcm-base")
    assert done.code == 5 and "bmshj2018-factorized-relu-8-12, but --arch is hpcm-base" in done.err
    done = lic("models", "import", tiny_hpcm_bundle, "--arch", "hpcm-base")
    assert done.code == 5 and "is hpcm-tiny, but --arch is hpcm-base" in done.err
    assert no_export == {}
    assert lic("models", "import", tiny_hpcm_bundle, "--arch", "hpcm-tiny").code == 0
    # Lambda comes with the bundle, and the rate point with lambda.
    assert no_export["description"].rate_point == 4


def test_options_that_mean_nothing_are_refused(
    lic: Lic, factorized_file: Path, tiny_bundle: Path, tiny_hpcm_bundle: Path, hpcm_file: Path
) -> None:
    for options, message in (
        ((hpcm_file, "--arch", "hpcm"), "--arch is 'hpcm'; expected one of auto, bmshj2018"),
        ((hpcm_file, "--placement", "right"), "--placement is 'right'; expected upstream"),
        ((hpcm_file, "--metric", "psnr"), "--metric is 'psnr'"),
        ((factorized_file, "--placement", "upstream"), "--placement is for HPCM"),
        ((tiny_bundle, "--placement", "upstream"), "--placement is for HPCM"),
        ((tiny_hpcm_bundle, "--placement", "corrected"), "--placement is corrected, but"),
        ((hpcm_file, "--activation", "gdn"), "--activation is for bmshj2018; leave it out"),
        ((tiny_hpcm_bundle, "--activation", "igdn1"), "--activation is for bmshj2018; leave it"),
        ((tiny_bundle, "--activation", "igdn1"), f"is igdn1, but {tiny_bundle} says relu; leave"),
    ):
        done = lic("models", "import", *options)
        assert done.code == 2 and message in done.err, done.err


def test_activation_says_what_beta_and_gamma_of_a_foreign_file_mean(
    lic: Lic, hyperprior_file: Path, tiny_bundle: Path, no_export: dict[str, Any]
) -> None:
    for option, found in (((), "gdn"), (("--activation", "igdn1"), "igdn1")):
        assert lic("models", "import", hyperprior_file, *option).code == 0
        assert no_export["model"].config.decoder_activation == found
    assert lic("models", "import", tiny_bundle, "--activation", "relu").code == 0


def test_a_file_with_some_adaptive_vectors_is_refused(
    lic: Lic, hpcm_file: Path, no_export: dict[str, Any]
) -> None:
    state = torch.load(hpcm_file, weights_only=True)
    state["module.adaptive_params_list.4"] = torch.ones(1, 192, 1, 1)
    torch.save(state, hpcm_file)
    done = lic("models", "import", hpcm_file)
    assert done.code == 5 and "9 of 10 vectors adaptive_params_list.*" in done.err
    assert str(hpcm_file) in done.err and no_export == {}


def test_hpcm_has_a_command_of_its_own(hpcm_file: Path, tiny_hpcm_bundle: Path) -> None:
    for init in (hpcm_file, tiny_hpcm_bundle):
        with pytest.raises(ConfigError, match="is hpcm; expected bmshj2018-") as caught:
            starting_model(TrainConfig(), {}, init, "bmshj2018")
        assert str(init) in str(caught.value)


def test_a_hyperprior_can(hyperprior_file: Path) -> None:
    model, config = starting_model(TrainConfig(), {}, hyperprior_file, "bmshj2018")
    assert isinstance(model, ScaleHyperprior)
    assert config.model.arch == "hyperprior"
