"""Reads the files of Weights & Biases, RUN/wandb/*/run-ID.wandb: what an offline run has written.

Nobody else knows it after a kill, which loses what its process had not yet written. A file is a
header of 7 bytes and records in the format of LevelDB's log (github.com/google/leveldb,
doc/log_format.md), each a message wandb.proto.wandb_internal_pb2.Record.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 32768  # bytes
COMPLETE, LAST = 1, 4  # types of a fragment of a record


def records(path: Path) -> Iterator[Any]:
    """The records of a file, up to where it was cut off."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, record = path.read_bytes(), HEADER, b""
    while position + HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # padding
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)  # the first is a checksum
        position += HEADER
        record += content[position : position + size]
        position += size
        if position > len(content):
            return
        if kind in (COMPLETE, LAST):
            yield Record.FromString(record)
            record = b""


def last_step(folder: Path, run_id: str) -> int:
    """The newest step of a run's metrics in the files of a folder; 0 if there is none."""
    return max(
        (
            record.history.step.num
            for path in folder.glob(f"*run-*/run-{run_id}.wandb")
            for record in records(path)
            if record.HasField("history")
        ),
        default=0,
    )
