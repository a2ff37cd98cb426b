"""From a request's text, chat or ids to the prompt's ids, within the model's limits."""

from __future__ import annotations

from dataclasses import dataclass

from contract.faults import Fault, FaultKind
from contract.generation import GenerateRequest
from contract.serving import Serving
from daemon.backends.base import ModelInfo
from daemon.service.text_model import TextModel

_REFUSING_DIALECTS = frozenset({"openai", "vllm"})
"""Refuse an explicit length that does not fit the context, as vLLM does; the others clip it."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    token_ids: list[int]
    text: str


async def build_prompt(request: GenerateRequest, model: TextModel, info: ModelInfo, name: str) -> Prompt:
    """The prompt, truncated as asked. Raises ``Fault``: INVALID_REQUEST, UNSUPPORTED."""
    given = [request.text is not None, request.token_ids is not None, request.messages is not None]
    if sum(given) != 1:
        message = "a request has exactly one of a text, token ids and messages"
        raise Fault(FaultKind.INVALID_REQUEST, message, f"it has {sum(given)}")
    if request.token_ids is not None:
        prompt = await _of_ids(request.token_ids, model, info)
    elif request.messages is not None:
        prompt = await _of_chat(request, model, info, name)
    else:
        text = request.text or ""
        if request.truncate_prompt is None:
            _refuse_hopeless(len(text), model, info)
        prompt = await of_text(text, model, name)
    if not prompt.token_ids:
        raise Fault(FaultKind.INVALID_REQUEST, "the prompt is empty", "send some text")
    return await _truncated(prompt, request.truncate_prompt, model)


async def of_text(text: str, model: TextModel, name: str) -> Prompt:
    """A raw prompt: control strings become their ids."""
    ids = await model.need_tokenizer(name).encode(text)
    begin = _beginning(model.serving)
    if ids[: len(begin)] != begin:
        ids = [*begin, *ids]
    return Prompt(token_ids=ids, text=text)


def _beginning(serving: Serving) -> list[int]:
    """What the model expects in front of a raw prompt."""
    if serving.prompt.prefix_ids:
        return serving.prompt.prefix_ids
    bos = serving.bos_token_id
    return [bos] if serving.prompt.add_bos and bos is not None else []


async def _of_chat(request: GenerateRequest, model: TextModel, info: ModelInfo, name: str) -> Prompt:
    tokenizer = model.need_tokenizer(name)
    text, sentinel = await model.need_template(name).render(request.messages or [], request.template_options)
    if request.truncate_prompt is None:
        _refuse_hopeless(len(text) - (text.count(sentinel) if sentinel else 0), model, info)
    if sentinel:
        ids = await tokenizer.encode_protected(text, sentinel)
        return Prompt(token_ids=ids, text=text.replace(sentinel, ""))
    return Prompt(token_ids=await tokenizer.encode(text), text=text)


def _refuse_hopeless(characters: int, model: TextModel, info: ModelInfo) -> None:
    """A text that cannot fit is not encoded: that takes seconds and gigabytes for the largest bodies."""
    longest = _longest_prompt(model, info)
    if model.tokenizer is None or characters <= longest * model.tokenizer.longest_piece:
        return
    least = -(-characters // model.tokenizer.longest_piece)
    message = (
        f"the prompt's {characters} characters are at least {least} tokens; the model takes at most {longest}"
    )
    details = {"prompt_characters": characters, "max_input_tokens": longest}
    raise Fault(FaultKind.CONTEXT_OVERFLOW, message, "shorten the prompt, or truncate it", details)


async def _of_ids(ids: list[int], model: TextModel, info: ModelInfo) -> Prompt:
    bad = next((one for one in ids if not 0 <= one < info.vocab_size), None)
    if bad is not None:
        message = f"token id {bad} is outside the vocabulary of {info.vocab_size}"
        raise Fault(FaultKind.INVALID_REQUEST, message, "use ids of this model's tokenizer")
    return Prompt(token_ids=list(ids), text=await _decoded(ids, model))


async def _truncated(prompt: Prompt, keep: int | None, model: TextModel) -> Prompt:
    if keep is None or len(prompt.token_ids) <= keep:
        return prompt
    if keep < 1:
        message = f"the prompt cannot be truncated to {keep} tokens"
        raise Fault(FaultKind.INVALID_REQUEST, message, "keep at least 1")
    ids = prompt.token_ids[-keep:]
    return Prompt(token_ids=ids, text=await _decoded(ids, model))


async def _decoded(ids: list[int], model: TextModel) -> str:
    return await model.tokenizer.decode(ids) if model.tokenizer else ""


def answer_length(request: GenerateRequest, prompt_tokens: int, model: TextModel, info: ModelInfo) -> int:
    """New tokens at most. Raises ``Fault`` CONTEXT_OVERFLOW with the numbers and the remedy."""
    context = min(info.context_len, model.serving.limits.max_seq_len)
    longest = _longest_prompt(model, info)
    asked = request.sampling.max_tokens
    details = {"prompt_tokens": prompt_tokens, "max_input_tokens": longest, "context": context}
    if prompt_tokens > longest:
        message = f"the prompt has {prompt_tokens} tokens; the model takes at most {longest}"
        hint = "shorten the prompt, or truncate it"
        raise Fault(FaultKind.CONTEXT_OVERFLOW, message, hint, details)
    rest = context - prompt_tokens
    if asked is None:
        return rest if request.default_max_tokens is None else min(rest, request.default_max_tokens)
    if asked > rest and request.dialect in _REFUSING_DIALECTS:
        message = (
            f"the prompt's {prompt_tokens} tokens and the {asked} to generate exceed "
            f"the model's context of {context}"
        )
        hint = f"ask for at most {rest} tokens, or shorten the prompt"
        raise Fault(FaultKind.CONTEXT_OVERFLOW, message, hint, {**details, "max_tokens": asked})
    return min(asked, rest)


def _longest_prompt(model: TextModel, info: ModelInfo) -> int:
    limits = model.serving.limits
    return min(limits.max_input_tokens, info.context_len - 1, limits.max_seq_len - 1)
