"""vLLM's names for sampling parameters, which OpenAI clients, Triton's vLLM backend and vLLM share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Len
from pydantic import BeforeValidator, Field

from contract.generation import Sampling
from daemon.kserve.fields import Fields

MAX_INT = 2**31 - 1
Positive = Annotated[int, Field(ge=1, le=MAX_INT)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
StopString = Annotated[str, Len(1, 1024)]
StopStrings = Annotated[
    list[StopString],
    Len(0, 1024),
    BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
]
"""One string or a list of them."""
TokenId = Annotated[int, Field(ge=0, le=MAX_INT)]


_NORMAL_LEVEL = 5


def urgency(level: int | None) -> int:
    """A priority level of Triton's and MindIE's requests as the engine counts.

    1 is the most urgent; 5, 0 and none are normal.
    """
    return level - _NORMAL_LEVEL if level else 0


class SamplingFields(Fields):
    """The fields themselves; dialects add their own."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_token_ids": ([],),
        "bad_words": ([],),
        "best_of": (1,),
        "early_stopping": (False,),
        "guided_choice": (),
        "guided_decoding": (),
        "guided_grammar": (),
        "guided_json": (),
        "guided_regex": (),
        "length_penalty": (1.0,),
        "logit_bias": ({},),
        "logits_processors": ([],),
        "min_p": (0.0,),
        "spaces_between_special_tokens": (True,),
        "structured_outputs": (),
        "use_beam_search": (False,),
    }

    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Positive | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    temperature: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, le=2.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[TokenId], Len(0, 1024)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: Positive | None = None
    priority: Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | None = None

    def sampling(self, *, logprobs: int | None = None, prompt_logprobs: int | None = None) -> Sampling:
        return Sampling(
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            include_stop=bool(self.include_stop_str_in_output),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    @property
    def keeps_special_tokens(self) -> bool:
        return self.skip_special_tokens is False
