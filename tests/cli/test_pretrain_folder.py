"""`byol-jax pretrain FOLDER`: what it chooses, writes and resumes."""

import json

import numpy as np
import pytest
from absl import flags
from commands import imported
from PIL import Image

from byol_jax.cli import app, config_flag
from byol_jax.errors import ConfigError
from byol_jax.runs import processes
from byol_jax.runs import run as run_lib

# Of a network that compiles fast.
TINY = [
    *("--config.encoder.channels=(4,8)", "--config.encoder.features=16"),
    *("--config.heads.hidden_size=8", "--config.heads.output_size=4", "--config.steps=2"),
    *(f"--config.views.{view}.jitter_prob=0" for view in ("view1", "view2")),
    *(f"--config.views.{view}.blur_prob=0" for view in ("view1", "view2")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """18 gray photographs of 20 x 24 pixels."""
    root = tmp_path_factory.mktemp("data") / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(18):
        Image.fromarray(rng.integers(0, 256, (20, 24), dtype=np.uint8)).save(root / f"{i}.png")
    return root


@pytest.fixture
def pretrain(monkeypatch, tmp_path):
    """Calls the command as a command line does, in an empty folder; returns its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "join", lambda *_: None)  # JAX has started

    def pretrain(*arguments):
        argv = ["pretrain", "--compilation_cache=", "--noreport", *map(str, arguments)]
        config_flag.auto_by_default(argv)
        monkeypatch.setattr("sys.argv", argv)
        with imported("pretrain") as module:
            app._parse("[FOLDER]", argv)
            try:
                return module.main()
            finally:
                flags.FLAGS.unparse_flags()

    return pretrain


def test_a_folder_is_all_that_it_needs(pretrain, folder, tmp_path, capsys):
    assert pretrain(f"{folder}/", "--encoder=convnet", "--report", *TINY) == 0
    out = capsys.readouterr().out
    page = tmp_path / "runs" / "photos" / "report.html"
    assert f"A page about the run: {page}" in out and page.stat().st_size > 100_000
    assert "18 images, the shorter side mostly 20 pixels" in out and "convnet" in out
    run = run_lib.read(tmp_path / "runs" / "photos")
    config = run.config
    assert (config.data.source, config.data.channels) == (f"folder:{folder}/", 1)
    assert (config.data.image_size, config.batch_size, run.total_steps) == (20, 16, 2)
    # The same command again resumes; a longer run would need another folder.
    assert pretrain(f"{folder}/", "--encoder=convnet", *TINY) == 0
    assert "This run is complete" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"other settings: config.steps \(2 -> 3\)"):
        pretrain(folder, "--encoder=convnet", *TINY, "--config.steps=3")


def test_short_flags_change_the_plan(pretrain, folder, tmp_path):
    written = tmp_path / "mine.py"
    short = ("--epochs=7", "--image_size=16", "--encoder=resnet18")
    assert pretrain(folder, *short, f"--write_config={written}") == 0
    assert not (tmp_path / "runs").exists()
    text = written.read_text()
    for line in ("epochs = 7", "data.image_size = 16", "encoder.name = 'resnet18'"):
        assert f"    config.{line}\n" in text
    for other in ("epochs", "steps"):
        with pytest.raises(ConfigError, match=rf"--epochs and --config\.{other} are two lengths"):
            pretrain(folder, "--epochs=7", f"--config.{other}=7")
    with pytest.raises(ConfigError, match=r"exists or does not end in \.py"):
        pretrain(folder, f"--write_config={written}")


def test_a_written_config_trains_the_same_run(pretrain, folder, tmp_path):
    written = tmp_path / "mine.py"
    assert pretrain(folder, "--encoder=convnet", *TINY, f"--write_config={written}") == 0
    assert pretrain(folder, "--encoder=convnet", *TINY) == 0
    assert pretrain(f"--config={written}", "--workdir=again") == 0
    records = [
        json.loads((tmp_path / run / "config.json").read_text()) for run in ("runs/photos", "again")
    ]
    assert records[0]["config"] == records[1]["config"]


@pytest.mark.parametrize("workdir", ["", "--workdir=run"])
def test_a_run_within_its_images_is_refused(pretrain, folder, monkeypatch, workdir):
    pretrain_here = pretrain
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="within the folder of images"):
        pretrain_here(".", "--encoder=convnet", *TINY, *filter(None, [workdir]))
    assert not (folder / "runs").exists() and not (folder / "run").exists()


def test_a_flag_file_may_name_the_preset(tmp_path):
    (tmp_path / "flags").write_text("--config=quickstart\n")
    argv = ["pretrain", f"--flagfile={tmp_path / 'flags'}", "--config.steps=3"]
    config_flag.auto_by_default(argv)
    assert argv[1].startswith("--flagfile=")


def test_arrays_may_be_gray(pretrain, tmp_path, capsys):
    written = tmp_path / "mine.py"
    assert pretrain("embedded", f"--write_config={written}") == 0
    assert "    config.data.channels = 1\n" in written.read_text()


def test_a_dry_run_leaves_nothing(pretrain, folder, tmp_path, capsys):
    assert pretrain(folder, "--encoder=convnet", *TINY, "--config.steps=3000", "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert "images/s: " in lines[0] and "for 3000 steps" in lines[0]
    assert "for 10 evaluations" in lines[0] and "GB of memory" in lines[1]
    assert not [*tmp_path.iterdir()]
