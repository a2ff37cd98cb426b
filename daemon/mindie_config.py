"""MindIE's config.json as a settings file: the full nested form and the short flat form of its guides.

Keys that MindIE knows and MindPort has no use for warn; keys that MindIE does not know are problems.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract.faults import Problem

_ROOMS = frozenset(
    {"ServerConfig", "BackendConfig", "ModelDeployConfig", "ModelConfig", "ScheduleConfig", "LogConfig",
     "HealthCheckConfig"}
)  # fmt: skip

_USED = {
    "ipAddress": "host",
    "managementIpAddress": "management_host",
    "port": "http_port",
    "managementPort": "management_port",
    "metricsPort": "metrics_port",
    "maxLinkNum": "max_running",
    "maxRequestLength": "max_body_mb",
    "e2eTimeout": "request_timeout_s",
    "allowAllZeroIpListening": "insecure",
    "trustRemoteCode": "trust_model_code",
    "maxPrefillTokens": "ms.max_rows",
    "maxBatchSize": "ms.max_sequences",
}

_UNUSED = frozenset(
    """
    Version EnableDynamicAdjustTimeoutConfig maxJsonDepth fullTextEnabled tlsCaPath tlsCaFile
    tlsCert tlsPk tlsPkPwd tlsCrlPath tlsCrlFiles managementTlsCaFile managementTlsCert
    managementTlsPk managementTlsPkPwd managementTlsCrlPath managementTlsCrlFiles metricsTlsCaFile
    metricsTlsCert metricsTlsPk metricsTlsPkPwd metricsTlsCrlPath metricsTlsCrlFiles kmcKsfMaster
    kmcKsfStandby inferMode interCommTLSEnabled interCommPort interCommTlsCaPath interCommTlsCaFiles
    interCommTlsCert interCommPk interCommPkPwd interCommTlsCrlPath interCommTlsCrlFiles
    openAiSupport tokenTimeout distDPServerEnabled layerwiseDisaggregated npuUsageThreshold
    backendName modelInstanceNumber npuDeviceIds tokenizerProcessNumber multiNodesInferEnabled
    multiNodesInferPort interNodeTLSEnabled interNodeTlsCaPath interNodeTlsCaFiles interNodeTlsCert
    interNodeTlsPk interNodeTlsPkPwd interNodeTlsCrlPath interNodeTlsCrlFiles interNodeKmcKsfMaster
    kvPoolConfig maxSeqLen maxInputTokenLen truncation maxLoras maxLoraRank LoraModules
    speculationGamma modelInstanceType worldSize cpuMemSize async_scheduler_wait_time
    kv_trans_timeout kv_link_timeout plugin_params dp sp cp tp moe_tp moe_ep templateType
    templateName cacheBlockSize maxPrefillBatchSize prefillTimeMsPerReq decodeTimeMsPerReq
    prefillPolicyType decodePolicyType maxIterTimes maxPreemptCount supportSelectBatch
    maxQueueDelayMicroseconds maxFirstTokenWaitTime maxN stageSelectPolicy dynamicBatchSizeEnable
    enablePrefixCache dynamicLogLevel dynamicLogLevelValidHours dynamicLogLevelValidTime
    """.split()  # noqa: SIM905
)

_SPECIAL = frozenset({"httpsEnabled", "backendType", "modelName", "modelWeightPath", "npuMemSize"})


def is_mindie(data: dict[str, Any]) -> bool:
    """Whether a settings file is MindIE's: it has one of its rooms, or its ``modelWeightPath``."""
    return bool(_ROOMS & set(data)) or "modelWeightPath" in data


def read_mindie(
    data: dict[str, Any], source: str, warnings: list[str], problems: list[Problem]
) -> dict[str, Any]:
    """The settings in a MindIE file by MindPort's names; appends to ``warnings`` and ``problems``."""
    values: dict[str, Any] = {}
    for path, key, value in _leaves(data):
        if key in _USED:
            values[_USED[key]] = value
        elif key in _SPECIAL:
            _special(values, key, value, Problem(f"{source}: {path}", ""), problems)
        elif key in _UNUSED:
            warnings.append(f"{source}: {path} is MindIE's and has no effect here")
        else:
            close = difflib.get_close_matches(key, [*_USED, *_SPECIAL, *_UNUSED], 1, 0.6)
            remedy = f"did you mean {close[0]}?" if close else "remove it"
            problems.append(Problem(f"{source}: {path}", "unknown key", remedy))
    return values


def _leaves(data: dict[str, Any], path: str = "") -> Iterator[tuple[str, str, Any]]:
    for key, value in data.items():
        here = f"{path}.{key}" if path else str(key)
        if key in _ROOMS and isinstance(value, dict):
            yield from _leaves(value, here)
        elif key in _ROOMS and isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    yield from _leaves(item, f"{here}[{index}]")
        else:
            yield here, str(key), value


def _special(values: dict[str, Any], key: str, value: Any, where: Problem, problems: list[Problem]) -> None:
    if key == "httpsEnabled" and value:
        problems.append(
            Problem(
                where.where,
                "HTTPS is not offered by this version",
                "set it to false and put a TLS proxy in front",
            )
        )
    elif key == "backendType" and value not in ("ms", "atb", "torch"):
        problems.append(Problem(where.where, f"unknown backend {value!r}", 'write "ms"'))
    elif key == "modelName":
        values["model"] = [str(value)]
        values["default_model"] = str(value)
    elif key == "npuMemSize" and isinstance(value, int) and value > 0:
        values["ms.kv_cache_mb"] = value * 1024
    elif key == "modelWeightPath":
        values["repository"] = [str(_repository_of(Path(str(value))))]


def _repository_of(path: Path) -> Path:
    """MindIE names one model directory; MindPort wants the repository it stands in."""
    version = path.name.isdigit() and not path.name.startswith("0")
    return path.parent.parent if version else path.parent
