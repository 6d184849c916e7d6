"""lic train: options, messages and exit codes; what is refused is refused before the work."""

import shutil
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lic.cli.training import OFFERS, Run, starting_model
from lic.codec.bundle import Bundle
from lic.codec.errors import ConfigError
from lic.codec.models import FactorizedConfig, FactorizedPrior
from lic.trainers import recipes
from lic.trainers.checkpoints import find_checkpoint, load
from lic.trainers.config import SECTIONS, TrainConfig
from lic.trainers.files import CHECKPOINTS
from lic.trainers.loop import Trainer
from lic.trainers.sections import option_name
from lic.trainers.stepper import Stepper
from lic.trainers.trackers import METRICS

Lic = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of one photo, large enough for crops of 32."""
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open("samples/kodim23.png") as image:
        image.crop((100, 100, 164, 164)).save(folder / "a.png")
    return folder


@pytest.fixture
def gdn_file(tmp_path: Path) -> Path:
    """A state dict as CompressAI writes them: GDN, tiny."""
    torch.manual_seed(0)
    path = tmp_path / "bmshj2018-factorized.pth.tar"
    torch.save(FactorizedPrior(FactorizedConfig(N=8, M=12)).state_dict(), path)
    return path


SMALL = (
    "--steps", 4, "--batch", 1, "--crop", 32, "--checkpoint-every", 2, "--optimizer", "adam",
    "--device", "cpu", "--log-every", 1,
)  # fmt: skip


def small_run(folder: Path, photos: Path, *more: object) -> list[object]:
    """Return the command line of a run of four steps with a checkpoint after each second."""
    return ["train", "bmshj2018", photos, "-o", folder, "--start", "random", *SMALL, *more]


def test_a_run_ends_in_a_checkpoint_and_a_bundle(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    run = tmp_path / "deep" / "run"
    more = ("--dtype", "float32", "-q", 3, "--lmbda", 0.01)
    assert lic(*small_run(run, photos, *more)).code == 0
    assert load(find_checkpoint(run))["step"] == 4
    assert (no_export["target"], no_export["dtype"]) == (run / "bundle", "float32")
    description = no_export["description"]
    assert (description.rate_point, description.lmbda) == (3, 0.01)
    assert description.name == "bmshj2018-factorized-relu-lite"
    again = lic(*small_run(run, photos, *more))
    assert again.code == 7 and "--resume" in again.err
    assert lic(*small_run(run, photos, *more, "--resume")).code == 0


def test_the_same_command_gives_the_same_weights(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    states: list[dict[str, torch.Tensor]] = []
    for name in ("a", "b"):
        torch.manual_seed(len(states))
        assert lic(*small_run(tmp_path / name, photos)).code == 0
        states.append(load(find_checkpoint(tmp_path / name))["model"])
    assert no_export
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert lic(*small_run(tmp_path / "c", photos, "--seed", 1)).code == 0
    other = load(find_checkpoint(tmp_path / "c"))["model"]
    assert not torch.equal(other["g_a.0.weight"], states[0]["g_a.0.weight"])


def test_one_command_makes_a_relu_bundle_of_a_foreign_checkpoint(
    lic: Lic, photos: Path, tmp_path: Path, gdn_file: Path
) -> None:
    run = tmp_path / "run"
    for i in range(11):
        (photos / f"{i}.png").write_bytes((photos / "a.png").read_bytes())
    done = lic(
        "train", "relu", photos, "--init", gdn_file, "-o", run, *SMALL, "--recon-every", 1,
        "--qat", "--qat-calibration-steps", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "real files, 1 pictures: " in done.err
    bundle = Bundle.open(run / "bundle")
    assert bundle.manifest.config["encoder_activation"] == "relu"
    assert bundle.manifest.training["init"] == gdn_file.name
    found = {path.name for path in run.iterdir()}
    assert found == {
        "bundle", "checkpoints", "config.toml", "curves.png", "int8.safetensors", "metrics.csv",
        "metrics.jsonl", "reconstructions",
    }  # fmt: skip
    coded = tmp_path / "a.lic"
    assert lic("compress", photos / "a.png", "-o", coded, "-m", run / "bundle").code == 0
    assert lic("decompress", coded, "-o", tmp_path / "b.png", "-m", run / "bundle").code == 0


def test_options_come_back_from_their_file(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    saved = tmp_path / "options.toml"
    gain = ("--act", "gdnish", "--no-enc-residual")
    more = ("--lmbda", 0.02, "--prefix", "a", "--tensorboard", *gain)
    assert lic(*small_run(tmp_path / "one", photos, *more, "--save-config", saved)).code == 0
    assert saved.read_bytes() == (tmp_path / "one" / "config.toml").read_bytes()
    again = lic(
        "train", "bmshj2018", photos, "-o", tmp_path / "two", "--config", saved, "--device", "cpu",
        "--lmbda", 0.03,
    )  # fmt: skip
    assert again.code == 0, again.err
    one, two = (load(find_checkpoint(tmp_path / name))["config"] for name in ("one", "two"))
    assert TrainConfig.from_dict(tomllib.loads(saved.read_text())).to_dict() == one
    assert one["loss"]["lmbda"] == 0.02 and one["activation"]["enc_residual"] is False
    later = (*more, "--resume", "--save-config", tmp_path / "later.toml")
    assert lic(*small_run(tmp_path / "one", photos, *later)).code == 0
    assert (tmp_path / "later.toml").read_bytes() == saved.read_bytes()
    assert two["loss"].pop("lmbda") == 0.03 and one["loss"].pop("lmbda")
    assert one == two
    assert no_export


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = ", "is no TOML"),
        ("[optimizer]\nlr = -1\n", "--lr is -1; expected a number above 0"),
        ("[optimizer]\nrate = 1\n", r"[optimizer] has no option 'rate'"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_of_options_that_cannot_be_used_is_named(
    lic: Lic, photos: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "options.toml"
    if content is not None:
        path.write_text(content)
    done = lic(*small_run(tmp_path / "run", photos, "--config", path))
    assert done.code == 2 and message in done.err and str(path) in done.err
    assert not (tmp_path / "run").exists()


def test_what_a_file_leaves_out_is_as_the_help_says(
    lic: Lic, photos: Path, tmp_path: Path, gdn_file: Path, no_export: dict[str, Any]
) -> None:
    path = tmp_path / "options.toml"
    path.write_text("[loss]\nlmbda = 0.05\n")
    run = tmp_path / "run"
    more = ("--init", gdn_file, "--replace-init", "plain", "--config", path)
    done = lic("train", "relu", photos, "-o", run, *SMALL, *more)
    assert done.code == 0, done.err
    config = load(find_checkpoint(run))["config"]
    assert config["loss"]["lmbda"] == 0.05
    assert config["optimizer"]["lr"] == recipes.relu().optimizer.lr != TrainConfig().optimizer.lr
    assert no_export


@pytest.mark.parametrize("command", ["bmshj2018", "relu", "hpcm"])
def test_help_shows_every_option_with_its_default(lic: Lic, command: str) -> None:
    done = lic("train", command, "--help")
    assert done.code == 0
    text = " ".join(done.out.split())
    recipe = getattr(recipes, command)()
    for name, kind in SECTIONS.items():
        for item in fields(kind):
            shown = item.name in OFFERS[command].names
            spelt = (f" {option_name(item.name)} ", f" {option_name(item.name)}/--no-")
            assert any(text_of in text for text_of in spelt) == shown, item.name
            default = getattr(getattr(recipe, name), item.name)
            if shown and isinstance(default, float):
                told = OFFERS[command].defaults.get(item.name, default)
                assert f"[default: {told}]" in text


def test_each_command_has_models_of_its_own(lic: Lic, photos: Path, tmp_path: Path) -> None:
    text = " ".join(lic("train", "bmshj2018", "--help").out.split())
    assert "--arch factorized|hyperprior " in text and "[default: lite]" in text
    assert "[default: 20000]" in text and "--placement" not in text and "phi" not in text
    text = " ".join(lic("train", "relu", "--help").out.split())
    assert "--act relu|gdnish|igdn1 " in text and "--size" not in text
    assert "[with --act gdnish and --replace-parts all or encoder]" in text
    for more, said in (
        (("--size", "base"), "--size is 'base'; expected one of lite, 1, 2, 3, 4, 5, 6, 7, 8, cus"),
        (("--arch", "hpcm"), "--arch is 'hpcm'; expected one of factorized, hyperprior"),
    ):
        done = lic(*small_run(tmp_path / "run", photos, *more))
        assert done.code == 2 and said in done.err, done.err


def test_an_unknown_option_and_none_at_all_are_usage(lic: Lic) -> None:
    assert lic("train", "bmshj2018", "x", "-o", "y", "--lrr", 1).code == 2
    assert lic("train").code == 2
    assert lic("train", "nonsense").code == 2


def test_relu_without_a_model_says_what_it_needs(lic: Lic, photos: Path, tmp_path: Path) -> None:
    done = lic("train", "relu", photos, "-o", tmp_path / "run", *SMALL)
    assert done.code == 2 and "needs --init" in done.err


def test_what_cannot_be_replaced_is_said(
    lic: Lic, photos: Path, tmp_path: Path, tiny_bundle: Path
) -> None:
    done = lic("train", "relu", photos, "-o", tmp_path / "run", "--init", tiny_bundle, *SMALL)
    assert done.code == 2 and "Nothing to replace" in done.err


def test_what_fails_before_the_first_step_leaves_no_folder(
    lic: Lic, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for source, code, said in (
        (tmp_path / "nope", 3, "no such folder"),
        (photos / "a.png", 3, "is a file"),
        (tmp_path / "empty", 3, "holds no pictures"),
    ):
        done = lic(*small_run(tmp_path / "run", source))
        assert done.code == code and said in done.err
    qat = ("--qat", "--qat-calibration-steps", 4)
    done = lic(*small_run(tmp_path / "run", photos, *qat))
    assert done.code == 2 and "--qat-calibration-steps is 4" in done.err
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_files_is_left_alone(lic: Lic, photos: Path) -> None:
    before = sorted(photos.iterdir())
    done = lic(*small_run(photos, photos))
    assert done.code == 7 and "holds other files; name a new or empty folder" in done.err
    assert sorted(photos.iterdir()) == before


def test_a_resumed_run_keeps_its_rate_point_and_precision(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    assert lic(*small_run(run, photos, "-q", 3, "--dtype", "float32")).code == 0
    again = ("train", "bmshj2018", photos, "-o", run, "--resume", "--device", "cpu")
    assert lic(*again).code == 0
    assert (no_export["description"].rate_point, no_export["dtype"]) == (3, "float32")
    assert lic(*again, "-q", 4).code == 0
    assert no_export["description"].rate_point == 4
    done = lic("train", "relu", photos, "-o", run, "--resume")
    assert done.code == 2 and "is a run of lic train bmshj2018" in done.err
    done = lic(*again, "--config", run / "config.toml")
    assert done.code == 2 and "leave out --config" in done.err


def test_a_file_of_another_commands_options_is_not_misread(
    lic: Lic, photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[replacement]\ntrain_scope = "replaced"\n')
    done = lic(*small_run(tmp_path / "run", photos, "--config", path))
    assert done.code == 2 and "[replacement] is for lic train relu" in done.err
    path.write_text('init = "gdn.pth.tar"\n')
    for command in ("bmshj2018", "relu"):
        done = lic("train", command, photos, "-o", tmp_path / "run", *SMALL, "--config", path)
        assert done.code == 2 and "went on from gdn.pth.tar; name that with --init" in done.err


def test_a_device_that_is_not_there_is_usage(lic: Lic, photos: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    done = lic(*small_run(tmp_path / "run", photos, "--device", "cuda"))
    assert done.code == 2 and "--device cuda" in done.err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--enc-t", 4), "--enc-t means nothing with --act relu; expected --act gdnish"),
        (("--epochs", 1), "--steps means nothing with --epochs 1; expected --epochs 0"),
        (("--qat-scope", "encoder"), "--qat-scope means nothing with --no-qat"),
        (("--lambda-bpp", 1), "--lambda-bpp means nothing with --loss mse; expected --loss rd"),
    ],
)
def test_options_that_change_nothing_are_refused(
    lic: Lic, photos: Path, tmp_path: Path, more: tuple[object, ...], said: str
) -> None:
    done = lic(*small_run(tmp_path / "run", photos, *more))
    assert done.code == 2 and said in done.err, done.err
    assert not (tmp_path / "run").exists()


def test_options_of_what_init_is_are_known_once_it_is_loaded(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    first = tmp_path / "first"
    assert lic(*small_run(first, photos, "--act", "gdnish")).code == 0
    small = ("train", "bmshj2018", photos, "-o", tmp_path / "second", "--init", first, *SMALL)
    done = lic(*small, "--start", "pca")
    assert done.code == 2 and "--start means nothing with --init first" in done.err
    assert not (tmp_path / "second").exists()
    assert lic(*small, "--enc-t", 2).code == 0
    assert no_export


def test_an_unknown_precision_is_refused_before_training(
    lic: Lic, photos: Path, tmp_path: Path
) -> None:
    done = lic(*small_run(tmp_path / "run", photos, "--dtype", "fp16"))
    assert done.code == 2 and "--dtype is 'fp16'; expected one of float16, float32" in done.err
    assert not (tmp_path / "run").exists()


def test_a_larger_size_widens_the_model_of_init(
    lic: Lic, photos: Path, tmp_path: Path, no_export: dict[str, Any]
) -> None:
    first = tmp_path / "tiny.pth.tar"
    config = FactorizedConfig(N=8, M=12, encoder_activation="relu", decoder_activation="relu")
    torch.save(FactorizedPrior(config).state_dict(), first)
    done = lic(
        "train", "bmshj2018", photos, "-o", tmp_path / "run", "--init", first, "--size", "lite",
        *SMALL,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "widening to N = 64, M = 96" in done.err
    assert no_export["description"].name == "bmshj2018-factorized-relu-lite"


def test_records_tell_which_rate_point_a_run_went_on_from(
    lic: Lic, photos: Path, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "_train", lambda *_: None)
    shutil.copytree(tiny_bundle, tmp_path / "family" / "2")
    run = tmp_path / "run"
    done = lic("train", "bmshj2018", photos, "-o", run, "--init", tmp_path / "family" / "2", *SMALL)
    assert done.code == 0, done.err
    assert tomllib.loads((run / "config.toml").read_text())["init"] == "family q2"
    monkeypatch.chdir(tmp_path / "family" / "2")
    done = lic("train", "bmshj2018", photos, "-o", tmp_path / "again", "--init", ".", *SMALL)
    assert done.code == 0, done.err
    assert tomllib.loads((tmp_path / "again" / "config.toml").read_text())["init"] == "family q2"


def test_the_rate_of_contexts_is_that_of_a_fitted_bundle(
    lic: Lic, photos: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    fitted, run = tmp_path / "fitted", tmp_path / "run"
    quick = ("--steps", 5, "--tables", 20)
    shutil.copy(photos / "a.png", photos / "again.png")
    assert lic("models", "fit", tiny_bundle, photos, "-o", fitted, *quick).code == 0
    train = ("train", "bmshj2018", photos, "-o", run, *SMALL, "--contexts")
    done = lic(*train)
    assert done.code == 2 and "--contexts means nothing with no --init" in done.err
    done = lic(*train, "--init", tiny_bundle)
    assert done.code == 2 and "lic models fit gives a bundle some" in done.err
    assert not run.exists()
    done = lic(*train, "--init", fitted)
    assert done.code == 0, done.err
    # Its weights have moved: what was fitted to the old ones is no part of it.
    assert Bundle.open(run / "bundle").contexts is None


def test_options_that_contradict_init_are_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="--size is lite"):
        given: dict[str, Any] = {"size": "lite"}
        path = tmp_path / "wide.pth.tar"
        torch.save(FactorizedPrior(FactorizedConfig(N=72, M=12)).state_dict(), path)
        starting_model(TrainConfig().updated(given), given, path, "bmshj2018")
    for given, option in (
        ({"act": "gdn"}, "--act is gdn"),
        ({"arch": "hyperprior"}, "--arch is hyperprior"),
    ):
        with pytest.raises(ConfigError, match=option) as caught:
            starting_model(TrainConfig().updated(given), given, tiny_bundle, "bmshj2018")
        assert str(tiny_bundle) in str(caught.value)
    model, config = starting_model(TrainConfig(), {"act": "relu"}, tiny_bundle, "bmshj2018")
    assert (model.config.N, config.activation.act) == (8, "relu")


def test_without_init_a_model_is_small_and_relu() -> None:
    config: Any = starting_model(recipes.bmshj2018(), {}, None, "bmshj2018")[0].config
    assert (config.N, config.M, config.decoder_activation) == (64, 96, "relu")


def test_act_says_what_the_normalisations_of_a_foreign_checkpoint_are(gdn_file: Path) -> None:
    for act in ("gdn", "igdn1"):
        given = {"act": act}
        wanted = TrainConfig().updated(given)
        model, config = starting_model(wanted, given, gdn_file, "bmshj2018")
        own: Any = model.config
        assert own.decoder_activation == config.activation.act == act
    with pytest.raises(ConfigError, match="--act is relu"):
        starting_model(TrainConfig(), {"act": "relu"}, gdn_file, "bmshj2018")
    from_file = TrainConfig().updated({"act": "igdn1"})
    own = starting_model(from_file, {}, gdn_file, "bmshj2018")[0].config
    assert own.encoder_activation == "igdn1"


def test_a_folder_that_cannot_be_written_ends_before_the_first_step(
    lic: Lic, photos: Path, tmp_path: Path, stepping_down: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "run", None)
    (tmp_path / "file").touch()
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    with stepping_down():
        results = [
            lic(*small_run(folder, photos))
            for folder in (locked, locked / "run", tmp_path / "file", tmp_path / "file" / "run")
        ]
    for done in results:
        assert done.code == 7 and "cannot be written" in done.err
    assert list(locked.iterdir()) == []


@pytest.mark.parametrize("full", [f"{CHECKPOINTS}/step-00000004.pt", METRICS])
def test_a_full_disk_ends_in_a_sentence_and_keeps_the_checkpoint(
    lic: Lic, photos: Path, tmp_path: Path, full_disk: Any, full: str
) -> None:
    run = tmp_path / "run"
    # In the third step; the checkpoint of the second is written.
    with full_disk(2, 10 if full == METRICS else 10_000):
        done = lic(*small_run(run, photos))
    assert done.code == 7
    assert f"{run / full}: cannot be written (File too large)" in done.err
    assert load(find_checkpoint(run))["step"] == 2


def test_ctrl_c_ends_with_a_checkpoint_and_its_exit_code(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    real = Stepper.take

    def take(stepper: Stepper, step: int, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(stepper, step, x)

    monkeypatch.setattr(Stepper, "take", take)
    done = lic(*small_run(tmp_path / "run", photos))
    assert done.code == 130
    assert "stopped after the checkpoint of step 3; --resume goes on" in done.err
    assert load(find_checkpoint(tmp_path / "run"))["step"] == 3


def test_a_missing_package_is_named_with_what_installs_it(
    lic: Lic, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lic.cli import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxscript" else name)
    done = lic(*small_run(tmp_path / "run", photos))
    assert done.code == 2 and "pip install '.[train]'" in done.err
    done = lic("models", "import", tmp_path / "any.pth")
    assert done.code == 2 and "pip install '.[export]'" in done.err
