"""What a fault can leave in the folder of a run, apart from a damaged checkpoint."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from . import comparison
from .damage import Damaged
from .processes import Run
from .tally import Tally


def cut_metrics(damaged: Damaged, log: Callable[[str], None]) -> Tally:
    """The last line of metrics.jsonl is cut short, as after a power failure."""
    tally = Tally("metrics.jsonl cut in the middle of its last line")
    run = Run(damaged.copy())
    path = run.workdir / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    return _resume(tally, run, damaged, log)


def garble_metrics(damaged: Damaged, log: Callable[[str], None]) -> Tally:
    """A byte of an early line of metrics.jsonl is flipped: an error until it is restored."""
    tally = Tally("a flipped byte in metrics.jsonl")
    run = Run(damaged.copy())
    # The metrics are read only if there is something left to do.
    shutil.rmtree(run.workdir / "checkpoints" / str(damaged.newest))
    path = run.workdir / "metrics.jsonl"
    content = path.read_bytes()
    return _reject(tally, run, path, bytes([content[0] ^ 0x80]) + content[1:], damaged, log)


def incomplete_checkpoint(damaged: Damaged, log: Callable[[str], None]) -> Tally:
    """A checkpoint that was being written, under its temporary name."""
    tally = Tally("an incomplete checkpoint left over")
    run = Run(damaged.copy())
    folder = run.workdir / "checkpoints"
    left = folder / f"{damaged.newest + 5}.orbax-checkpoint-tmp-3"
    shutil.copytree(folder / str(damaged.newest), left)
    for number, path in enumerate(sorted(left.rglob("*"))):
        if path.is_file() and number % 2:
            path.unlink()
    return _resume(tally, run, damaged, log)


def cut_config(damaged: Damaged, log: Callable[[str], None]) -> Tally:
    """config.json is cut to half: an error until it is restored."""
    tally = Tally("config.json cut to half")
    run = Run(damaged.copy())
    path = run.workdir / "config.json"
    content = path.read_bytes()
    return _reject(tally, run, path, content[: len(content) // 2], damaged, log)


def delete_while_running(
    run: Run, undisturbed: comparison.Result, rng: random.Random, log: Callable[[str], None]
) -> Tally:
    """A file of the newest checkpoint is deleted during training; then the run is killed."""
    tally = Tally("a file of the newest checkpoint deleted while training, then `kill -9`")
    with run.start() as program:
        target = rng.randint(30, 60)
        program.wait_until(lambda: program.step() >= target)
        folders = [path for path in (run.workdir / "checkpoints").iterdir() if path.name.isdigit()]
        newest = max(folders, key=lambda path: int(path.name))
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        rng.choice(files).unlink(missing_ok=True)
        program.send(signal.SIGKILL)
    comparison.complete_and_compare(tally, run, undisturbed, must_resume=False)
    log(f"{tally.fault}: {tally.message}")
    return tally


def _resume(tally: Tally, run: Run, damaged: Damaged, log: Callable[[str], None]) -> Tally:
    comparison.complete_and_compare(tally, run, comparison.result(damaged.undisturbed))
    log(f"{tally.fault}: {tally.message}")
    return tally


def _reject(
    tally: Tally,
    run: Run,
    path: Path,
    content: bytes,
    damaged: Damaged,
    log: Callable[[str], None],
) -> Tally:
    """Replaces the content of a file: the run must reject it, and resume when it is restored."""
    original = path.read_bytes()
    path.write_bytes(content)
    rejected = run.complete()
    path.write_bytes(original)
    tally.message = rejected.error()
    if rejected.finish() == 1 and rejected.error() and not rejected.line_with("Traceback"):
        return _resume(tally, run, damaged, log)
    tally.lose(f"no error line, but {rejected.end()}")
    return tally
