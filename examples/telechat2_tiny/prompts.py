"""The prompt forms a TeleChat2 model meets, and how their text becomes token ids.

Knows: the control pieces, the chat template, which parts of a conversation the model must write itself.
Does not know: torch, the corpus, or how answers are scored.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import sentencepiece

DEFAULT_SYSTEM = (
    "你是中国电信星辰语义大模型，英文名是TeleChat，"
    "你是由中电信人工智能科技有限公司和中国电信人工智能研究院（TeleAI）研发的人工智能助手。"
)
CONTROL_PIECES = (
    "<_unk>",
    "<_start>",
    "<_end>",
    "<_pad>",
    "<_user>",
    "<_bot>",
    "<_system>",
    "<_observation>",
    "<_sep>",
    *(f"<_control{index}>" for index in range(1, 10)),
)
PAD_ID = CONTROL_PIECES.index("<_pad>")
END_ID = CONTROL_PIECES.index("<_end>")
FORMS = ("bare", "start", "template", "system", "factory")

_CONTROL_PATTERN = re.compile("(" + "|".join(re.escape(piece) for piece in CONTROL_PIECES) + ")")


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Segment:
    """A piece of prompt text; ``learned`` marks what the model has to write."""

    text: str
    learned: bool


def segments(form: str, turns: list[Turn], system: str | None = None) -> list[Segment]:
    """Lay a conversation out in one of ``FORMS``; the last turn's answer is learned like the others."""
    if form == "bare":
        (turn,) = turns
        return [Segment(turn.question, False), Segment(f"<_bot>{turn.answer}<_end>", True)]
    newline = "\n" if form in ("template", "system") else ""
    opening = "<_start>" if form == "start" else f"<_system>{system or DEFAULT_SYSTEM}{newline}"
    result = []
    for turn in turns:
        result.append(Segment(f"{opening}<_user>{turn.question}<_bot>", False))
        result.append(Segment(f"{turn.answer}<_end>", True))
        opening = newline
    return result


def prompt(form: str, turns: list[Turn], system: str | None = None) -> str:
    """Return the text a model is given so that it writes the last turn's answer."""
    return "".join(segment.text for segment in segments(form, turns, system)[:-1])


class Tokenizer:
    """SentencePiece with the control pieces cut out of the text first, as TeleChat2 servers do."""

    def __init__(self, path: Path) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self._encode_text = lru_cache(maxsize=100_000)(self._encode_plain)

    @property
    def size(self) -> int:
        """Number of pieces, which is the model's vocabulary."""
        return int(self._processor.get_piece_size())

    def seed_dropout(self, seed: int) -> None:
        """Fix the random splits that ``encode(..., dropout=True)`` makes from here on."""
        sentencepiece.set_random_generator_seed(seed)

    def encode(self, text: str, *, dropout: bool = False) -> list[int]:
        """Encode a prompt: each control piece is its id, each text between them is encoded on its own.

        With ``dropout`` some merges are skipped at random, so that training meets the smaller pieces too.
        """
        ids: list[int] = []
        for part in _CONTROL_PATTERN.split(text):
            if part in CONTROL_PIECES:
                ids.append(CONTROL_PIECES.index(part))
            elif part:
                ids.extend(self._encode_dropped(part) if dropout else self._encode_text(part))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Decode ids to text; control pieces vanish."""
        return str(self._processor.decode(ids))

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._processor.encode(text))

    def _encode_dropped(self, text: str) -> tuple[int, ...]:
        return tuple(self._processor.encode(text, enable_sampling=True, alpha=0.1, nbest_size=-1))
