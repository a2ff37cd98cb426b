"""Ask a running server the held-out questions and print how many it answers right.

    python evaluate.py --url http://127.0.0.1:1025 --model telechat2_tiny

Forms ``template`` and ``system`` go to ``/v1/chat/completions``, where the server renders the prompt; the
others go to ``/generate`` as they are.
"""

import argparse
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
from prompts import CONTROL_PIECES, segments
from scoring import Question, format_report, load_questions, report

HERE = Path(__file__).resolve().parent
_MAX_NEW_TOKENS = 128
_CONTROL = re.compile("|".join(re.escape(piece) for piece in CONTROL_PIECES))


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible endpoint that also answers ``/generate``."""

    url: str
    model: str
    timeout: float

    def answer(self, question: Question) -> str:
        """Return the server's greedy answer without control pieces."""
        chat = question.form in ("template", "system")
        return _CONTROL.sub("", self._chat(question) if chat else self._generate(question))

    def _chat(self, question: Question) -> str:
        messages = [{"role": "system", "content": question.system}] if question.system else []
        for turn in question.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        body = {
            "model": self.model,
            "messages": messages[:-1],
            "temperature": 0,
            "max_tokens": _MAX_NEW_TOKENS,
        }
        return str(self._post("/v1/chat/completions", body)["choices"][0]["message"]["content"] or "")

    def _generate(self, question: Question) -> str:
        parameters = {"do_sample": False, "max_new_tokens": _MAX_NEW_TOKENS}
        reply = self._post("/generate", {"inputs": question.prompt, "parameters": parameters})
        return str(reply["generated_text"])

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        # ``/generate`` has no field for the model.
        headers = {"X-Model": self.model}
        response = httpx2.post(self.url.rstrip("/") + path, json=body, headers=headers, timeout=self.timeout)
        response.raise_for_status()
        reply: dict[str, Any] = response.json()
        return reply


def main() -> None:
    """Parse the command line, ask, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:1025", help="base address (default %(default)s)")
    parser.add_argument("--model", default="telechat2_tiny", help="model name (default %(default)s)")
    parser.add_argument("--questions", type=Path, default=HERE / "heldout.jsonl")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time (default %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds per request (default %(default)s)"
    )
    parser.add_argument("--show-wrong", action="store_true", help="also print every wrong answer")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--write-texts",
        type=Path,
        metavar="FILE",
        help="ask nothing; write FILE, a .jsonl for client perplexity",
    )
    options = parser.parse_args()
    if options.write_texts is not None:
        _write_texts(load_questions(options.questions), options.write_texts)
        return
    server = Server(options.url, options.model, options.timeout)
    questions = load_questions(options.questions)
    try:
        with ThreadPoolExecutor(options.concurrency) as pool:
            answers = list(pool.map(server.answer, questions))
    except httpx2.HTTPError as error:
        sys.exit(f"{options.url}: {error}")
    _print(questions, answers, options)


def _write_texts(questions: list[Question], path: Path) -> None:
    """What the model should say after each prompt."""
    lines = []
    for question in questions:
        *before, last = segments(question.form, list(question.turns), question.system)
        piece = {"prompt": "".join(segment.text for segment in before), "completion": last.text}
        lines.append(json.dumps(piece, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _print(questions: list[Question], answers: list[str], options: argparse.Namespace) -> None:
    results = [
        (question, question.accepts(answer)) for question, answer in zip(questions, answers, strict=True)
    ]
    table = report(results)
    if options.json:
        plain = {
            kind: {name: asdict(score) | {"accuracy": score.accuracy} for name, score in scores.items()}
            for kind, scores in table.items()
        }
        print(json.dumps(plain, ensure_ascii=False))
        return
    if options.show_wrong:
        for (question, right), answer in zip(results, answers, strict=True):
            if not right:
                print(f"{question.form}: {question.turns[-1].question} -> {answer}")
    print(format_report(table))


if __name__ == "__main__":
    main()
