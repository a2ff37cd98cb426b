"""The one thing MindPort needs of Triton's config.pbtxt: which backend the model names."""

from __future__ import annotations

from pathlib import Path

from contract.faults import Fault, FaultKind


def backend_of(path: Path) -> str:
    """The ``backend`` of a config.pbtxt, or "" where there is no file or no such field. Raises ``Fault``."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        hint = "correct it, or package the model again with: builder package --replace"
        raise Fault(FaultKind.INVALID_MODEL, f"{path} cannot be read: {error}", hint) from None
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        message = f"{path} is not a Triton model configuration: {error}"
        raise Fault(FaultKind.INVALID_MODEL, message, "correct or delete the file") from None
    return str(config.backend)
