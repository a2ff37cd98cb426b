"""The ``check`` command: are the sources, or a finished directory, sound, and what will they need to run?"""

from __future__ import annotations

from pathlib import Path

from builder.checkpoints.dtypes import stored_dtype
from builder.checkpoints.weight_files import check_tensors
from builder.families import FAMILIES
from builder.forecast import Budget, Forecast, forecast
from builder.hf_folder import CONFIG, find_recipe
from builder.inputs import Inputs, read_inputs
from builder.model_directory import ModelDirectory, read_directory
from builder.quantization import read_quantization
from builder.recipe import known_recipes
from builder.report import check_dict, print_check, print_json, remark, say
from builder.sources import Requested
from builder.write import Target
from contract.adapters import CONFIG_NAME, TENSORS_NAME
from contract.faults import Fault, FaultKind, Problem, fault_of_problems
from contract.manifest import MANIFEST_NAME, SMALL_FILE_BYTES, find_differences


def is_model_directory(path: Path) -> bool:
    """Whether ``check`` is asked about a finished directory, not about a recipe. Raises ``Fault``."""
    if str(path) in known_recipes() or not path.is_dir():
        return False
    if (path / MANIFEST_NAME).is_file() or Target(path.parent, path.name).versions():
        return True
    if (path / CONFIG).is_file():
        return False
    hint = f"for sources: builder check MODEL --weights {path}"
    raise Fault(FaultKind.INVALID_MODEL, f"{path} is not a model directory: it has no {MANIFEST_NAME}", hint)


def check_sources(subject: str, requested: Requested, budget: Budget, as_json: bool) -> None:
    """Check a recipe's sources and print the forecast. Raises ``Fault`` with every problem."""
    inputs = read_inputs(find_recipe(subject), requested)
    foreseen = _forecast_of(inputs, budget)
    if as_json:
        print_json(check_dict(inputs, foreseen))
    else:
        print_check(inputs, foreseen)


def check_directory(directory: Path, budget: Budget, as_json: bool) -> None:
    """Check a finished directory, weights by header only. Raises ``Fault`` with every problem."""
    found = read_directory(directory)
    problems = _directory_problems(found)
    if problems:
        raise fault_of_problems(FaultKind.INVALID_MODEL, str(found.path), problems, "see: builder verify")
    foreseen = _forecast_of_directory(found, budget)
    if as_json:
        facts = {"model": found.model, "version": found.version, "path": str(found.path), "sound": True}
        print_json({**facts, "forecast": foreseen.to_dict() if foreseen else None})
        return
    say(f"{found.path} is sound ({len(found.manifest.files)} files; weights checked by header and size)")
    quantization = read_quantization(found.config)
    if quantization is not None:
        say(f"quantized  {quantization}")
    for line in foreseen.lines() if foreseen else ():
        say(line)
    remark(f"hint: builder verify {found.path} also reads the weights")


def _directory_problems(found: ModelDirectory) -> list[Problem]:
    differences = find_differences(found.path, found.manifest, hash_up_to=SMALL_FILE_BYTES)
    problems = [Problem(str(found.path), str(difference)) for difference in differences]
    problems.extend(found.weights.problems)
    family = FAMILIES.get(found.serving.family or "")
    if family is not None and not found.weights.problems:
        try:
            problems.extend(check_tensors(found.weights, family, found.config))
        except (KeyError, TypeError, ValueError) as error:
            problems.append(Problem(str(found.path / "config.json"), f"lacks or garbles {error}"))
    serving = found.serving
    named = [serving.network, serving.tokenizer, serving.prompt.chat_template]
    named += [f"{path}/{file}" for path in serving.adapters.values() for file in (CONFIG_NAME, TENSORS_NAME)]
    absent = [name for name in named if name is not None and not (found.path / name).is_file()]
    problems.extend(
        Problem(str(found.path), f"config.json names {name}, which is not there") for name in absent
    )
    return problems


def _forecast_of(inputs: Inputs, budget: Budget) -> Forecast:
    longest = inputs.recipe.limits.max_seq_len or inputs.family.wanted_context(inputs.architecture.values)
    sizes = (sum(file.header.size for file in inputs.weights.files), inputs.parameters)
    dtype = stored_dtype(inputs.weights, None)
    return forecast(inputs.family, inputs.architecture.values, longest, sizes, dtype, budget)


def _forecast_of_directory(found: ModelDirectory, budget: Budget) -> Forecast | None:
    family = FAMILIES.get(found.serving.family or "")
    if family is None or not found.weights.files:
        return None
    sizes = (sum(file.header.size for file in found.weights.files), found.parameters)
    longest = found.serving.limits.max_seq_len
    dtype = stored_dtype(found.weights, None)
    return forecast(family, found.config, longest, sizes, dtype, budget)
