"""The entry points as a user types them: what they write, and one sentence for each mistake."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config

import byol_jax
from byol_jax.train import loop

ROOT = Path(__file__).parents[2]
QUICKSTART = "--config=byol_jax/presets/quickstart.py"


def call(name, *flags):
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    loop.train(tiny_config(), workdir)
    return workdir


@pytest.mark.parametrize("protocol", ["linear", "knn"])
def test_evaluate_writes_its_table(workdir, protocol):
    done = call("evaluate", f"--checkpoint={workdir}", f"--protocol={protocol}")
    assert done.returncode == 0, done.stderr
    report = json.loads((workdir / "eval" / f"{protocol}.json").read_text())
    assert report["protocol"] == protocol and report["data"] == "embedded/test"
    assert report["test_examples"] == 2000 and report["step"] == 6
    assert set(report["top1"]) == {"byol", "random_init", "pixels"}
    for name, top1 in report["top1"].items():
        assert 0.05 < top1 < 1
        assert report["top1"]["byol"] != report["top1"]["random_init"]
        assert f"  {name:12s}{100 * top1:8.1f}%" in done.stdout
    if protocol == "knn":
        assert set(report["details"]["byol"]["top1_by_k"]) == {"20", "200"}


def test_ctrl_c_saves_and_leaves(tmp_path):
    command = [sys.executable, "-m", "byol_jax.cli.pretrain", QUICKSTART, f"--workdir={tmp_path}"]
    flags = ["batch_size=16", "log_every_steps=1", "knn.every_steps=0", "data.image_size=16"]
    flags += ["encoder.width_multiplier=0.25", "heads.hidden_size=8", "views.view1.jitter_prob=0"]
    flags += ["views.view2.jitter_prob=0"]
    running = subprocess.Popen(
        [*command, *(f"--config.{flag}" for flag in flags)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in running.stdout:
        if line.startswith("step 2/"):
            running.send_signal(signal.SIGINT)
            break
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert "Stopped and saved at step" in out and "Traceback" not in err
    (step,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == step


def test_export_is_loaded_by_the_library(workdir, tmp_path):
    done = call("export", f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    images = np.zeros((2, 16, 16, 1), np.uint8)
    assert byol_jax.load(tmp_path / "out").embed(images).shape == (2, 16)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("config.stps = 5", 'error: no such config key: Key "stps" does not exist. Did you mean'),
        ("config.steps = '5'", "error: TypeError: Could not override field 'steps'"),
        ("import nowhere", "error: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_mistake_in_a_config_file_ends_in_one_sentence(tmp_path, lines, sentence):
    start = "from byol_jax import config as c\ndef get_config():\n    config = c.default()\n"
    (tmp_path / "mine.py").write_text(f"{start}    {lines}\n    return config\n")
    done = call("pretrain", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2
    assert done.stderr.startswith(sentence) and len(done.stderr) < 300


@pytest.mark.parametrize(
    ("entry", "flags", "code", "sentence"),
    [
        ("pretrain", [QUICKSTART, "--config.stesp=3", "--workdir=W"], 2, "no such config key"),
        ("pretrain", [QUICKSTART, "--config.steps=x", "--workdir=W"], 2, "invalid literal"),
        ("pretrain", [QUICKSTART, "--wrkdir=W"], 2, "Unknown command line flag 'wrkdir'"),
        ("pretrain", [QUICKSTART], 2, "--workdir is missing"),
        ("pretrain", [QUICKSTART, "--workdir=W", "extra"], 2, "unexpected argument 'extra'"),
        ("pretrain", ["--config=nowhere.py", "--workdir=W"], 1, "--config=nowhere.py cannot be"),
        (
            "pretrain",
            [QUICKSTART, "--workdir=W", "--config.data.source=folder:nowhere"],
            1,
            "nowhere",
        ),
        (
            "pretrain",
            [QUICKSTART, "--workdir=W", "--config.data.source=tfds:cifar10"],
            1,
            "cifar10",
        ),
        ("pretrain", [QUICKSTART, "--workdir=W", "--config.batch_size=30"], 1, "does not divide"),
        ("evaluate", ["--checkpoint=W", "--protocol=linear"], 1, "holds no run"),
        ("evaluate", ["--checkpoint=W", "--protocol=svm"], 1, "is not one of knn, linear"),
        (
            "pretrain",
            ["--config=byol_jax/presets/imagenet.py:ten", "--workdir=W"],
            2,
            "error: imagenet.py:ten must end in a number of epochs",
        ),
        ("pretrain", [f"{QUICKSTART}:5", "--workdir=W"], 2, "takes nothing after a colon"),
        ("export", ["--checkpoint=W", "--output=X"], 1, "is neither a pre-training run nor"),
    ],
)
def test_a_mistake_ends_in_one_sentence(tmp_path, entry, flags, code, sentence):
    flags = [flag.replace("=W", f"={tmp_path / 'w'}") for flag in flags]
    if "cifar10" in sentence:
        flags.append(f"--config.data.dir={tmp_path}")
    done = call(entry, *flags)
    assert done.returncode == code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and sentence in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()
