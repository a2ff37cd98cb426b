"""The ``package`` use case: recipe -> inputs -> plan -> write, or "already built"."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from builder.checkpoints.content import Content
from builder.checkpoints.digest_cache import DigestCache
from builder.checkpoints.weight_files import WeightFile
from builder.hf_folder import find_recipe
from builder.inputs import Inputs, read_inputs
from builder.plan import Network, Options, Plan, build_plan
from builder.progress import Progress
from builder.quantization_report import check_report, write_report
from builder.recipe import NAME_PATTERN, TEMPLATES_FOLDER
from builder.sources import Requested
from builder.write import Target, update_pbtxt, version_exists, write
from builder.yaml_document import read_yaml
from contract.checksums import sha256_of_file
from contract.faults import Fault, FaultKind
from contract.manifest import SMALL_FILE_BYTES, Manifest, find_differences, read_manifest
from contract.networks import shipped_network

_COMPARED_BYTES = 16 * 2**20
Status = Literal["built", "already_built", "planned"]


@dataclass(frozen=True)
class Order:
    """What the user asks for."""

    model: str
    """Recipe name or path, or a HuggingFace folder."""
    name: str | None = None
    requested: Requested = field(default_factory=Requested)
    out: Path = Path("model_repository")
    version: int | None = None
    replace: bool = False
    dtype: str | None = None
    link: bool = False
    dry_run: bool = False
    quantize: str | None = None
    group_size: int | None = None
    clip_search: bool = False
    report: Path | None = None
    """Where to write the relative error of every quantized layer."""
    allow_nonfinite: bool = False


@dataclass(frozen=True)
class Result:
    status: Status
    plan: Plan
    path: Path
    """The version's folder; for a dry run the one it would be."""
    manifest: Manifest | None
    errors: Mapping[str, float] = field(default_factory=dict)
    """Quantized layer -> its relative error, when it was quantized just now."""


def package(order: Order, progress: Progress, cache: DigestCache | None = None) -> Result:
    """Make a model directory. Raises ``Fault``; then nothing was written."""
    cache = cache or DigestCache()
    if order.report is not None:
        check_report(order.report, order.dry_run)
    inputs, plan = plan_order(order)
    target = Target(order.out, plan.model, order.version, order.replace)
    same = _already_built(plan, target, inputs, cache, progress)
    if same is not None:
        if order.report is not None:
            message = f"{same} is already built: no layer was rounded that {order.report} could tell of"
            raise Fault(
                FaultKind.ALREADY_EXISTS, message, "leave out --report, or build it under another --name"
            )
        if not order.dry_run:
            update_pbtxt(plan, target)
        return Result("already_built", plan, same, read_manifest(same))
    if order.version in target.versions() and not order.replace:
        raise version_exists(target)
    if order.dry_run:
        version = order.version or max(target.versions(), default=0) + 1
        return Result("planned", plan, target.folder / str(version), None)
    written = write(plan, target, cache, progress)
    result = Result("built", plan, written.path, written.manifest, written.errors)
    if order.report is not None:
        write_report(order.report, result)
    return result


def plan_order(order: Order) -> tuple[Inputs, Plan]:
    """Read everything and decide what would be written. Raises ``Fault``."""
    if order.name is not None and not re.fullmatch(NAME_PATTERN, order.name):
        hint = "use letters, digits, '_', '-' and '.', beginning with a letter or digit"
        raise Fault(FaultKind.INVALID_CONFIG, f"{order.name!r} cannot be a model's name", hint)
    if order.quantize is None:
        given = {
            "--group-size": order.group_size,
            "--clip-search": order.clip_search or None,
            "--report": order.report,
        }
        for option, value in given.items():
            if value is not None:
                raise Fault(FaultKind.INVALID_REQUEST, f"{option} is for --quantize", "add --quantize int4")
    recipe_file = find_recipe(order.model, order.name)
    recipe = recipe_file.recipe
    inputs = read_inputs(recipe_file, order.requested)
    path, known = shipped_network(recipe.network or inputs.family.network)
    name = order.name or recipe.name
    options = Options(name, order.dtype, order.link, order.quantize, order.group_size, order.clip_search)
    plan = build_plan(inputs, options, Network(known, path.read_bytes()), _yaml_base(inputs))
    return inputs, replace(plan, allow_nonfinite=order.allow_nonfinite)


def _yaml_base(inputs: Inputs) -> Mapping[str, Any]:
    if inputs.yaml is not None:
        return inputs.yaml.document.data
    template = TEMPLATES_FOLDER / Path(inputs.recipe.yaml_template or inputs.family.yaml_template).name
    return read_yaml(template, FaultKind.INVALID_CONFIG).data


def _already_built(
    plan: Plan, target: Target, inputs: Inputs, cache: DigestCache, progress: Progress
) -> Path | None:
    """The version made of the same inputs: the one asked for, else the highest."""
    candidates = [target.version] if target.version in target.versions() else []
    if target.version is None:
        candidates = target.versions()[::-1]
    for version in candidates:
        folder = target.folder / str(version)
        try:
            manifest = read_manifest(folder)
        except Fault:
            continue  # a foreign or damaged folder is not what would be built
        if manifest.provenance.fingerprint != plan.fingerprint:
            continue
        # Who says --replace may want to repair: then the weights are read too.
        if find_differences(folder, manifest, None if target.replace else SMALL_FILE_BYTES):
            continue
        if _same_weights(folder, manifest, inputs, cache, progress):
            return folder
    return None


def _same_weights(
    folder: Path, manifest: Manifest, inputs: Inputs, cache: DigestCache, progress: Progress
) -> bool:
    """Names, sizes and headers agree already: compare content, by inode where possible, else by digest."""
    for file in inputs.weights.files:
        built = folder / file.name
        recorded = manifest.provenance.weights.get(file.name)
        if recorded is None or not built.is_file():
            return False
        if built.samefile(file.path):
            continue
        expected = recorded.sha256 or _digest(built, cache, progress)
        found = _digest(file.path, cache, progress) if file.assembly is None else _assembled(file, progress)
        if found != expected:
            return False
    return True


def _assembled(file: WeightFile, progress: Progress) -> str:
    """The digest of a file that would be put together."""
    digest = hashlib.sha256()
    with progress.stage(f"comparing {file.name}", file.header.size) as on_bytes, Content(file) as content:
        while chunk := content.some(_COMPARED_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def _digest(path: Path, cache: DigestCache, progress: Progress) -> str:
    digest = cache.get(path)
    if digest is None:
        try:
            with progress.stage(f"comparing {path.name}", path.stat().st_size) as on_bytes:
                digest = sha256_of_file(path, on_bytes)
        except OSError as error:
            hint = "check its permissions"
            raise Fault(FaultKind.INVALID_MODEL, f"{path} cannot be read: {error.strerror}", hint) from None
        cache.put(path, digest)
    return digest
