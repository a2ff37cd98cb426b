"""vLLM's ``POST /v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, which MindIE has as well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from contract.faults import Fault, FaultKind
from daemon.http_api import bodies
from daemon.http_api.options import HttpOptions
from daemon.kserve import fields
from daemon.kserve.fields import Fields
from daemon.service.facade import Service

AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,255}$")]


class LoadFields(Fields):
    lora_name: AdapterName
    lora_path: str
    # MindIE's name for the model; ours is shorter. Without one, the default model.
    master_model: str | None = None
    model: str | None = None
    # vLLM's: replace an adapter of this name. Here that is always done.
    load_inplace: bool | None = None


class UnloadFields(Fields):
    lora_name: str
    lora_int_id: int | None = None


class Adapters:
    def __init__(self, service: Service, options: HttpOptions, *, controls_models: bool) -> None:
        self._service = service
        self._options = options
        self._controls_models = controls_models

    async def load(self, request: Request) -> Response:
        asked = fields.parse(LoadFields, await self._body(request))
        folder = Path(asked.lora_path)
        if not folder.is_absolute():
            message = f"lora_path must be an absolute path on the daemon's machine; got {asked.lora_path!r}"
            raise Fault(FaultKind.INVALID_REQUEST, message, "", {"param": "lora_path"})
        await self._service.load_adapter(asked.model or asked.master_model, asked.lora_name, str(folder))
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        asked = fields.parse(UnloadFields, await self._body(request))
        await self._service.unload_adapter(asked.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    async def _body(self, request: Request) -> dict[str, object]:
        if not self._controls_models:
            message = "This API is restricted: adapters are loaded and unloaded on the management port"
            hint = "ask that port, 1026 unless it was set; restrict_model_control is what forbids it here"
            raise Fault(FaultKind.FORBIDDEN, message, hint)
        return await bodies.read_object(request, self._options)
