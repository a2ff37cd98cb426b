"""A request that has been found acceptable: everything needed to run it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from contract.generation import GenerateRequest
from daemon.backends.base import TokenRequest, TokenSampling
from daemon.repository.loaded import Loaded
from daemon.service.prompt import Prompt
from daemon.service.text_model import TextModel
from daemon.service.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class Job:
    request: GenerateRequest
    run_id: str
    """The request's id, made unique among those in flight."""
    loaded: Loaded[TextModel]
    prompt: Prompt
    sampling: TokenSampling
    no_answer: bool
    """Zero tokens were asked for: the engine reads the prompt, and what it generates is dropped."""
    timeout_s: float
    adapter: str | None = None
    """Of the model's adapters; ``None``: the model as it is."""

    @property
    def served_name(self) -> str:
        """What answers: the adapter, else the model."""
        return self.adapter or self.loaded.spec.name

    @property
    def tokenizer(self) -> TextTokenizer | None:
        return self.loaded.attachment.tokenizer

    def token_request(self, index: int) -> TokenRequest:
        """For one of the ``n`` answers; each has its own seed and id."""
        sampling, run_id = self.sampling, self.run_id
        if index:
            run_id = f"{run_id}-{index}"
            seed = None if sampling.seed is None else sampling.seed + index
            sampling = msgspec.structs.replace(sampling, seed=seed, prompt_logprobs=None)
        return TokenRequest(
            request_id=run_id,
            prompt_ids=self.prompt.token_ids,
            sampling=sampling,
            priority=self.request.priority,
            caller=self.request.caller,
            adapter=self.adapter,
        )
