"""After the last attention only rows that want logits are computed, with the bits they always have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.backends.ms import kernels as k
from daemon.backends.ms.kernels import FloatArray, Kernels, pointer
from daemon.backends.ms.runner import ModelRunner, RunnerOptions
from daemon.backends.ms.segments import Segment
from tests.daemon.backends.ms.test_adapters import random_adapter, write_adapter
from tests.daemon.backends.ms.test_architectures import vocab_of, write_model
from tests.daemon.backends.ms.test_layers import NETWORK, VOCAB, random_weights
from tests.daemon.backends.ms.test_layers import load as load_network
from tests.reference.architectures import CASES, prompt

pytestmark = pytest.mark.filterwarnings("ignore:::mindspore")
LONGEST, SEQUENCES, TABLE = 40, 5, 3
ROWS = SEQUENCES * LONGEST
OPTIONS = RunnerOptions(num_blocks=2 * SEQUENCES * TABLE, max_rows=ROWS, max_logit_rows=ROWS, threads=2)
NAMES = ["qwen2, windows", "baichuan2, six heads", "telechat2, shared heads", "telechat2, experts"]


@dataclass(frozen=True)
class Piece:
    """A segment of a step: its rows, how many of them want logits, which adapter it has."""

    rows: int
    wanted: int
    adapter: int


@st.composite
def pieces(draw: st.DrawFn) -> Piece:
    rows = draw(st.integers(1, LONGEST))
    return Piece(rows, draw(st.sampled_from([0, 1, 1, rows // 2, rows])), draw(st.integers(0, 2)))


@dataclass(frozen=True)
class Loaded:
    runner: ModelRunner
    vocab: int
    adapters: Sequence[int]

    def step(self, chosen: Sequence[Piece], *, first_block: int, all_rows: bool) -> FloatArray:
        """Logits of the chosen rows."""
        segments = []
        for place, piece in enumerate(chosen):
            table = range(first_block + TABLE * place, first_block + TABLE * (place + 1))
            unwanted = 0 if all_rows else piece.rows - piece.wanted
            ids = prompt(self.vocab, piece.rows + place)[place:]
            rope = self.runner.rope_for(piece.rows)
            segments.append(Segment(ids, 0, table, unwanted, *rope, self.adapters[piece.adapter]))
        logits = self.runner.execute(segments).copy()
        if not all_rows:
            return logits
        ends = np.cumsum([piece.rows for piece in chosen])
        parts = [logits[end - piece.wanted : end] for end, piece in zip(ends, chosen, strict=True)]
        return np.concatenate(parts)

    def next_tokens(self, chosen: Sequence[Piece], *, first_block: int) -> FloatArray:
        """Logits of one more token each: they depend on all that is cached."""
        segments = []
        for place, piece in enumerate(chosen):
            table = range(first_block + TABLE * place, first_block + TABLE * (place + 1))
            rope = self.runner.rope_for(piece.rows)
            segments.append(Segment([7], piece.rows, table, 0, *rope, self.adapters[piece.adapter]))
        return self.runner.execute(segments).copy()


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("model")
    runner = ModelRunner.load(write_model(folder, case), options=OPTIONS, progress=lambda *_: None)
    adapters = [0]
    for seed in (1, 2):
        tensors = {
            name: half for name, half in random_adapter(case, seed).items() if "local_experts" not in name
        }
        adapters.append(runner.load_adapter(write_adapter(folder / str(seed), tensors))[0])
    yield Loaded(runner, vocab_of(case), adapters)
    runner.close()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(chosen=st.lists(pieces(), min_size=1, max_size=SEQUENCES))
def test_rows_that_want_logits_do_not_miss_the_others(loaded: Loaded, chosen: list[Piece]) -> None:
    expected = loaded.step(chosen, first_block=0, all_rows=True)
    got = loaded.step(chosen, first_block=SEQUENCES * TABLE, all_rows=False)
    assert np.array_equal(got, expected)
    before, after = (loaded.next_tokens(chosen, first_block=first) for first in (0, SEQUENCES * TABLE))
    assert np.array_equal(before, after)


CONSTRUCT = """        x = self.attention(x, step)
        x = self.feed_forward(x, step)
"""
SHARED = """        x = self.feed_forward(x, step)
        x = self.attention(x, step)
        x = self.feed_forward(x, step)
"""
BESIDE = """        x = self.attention(x, step) + self.feed_forward(x, step)
        x = self.feed_forward(x, step)
"""
BEFORE = """        x = self.feed_forward(x, step)
        x = self.attention(x, step)
"""


@pytest.mark.parametrize("construct", [CONSTRUCT, SHARED, BESIDE, BEFORE])
def test_what_the_last_layer_is_follows_from_the_graph(tmp_path: Path, construct: str) -> None:
    """A block that serves twice, two side by side, none after the attention."""
    runner = load_network(tmp_path, NETWORK.replace(CONSTRUCT, construct), random_weights())
    ids = prompt(VOCAB, 29)
    rope = runner.rope_for(29)
    expected = runner.execute([Segment(ids, 0, [0, 1], 0, *rope)]).copy()
    for first in (28, 20, 29):
        assert np.array_equal(runner.execute([Segment(ids, 0, [2, 3], first, *rope)]), expected[first:])
    got = runner.execute([Segment([1], 29, [2, 3], 0, *rope), Segment(ids, 0, [4, 5], 28, *rope)]).copy()
    assert np.array_equal(got[0], runner.execute([Segment([1], 29, [0, 1], 0, *rope)])[0])
    assert np.array_equal(got[1], expected[28])
    runner.close()


class Decoder:
    """Attention, feed-forward, attention, feed-forward, head: blocks without a graph."""

    def __init__(self, library: Kernels, hidden: int = 32, inner: int = 48) -> None:
        self.library, self.random = library, np.random.default_rng(1)
        self.hidden, self.model = hidden, library.new_model(64, 64, 8)
        attention, dense = (k.ATTENTION, hidden, 0, 2, 1, 16, 16), (k.FEED_FORWARD, hidden, inner)
        matrices = {
            attention: {k.IN_MATRIX: (64, hidden, 1), k.OUT_MATRIX: (hidden, 32, 1)},
            dense: {k.IN_MATRIX: (inner, hidden, 2), k.OUT_MATRIX: (hidden, inner, 1)},
            (k.HEAD, hidden, 50): {k.IN_MATRIX: (50, hidden, 1)},
        }
        order = [attention, dense, attention, dense, (k.HEAD, hidden, 50)]
        self.blocks = [self._block(shape, matrices[shape]) for shape in order]

    def _block(self, shape: tuple[int, ...], matrices: dict[int, tuple[int, int, int]]) -> int:
        block = self.library.new_block(self.model, shape, 1e-5, 1.0)
        self.library.set_vector(block, k.NORM, np.ones(self.hidden, np.float32), size=self.hidden)
        for slot, (rows, cols, parts) in matrices.items():
            matrix = self.library.new_matrix(rows, cols, parts=parts)
            for part in range(parts):
                weights = self.random.standard_normal((rows, cols), dtype=np.float32)
                self.library.pack(matrix, (part, 0, rows), pointer(weights), "float32")
            self.library.set_matrix(block, slot, matrix)
            self.library.free_matrix(matrix)
        return block

    def run(self, x: FloatArray, wanted: int) -> list[FloatArray]:
        """What every block wrote; what it did not write is NaN."""
        shape = np.array([(len(x), 0, 4, len(x) - wanted)], np.int64)
        self.library.begin_step(self.model, shape, np.array([[1e4, 1.0]]), np.arange(4, dtype=np.int32))
        outputs = [x]
        for block in self.blocks:
            outputs.append(np.full_like(x, np.nan))
            self.library.run_block(block, outputs[-2], outputs[-1])
        return outputs[1:]


def test_rows_that_nobody_reads_are_not_computed(kernels: Kernels) -> None:
    decoder = Decoder(kernels)
    x = np.random.default_rng(2).standard_normal((40, decoder.hidden), dtype=np.float32)
    full = decoder.run(x, wanted=40)
    for wanted in (0, 1, 9):
        got = decoder.run(x, wanted)
        for block, output in enumerate(got[:-1]):
            unread = 40 - wanted if block >= 2 else 0
            assert np.isnan(output[:unread]).all()
            assert np.array_equal(output[unread:], full[block][unread:])
    kernels.free_model(decoder.model)
