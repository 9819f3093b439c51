"""An image that is damaged or removed while a run trains on it."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from . import comparison
from .processes import Run
from .tally import Tally

IMAGES, SIZE = 48, 12
STEPS = 90  # of 16 images: each is drawn every third step


def folder_of_images(folder: Path) -> Path:
    """Writes images in two classes into a folder."""
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE), np.uint8)).save(path)
    return folder


def run_on(images: Path, workdir: Path, on_decode_error: str) -> Run:
    """The toy run on these images."""
    flags = (f"data.source=folder:{images}", "data.test_split=", f"steps={STEPS}")
    flags += (f"data.on_decode_error={on_decode_error}",)
    return Run(workdir, tuple(f"--config.{flag}" for flag in flags))


def break_and_restore(scratch: Path, rng: random.Random, log: Callable[[str], None]) -> Tally:
    """Cuts or removes a file while training: the error names it; restored, the run resumes."""
    tally = Tally("an image cut short or removed while training")
    images = folder_of_images(scratch / "images")
    undisturbed = run_on(images, scratch / "undisturbed", "error")
    undisturbed.complete()
    wanted = comparison.result(undisturbed.workdir)
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:60]), Path.unlink):
        victim = rng.choice(sorted(images.rglob("*.png")))
        content = victim.read_bytes()
        run = run_on(images, scratch / victim.stem, "error")
        with run.start() as program:
            target = rng.randint(5, STEPS // 2)
            program.wait_until(lambda p=program, t=target: p.step() >= t)
            damage(victim)
            code = program.finish()
        victim.write_bytes(content)
        log(f"{victim.name}: {program.end()}")
        tally.message = program.error()
        if code != 1 or victim.name not in program.error():
            tally.lose(f"{victim.name} was not named: {program.end()}")
        else:
            comparison.complete_and_compare(tally, run, wanted)
    return tally


def skip_and_kill(scratch: Path, rng: random.Random, log: Callable[[str], None]) -> Tally:
    """Damaged images with on_decode_error=skip: killed, resumed, equal to the undisturbed run."""
    tally = Tally("damaged images and `data.on_decode_error=skip`, with a `kill -9`")
    images = folder_of_images(scratch / "images")
    for victim in rng.sample(sorted(images.rglob("*.png")), 3):
        victim.write_bytes(victim.read_bytes()[:60])
    undisturbed = run_on(images, scratch / "undisturbed", "skip")
    first = undisturbed.complete()
    log(f"skipping: {first.end()}")
    if first.finish() != 0:
        tally.lose(f"did not skip: {first.end()}")
        return tally
    run = run_on(images, scratch / "killed", "skip")
    with run.start() as program:
        target = rng.randint(15, STEPS // 2)
        program.wait_until(lambda: program.step() >= target)
        time.sleep(rng.uniform(0, 0.1))
        program.send(signal.SIGKILL)
    tally.message = first.line_with("decode_errors.jsonl")
    comparison.complete_and_compare(tally, run, comparison.result(undisturbed.workdir))
    return tally
