"""The images that a run could not read and went on without: decode_errors.jsonl, and a summary."""

import json
import os

from byol_jax.runs.paths import AnyPath, is_local, translate_write_errors, write_atomically

NAMED = 5  # images that the summary names


class DecodeErrorLog:
    """Keeps one line for each image and step, {"step": 7, "image": "PATH: reason"}.

    Carries on where the run does: lines of steps that will be taken again are dropped. Each of
    several processes has a list of its own, decode_errors.PROCESS.jsonl; the summary is of all.
    """

    def __init__(self, folder: AnyPath, start_step: int, process: int = 0, processes: int = 1):
        """Keeps the lines up to `start_step`; a list is made with the first image."""
        self._folder = folder
        self._path = folder / (
            f"decode_error_log.{process}.jsonl" if process else "decode_errors.jsonl"
        )
        self._lines = _keep(self._path, start_step)
        if process == 0:
            for path in folder.glob("decode_errors.*.jsonl"):
                number = path.name.split(".")[1]
                if number.isdigit() and int(number) >= processes:  # of an earlier start
                    _keep(path, start_step)
        self._step, self._of_step = start_step, set()

    def __call__(self, step: int, image: str) -> None:
        """Adds an image that update number `step` did without; once for each step."""
        if step != self._step:
            self._step, self._of_step = step, set()
        if image in self._of_step:
            return
        self._of_step.add(image)
        self._lines.append(_line({"step": step, "image": image}))
        if not is_local(self._path):  # a file there cannot be added to
            write_atomically(self._path, "".join(self._lines).encode())
            return
        with translate_write_errors(self._path), self._path.open("a") as file:
            file.write(self._lines[-1])
            file.flush()
            os.fsync(file.fileno())

    def summary(self) -> str | None:
        """How many, which ones and where they are listed; None where there were none."""
        paths = sorted(self._folder.glob("decode_errors*.jsonl"))
        rows = [row for path in paths for row in _read(path)]
        if not rows:
            return None
        images = list(dict.fromkeys(row["image"] for row in rows))  # in the order they came
        more = f"; and {len(images) - NAMED} more" if len(images) > NAMED else ""
        times = f"{len(rows)} time{'s' if len(rows) > 1 else ''}"
        return (
            f"Images that could not be read were replaced {times}, {len(images)} different "
            f"one{'s' if len(images) > 1 else ''} ({'; '.join(images[:NAMED])}{more}): "
            f"{', '.join(map(str, paths))} lists them."
        )


def _keep(path: AnyPath, start_step: int) -> list[str]:
    """Drops the lines of a list beyond a step; returns the others."""
    lines = [_line(row) for row in _read(path) if row["step"] <= start_step]
    if path.exists():
        write_atomically(path, "".join(lines).encode())
    return lines


def _line(row: dict) -> str:
    return json.dumps(row) + "\n"


def _read(path: AnyPath) -> list[dict]:
    """The lines of a list; nothing after one that a fault cut short."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"]), "image": str(row["image"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            break
    return rows
