"""``builder package`` on checkpoints of other forms makes the directory that HuggingFace's files make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.builder.conftest import Builder, Run, Workshop
from tests.builder.hf_models import LLAMA3, write_folder

FORMS: dict[str, tuple[str, list[str]]] = {
    "bin": ("pytorch_model.bin", ["--to", "hf"]),
    "ckpt": ("tiny.ckpt", ["--to", "mindformers-r1"]),
    "qkv": ("qkv.ckpt", ["--to", "mindformers-r1", "--qkv-concat"]),
    "ranks": ("ranks", ["--to", "mindformers-r1", "--qkv-concat", "--ranks", "2"]),
    "mindformers": ("mcore", ["--to", "mindformers"]),
    "shards": ("bin", ["--to", "hf", "--format", "bin", "--max-shard-size", "8KB"]),
}


def package(builder: Builder, workshop: Workshop, weights: Path, *options: str) -> Run:
    tokenizer = workshop.sources / "tokenizer.model"
    arguments = ("package", "--model", workshop.recipe, "--out", workshop.repository, "--weights", weights)
    return builder(*arguments, "--tokenizer", tokenizer, *options)


def converted(builder: Builder, workshop: Workshop, form: str) -> Path:
    name, options = FORMS[form]
    place = workshop.folder / "converted" / name
    assert builder("convert", workshop.sources, place, *options, "-q").code == 0
    return place


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_publishers_file(form: str, workshop: Workshop, builder: Builder) -> None:
    run = package(builder, workshop, converted(builder, workshop, form))
    assert run.code == 0, run.err
    assert "note: weights: made of " in run.err
    built = workshop.repository / "tiny" / "1"
    expected = (workshop.sources / "model.safetensors").read_bytes()
    assert (built / "model.safetensors").read_bytes() == expected
    assert builder("verify", built).code == 0
    again = package(builder, workshop, workshop.folder / "converted" / FORMS[form][0])
    assert "already built" in again.out


@pytest.mark.parametrize("options", [["--dtype", "bfloat16"], ["--quantize", "int8"]])
def test_other_options_work_as_on_safetensors(options: list[str], builder: Builder, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "llama", LLAMA3)
    built = []
    for name in ("first", "second"):
        run = builder("package", "--model", folder, "--name", name, "--out", tmp_path / "out", *options)
        assert run.code == 0, run.err
        built.append((tmp_path / "out" / name / "1" / "model.safetensors").read_bytes())
        weights = folder / "model.safetensors"
        if weights.exists():
            assert builder("convert", weights, folder / "pytorch_model.bin").code == 0
            weights.unlink()
    assert built[0] == built[1]


def test_a_form_that_must_be_made_cannot_be_linked(workshop: Workshop, builder: Builder) -> None:
    run = package(builder, workshop, converted(builder, workshop, "ckpt"), "--link")
    assert run.code == 2
    assert "tiny.ckpt cannot be linked" in run.err
    assert not workshop.repository.exists()


def test_nan_is_refused_and_nothing_is_written(workshop: Workshop, builder: Builder) -> None:
    arrays = load_file(workshop.sources / "model.safetensors")
    arrays["transformer.ln_f.weight"][3] = np.nan
    save_file(arrays, workshop.sources / "model.safetensors", {"format": "pt"})
    name, options = FORMS["ckpt"]
    place = workshop.folder / "converted" / name
    assert builder("convert", workshop.sources, place, *options, "--allow-nonfinite").code == 0
    run = package(builder, workshop, place)
    assert run.code == 2
    assert "tiny.ckpt: transformer.ln_f.weight holds infinite or NaN values" in run.err
    assert workshop.written() == []


@pytest.mark.parametrize(
    ("options", "value"), [([], np.inf), (["--dtype", "bfloat16"], np.nan), (["--dtype", "float16"], 1e6)]
)
def test_the_publishers_own_files_are_looked_at_too(
    options: list[str], value: float, workshop: Workshop, builder: Builder
) -> None:
    arrays = {
        name: array.astype("f4") for name, array in load_file(workshop.sources / "model.safetensors").items()
    }
    arrays["lm_head.weight"][5, 5] = value
    save_file(arrays, workshop.sources / "model.safetensors", {"format": "pt"})
    run = package(builder, workshop, workshop.sources, *options)
    assert run.code == 2
    assert "sources/model.safetensors: lm_head.weight holds infinite or NaN values" in run.err
    assert workshop.written() == []
    assert package(builder, workshop, workshop.sources, *options, "--allow-nonfinite").code == 0


def test_what_is_wrong_with_a_checkpoint_is_said_with_everything_else(
    workshop: Workshop, builder: Builder
) -> None:
    place = converted(builder, workshop, "ckpt")
    place.write_bytes(place.read_bytes()[:-100])
    workshop.edit_json("generation_config.json", max_new_tokens="many")
    run = package(builder, workshop, place)
    assert run.code == 2
    assert "tiny.ckpt is cut short" in run.err
    assert workshop.written() == []
