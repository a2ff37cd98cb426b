"""Lets mindformers build its fast tokenizer from tokenizer.json. Nothing else reads this file."""

from typing import Any

from mindformers.models import tokenization_utils_fast


class PreTrainedTokenizerFast(tokenization_utils_fast.PreTrainedTokenizerFast):  # type: ignore[misc]
    """Under the name that tokenizer_config.json gives, which mindformers looks up."""

    FILE_LIST = ["tokenizer_config.json"]
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, *, added_tokens_decoder: Any = None, **options: Any) -> None:
        # tokenizer.json has the added tokens, and mindformers takes none of them as plain data.
        super().__init__(**options)
