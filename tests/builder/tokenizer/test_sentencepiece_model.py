"""The protobuf reader: right on real models, and a clear fault on anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.tokenizer.sentencepiece_model import (
    ModelType,
    PieceType,
    parse_sentencepiece,
    read_sentencepiece,
)
from contract.faults import Fault, FaultKind


def test_reads_what_sentencepiece_reads(sentencepiece_bytes: bytes) -> None:
    model = parse_sentencepiece(sentencepiece_bytes)
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_bytes)
    assert len(model.pieces) == processor.get_piece_size()
    for index, piece in enumerate(model.pieces):
        assert piece.text == processor.id_to_piece(index)
        assert piece.score == processor.get_score(index)
        assert (piece.type is PieceType.BYTE) == processor.is_byte(index)
        assert (piece.type is PieceType.CONTROL) == processor.is_control(index)
    assert model.model_type is ModelType.BPE
    assert model.byte_fallback
    assert model.add_dummy_prefix
    assert not model.remove_extra_whitespaces
    assert model.charsmap == b""
    assert model.unk_id == 0


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"\x0a\xff\xff\xff\xff\x0f", b"{}"])
def test_a_foreign_file_is_a_fault(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(Fault, match="is not a SentencePiece model") as caught:
        read_sentencepiece(path)
    assert caught.value.kind is FaultKind.INVALID_MODEL


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_damage_never_escapes(sentencepiece_bytes: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(sentencepiece_bytes) - 1))
    try:
        parse_sentencepiece(sentencepiece_bytes[:length])
    except (ValueError, IndexError):
        return
