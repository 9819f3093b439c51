"""Video files as a source: which frames a clip has, labels, and files that cannot be read."""

import os
import struct
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("av")

from videos import read, shown, square, write

from byol_jax.data import video
from byol_jax.data.video import open_video
from byol_jax.errors import DataError


def open_one(path, frames=3, seconds=0.3, size=24, clips=2):
    return open_video(str(path), "train", frames, seconds, size, clips)


def check_random_clips(folder, name, scale):
    """Clips of a file of 40 frames, which are `scale` tenths of a second each, at random times."""
    frames, times = read(folder / name)
    seeds = [(0, 0, i) for i in range(12)]
    source = open_one(folder, seconds=0.3 * scale, clips=3)
    clips = source.load_random(np.zeros(12, int), seeds)
    assert [*clips] == ["clip1", "clip2", "clip3"]
    for seed, *of_file in zip(seeds, *clips.values(), strict=True):
        for where, clip in zip(np.random.default_rng(seed).random(3), of_file, strict=True):
            at = scale * (where * (4 - 0.3) + np.array([0, 0.1, 0.2]))
            np.testing.assert_array_equal(clip, frames[shown(times, at)][:, :, 4:28])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "mpeg4", {}),
        ("a.avi", "mpeg4", {"bf": "2"}),
        ("a.mkv", "libx264", {"g": "12", "bf": "3"}),
        ("a.webm", "libvpx", {}),
    ],
)
def test_random_access_gives_the_frames_of_a_decoding_in_order(tmp_path, name, codec, options):
    write(tmp_path / name, square(40), codec=codec, **options)
    check_random_clips(tmp_path, name, 1)
    source = open_one(tmp_path)
    frames, times = read(tmp_path / name)
    middle = source.load(np.array([0]))["clip1"]
    at = (1.85, 1.95, 2.05)
    np.testing.assert_array_equal(middle[0], frames[shown(times, at)][:, :, 4:28])


@pytest.mark.parametrize("has_tag", [True, False])
@pytest.mark.parametrize(
    "form", [{"sound": 6}, {"sound": 3, "start": 2}, {"start": 2}, {"sound": 6, "live": True}]
)
def test_a_video_lasts_from_its_first_frame_to_its_end(tmp_path, form, has_tag):
    write(tmp_path / "a.mkv", square(40), **form)
    content = (tmp_path / "a.mkv").read_bytes()
    assert (b"DURATION" in content) != ("live" in form)
    if not has_tag:
        (tmp_path / "a.mkv").write_bytes(content.replace(b"DURATION", b"XXXXXXXX"))
    check_random_clips(tmp_path, "a.mkv", 1)


def test_seeking_goes_back_until_it_is_early_enough(tmp_path, monkeypatch):
    write(tmp_path / "a.avi", square(40), rate=1, bf="2")
    check_random_clips(tmp_path, "a.avi", 10)
    for too_few in (video.SEEK_BACK[:1], video.SEEK_BACK[:2]):
        monkeypatch.setattr(video, "SEEK_BACK", too_few)
        with pytest.raises(AssertionError, match="not equal"):
            check_random_clips(tmp_path, "a.avi", 10)


def test_the_frame_rate_of_a_file_does_not_matter(tmp_path):
    for rate in (10, 30):
        (tmp_path / str(rate)).mkdir()
        frames = np.repeat(square(20), rate // 10, axis=0)
        write(tmp_path / str(rate) / "a.mp4", frames, rate, qmin="1", qmax="1")
    slow, fast = (open_one(tmp_path / str(r), 4, 1.0).load([0])["clip1"] for r in (10, 30))
    assert len(np.unique(slow.mean((0, 2, 3)))) > 1
    np.testing.assert_allclose(slow.astype(int), fast, atol=8)  # but for the compression


def test_the_last_frame_of_a_short_file_is_repeated(tmp_path):
    write(tmp_path / "a.mp4", square(3))
    frames, _ = read(tmp_path / "a.mp4")
    clip = open_one(tmp_path, frames=5, seconds=0.5).load([0])["clip1"][0]
    np.testing.assert_array_equal(clip, frames[[0, 1, 2, 2, 2]][:, :, 4:28])


def test_frames_are_shrunk_to_the_central_square(tmp_path):
    frames = np.zeros((4, 64, 128, 3), np.uint8)
    frames[:, :, :32], frames[:, :, 96:] = 255, 255  # left and right of the square
    frames[:, :32, 32:96] = 128
    write(tmp_path / "a.mp4", frames, qmin="1", qmax="1")
    clip = open_one(tmp_path, size=16).load([0])["clip1"][0].astype(int)
    assert clip.shape == (3, 16, 16, 3)
    np.testing.assert_allclose(clip[:, :7, 1:-1], 128, atol=6)
    np.testing.assert_allclose(clip[:, 9:, 1:-1], 0, atol=6)


@pytest.mark.parametrize("aspect", [Fraction(16, 9), Fraction(9, 16)])
def test_pixels_that_are_not_square_are_made_so(tmp_path, aspect):
    shape = (36, 64) if aspect < 1 else (64, 36)  # stored; 64 x 64 or 36 x 36 shown
    frames = np.zeros((4, *shape, 3), np.uint8)
    frames[:, : shape[0] // 4], frames[:, :, : shape[1] // 4] = 255, 255
    write(tmp_path / "a.mp4", frames, pixel_aspect=aspect, qmin="1", qmax="1")
    clip = open_one(tmp_path, size=32).load([0])["clip1"][0].astype(int)
    assert clip.shape == (3, 32, 32, 3)
    np.testing.assert_allclose(clip[:, :7], 255, atol=16)
    np.testing.assert_allclose(clip[:, :, :7], 255, atol=16)
    np.testing.assert_allclose(clip[:, 10:, 10:], 0, atol=16)


def test_a_title_that_is_no_unicode_does_not_matter(tmp_path):
    write(tmp_path / "a.mkv", square(4), title="cafe")
    want = open_one(tmp_path).load([0])["clip1"]
    content = (tmp_path / "a.mkv").read_bytes()
    assert b"cafe" in content
    (tmp_path / "a.mkv").write_bytes(content.replace(b"cafe", b"caf\xe9"))
    np.testing.assert_array_equal(open_one(tmp_path).load([0])["clip1"], want)


def test_a_video_is_turned_upright(tmp_path):
    write(tmp_path / "a.mp4", square(4))
    frames, _ = read(tmp_path / "a.mp4")
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = content.index(b"tkhd") + 44  # of the matrix: x to the bottom, y to the left
    content[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)
    clip = open_one(tmp_path, 2, 0.2).load([0])["clip1"][0]
    np.testing.assert_array_equal(clip, np.rot90(frames[1:3, :, 4:28], -1, axes=(1, 2)))


def test_labels_are_the_folders(tmp_path):
    for label, suffix in (("walk", "mp4"), ("fall", "MKV"), ("walk", "avi")):
        (tmp_path / "test" / label).mkdir(parents=True, exist_ok=True)
        write(tmp_path / "test" / label / f"a.{suffix}", square(2))
    (tmp_path / "test" / "walk" / "notes.txt").write_text("no video")
    source = open_video(str(tmp_path), "test", 2, 0.1, 8)
    assert source.class_names == ("fall", "walk") and list(source.labels) == [0, 1, 1]
    assert source.names() == ["fall/a.MKV", "walk/a.avi", "walk/a.mp4"] and source.fingerprint()
    assert source.load(np.arange(3))["clip1"].shape == (3, 2, 8, 8, 3)


def test_any_file_name_is_read(tmp_path):
    write(tmp_path / "a.mp4", square(3))
    want = open_one(tmp_path).load([0])["clip1"]
    os.rename(os.fsencode(tmp_path / "a.mp4"), os.path.join(os.fsencode(tmp_path), b"\xff.mp4"))
    np.testing.assert_array_equal(open_one(tmp_path).load([0])["clip1"], want)


def test_what_cannot_be_read_is_one_line(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40, 24, 32, 3), np.uint8)
    write(tmp_path / "b.mkv", noise)
    content = (tmp_path / "b.mkv").read_bytes()
    (tmp_path / "b.mkv").write_bytes(content[: len(content) // 3])
    write(tmp_path / "c.mp4", noise)
    content = (tmp_path / "c.mp4").read_bytes()
    (tmp_path / "c.mp4").write_bytes(content[: len(content) // 3])
    (tmp_path / "d.webm").write_bytes(b"no video")
    (tmp_path / "e.mp4").write_bytes(b"")
    source = open_one(tmp_path)
    messages = (
        r"b\.mkv cannot be read at 1\.85 s \(it ends at 0\.\d\d s of 4\.00\)",
        r"c\.mp4 cannot be read \(",
        r"d\.webm cannot be read \(",
        r"e\.mp4 cannot be read \(",
    )
    for index, message in enumerate(messages):
        with pytest.raises(DataError, match=message) as raised:
            source.load(np.array([index]))
        assert "\n" not in str(raised.value)
    write(tmp_path / "f.avi", noise)
    content = (tmp_path / "f.avi").read_bytes()
    middle = len(content) // 2
    content = content[:middle] + rng.bytes(300) + content[middle + 300 :]
    (tmp_path / "f.avi").write_bytes(content)
    with pytest.raises(DataError, match=r"f\.avi cannot be read at 0\.00 s \(a frame is damaged\)"):
        open_one(tmp_path, frames=40, seconds=4.0).load([4])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no video files; put \.mp4, \.webm"):
        open_one(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        open_one(tmp_path / "missing")
    with pytest.raises(DataError, match=r"x cannot be read \(File name too long\); check the path"):
        open_one(tmp_path / ("x" * 300))
