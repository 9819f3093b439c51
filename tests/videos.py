"""Tiny video files for tests, and their frames in order."""

from fractions import Fraction

import av
import numpy as np


def square(count, size=(32, 24), step=1, color=(250, 40, 40)):
    """Frames of a square that moves to the right, uint8 (count, height, width, 3)."""
    frames = np.full((count, size[1], size[0], 3), 60, np.uint8)
    for i, frame in enumerate(frames):
        left = i * step % (size[0] - 8)
        frame[8:16, left : left + 8] = color
        frame[:4] = 3 * i % 256  # so that no two frames are alike
    return frames


def write(
    path,
    frames,
    rate=10,
    codec="mpeg4",
    start=0,
    sound=0,
    live=False,
    pixel_aspect=None,
    title="",
    **options,
):
    """Encodes frames, uint8 (n, height, width, 3), as a video of `rate` frames/s.

    Args:
      path: of the file.
      frames: its frames.
      rate: frames/s.
      codec: of FFmpeg.
      start: seconds before the first frame.
      sound: seconds of silence beside it; 0: it has no sound.
      live: whether a Matroska or WebM file does not say how long it is.
      pixel_aspect: width of a pixel over its height, a Fraction; None: it is not said.
      title: of the file.
      **options: of the codec.
    """
    with av.open(str(path), "w", options={"live": "1"} if live else {}) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        silence = container.add_stream("pcm_s16le", rate=8000, layout="mono") if sound else None
        for i, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts, shown.time_base = i + start * rate, Fraction(1, rate)
            container.mux(stream.encode(shown))
        container.mux(stream.encode())
        if silence:
            samples = np.zeros((1, 8000 * sound), np.int16)
            part = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            part.sample_rate, part.pts = 8000, 0
            container.mux(silence.encode(part))
            container.mux(silence.encode())


def read(path):
    """All frames, decoded from the beginning, uint8 (n, height, width, 3), and their times."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        frames = list(container.decode(stream))
        first = (stream.start_time or 0) * stream.time_base
        sizes = {"width": frames[0].width, "height": frames[0].height}
        arrays = [f.to_ndarray(format="rgb24", threads=1, **sizes) for f in frames]
        return np.stack(arrays), np.array([frame.time - float(first) for frame in frames])


def shown(times, at):
    """Which frames, of these times, are shown at others; the first one also before its time."""
    return np.maximum(np.searchsorted(times, np.asarray(at) + 1e-6, "right") - 1, 0)
