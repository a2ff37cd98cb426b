"""Train ``tokenizer.model`` on the corpus: SentencePiece with TeleChat2's control pieces.

python make_tokenizer.py         # after make_corpus.py; writes tokenizer.model
"""

import argparse
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from prompts import CONTROL_PIECES, DEFAULT_SYSTEM

HERE = Path(__file__).resolve().parent
_ASCII = "".join(chr(code) for code in range(33, 127))


def sentences(path: Path, limit: int) -> Iterator[str]:
    """Yield what SentencePiece sees: questions, answers and now and then the default system text."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(itertools.islice(file, limit)):
            row = json.loads(line)
            if number % 20 == 0:
                yield DEFAULT_SYSTEM
            if row["system"]:
                yield row["system"]
            for turn in row["turns"]:
                yield turn["question"]
                yield turn["answer"]


def train(texts: Iterator[str], size: int) -> bytes:
    """Train the tokenizer and return its file."""
    model = io.BytesIO()
    unk, bos, eos, pad, *controls = CONTROL_PIECES
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        character_coverage=1.0,
        max_sentencepiece_length=8,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        required_chars=_ASCII,
        control_symbols=controls,
        user_defined_symbols=["\n", "\t"],
        unk_id=0,
        unk_piece=unk,
        unk_surface="",
        bos_id=1,
        bos_piece=bos,
        eos_id=2,
        eos_piece=eos,
        pad_id=3,
        pad_piece=pad,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


def main() -> None:
    """Train the tokenizer and write it beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=4096, help="pieces (default %(default)s)")
    parser.add_argument(
        "--conversations", type=int, default=60_000, help="read from the corpus (default %(default)s)"
    )
    options = parser.parse_args()
    texts = sentences(HERE / "build/train.jsonl", options.conversations)
    (HERE / "tokenizer.model").write_bytes(train(texts, options.size))


if __name__ == "__main__":
    main()
