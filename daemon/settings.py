"""One model of all settings. Flags, environment, file, documents and checks derive from its fields.

A setting ``http_port`` is the flag ``--http-port``, the variable ``MINDPORT_HTTP_PORT`` and the key
``http_port`` of a settings file. ``settings_sources`` reads those; this module knows only what is valid.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from daemon.engine_options import DEFAULTS, ActivationDtype, ComputeDevice, Dtype, HeadDtype, KvDtype


def _port(value: Any) -> Any:
    # YAML reads an unquoted off as false.
    if value is False or value in ("off", "none", None):
        return None
    if value is True:
        raise ValueError("write a port number or off")
    return value


Port = Annotated[Annotated[int, Field(ge=0, le=65535)] | None, BeforeValidator(_port)]
"""0 asks the system for a free port; ``off`` switches the listener off."""


class MsOptions(BaseModel):
    """Settings of the embedded MindSpore engine, the same for every model it serves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kv_cache_mb: int | None = Field(
        None, gt=0, description="KV cache of each model in MiB; by default what memory allows"
    )
    dtype: Dtype = Field(
        DEFAULTS.dtype,
        description="weights in memory; auto is as stored, int8 and int4 quantize while loading",
    )
    head_dtype: HeadDtype = Field(
        DEFAULTS.head_dtype,
        description="head stored in floats, and the embedding it shares; auto is int8 in quantized models",
    )
    kv_dtype: KvDtype = Field(
        DEFAULTS.kv_dtype,
        description="keys and values; auto is the weights' float type; fewer bits hold more, less exactly",
    )
    activation_dtype: ActivationDtype = Field(
        DEFAULTS.activation_dtype,
        description="activations before int8 weights; auto is int7 on AVX2 without VNNI, where it is faster",
    )
    max_sequences: int = Field(
        DEFAULTS.max_sequences, gt=0, le=1024, description="sequences computed in one step at most"
    )
    max_rows: int = Field(
        DEFAULTS.max_rows, ge=16, le=8192, description="tokens computed in one step at most"
    )
    prefill_slowdown: float = Field(
        DEFAULTS.prefill_slowdown,
        gt=1,
        le=1000,
        description="times as long that 99 steps of 100 may take at most when reading prompts beside answers",
    )
    prompt_lookup: int = Field(
        DEFAULTS.prompt_lookup,
        ge=0,
        le=32,
        description="tokens guessed at a time from the text so far, with equal answers; 0 is off",
    )
    allow_nonfinite: bool = Field(
        DEFAULTS.allow_nonfinite, description="serve weights that are infinite or NaN"
    )
    packed_cache: Path | None = Field(
        None,
        description="folder that keeps packed weights and the compiled graph for later loads; off by default",
    )
    device: ComputeDevice = Field(
        DEFAULTS.device, description="what computes; ascend needs mindformers and CANN, and was never run"
    )


class Settings(BaseModel):
    """Everything that can be set about a daemon."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repository: list[Path] = Field(
        [Path("model_repository")], description="folder of models; may be given several times"
    )
    model: list[str] = Field(
        [], description="model to load at start; may be given several times; all when not given"
    )
    host: str = Field("127.0.0.1", description="address of the inference and gRPC listeners")
    management_host: str = Field("127.0.0.1", description="address of the management and metrics listeners")
    http_port: Port = Field(1025, description="inference over HTTP")
    management_port: Port = Field(
        1026, description="health, status and model control over HTTP; may equal http_port"
    )
    metrics_port: Port = Field(1027, description="Prometheus metrics; may equal another port")
    grpc_port: Port = Field(8001, description="inference over gRPC")
    api_key_file: Path | None = Field(
        None, description="file with one API key a line; clients must send one of them"
    )
    insecure: bool = Field(False, description="allow an address other than loopback without an API key")
    default_model: str | None = Field(None, description="model of requests that name none")
    generate_flavour: Literal["mindie", "tgi"] = Field(
        "mindie", description="whose /generate with inputs is spoken"
    )
    restrict_model_control: bool = Field(False, description="load and unload on the management port only")
    threads: int = Field(
        0, ge=0, le=1024, description="compute threads shared by all models; 0 is one a core"
    )
    max_running: int | None = Field(
        None, gt=0, description="requests of each model in work at once; by default what its engine can batch"
    )
    max_waiting: int = Field(
        256, ge=0, description="further requests that wait, each model; the next is refused"
    )
    max_body_mb: int = Field(40, gt=0, le=1024, description="largest request body in MiB")
    request_timeout_s: float = Field(600.0, gt=0, description="longest time one request may take")
    start_timeout_s: float = Field(
        1800.0, gt=0, description="longest time until every startup model is ready"
    )
    worker_timeout_s: float = Field(
        300.0, gt=0, description="time without progress after which a worker with requests is restarted"
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="time that running requests get when the daemon stops"
    )
    exit_on_error: bool = Field(
        True, description="one broken model fails the start; otherwise it is listed with its reason"
    )
    trust_model_code: bool = Field(False, description="run model code that MindPort did not ship")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severity that is logged"
    )
    log_prompts: bool = Field(False, description="write prompts and answers to the log")
    state_dir: Path | None = Field(
        None, description="where the daemon's state is kept; by default per user and management port"
    )
    ms: MsOptions = Field(default_factory=MsOptions, description="the embedded MindSpore engine")

    @field_validator("repository")
    @classmethod
    def _some_repository(cls, value: list[Path]) -> list[Path]:
        if not value:
            raise ValueError("name at least one folder")
        return value

    @model_validator(mode="after")
    def _exposed_needs_key(self) -> Settings:
        exposed = [host for host in (self.host, self.management_host) if not _is_loopback(host)]
        if exposed and self.api_key_file is None and not self.insecure:
            raise ValueError(
                f"{exposed[0]} is open to other machines: give api_key_file, or insecure if you mean it"
            )
        return self

    @model_validator(mode="after")
    def _some_listener(self) -> Settings:
        if self.http_port is None and self.grpc_port is None:
            raise ValueError("http_port and grpc_port are both off: nothing would be served")
        if self.grpc_port and self.grpc_port in (self.http_port, self.management_port, self.metrics_port):
            raise ValueError(f"grpc_port {self.grpc_port} is an HTTP port too: gRPC needs a port of its own")
        return self

    @property
    def state_path(self) -> Path:
        """The state directory: where this daemon's pid, ports and log are found."""
        if self.state_dir is not None:
            return self.state_dir
        base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        return (
            Path(base)
            / "mindport"
            / str(self.management_port if self.management_port is not None else "local")
        )

    @property
    def thread_count(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
