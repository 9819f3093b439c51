"""The commands as a user types them: their files, and a one-line error for each mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from commands import imported
from tiny import tiny_config

import byol_jax
from byol_jax.cli import __main__ as cli
from byol_jax.cli import app, config_flag
from byol_jax.errors import UserError
from byol_jax.train import loop

ROOT = Path(__file__).parents[2]
QUICKSTART = "--config=quickstart"
PRESETS = (
    "auto, buir, buir_nb, byol_a, byol_a_small, cifar10, cifar100, cifar10_small, cifar10_vit, "
    "folder, folder_small, image_text, image_text_small, imagenet, imagenet_512, imagenet_vit_s16, "
    "imagenette, quickstart, rho_byol, signals, tables, text, text_small, video_small"
)


def call(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "byol_jax.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    loop.train(tiny_config(), workdir)
    return workdir


@pytest.mark.parametrize("arguments", [(), ("help",), ("--help",)])
def test_the_commands_are_listed_without_importing_a_package(arguments):
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['byol-jax', *{arguments}]\n"
        "runpy.run_module('byol_jax.cli', run_name='__main__', alter_sys=True)\n"
        "assert not {'jax', 'numpy', 'absl', 'ml_collections'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) < 24
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_an_unknown_command_is_one_line():
    done = call("pretain")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: unknown command 'pretain'; `byol-jax help` lists the commands.\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_describes_itself(name):
    part = ["step"] if name == "bench" else []
    done = call(name, *part, "--help")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"byol-jax {name} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100  # no lines joined at a backslash


@pytest.mark.parametrize("arguments", [["help"], ["export", "--help"]])
def test_help_into_a_closed_pipe_is_silent(arguments):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "byol_jax.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.stderr == b""


def test_bench_needs_the_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["byol-jax", "bench", "step"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    error = capsys.readouterr().err
    assert error == "error: `bench` is not installed: clone the repository and run it there.\n"


def test_the_modules_of_a_checkout_are_the_same_commands():
    for path in (ROOT / "experiments").glob("*.py"):
        name = path.stem.replace("_", "-")
        if name in cli.COMMANDS:
            module, _ = cli.COMMANDS[name]
            assert f'runpy.run_module("{module}", run_name="__main__"' in path.read_text()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.pretrain", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "byol-jax pretrain" in done.stdout


def test_presets_are_found_by_name_from_any_folder(tmp_path):
    assert ", ".join(config_flag.names()) == PRESETS
    wanted = ["--config.data.source=npz:nowhere", f"--workdir={tmp_path / 'w'}"]
    for config in (["--config=imagenet:300"], ["--config", "cifar10"]):
        done = call("pretrain", *config, *wanted, cwd=tmp_path)
        assert done.returncode == 1 and "nowhere" in done.stderr, done.stderr


def test_a_file_is_a_config(tmp_path):
    lines = "from byol_jax.presets import cifar10\n\ndef get_config(size='32'):\n"
    lines += "    config = cifar10.get_config()\n    config.data.image_size = int(size)\n"
    (tmp_path / "mine.py").write_text(lines + "    return config\n")
    parser = config_flag._Parser()
    config = parser.parse(f"{tmp_path / 'mine.py'}:48")
    assert config.data.image_size == 48 and config.is_locked
    assert parser.parse(str(tmp_path / "mine.py")).data.image_size == 32


EXIT = """
import threading
import jax
from byol_jax.cli import app

def main():
    x = jax.numpy.full((1500, 1500), 1e-4)
    y = jax.jit(lambda x: jax.lax.fori_loop(0, 40, lambda _, y: x @ y, x))(x)
    threading.Thread(target=y.block_until_ready, daemon=True).start()
    print("done")
    return 3

app.run(main)
"""


def test_a_thread_that_waits_for_a_device_does_not_abort_the_exit():
    """Python's finalization would end it in the middle of C++, with exit code 134."""
    done = subprocess.run([sys.executable, "-c", EXIT], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "done\n", "")


def test_missing_packages_are_named_with_their_extra(monkeypatch, capsys):
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    distributions = {"PIL": "pillow", "tensorflow_datasets": "tensorflow-datasets"}
    distributions["sklearn"] = "scikit-learn"
    distributions["orbax"] = "orbax-checkpoint"
    distributions["mlflow"] = "mlflow-skinny"
    for package, extra in app.EXTRAS.items():
        name = distributions.get(package, package)
        assert any(line.startswith((name + ">=", name + "-cpu>=")) for line in extras[extra])

        def main(package=package):
            raise ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.part")

        with pytest.raises(SystemExit, match="1"):
            app._guarded(main)
        assert capsys.readouterr().err == (
            f"error: {package} is not installed: pip install 'byol_jax[{extra}]'\n"
        )


def test_evaluate_writes_its_tables(workdir):
    done = call("evaluate", f"--checkpoint={workdir}", "--protocol=retrieval,knn")
    assert done.returncode == 0, done.stderr
    for protocol in ("retrieval", "knn"):
        report = json.loads((workdir / "eval" / f"{protocol}.json").read_text())
        assert report["protocol"] == protocol and report["data"] == "embedded/test"
        assert report["test_examples"] == 2000 and report["step"] == 6
        assert set(report["top1"]) == {"byol", "random", "pixels"}
        for name, top1 in report["top1"].items():
            assert 0.05 < top1 < 1
            assert report["top1"]["byol"] != report["top1"]["random"]
            assert re.search(f"  {name:12s} +{100 * top1:.1f}%", done.stdout)
    assert set(report["details"]["byol"]["top1_by_k"]) == {"20", "200"}


def test_ctrl_c_saves_and_exits(tmp_path):
    flags = ["log_every_steps=1", "evaluation.every_steps=0", "data.placement=device"]
    # Not a pipe: nobody would read it before the end, and XLA can write more than a pipe holds.
    with (tmp_path / "stderr").open("w+") as stderr:
        running = subprocess.Popen(
            [
                *(sys.executable, "-m", "byol_jax.cli", "pretrain"),
                *("--config=tests/faults/toy.py:convnet", f"--workdir={tmp_path / 'run'}"),
                *(f"--config.{flag}" for flag in flags),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        for line in running.stdout:
            if line.startswith("step 2/"):
                running.send_signal(signal.SIGINT)
                break
        out, _ = running.communicate(timeout=120)
    err = (tmp_path / "stderr").read_text()
    assert running.returncode == 0, err
    assert "Stopped and saved at step" in out and "Traceback" not in err
    (step,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == step


def test_export_is_loaded_by_the_library(workdir, tmp_path):
    done = call("export", f"--checkpoint={workdir}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    images = np.zeros((2, 16, 16, 1), np.uint8)
    assert byol_jax.load(tmp_path / "out").embed(images).shape == (2, 16)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("config.stps = 5", 'no such config key: Key "stps" does not exist. Did you mean'),
        ("config.steps = '5'", "TypeError: Could not override field 'steps'"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("return 5", "mine.py returns no ConfigDict"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(tmp_path, lines, message):
    start = "from byol_jax.runs import config as c\ndef get_config():\n    config = c.default()\n"
    (tmp_path / "mine.py").write_text(f"{start}    {lines}\n    return config\n")
    done = call("pretrain", "--config=mine.py", f"--workdir={tmp_path / 'w'}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: flag --config=mine.py: ") and message in done.stderr
    assert done.stderr.count("\n") == 1 and len(done.stderr) < 300


@pytest.mark.parametrize(
    ("command", "given", "code", "message"),
    [
        ("pretrain", [QUICKSTART, "--config.stesp=3", "--workdir=W"], 2, "no such config key"),
        ("pretrain", [QUICKSTART, "--config.steps=x", "--workdir=W"], 2, "invalid literal"),
        ("pretrain", [QUICKSTART, "--wrkdir=W"], 2, "flag 'wrkdir'. Did you mean: workdir"),
        ("pretrain", [QUICKSTART], 1, "--workdir is missing"),
        ("pretrain", [], 1, "name the images: byol-jax pretrain FOLDER."),
        ("pretrain", ["A", "extra", "--workdir=W"], 2, "unexpected argument 'extra'"),
        ("pretrain", ["nowhere", "--workdir=W"], 1, "the folder nowhere does not exist"),
        ("pretrain", ["--config=nowhere.py", "--workdir=W"], 2, "nowhere.py: there is no such"),
        ("pretrain", ["--config=cifar11", "--workdir=W"], 2, f"the presets are {PRESETS};"),
        ("pretrain", ["--config=imagenet:ten", "--workdir=W"], 2, "must end in a number of epochs"),
        ("pretrain", [f"{QUICKSTART}:5", "--workdir=W"], 2, "takes nothing after a colon"),
        (
            "pretrain",
            [QUICKSTART, "--workdir=W", "--config.data.source=folder:nowhere"],
            1,
            "nowhere",
        ),
        ("pretrain", [QUICKSTART, "--workdir=W", "--config.batch_size=30"], 1, "does not divide"),
        ("evaluate", ["--checkpoint=W", "--protocol=logistic"], 1, "holds no run"),
        ("finetune", ["--checkpoint=W", "--workdir=W", "--epochs=x"], 1, "a list of numbers such"),
        ("report", ["nowhere"], 1, "nowhere holds no run"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, command, given, code, message):
    done = call(command, *(flag.replace("=W", f"={tmp_path / 'w'}") for flag in given))
    assert done.returncode == code, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("evaluate", ["--checkpoint=W", "--protocol=svm"], "is not one of knn, logistic"),
        ("finetune", ["--checkpoint=W", "--workdir=W"], "is neither a pre-training run nor"),
        ("export", ["--checkpoint=W", "--output=X"], "is neither a pre-training run nor"),
        ("data_service", [], "--port=N starts a dispatcher"),
        ("check_data", [], "name the images to check: --data=folder:PATH"),
    ],
)
def test_a_mistake_raises_what_the_command_prints(tmp_path, command, given, message):
    """As above, in this process."""
    with imported(command) as module:
        flags.FLAGS.unparse_flags()
        flags.FLAGS([command, *(flag.replace("=W", f"={tmp_path / 'w'}") for flag in given)])
        with pytest.raises(UserError, match=re.escape(message)) as raised:
            module.main()
    assert "\n" not in str(raised.value) and not (tmp_path / "w").exists()


def test_wrong_flags_are_answered_without_importing_jax():
    program = (
        "import runpy, sys\n"
        "sys.modules['jax'] = None\n"
        "sys.argv = ['byol-jax', 'pretrain', '--config=quickstart', '--wrkdir=W']\n"
        "runpy.run_module('byol_jax.cli', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Unknown command line flag 'wrkdir'" in done.stderr
