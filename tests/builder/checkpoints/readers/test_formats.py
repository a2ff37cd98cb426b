"""Every reader: what it must read, what it must refuse, and what no file may do to it."""

from __future__ import annotations

import pickle
import tempfile
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from builder.checkpoints.readers.formats import read_tensor_file
from builder.checkpoints.wire import encode_bytes, encode_number
from builder.checkpoints.writers.ckpt_file import ckpt_bytes
from builder.checkpoints.writers.streams import NamedView, Stream
from contract.faults import Fault
from tests.builder.checkpoints.arrays import (
    Arrays,
    array_of,
    arrays_of,
    same,
    torch_pickle,
    write_torch_legacy,
    write_torch_zip,
)

ARRAYS: Arrays = {
    "layer.weight": np.arange(35, dtype="<f4").reshape(5, 7),
    "half": np.arange(6, dtype="<f2"),
    "count": np.array([3, -1], "<i8"),
    "empty": np.zeros((0, 4), "<f4"),
    "bytes": np.arange(9, dtype="u1").reshape(3, 3),
}


def write_safetensors(path: Path, arrays: Arrays) -> Path:
    save_file(dict(arrays), path, {"format": "pt"})
    return path


def write_ckpt(path: Path, arrays: Arrays) -> Path:
    views = read_tensor_file(write_safetensors(path.with_suffix(".safetensors"), arrays)).tensors
    path.write_bytes(b"".join(ckpt_bytes([NamedView(*item) for item in views.items()], Stream())))
    return path


WRITERS: dict[str, Callable[[Path, Arrays], Path]] = {
    "safetensors": write_safetensors,
    "ckpt": write_ckpt,
    "zip": write_torch_zip,
    "legacy": write_torch_legacy,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_reads_every_tensor_bit_for_bit(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / "weights", ARRAYS)
    assert same(arrays_of(path), ARRAYS)


def test_the_format_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    for kind, writer in WRITERS.items():
        path = writer(tmp_path / f"{kind}.bin", ARRAYS)
        expected = {"zip": "torch", "legacy": "torch"}.get(kind, kind)
        assert read_tensor_file(path).format == expected


def test_reads_a_transposed_tensor_of_torch(tmp_path: Path) -> None:
    transposed = {"w": np.asfortranarray(ARRAYS["layer.weight"])}
    assert same(arrays_of(write_torch_zip(tmp_path / "w.bin", transposed)), {"w": ARRAYS["layer.weight"]})


def test_finds_the_weights_in_a_training_checkpoint(tmp_path: Path) -> None:
    inner = torch_pickle({"w": ARRAYS["half"]})[2:-1]  # without protocol and stop
    wrapped = b"\x80\x02}X\x05\x00\x00\x00epochK\x03sX\x0a\x00\x00\x00state_dict" + inner + b"s."
    path = write_torch_zip(tmp_path / "t.pth", {"w": ARRAYS["half"]}, wrapped)
    assert same(arrays_of(path), {"w": ARRAYS["half"]})


class Evil:
    """What an attacker pickles."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_runs_nothing(protocol: int, legacy: bool, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    pickled = pickle.dumps({"w": Evil(trap)}, protocol)
    path = tmp_path / "evil.bin"
    if legacy:
        path.write_bytes(pickled if pickled.startswith(b"\x80") else b"\x80\x02" + pickled)
    else:
        write_torch_zip(path, {}, pickled)
    with pytest.raises(Fault) as caught:
        read_tensor_file(path)
    assert not trap.exists()
    assert str(path) in caught.value.message
    if protocol in (2, 3, 4, 5):
        assert "exec, which no checkpoint of weights needs; nothing was run" in caught.value.message


@pytest.mark.parametrize("name", ["posix.system", "torch.hub.load", "builtins.eval", "torch.load"])
def test_a_refused_name_is_named(name: str, tmp_path: Path) -> None:
    module, _, function = name.rpartition(".")
    pickled = f"\x80\x02c{module}\n{function}\n(tR.".encode("latin-1")
    path = write_torch_zip(tmp_path / "evil.bin", {}, pickled)
    with pytest.raises(Fault, match=f"asks for {name}"):
        read_tensor_file(path)


def test_a_tensor_without_memory_of_its_own_is_refused(tmp_path: Path) -> None:
    wide = np.lib.stride_tricks.as_strided(np.ones(1, "<f4"), (1000, 1000), (0, 0))
    pickled = torch_pickle({"w": wide})
    path = write_torch_zip(tmp_path / "w.bin", {"w": np.ones(1, "<f4")}, pickled)
    with pytest.raises(Fault, match=r"w, whose elements do not lie side by side|has 4 bytes in its entry"):
        read_tensor_file(path)


def test_repeated_pieces_of_a_ckpt_are_joined(tmp_path: Path) -> None:
    rows = ARRAYS["layer.weight"]
    pieces = [_value("w", rows.shape, part.tobytes()) for part in (rows[:2], rows[2:4], rows[4:])]
    (tmp_path / "a.ckpt").write_bytes(b"".join(pieces))
    assert same(arrays_of(tmp_path / "a.ckpt"), {"w": rows})
    (tmp_path / "b.ckpt").write_bytes(b"".join(pieces[:2]))
    with pytest.raises(Fault, match=r"b.ckpt holds 112 bytes of w, its shape \[5, 7\] needs 140"):
        read_tensor_file(tmp_path / "b.ckpt")
    (tmp_path / "c.ckpt").write_bytes(pieces[0] + _value("v", (1,), b"1234") + pieces[1])
    with pytest.raises(Fault, match="holds w twice"):
        read_tensor_file(tmp_path / "c.ckpt")


def test_a_checksum_behind_a_ckpt_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(_value("w", (1,), b"1234") + b"crc_num" + bytes(10))
    assert list(arrays_of(tmp_path / "a.ckpt")) == ["w"]


def _value(name: str, shape: tuple[int, ...], content: bytes, kind: str = "Float32") -> bytes:
    tensor = b"".join(encode_number(1, size) for size in shape)
    tensor += encode_bytes(2, kind.encode()) + encode_bytes(3, content)
    return encode_bytes(1, encode_bytes(1, name.encode()) + encode_bytes(2, tensor))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "the pointer that git keeps"),
        (b"<html>" + bytes(100), "is not a weight file"),
        (b"PK\x03\x04" + bytes(100), "is not a whole zip file"),
        (_value("w", (2,), b"1234"), "holds 4 bytes of w"),
        (_value("w", (1,), b"1234", "Complex"), "of the unknown type 'Complex'"),
        (_value("w", (-1,), b"1234"), "an impossible shape"),
        (_value("", (1,), b"1234"), "without a usable name"),
        (_value("w\n", (1,), b"1234"), "the name 'w"),
        (_value("w", (1,) * 40, b"1234"), "more than 32 axes"),
    ],
)
def test_what_is_wrong_is_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(content)
    with pytest.raises(Fault) as caught:
        read_tensor_file(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message.replace(str(path), "")
    assert caught.value.hint


@cache
def sound(kind: str) -> bytes:
    """A whole file of this kind."""
    with tempfile.TemporaryDirectory() as folder:
        return WRITERS[kind](Path(folder) / "weights", ARRAYS).read_bytes()


def read_all(path: Path) -> Fault | None:
    """Read a file to its end; what was wrong with it."""
    try:
        for view in read_tensor_file(path).tensors.values():
            array_of(view)
    except Fault as fault:
        return fault
    return None


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_damaged_file_does_more_than_be_refused(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    damaged = _damaged(sound(kind), data)
    path = tmp_path / "weights"
    path.write_bytes(damaged)
    tracemalloc.start()
    fault = read_all(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fault is None or is_sentence(fault)
    assert peak < 1_000_000 + 40 * len(damaged)


def _damaged(content: bytes, data: st.DataObject) -> bytes:
    """Cut short, overwritten, repeated or shuffled."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, max(0, len(changed) - 1)))
        end = data.draw(st.integers(start, min(len(changed), start + 64)))
        kind = data.draw(st.sampled_from(("cut", "bytes", "drop", "repeat", "huge")))
        if kind == "cut":
            del changed[start:]
        elif kind == "bytes":
            changed[start:end] = data.draw(st.binary(min_size=end - start, max_size=end - start))
        elif kind == "drop":
            del changed[start:end]
        elif kind == "repeat":
            changed[start:start] = changed[start:end]
        else:
            changed[start : start + 8] = data.draw(
                st.sampled_from((b"\xff" * 8, b"\xff" * 7 + b"\x7f", bytes(8)))
            )
    return bytes(changed)


@pytest.mark.parametrize("start", [b"\x80", b"PK\x03\x04", b"\x0a", b"\x80" + bytes(7) + b"{"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rest=st.binary(max_size=200))
def test_no_invented_file_does_more_than_be_refused(start: bytes, rest: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(start + rest)
    fault = read_all(path)
    assert fault is None or is_sentence(fault)


def is_sentence(fault: Fault) -> bool:
    """Printable, and with a remedy; a list of problems has a line for each."""
    return bool(fault.hint) and all(line.isprintable() for line in fault.message.split("\n"))
