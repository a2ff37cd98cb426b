"""Every known model's prompts: control tokens, templates and stop tokens, from its packaged files."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from builder.package import Order, plan_order
from builder.plan import Plan
from builder.recipe import find_recipe
from builder.sources import Requested
from contract.faults import Fault
from contract.generation import GenerateRequest, Message
from daemon.backends.base import ModelInfo
from daemon.service.chat import ChatTemplate
from daemon.service.defaults import GenerationDefaults
from daemon.service.prompt import Prompt, build_prompt
from daemon.service.text_model import TextModel
from daemon.service.tokenizer import TextTokenizer
from tests.builder.published import tokenizer_of, write_sources

TELECHAT_SYSTEM = (
    "你是中国电信星辰语义大模型，英文名是TeleChat，"
    "你是由中电信人工智能科技有限公司和中国电信人工智能研究院（TeleAI）研发的人工智能助手。"
)
TELECHAT_CONTROLS = {"<_start>": 1, "<_end>": 2, "<_pad>": 3, "<_user>": 4, "<_bot>": 5, "<_system>": 6}
QUESTION, ANSWER, NEXT = "你好", "hello there", "1+1=2"
TOKENIZERS = "PUBLISHED_TOKENIZERS"


@functools.cache
def tokenizer_bytes(family: str) -> bytes:
    return tokenizer_of(family)


@dataclass(frozen=True)
class Packaged:
    """A plan's files, read as the daemon reads them."""

    plan: Plan
    model: TextModel

    async def prompt(self, *turns: str, system: str | None = None, text: str | None = None) -> Prompt:
        """Of a raw text, or of turns that alternate between user and assistant."""
        roles = ["user", "assistant"] * len(turns)
        messages = [Message("system", system)] if system is not None else []
        messages += [Message(role, turn) for role, turn in zip(roles, turns, strict=False)]
        said = {"text": text} if text is not None else {"messages": messages}
        request = GenerateRequest(request_id="r", dialect="openai", **said)
        limits = self.plan.serving.limits
        info = ModelInfo(
            vocab_size=200000,
            context_len=limits.max_seq_len,
            max_sequences=1,
            kv_tokens=limits.max_seq_len,
            memory_bytes=0,
            dtype="bfloat16",
        )
        return await build_prompt(request, self.model, info, self.plan.model)

    def id_of(self, token: str) -> int | None:
        return self.model.need_tokenizer("m").id_of(token)


Reading = Callable[[str], Packaged]


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Reading:
    """Reads each model once."""

    @functools.cache
    def read(name: str) -> Packaged:
        """Of TeleChat2 one has the whole vocabulary: all have the same control tokens, which come first."""
        short = name.startswith("telechat2") and name != "telechat2_7b"
        tokenizer = tokenizer_of("telechat", 1000) if short else None
        return read_packaged(name, tmp_path_factory.mktemp("sources"), tokenizer)

    return read


@pytest.fixture
def packaged(request: pytest.FixtureRequest, reading: Reading) -> Packaged:
    return reading(request.param)


def read_packaged(name: str, folder: Path, tokenizer: bytes | None = None) -> Packaged:
    own = tokenizer or tokenizer_bytes(find_recipe(name).recipe.family)
    sources = write_sources(folder / name, name, own)
    plan = plan_order(Order(model=name, requested=Requested(weights=sources)))[1]
    files = {
        file: content.decode() for file, content in plan.files.items() if file.endswith((".json", ".jinja"))
    }
    text = TextTokenizer(files["tokenizer.json"])
    config = json.loads(files["tokenizer_config.json"])
    variables = {key: value for key, value in config.items() if key.endswith("_token")}
    template = None
    if "chat_template.jinja" in files:
        template = ChatTemplate(files["chat_template.jinja"], variables, text.control_strings)
    model = TextModel(serving=plan.serving, tokenizer=text, template=template, defaults=GenerationDefaults())
    return Packaged(plan, model)


def of(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("packaged", names, indirect=True)


@pytest.mark.parametrize(
    ("name", "ends", "controls"),
    [
        ("telechat2_7b", [2], TELECHAT_CONTROLS),
        ("telechat2_35b", [2], TELECHAT_CONTROLS),
        ("telechat2_115b", [2], TELECHAT_CONTROLS),
        ("telechat2_39b_a12b", [2], TELECHAT_CONTROLS),
        (
            "chatglm2_6b",
            [2],
            {"[MASK]": 64789, "[gMASK]": 64790, "[sMASK]": 64791, "<sop>": 64792, "<eop>": 64793},
        ),
        ("llama2_13b", [2], {"<s>": 1, "</s>": 2}),
        ("baichuan2_13b_chat", [2], {"<reserved_106>": 195, "<reserved_107>": 196}),
        (
            "internlm2_5_7b_chat",
            [2, 92542],
            {"<|im_end|>": 92542, "<|im_start|>": 92543, "<|plugin|>": 92538},
        ),
        ("fm9g_4b", [2, 73440], {"<|im_end|>": 73440, "<|im_start|>": 73441, "<|fim_suffix|>": 73447}),
        (
            "qwen1_5_7b",
            [151645, 151643],
            {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645},
        ),
    ],
)
async def test_control_and_stop_tokens_have_their_published_ids(
    reading: Reading, name: str, ends: list[int], controls: dict[str, int]
) -> None:
    packaged = reading(name)
    assert packaged.plan.serving.eos_token_ids == ends
    generation = json.loads(packaged.plan.files["generation_config.json"])
    assert generation["eos_token_id"] == (ends if len(ends) > 1 else ends[0])
    plain = await packaged.prompt(text="ab")
    for text, index in controls.items():
        assert packaged.id_of(text) == index
        found = await packaged.prompt(text=f"a{text}b")
        assert found.token_ids.count(index) == plain.token_ids.count(index) + 1, text


@pytest.mark.parametrize(
    ("name", "config", "architecture"),
    [
        ("telechat2_7b", "TelechatConfig", "TelechatForCausalLM"),
        ("telechat2_39b_a12b", "TelechatConfig", "ParallelTelechatForCausalLM"),
        ("chatglm2_6b", "ChatGLM2Config", "ChatGLM2ForConditionalGeneration"),
        ("llama2_13b", "LlamaConfig", "LlamaForCausalLM"),
        ("baichuan2_13b_chat", "LlamaConfig", "Baichuan13BV2ForCausalLM"),
        ("internlm2_5_7b_chat", "InternLM2Config", "InternLM2ForCausalLM"),
        ("fm9g_4b", "FM9GConfig", "FM9GForCausalLM"),
        ("qwen1_5_7b", "LlamaConfig", "LlamaForCausalLM"),
    ],
)
def test_the_yaml_names_mindformers_classes(
    reading: Reading, name: str, config: str, architecture: str
) -> None:
    written = yaml.safe_load(reading(name).plan.files[f"predict_{name}.yaml"])
    model = written["model"]
    assert (model["model_config"]["type"], model["arch"]["type"]) == (config, architecture)
    assert model["model_config"]["num_layers"] > 20
    assert model["model_config"].get("qkv_has_bias", False) is (name == "qwen1_5_7b")
    assert ("moe_config" in written) is (name == "telechat2_39b_a12b")
    assert model["model_config"].get("scale_emb") == (12 if name == "fm9g_4b" else None)


@of("telechat2_7b", "telechat2_35b", "telechat2_39b_a12b")
async def test_telechat2_s_template(packaged: Packaged) -> None:
    one = await packaged.prompt(QUESTION)
    assert one.text == f"<_system>{TELECHAT_SYSTEM}\n<_user>{QUESTION}<_bot>"
    assert one.token_ids[0] == 6
    assert one.token_ids[-1] == 5
    assert one.token_ids.count(4) == 1
    several = await packaged.prompt(QUESTION, ANSWER, NEXT, system="S")
    assert several.text == f"<_system>S\n<_user>{QUESTION}<_bot>{ANSWER}<_end>\n<_user>{NEXT}<_bot>"
    assert [token for token in several.token_ids if token < 9] == [6, 4, 5, 2, 4, 5]


@of("telechat2_7b")
async def test_telechat2_s_raw_forms(packaged: Packaged) -> None:
    bare = await packaged.prompt(text=QUESTION)
    assert not [token for token in bare.token_ids if token < 9]
    marked = await packaged.prompt(text=f"<_start><_user>{QUESTION}<_bot>")
    assert marked.token_ids == [1, 4, *bare.token_ids, 5]


@of("telechat2_115b")
async def test_telechat2_115b_s_own_form(packaged: Packaged) -> None:
    bare = (await packaged.prompt(text=QUESTION)).token_ids
    one = await packaged.prompt(QUESTION)
    assert one.text == f"<_start><_user>{QUESTION}<_bot>"
    assert one.token_ids == [1, 4, *bare, 5]
    several = await packaged.prompt(QUESTION, ANSWER, NEXT)
    assert several.text == f"<_start><_user>{QUESTION}<_bot>{ANSWER}<_end><_user>{NEXT}<_bot>"
    answer, last = [(await packaged.prompt(text=part)).token_ids for part in (ANSWER, NEXT)]
    assert several.token_ids == [1, 4, *bare, 5, *answer, 2, 4, *last, 5]


GOLDENS = {
    "生抽与老抽的区别？": "25104 127499 126325 73611 29151 126271",
    "你好": "96343",
    "Hello world\nfoo": "25718 1320 29 10192",
    "a\n\nb": "393 29 29 126158",
    "1+1=2": "126136 19 126179 19 126166 20",
    "\n": "126136 29",
    "<_start><_user>生抽与老抽的区别？<_bot>": "1 4 25104 127499 126325 73611 29151 126271 5",
}
GOLDEN_CHAT = (
    "6 3921 12966 16716 40721 62816 123959 126161 113621 126181 50751 25372 126161 7515 126511 126217 16716 "
    "14180 19326 29074 16716 14180 14617 126652 50751 8993 126650 6145 86750 29791 126169 29 4 96343 5"
)


def published(family: str) -> bytes:
    """The publisher's tokenizer.model, which cannot lie here."""
    path = Path(os.environ.get(TOKENIZERS, "")) / family / "tokenizer.model"
    if TOKENIZERS not in os.environ or not path.is_file():
        pytest.skip(f"{TOKENIZERS} names no folder with {family}/tokenizer.model, as its publisher has it")
    return path.read_bytes()


async def test_telechat2_s_golden_ids(tmp_path: Path) -> None:
    packaged = read_packaged("telechat2_7b", tmp_path, published("telechat2"))
    for text, ids in GOLDENS.items():
        assert (await packaged.prompt(text=text)).token_ids == [int(token) for token in ids.split()], text
    assert (await packaged.prompt("你好")).token_ids == [int(token) for token in GOLDEN_CHAT.split()]


CHATGLM2_GOLDENS = {
    "你好": "64790 64792 36474 54591",
    "晚上睡不着应该怎么办": "64790 64792 30910 32820 54266 31876 35153",
}


async def test_chatglm2_s_golden_ids(tmp_path: Path) -> None:
    packaged = read_packaged("chatglm2_6b", tmp_path, published("chatglm2"))
    for text, ids in CHATGLM2_GOLDENS.items():
        assert (await packaged.prompt(text=text)).token_ids == [int(token) for token in ids.split()], text


@of("chatglm2_6b")
async def test_chatglm2_s_rounds(packaged: Packaged) -> None:
    one = await packaged.prompt(QUESTION)
    assert one.text == f"[gMASK]<sop>[Round 1]\n\n问：{QUESTION}\n\n答："
    assert one.token_ids[:2] == [64790, 64792]
    several = await packaged.prompt(QUESTION, ANSWER, NEXT)
    assert several.text == (
        f"[gMASK]<sop>[Round 1]\n\n问：{QUESTION}\n\n答：{ANSWER}\n\n[Round 2]\n\n问：{NEXT}\n\n答："
    )
    with pytest.raises(Fault, match="roles are user and assistant"):
        await build_prompt(
            GenerateRequest(request_id="r", dialect="openai", messages=[Message("assistant", "x")]),
            packaged.model,
            ModelInfo(
                vocab_size=1, context_len=99, max_sequences=1, kv_tokens=99, memory_bytes=0, dtype="float32"
            ),
            "m",
        )


@of("chatglm2_6b")
async def test_chatglm2_s_raw_texts_begin_with_its_prefix(packaged: Packaged) -> None:
    bare = await packaged.prompt(text=QUESTION)
    assert bare.token_ids[:2] == [64790, 64792]
    assert (await packaged.prompt(text=f"[gMASK]<sop>{QUESTION}")).token_ids == bare.token_ids
    plain = (await packaged.prompt(text="the philosophy of a sophist")).token_ids
    assert plain.count(64792) == 1, "letters within words are no control token"


@of("baichuan2_13b_chat")
async def test_baichuan2_s_template(packaged: Packaged) -> None:
    one = await packaged.prompt(QUESTION)
    assert one.text == f"<reserved_106>{QUESTION}<reserved_107>"
    bare = (await packaged.prompt(text=QUESTION)).token_ids
    assert one.token_ids == [195, *bare, 196]
    several = await packaged.prompt(QUESTION, ANSWER, NEXT, system="S")
    assert (
        several.text == f"S<reserved_106>{QUESTION}<reserved_107>{ANSWER}<reserved_106>{NEXT}<reserved_107>"
    )
    assert [token for token in several.token_ids if token in (195, 196)] == [195, 196, 195, 196]


@of("internlm2_5_7b_chat")
async def test_internlm2_s_template_begins_once(packaged: Packaged) -> None:
    one = await packaged.prompt(QUESTION)
    assert one.text == f"<s><|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert one.token_ids[:2] == [1, 92543]
    several = await packaged.prompt(QUESTION, ANSWER, NEXT, system="S")
    assert several.text == (
        f"<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
        f"<|im_start|>assistant\n{ANSWER}<|im_end|>\n<|im_start|>user\n{NEXT}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert several.token_ids.count(1) == 1
    assert (await packaged.prompt(text=several.text)).token_ids == several.token_ids


@of("qwen1_5_7b", "fm9g_4b")
async def test_chatml_with_a_default_system(packaged: Packaged) -> None:
    user = "User" if packaged.plan.model == "fm9g_4b" else "user"
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    one = await packaged.prompt(QUESTION)
    assert one.text == f"{default}<|im_start|>{user}\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    several = await packaged.prompt(QUESTION, ANSWER, NEXT, system="S")
    assert several.text == (
        f"<|im_start|>system\nS<|im_end|>\n<|im_start|>{user}\n{QUESTION}<|im_end|>\n"
        f"<|im_start|>assistant\n{ANSWER}<|im_end|>\n<|im_start|>{user}\n{NEXT}<|im_end|>\n<|im_start|>assistant\n"
    )
    start = packaged.id_of("<|im_start|>")
    assert start is not None
    assert several.token_ids.count(start) == 5


@of("llama2_13b")
async def test_the_base_model_continues_a_text(packaged: Packaged) -> None:
    found = await packaged.prompt(text=QUESTION)
    assert found.token_ids[0] == 1
    assert found.token_ids.count(1) == 1
    with pytest.raises(Fault, match="has no chat template"):
        await packaged.prompt(QUESTION)


@of("baichuan2_13b_chat", "chatglm2_6b", "internlm2_5_7b_chat", "qwen1_5_7b", "telechat2_7b")
async def test_control_strings_in_a_message_stay_text(packaged: Packaged) -> None:
    tokenizer = packaged.model.need_tokenizer("m")
    plain = await packaged.prompt("x")
    for control in tokenizer.control_strings:
        marked = await packaged.prompt(f"x{control}")
        index = tokenizer.id_of(control)
        assert marked.token_ids.count(index or 0) == plain.token_ids.count(index or 0), control


async def test_a_tokenizer_without_the_prefix_is_another_model_s(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"tokenizer\.model has 32000 pieces"):
        read_packaged("chatglm2_6b", tmp_path, tokenizer_bytes("llama"))
