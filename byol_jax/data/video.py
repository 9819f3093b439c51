"""A folder of video files as a source, by PyAV (FFmpeg).

files.py says which files below a folder are taken, and what their labels are. A clip is decoded
whenever it is used, from the key frame before it on. Its frames are those shown at equal intervals
of time, so the frame rate of a file does not matter; sound is not read.
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from byol_jax.data import files, optional
from byol_jax.data.file_source import FileSource
from byol_jax.errors import DataError

EXTENSIONS = (".mp4", ".webm", ".mkv", ".mov", ".avi")
# Seconds before a clip where decoding begins, tried in this order: some files are sought by the
# times of decoding, so that the first frame comes too late. The last one is the file's beginning.
SEEK_BACK = (0.0, 2.0, math.inf)
EPSILON = 1e-6  # seconds, of rounding
MISSING = 0.5  # seconds that a file may be shorter than it says


class VideoSource(FileSource):
    """Clips of equal length of video files.

    Examples are uint8 (frames, size, size, 3). In training, "clip1", "clip2" and so on are clips of
    a file that begin at random times, independent of each other; else, "clip1" is the one in the
    middle. The last frame of a file that is shorter than a clip is repeated. The shorter side of a
    frame, as a player shows it, is resized to `size`, and the central square is kept.
    """

    def __init__(
        self, name: str, found: files.Files, frames: int, seconds: float, size: int, clips: int
    ):
        """Keeps the files; use `open_video`."""
        super().__init__(name, found)
        self.frames, self.seconds, self.size, self.clips = frames, seconds, size, clips

    def load(self, indices):  # noqa: D102 (see IndexedSource)
        return {"clip1": np.stack([self._clips(index, [0.5])[0] for index in indices])}

    def load_random(self, indices: np.ndarray, seeds: Sequence[tuple[int, ...]]):  # noqa: D102
        draws = [np.random.default_rng(seed).random(self.clips) for seed in seeds]
        of_files = [self._clips(i, draw) for i, draw in zip(indices, draws, strict=True)]
        clips = map(np.stack, zip(*of_files, strict=True))
        return {f"clip{number}": clip for number, clip in enumerate(clips, start=1)}

    def _clips(self, index: int, wheres: Sequence[float]) -> list[np.ndarray]:
        """Clips of a file, uint8 (frames, size, size, 3); 0 is its beginning and 1 its end.

        Raises:
          DataError: the file cannot be read, ends before its time, or FFmpeg notices that a frame
            is damaged. It often does not notice.
        """
        av, clips, at = _package(), [], ""
        try:
            # A title that is no UTF-8 is no reason to refuse a file.
            with av.open(self.paths[index], metadata_errors="ignore") as container:
                stream = container.streams.best("video")
                if stream is None:
                    raise ValueError("it has no video")
                # Batches are loaded by several threads, and FFmpeg's own would be too many.
                stream.codec_context.thread_count = 1
                duration = _duration(container, stream)
                for where in wheres:
                    start = where * max(0, duration - self.seconds)
                    at = f" at {start:.2f} s"
                    times = start + np.arange(self.frames) * (self.seconds / self.frames)
                    frames, end = _shown(container, stream, times)
                    if any(frame.is_corrupt for frame in frames):
                        raise ValueError("a frame is damaged")
                    if end < min(times[-1], duration) - MISSING:
                        raise ValueError(f"it ends at {end:.2f} s of {duration:.2f}")
                    clips.append(_squares(frames, self.size, stream.sample_aspect_ratio or 1))
        except (OSError, ValueError, av.error.FFmpegError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(f"{self.describe(index)} cannot be read{at} ({reason}).") from error
        return clips


def _duration(container: Any, stream: Any) -> float:
    """Seconds from the first frame of a video to its end; sound may begin earlier or end later.

    Matroska and WebM files do not have it for each stream, but often as a tag, the time of the end.
    Without one, a video alone lasts as long as its file, and another one is looked through; so is
    what browsers record, which says nothing.
    """
    unit = float(stream.time_base)
    is_matroska = "matroska" in container.format.name  # there FFmpeg would guess by the bit rate
    if stream.duration and not is_matroska:
        return stream.duration * unit
    first = stream.start_time or 0
    tags = (value for key, value in stream.metadata.items() if key.upper().startswith("DURATION"))
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", next(tags, ""))
    end = 0.0
    if tag:
        hours, minutes, seconds = map(float, tag.groups())
        end = 3600 * hours + 60 * minutes + seconds
    elif container.duration and len(container.streams) == 1:
        end = container.duration / 1e6  # microseconds
    if end > first * unit:
        return end - first * unit
    packets = (p for p in container.demux(stream) if p.pts is not None)
    return (max((p.pts + (p.duration or 0) for p in packets), default=first) - first) * unit


def _shown(container: Any, stream: Any, times: np.ndarray) -> tuple[list, float]:
    """The frames that are shown at ascending times, and the end of the video, if it was met.

    The last frame also stands for what is beyond it.

    Raises:
      ValueError: there is no frame at all.
    """
    first, unit = stream.start_time or 0, float(stream.time_base)
    for back in SEEK_BACK:
        at = max(0, times[0] - back)
        container.seek(first + int(at / unit), stream=stream)
        decoded = (frame for frame in container.decode(stream) if frame.pts is not None)
        shown = next(decoded, None)
        if shown is not None and (at == 0 or (shown.pts - first) * unit <= times[0] + EPSILON):
            break
    if shown is None:
        raise ValueError("it has no frames")
    found: list = []
    for frame in decoded:
        until = (frame.pts - first) * unit - EPSILON
        while len(found) < len(times) and times[len(found)] < until:
            found.append(shown)
        if len(found) == len(times):
            return found, math.inf
        shown = frame
    length = shown.duration * unit if shown.duration else 1 / (stream.average_rate or 1)
    end = (shown.pts - first) * unit + float(length)
    return found + [shown] * (len(times) - len(found)), end


def _squares(frames: list, size: int, pixel_aspect: Fraction | int) -> np.ndarray:
    """The central square of each frame, resized and upright: uint8 (frames, size, size, 3).

    Pixels are `pixel_aspect` times as wide as they are high.
    """
    arrays: dict[int, np.ndarray] = {}  # as a frame may be shown at several times
    for frame in frames:
        if id(frame) in arrays:
            continue
        sides = (frame.width * pixel_aspect, frame.height)
        width, height = (max(size, round(n * size / min(sides))) for n in sides)
        pixels = frame.to_ndarray(width=width, height=height, format="rgb24", threads=1)
        top, left = (height - size) // 2, (width - size) // 2
        square = pixels[top : top + size, left : left + size]
        arrays[id(frame)] = np.rot90(square, round(frame.rotation / 90))  # as phones store it
    return np.stack([arrays[id(frame)] for frame in frames])


def open_video(
    path: str, split: str, frames: int, seconds: float, size: int, clips: int = 2
) -> VideoSource:
    """A source of the video files below `path`.

    Args:
      path: of a folder.
      split: "train", "test" or the name of another folder below it.
      frames: of a clip.
      seconds: from the first frame of a clip to the one that would follow its last.
      size: height and width of the frames.
      clips: of a file in training, at least 2.

    Raises:
      DataError: if the folder or the split does not exist, cannot be read or holds no video files.
      UserError: a package is missing.
    """
    _package()
    found = files.find(path, split, EXTENSIONS, "video files")
    return VideoSource(f"folder:{path}/{split}", found, frames, seconds, size, clips)


def _package() -> Any:
    return optional.package("av", "video files", "video")
