"""What a fault can leave in a run's folder besides a damaged checkpoint."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from . import comparison
from .damage import Damaged
from .processes import Run
from .tally import Tally


def cut_readings(damaged: Damaged, log: Callable[[str], None]) -> Tally:
    """The last line of metrics.jsonl is cut short, as where the power fails."""
    tally = Tally("metrics.jsonl cut in the middle of its last line")
    run = Run(damaged.copy())
    path = run.workdir / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    return _go_on(tally, run, damaged, log)


def garble_readings(damaged: Damaged, log: Callable[[str], None]) -> Tally:
    """A byte of an early line of metrics.jsonl is flipped: one sentence, until it is mended."""
    tally = Tally("a flipped byte in metrics.jsonl")
    run = Run(damaged.copy())
    # The readings are used where there is something left to do.
    shutil.rmtree(run.workdir / "checkpoints" / str(damaged.newest))
    path = run.workdir / "metrics.jsonl"
    whole = path.read_bytes()
    return _refused(tally, run, path, bytes([whole[0] ^ 0x80]) + whole[1:], damaged, log)


def half_a_checkpoint(damaged: Damaged, log: Callable[[str], None]) -> Tally:
    """A checkpoint that was being written, under its temporary name."""
    tally = Tally("a half-written checkpoint left over")
    run = Run(damaged.copy())
    folder = run.workdir / "checkpoints"
    left = folder / f"{damaged.newest + 5}.orbax-checkpoint-tmp-3"
    shutil.copytree(folder / str(damaged.newest), left)
    for number, path in enumerate(sorted(left.rglob("*"))):
        if path.is_file() and number % 2:
            path.unlink()
    return _go_on(tally, run, damaged, log)


def cut_config(damaged: Damaged, log: Callable[[str], None]) -> Tally:
    """config.json is cut to half: one sentence, and nothing happens until it is mended."""
    tally = Tally("config.json cut to half")
    run = Run(damaged.copy())
    path = run.workdir / "config.json"
    whole = path.read_bytes()
    return _refused(tally, run, path, whole[: len(whole) // 2], damaged, log)


def delete_while_running(
    run: Run, undisturbed: comparison.Result, rng: random.Random, log: Callable[[str], None]
) -> Tally:
    """A file of the newest checkpoint goes away while training goes on; then the run is killed."""
    tally = Tally("a file of the newest checkpoint deleted while training, then `kill -9`")
    with run.start() as program:
        target = rng.randint(30, 60)
        program.wait_until(lambda: program.step() >= target)
        files = _files_of_newest(run.workdir)
        rng.choice(files).unlink(missing_ok=True)
        program.send(signal.SIGKILL)
    last = run.complete()
    log(f"deleted while training: {last.end()}")
    tally.said = last.said("amaged") or last.said("Resuming from")
    if last.finish() == 0:
        tally.count(comparison.difference(undisturbed, comparison.result(run.workdir)))
    else:
        tally.lose(last.end())
    return tally


def _files_of_newest(workdir: Path) -> list[Path]:
    folders = [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    newest = max(folders, key=lambda path: int(path.name))
    return sorted(path for path in newest.rglob("*") if path.is_file())


def _go_on(tally: Tally, run: Run, damaged: Damaged, log: Callable[[str], None]) -> Tally:
    last = run.complete()
    log(f"{tally.fault}: {last.end()}")
    tally.said = last.said("Resuming from")
    if last.finish() == 0 and tally.said:
        wanted = comparison.result(damaged.undisturbed)
        tally.count(comparison.difference(wanted, comparison.result(run.workdir)))
    else:
        tally.lose(last.end())
    return tally


def _refused(
    tally: Tally,
    run: Run,
    path: Path,
    content: bytes,
    damaged: Damaged,
    log: Callable[[str], None],
) -> Tally:
    """Puts something else into a file: the run must refuse it in a sentence, then go on mended."""
    whole = path.read_bytes()
    path.write_bytes(content)
    refused = run.complete()
    if refused.finish() == 1 and refused.error() and not refused.said("Traceback"):
        path.write_bytes(whole)
        _go_on(tally, run, damaged, log)
        tally.said = refused.error()
    else:
        tally.lose(f"no sentence, but {refused.end()}")
    return tally
