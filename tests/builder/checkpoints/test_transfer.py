"""Weights arrive whole by every road."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from builder.checkpoints import content, output, transfer
from builder.checkpoints.digest_cache import DigestCache
from builder.checkpoints.dtypes import DTYPES, convert_values, converted_header
from builder.checkpoints.output import CancelledError
from builder.checkpoints.safetensors_header import TensorEntry, read_header
from builder.checkpoints.transfer import Carrier
from builder.checkpoints.weight_files import WeightFile
from builder.plan import PlannedWeights
from contract.faults import Fault


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "model.safetensors"
    path.parent.mkdir()
    random = np.random.default_rng(1)
    arrays = {
        "a": random.standard_normal((64, 33)).astype("float16"),
        "n": np.arange(5),
        "b": np.ones(7, "float16"),
    }
    save_file(arrays, path, metadata={"format": "pt"})
    return path


@pytest.fixture
def carrier(tmp_path: Path) -> Carrier:
    return Carrier(DigestCache(tmp_path / "cache"), lambda _count: None, threading.Event())


def planned(source: Path, method: Any = "copy", dtype: str | None = None) -> PlannedWeights:
    header = read_header(source)
    written = converted_header(header, dtype) if dtype else header
    return PlannedWeights(WeightFile(source, "model.safetensors", header), method, written)


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_copy_hashes_and_remembers(
    source: Path, carrier: Carrier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_CHUNK_BYTES", 1000)
    monkeypatch.setattr(content, "WINDOW_BYTES", 2000)
    monkeypatch.setattr(output, "WINDOW_BYTES", 2000)
    result = carrier.transfer(planned(source), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == source.read_bytes()
    assert result.written.sha256 == result.source.sha256 == sha(source)
    assert carrier.cache.get(source) == sha(source)
    source.write_bytes(source.read_bytes() + b"x")
    assert carrier.cache.get(source) is None


def test_link_shares_the_file_and_hashes_only_what_is_remembered(
    source: Path, carrier: Carrier, tmp_path: Path
) -> None:
    first = carrier.transfer(planned(source, "link"), tmp_path)
    assert (tmp_path / "model.safetensors").samefile(source)
    assert first.written.sha256 is None
    carrier.cache.put(source, sha(source))
    (tmp_path / "model.safetensors").unlink()
    assert carrier.transfer(planned(source, "link"), tmp_path).written.sha256 == sha(source)


def test_link_follows_symbolic_links(source: Path, carrier: Carrier, tmp_path: Path) -> None:
    alias = tmp_path / "alias.safetensors"
    alias.symlink_to(source)
    carrier.transfer(planned(alias, "link"), tmp_path)
    assert not (tmp_path / "model.safetensors").is_symlink()


def test_link_across_file_systems_is_refused(
    source: Path, carrier: Carrier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    with pytest.raises(Fault, match="on another file system") as caught:
        carrier.transfer(planned(source, "link"), tmp_path)
    assert "leave out --link" in caught.value.hint


def test_reflink_is_used_where_there_is_one(
    source: Path, carrier: Carrier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(descriptor: int, _request: int, _source: int) -> int:
        Path(f"/proc/self/fd/{descriptor}").write_bytes(source.read_bytes())
        return 0

    monkeypatch.setattr("builder.checkpoints.transfer.fcntl.ioctl", clone)
    result = carrier.transfer(planned(source), tmp_path)
    assert result.written.sha256 is None
    assert sha(tmp_path / "model.safetensors") == sha(source)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_conversion_reads_back(
    source: Path, carrier: Carrier, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_CHUNK_BYTES", 256)
    weights = planned(source, "convert", dtype)
    result = carrier.transfer(weights, tmp_path)
    target = tmp_path / "model.safetensors"
    assert result.written.sha256 == sha(target)
    assert result.source.sha256 == sha(source)
    assert result.written.size == weights.size == target.stat().st_size
    entries = {tensor.name: tensor for tensor in read_header(target).tensors}
    assert entries["a"].dtype == DTYPES[dtype]
    assert entries["n"].dtype == "I64"
    if dtype != "bfloat16":
        np.testing.assert_array_equal(load_file(target)["a"], load_file(source)["a"].astype(dtype))


def test_cancelling_stops_a_copy(source: Path, carrier: Carrier, tmp_path: Path) -> None:
    carrier.cancelled.set()
    with pytest.raises(CancelledError):
        carrier.transfer(planned(source), tmp_path)


def entry(dtype: str) -> TensorEntry:
    return TensorEntry("x", dtype, (1,), 0, 4)


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan() -> None:
    bits = [0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F800000, 0xFF800000, 0x7F800001, 0x7F7FFFFF]
    data = np.array(bits, "<u4").tobytes()
    got = np.frombuffer(convert_values(data, entry("F32"), entry("BF16")), "<u2").tolist()
    assert got[:6] == [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0x7F80, 0xFF80]
    assert got[6] & 0x7F80 == 0x7F80
    assert got[6] & 0x7F
    assert got[7] == 0x7F80


def test_bfloat16_to_float32_is_exact() -> None:
    every = np.arange(2**16, dtype="<u2")
    wide = np.frombuffer(convert_values(every.tobytes(), entry("BF16"), entry("F32")), "<u4")
    np.testing.assert_array_equal(wide, every.astype("<u4") << 16)
    back = np.frombuffer(convert_values(wide.tobytes(), entry("F32"), entry("BF16")), "<u2")
    number = ~np.isnan(wide.view("<f4"))
    np.testing.assert_array_equal(back[number], every[number])
