"""An adapter beside the demo model: loaded while it serves, and asked for in every dialect."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
import tritonclient.grpc
from safetensors.numpy import load_file, save_file

from tests.scenarios.conftest import MODEL
from tests.scenarios.terminal import RunningDaemon, run, running_daemon

QUESTION = "生抽与老抽的区别？"


def write_adapter(folder: Path, weights: Path, seed: int) -> Path:
    """A LoRA on every linear layer of the demo model, strong enough to change what it says."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(6):
        for module in ("self_attention.query", "self_attention.key_value", "mlp.up_proj", "mlp.down_proj"):
            name = f"transformer.h.{layer}.{module}"
            out, into = shapes(weights)[f"{name}.weight"]
            for part, shape in (("A", (4, into)), ("B", (out, 4))):
                values = random.standard_normal(shape).astype(np.float32) * np.float32(0.25)
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = values
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": MODEL}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a safetensors file."""
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


@pytest.fixture(scope="module")
def adapted(packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the demo model and the same one with the adapter ``pirate`` merged into it."""
    folder = tmp_path_factory.mktemp("adapted")
    repository = folder / "repository"
    shutil.copytree(packaged, repository)
    write_adapter(folder / "pirate", packaged / MODEL / "1" / "model.safetensors", 1)
    write_adapter(folder / "sailor", packaged / MODEL / "1" / "model.safetensors", 2)
    package = ("builder", "package", "--model", MODEL, "--name", "merged", "--dtype", "float32")
    built = run(*package, "--adapter", str(folder / "pirate"), "--out", str(repository))
    assert built.code == 0, built.err
    return folder


def ask(http: str, model: str) -> str:
    with openai.OpenAI(base_url=f"{http}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(model=model, prompt=QUESTION, temperature=0, max_tokens=12)
    assert answer.model == model
    return answer.choices[0].text


def ask_tgi(http: str, adapter: str) -> str:
    parameters = {"adapter_id": adapter, "do_sample": False, "max_new_tokens": 12}
    body = {"inputs": QUESTION, "parameters": parameters, "stream": False}
    answer = httpx2.post(f"{http}/generate", json=body, headers={"X-Model": MODEL})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["generated_text"])


def ask_triton(daemon: RunningDaemon, adapter: str) -> str:
    client = tritonclient.grpc.InferenceServerClient(daemon.grpc.removeprefix("grpc://"))
    text = tritonclient.grpc.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([QUESTION.encode()], dtype=object))
    wanted = tritonclient.grpc.InferInput("sampling_parameters", [1], "BYTES")
    sampling = {"lora_name": adapter, "temperature": 0, "max_tokens": 12}
    wanted.set_data_from_numpy(np.array([json.dumps(sampling).encode()], dtype=object))
    result = client.infer(MODEL, [text, wanted]).as_numpy("text_output")
    assert result is not None
    return str(result[0].decode().removeprefix(QUESTION))


def test_an_adapter_is_loaded_asked_for_and_taken_away(adapted: Path, tmp_path: Path) -> None:
    with running_daemon(adapted / "repository", tmp_path / "state", "--default-model", MODEL) as daemon:
        plain, merged = ask(daemon.http, MODEL), ask(daemon.http, "merged")
        assert plain != merged
        loaded = run(
            "client", "load", MODEL, "--adapter", f"pirate={adapted / 'pirate'}", "--http", daemon.http
        )
        assert loaded.code == 0, loaded.err
        run("client", "load", MODEL, "--adapter", f"sailor={adapted / 'sailor'}", "--http", daemon.http)

        assert ask(daemon.http, "pirate") == merged
        assert ask_tgi(daemon.http, "pirate") == merged
        assert ask_triton(daemon, "pirate") == merged
        assert ask(daemon.http, "sailor") not in (plain, merged)
        assert ask(daemon.http, MODEL) == plain
        asked = run(
            "client",
            "generate",
            "-m",
            "pirate",
            "--raw",
            "--max-tokens",
            "12",
            "--http",
            daemon.http,
            QUESTION,
        )
        assert asked.out.strip() == merged.strip(), asked.err

        with openai.OpenAI(base_url=f"{daemon.http}/v1", api_key="none") as asking:
            cards = {card.id: card for card in asking.models.list()}
        assert cards["pirate"].model_dump()["parent"] == MODEL

        listed = run("client", "models", "--http", daemon.http)
        assert f"an adapter of {MODEL}" in listed.out
        assert run("client", "models", "--url", f"grpc://{daemon.grpc}").out == listed.out
        rows = run("daemon", "ps", "--state-dir", str(daemon.state_dir)).out.splitlines()
        assert [row.split()[0] for row in rows if f"an adapter of {MODEL}" in row] == ["pirate", "sailor"]

        worker = next(model["pid"] for model in daemon.models() if model["name"] == MODEL)
        os.kill(worker, signal.SIGKILL)
        ready = run("client", "health", "--http", daemon.http, "--wait", "60", "-m", MODEL)
        assert ready.code == 0, ready.err
        assert ask(daemon.http, "pirate") == merged, "a restarted worker has its adapters again"

        gone = run("client", "unload", "--adapter", "pirate", "--http", daemon.http)
        assert gone.code == 0, gone.err
        with pytest.raises(openai.NotFoundError, match="'pirate' is not found"):
            ask(daemon.http, "pirate")
        again = run("client", "unload", "--adapter", "pirate", "--http", daemon.http)
        assert again.code == 4
        assert "there is no adapter 'pirate'" in again.err


def test_what_is_no_adapter_is_refused(daemon: RunningDaemon, adapted: Path, tmp_path: Path) -> None:
    def load(name: str, folder: Path, model: str = MODEL) -> httpx2.Response:
        body = {"lora_name": name, "lora_path": str(folder), "model": model}
        return httpx2.post(f"{daemon.http}/v1/load_lora_adapter", json=body)

    assert load("x", tmp_path).status_code == 404
    assert load(MODEL, adapted / "pirate").status_code == 409
    assert load("x", adapted / "pirate", model="echo").status_code == 400
    assert load("x", adapted / "pirate", model="nobody").status_code == 404
    assert load("x", Path("relative")).status_code == 400
    tensors = load_file(adapted / "pirate" / "adapter_model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_bytes((adapted / "pirate" / "adapter_config.json").read_bytes())
    save_file(
        {name.replace("query", "q_proj"): values for name, values in tensors.items()},
        other / "adapter_model.safetensors",
    )
    refused = load("x", other)
    assert refused.status_code == 400, refused.text
    assert "take an adapter of this model" in refused.text
    assert "x" not in {model["id"] for model in httpx2.get(f"{daemon.http}/v1/models").json()["data"]}


def test_a_version_serves_the_adapters_it_was_packaged_with(adapted: Path, tmp_path: Path) -> None:
    """Beside the weights they say what they say merged."""
    named = (f"{name}={adapted / name}" for name in ("pirate", "sailor"))
    options = [part for value in named for part in ("--with-adapter", value)]
    package = ("builder", "package", "--model", MODEL, "--dtype", "float32", "--out", str(tmp_path / "r"))
    built = run(*package, *options)
    assert built.code == 0, built.err
    shutil.copytree(adapted / "repository" / "merged", tmp_path / "r" / "merged")
    with running_daemon(tmp_path / "r", tmp_path / "state", "--default-model", MODEL) as daemon:
        merged = ask(daemon.http, "merged")
        assert ask(daemon.http, "pirate") == merged
        assert ask_tgi(daemon.http, "pirate") == merged
        assert ask(daemon.http, MODEL) != merged
        assert ask(daemon.http, "sailor") != merged
