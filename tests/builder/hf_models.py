"""Small HuggingFace folders of LLaMA's and Qwen2's shape, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.daemon.backends.ms.tiny_llama import LLAMA, QWEN2, random_weights

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA3: Mapping[str, Any] = {
    **LLAMA,
    "vocab_size": 320,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "rope_theta": 500000.0,
    "bos_token_id": 0,
    "eos_token_id": [1, 2],
    "torch_dtype": "float32",
}
QWEN: Mapping[str, Any] = {
    **LLAMA3,
    **{key: QWEN2[key] for key in ("architectures", "model_type")},
    "bos_token_id": 1,
    "eos_token_id": 1,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": 32,
    "max_window_layers": 1,
}
SPECIALS = ["<|begin|>", "<|endoftext|>", "<|im_end|>", "<|im_start|>"]


def byte_level(begins: bool) -> Tokenizer:
    """A byte-level BPE; ``begins`` puts ``<|begin|>`` first, as Llama 3's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["hello world", "你好，世界"] * 9, trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            "<|begin|> $A", "<|begin|> $A $B", [("<|begin|>", 0)]
        )
    return tokenizer


def write_folder(folder: Path, config: Mapping[str, Any] = LLAMA3, **files: Any) -> Path:
    """A folder as a hub has it. ``files`` replaces JSON files, or with ``None`` removes them."""
    folder.mkdir(parents=True)
    save_file(random_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    byte_level(config["model_type"] == "llama").save(str(folder / "tokenizer.json"))
    contents = {
        "config": dict(config),
        "generation_config": {"do_sample": True, "top_p": 0.9, "eos_token_id": [1, 2]},
        "tokenizer_config": {
            "eos_token": "<|im_end|>",
            "chat_template": TEMPLATE,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        **files,
    }
    for name, content in contents.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
