"""NumPy archives: their content, the splits of a folder, and what is refused."""

import numpy as np
import pytest

from byol_jax import data
from byol_jax.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_a_file_is_the_training_split(tmp_path):
    np.savez(tmp_path / "mine.npz", images=IMAGES, labels=LABELS, class_names=["a", "b", "c"])
    source = data.open_source(f"npz:{tmp_path / 'mine.npz'}", "train")
    np.testing.assert_array_equal(source.images, IMAGES)
    np.testing.assert_array_equal(source.labels, LABELS)
    assert source.class_names == ("a", "b", "c") and source.num_examples == 6
    with pytest.raises(DataError, match=r"stands for the split 'train': for 'test', put train.npz"):
        data.open_source(f"npz:{tmp_path / 'mine.npz'}", "test")


def test_a_folder_has_splits(tmp_path):
    np.savez_compressed(tmp_path / "train.npz", images=IMAGES[..., 0])
    np.savez(tmp_path / "test.npz", images=IMAGES[:2])
    train = data.open_source(f"npz:{tmp_path}", "train", channels=1)
    assert train.images.shape == (6, 4, 5, 1) and train.num_classes is None
    assert data.open_source(f"npz:{tmp_path}", "test").num_examples == 2
    with pytest.raises(DataError, match=r"no split 'other' \(it has test, train\)"):
        data.open_source(f"npz:{tmp_path}", "other")
    with pytest.raises(DataError, match="images of channels=1, not 3"):
        data.open_source(f"npz:{tmp_path}", "train")


def test_other_images_under_the_same_name_have_another_fingerprint(tmp_path):
    fingerprints = set()
    for first in (0, 1, 1):
        images = IMAGES.copy()
        images[0, 0, 0, 0] = first
        np.savez(tmp_path / "train.npz", images=images)
        fingerprints.add(data.open_source(f"npz:{tmp_path}", "train").fingerprint())
    assert len(fingerprints) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"not an archive", "cannot be read"),
        (b"PK\x03\x04 cut short", "cannot be read"),
        ({"pixels": IMAGES}, "holds no array called images"),
        ({"images": IMAGES.astype(np.float32)}, "images must be uint8"),
        ({"images": IMAGES[..., :2]}, "has images of channels=2, not 3"),
        ({"images": IMAGES, "labels": LABELS[:3]}, "one for each example"),
        ({"images": np.array([None, {}], object)}, "cannot be read"),  # a pickle
    ],
)
def test_unusable_content_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    with pytest.raises(DataError, match=message) as raised:
        data.open_source(f"npz:{path}", "train")
    assert "mine.npz" in str(raised.value)


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist: check the path after 'npz:'"):
        data.open_source(f"npz:{tmp_path / 'none.npz'}", "train")
    path = tmp_path / "mine.npz"
    np.savez(path, images=IMAGES)
    intact = path.read_bytes()
    for i in range(0, len(intact), 7):
        path.write_bytes(intact[:i] + bytes([intact[i] ^ 0xFF]) + intact[i + 1 :])
        try:
            source = data.open_source(f"npz:{path}", "train")
        except DataError:
            continue
        np.testing.assert_array_equal(source.images, IMAGES)  # a byte that nothing reads
