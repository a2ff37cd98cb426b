"""Tells what format a weight file has, by its first bytes, and reads its table of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.checkpoints.readers.mindspore_ckpt import read_ckpt
from builder.checkpoints.readers.torch_legacy import read_legacy
from builder.checkpoints.readers.torch_zip import read_zip
from builder.checkpoints.safetensors_header import HeaderError, read_header
from builder.checkpoints.views import SourceFile, Span, Stored, View
from builder.checkpoints.wire import CUT_SHORT, MalformedError
from contract.faults import Fault, FaultKind, fault_of_problems

_LFS = b"version https://git-lfs"
_HEADER = b"\0\0\0\0{"
"""Safetensors: the upper half of the header's length, and its first letter."""
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_VALUE = b"\x0a"
_SHOWN = 400
FETCH_AGAIN = "fetch the file again"


@dataclass(frozen=True)
class TensorFile:
    """One file's tensors, none of them read."""

    path: Path
    format: str
    """``safetensors``, ``ckpt`` or ``torch``."""
    tensors: Mapping[str, View]


def read_tensor_file(path: Path) -> TensorFile:
    """The tensors of a file of any known format. Raises ``Fault``."""
    try:
        with path.open("rb") as file:
            head = file.read(32)
        return _read(path, head)
    except MalformedError as error:
        raise Fault(FaultKind.INVALID_MODEL, f"{path} {_shown(str(error))}", FETCH_AGAIN) from None
    except HeaderError as error:
        raise fault_of_problems(FaultKind.INVALID_MODEL, str(path), error.problems, FETCH_AGAIN) from None
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise Fault(FaultKind.INVALID_MODEL, message, "check its permissions") from None


def _shown(text: str) -> str:
    """Text that a file may have put together, as a person can read it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:_SHOWN])


def _read(path: Path, head: bytes) -> TensorFile:
    file = SourceFile(path)
    if head.startswith(_LFS):
        message = f"{path} is the pointer that git keeps in place of a large file"
        raise Fault(FaultKind.INVALID_MODEL, message, "fetch the file itself: git lfs pull")
    if not head:
        raise MalformedError("is empty")
    if head[4:9] == _HEADER or path.suffix == ".safetensors":
        return TensorFile(path, "safetensors", _read_safetensors(file))
    if head.startswith(_ZIP):
        return TensorFile(path, "torch", read_zip(file))
    if head.startswith(_PICKLE):
        return TensorFile(path, "torch", read_legacy(file))
    if head.startswith(_VALUE):
        return TensorFile(path, "ckpt", read_ckpt(file))
    if len(head) < 32:
        raise MalformedError(CUT_SHORT)
    message = f"{path} is not a weight file: neither safetensors nor torch nor MindSpore ckpt"
    raise Fault(
        FaultKind.INVALID_MODEL, message, "an encrypted file must be decrypted first; else fetch it again"
    )


def _read_safetensors(file: SourceFile) -> dict[str, View]:
    header = read_header(file.path)
    return {
        tensor.name: Stored(
            file,
            tensor.dtype,
            tensor.shape,
            (Span(header.data_start + tensor.start, tensor.end - tensor.start),),
        )
        for tensor in header.tensors
    }
