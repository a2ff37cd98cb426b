"""Reads adapters, whoever wrote them, and checks them against the model they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.adapters.adapter import Adapter
from builder.adapters.beside import check_beside
from builder.adapters.naming import with_hf_names
from builder.adapters.peft import read_peft
from builder.adapters.single_file import find_file, read_single_file
from builder.checkpoints.weight_files import Weights
from builder.conversion.subject import Subject
from builder.quantization import Quantization
from builder.recipe import RecipeFile
from contract.adapters import CONFIG_NAME
from contract.faults import Fault, Problem, problems_of
from contract.serving import ADAPTER_NAME


def read_adapter(path: Path, base: Subject, alpha: float | None = None) -> Adapter:
    """The adapter under HuggingFace's names. ``alpha`` is for files that do not say theirs.

    Raises ``Fault`` for what is no adapter, damaged, or of a kind that nobody here computes.
    """
    file = path if path.is_file() else None
    if file is None and not (path / CONFIG_NAME).is_file():
        file = find_file(path)
    adapter = read_peft(path) if file is None else read_single_file(file, alpha)
    return with_hf_names(adapter, base)


@dataclass(frozen=True)
class AdapterReader:
    """Reads the adapters of a package."""

    problems: list[Problem]
    """Where what is wrong goes."""
    base: Subject
    """Without values when the model itself is not sound."""
    alpha: float | None

    def to_merge(
        self, path: Path | None, weights: Weights, quantization: Quantization | None
    ) -> Adapter | None:
        """The adapter that becomes part of the weights."""
        if path is None:
            return None
        if quantization is not None:
            message = "cannot be merged into quantized weights: their rounding would be lost and done again"
            remedy = "merge it into the unquantized weights, then add --quantize"
            self.problems.append(Problem(str(path), message, remedy))
            return None
        adapter = self._read(path)
        if adapter is not None and weights.files and not weights.problems:
            shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
            self.problems.extend(adapter.check(shapes))
        return adapter

    def beside(self, recipe_file: RecipeFile, named: Mapping[str, Path]) -> dict[str, Adapter]:
        """The adapters of a recipe and of the user, by name."""
        paths = {name: recipe_file.folder / path for name, path in recipe_file.recipe.adapters.items()}
        found = {}
        for name, path in {**paths, **named}.items():
            if not ADAPTER_NAME.fullmatch(name):
                remedy = "use letters, digits, '_', '-' and '.', beginning with a letter or digit"
                self.problems.append(Problem(str(path), f"{name!r} cannot be an adapter's name", remedy))
                continue
            adapter = self._read(path)
            if adapter is not None:
                found[name] = adapter
                self.problems.extend(self._problems_beside(adapter))
        return found

    def _problems_beside(self, adapter: Adapter) -> list[Problem]:
        family, values = self.base.family, self.base.values
        if family is None or not values:
            return []
        problems = adapter.check(dict(family.expected_tensors(values)))
        return problems or check_beside(adapter, family, values)

    def _read(self, path: Path) -> Adapter | None:
        try:
            return read_adapter(path, self.base, self.alpha)
        except Fault as fault:
            self.problems.extend(problems_of(fault))
        return None
