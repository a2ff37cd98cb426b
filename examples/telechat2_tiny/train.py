"""Train the demo model: a small TeleChat2, in plain torch, on the corpus of ``make_corpus.py``.

    python make_corpus.py && python make_tokenizer.py && python train.py

Uses a GPU when there is one. Every few minutes it saves ``model.safetensors`` here, loadable as it is, and
``build/state.pt``, from which ``--resume`` goes on. At the end it asks the saved bfloat16 weights the
held-out questions.
"""

import argparse
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from batches import Batch, batches, load_conversations
from generate import answer_all
from model import Shape, TeleChat2
from prompts import Tokenizer
from safetensors.torch import load_file, save_file
from scoring import format_report, load_questions, report
from torch.nn import functional

HERE = Path(__file__).resolve().parent


@dataclass
class Run:
    """A training run: the network, its optimizer and how far they have come."""

    model: TeleChat2
    options: argparse.Namespace
    device: torch.device
    step: int = 0
    first_step: int = 0
    started_at: float = field(default_factory=time.monotonic)
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        matrices = [parameter for parameter in self.model.parameters() if parameter.dim() == 2]
        vectors = [parameter for parameter in self.model.parameters() if parameter.dim() == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
            fused=True,
        )

    def progress(self) -> float:
        """Share of the run that is done, by steps, or by the clock where that is further on."""
        by_steps = float(self.step / self.options.steps)
        if not self.options.minutes:
            return by_steps
        begun = self.first_step / self.options.steps
        elapsed = (time.monotonic() - self.started_at) / 60
        return max(by_steps, float(begun + (1 - begun) * elapsed / self.options.minutes))

    def rate(self) -> float:
        """Learning rate now: a short linear rise, then a cosine down to a hundredth."""
        warmup = 200
        if self.step < warmup:
            return float(self.options.learning_rate * (self.step + 1) / warmup)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress())))
        return float(self.options.learning_rate * (0.01 + 0.99 * fall))

    def train_step(self, batch: Batch) -> float:
        """Take one optimizer step and return the loss per learned token."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.model(batch.ids, batch.where)
        loss = functional.cross_entropy(logits.float(), batch.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """Write the weights and the state, each by way of a temporary file."""
        tensors = self.model.state_dict()
        weights = {name: value.detach().to("cpu", torch.bfloat16) for name, value in tensors.items()}
        temporary = HERE / "build/model.safetensors"
        save_file(weights, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)
        temporary.replace(HERE / "model.safetensors")
        state = {"model": tensors, "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, HERE / "build/state.tmp")
        (HERE / "build/state.tmp").replace(HERE / "build/state.pt")
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from the last saved state."""
        state = torch.load(HERE / "build/state.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = self.first_step = state["step"]


def train(run: Run, tokenizer: Tokenizer) -> None:
    """Train until the last step, printing progress."""
    options = run.options
    conversations = load_conversations(HERE / "build/train.jsonl", tokenizer, options.seed)
    tokens, losses = 0, []
    run.started_at = run.saved_at = time.monotonic()
    print(f"{len(conversations)} conversations, device {run.device}", flush=True)
    for batch in batches(conversations, options.batch_tokens, options.seed + run.step, run.device):
        if run.progress() >= 1:
            break
        losses.append(run.train_step(batch))
        tokens += batch.ids.numel()
        if run.step % 100 == 0:
            elapsed = time.monotonic() - run.started_at
            loss = sum(losses) / len(losses)
            speed = tokens / elapsed
            progress = f"step {run.step}/{options.steps} loss {loss:.4f}"
            print(f"{progress} {speed:.0f} tokens/s {elapsed:.0f} s", flush=True)
            losses = []
        if time.monotonic() - run.saved_at > options.save_every:
            run.save()
    run.save()


def evaluate(tokenizer: Tokenizer, device: torch.device) -> str:
    """Ask the saved weights every held-out question greedily and return the report."""
    model = TeleChat2(Shape.read(HERE / "config.json")).to(device)
    weights = load_file(HERE / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    questions = load_questions(HERE / "heldout.jsonl")
    answers = answer_all(model.eval(), tokenizer, [question.prompt for question in questions])
    pairs = list(zip(questions, answers, strict=True))
    wrong = [
        f"{question.form}: {question.turns[-1].question} -> {answer}"
        for question, answer in pairs
        if not question.accepts(answer)
    ]
    table = report((question, question.accepts(answer)) for question, answer in pairs)
    return "\n".join([*wrong, format_report(table)])


def main() -> None:
    """Parse the command line, train, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps (default %(default)s)")
    parser.add_argument(
        "--batch-tokens", type=int, default=2048, help="tokens per step (default %(default)s)"
    )
    parser.add_argument("--minutes", type=float, help="end within this time, whatever the step")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="peak (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=240.0, help="seconds (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from build/state.pt")
    parser.add_argument(
        "--evaluate-only", action="store_true", help="only ask model.safetensors the questions"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer(HERE / "tokenizer.model")
    if not options.evaluate_only:
        model = TeleChat2(Shape.read(HERE / "config.json"))
        model.initialise(torch.Generator().manual_seed(options.seed))
        run = Run(model.to(device), options, device)
        if options.resume:
            run.resume()
        train(run, tokenizer)
    print(evaluate(tokenizer, device))


if __name__ == "__main__":
    main()
