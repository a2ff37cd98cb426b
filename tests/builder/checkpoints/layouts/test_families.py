"""Layouts of every family against the arithmetic that the families' own scripts do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from builder.checkpoints.layouts.base import Layout
from builder.checkpoints.layouts.detect import detect
from builder.checkpoints.layouts.families import BMTRAIN, HF, LAYOUTS, MCORE, META, R1
from builder.checkpoints.layouts.packing import Facts
from builder.checkpoints.readers.formats import read_tensor_file
from builder.checkpoints.views import View
from contract.faults import Fault, FaultKind
from tests.builder.checkpoints.arrays import Arrays, array_of

HEADS, KV, WIDTH, HIDDEN, FFN, VOCAB, EXPERTS = 4, 2, 6, 10, 14, 22, 3
Q, K = HEADS * WIDTH, KV * WIDTH
FACTS = Facts(HEADS, KV, WIDTH, HIDDEN, VOCAB)
Array = NDArray[Any]


def _layers(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {prefix.format(layer) + name: shape for layer in range(2) for name, shape in shapes.items()}


_LLAMA_OUTER = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN),
}
_LLAMA_NORMS = {"input_layernorm.weight": (HIDDEN,), "post_attention_layernorm.weight": (HIDDEN,)}
_LLAMA_FFN = {
    "mlp.gate_proj.weight": (FFN, HIDDEN),
    "mlp.up_proj.weight": (FFN, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, FFN),
}
_LLAMA_ATTENTION = {
    "self_attn.q_proj.weight": (Q, HIDDEN),
    "self_attn.k_proj.weight": (K, HIDDEN),
    "self_attn.v_proj.weight": (K, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, Q),
}
_QKV_BIASES = {f"self_attn.{part}_proj.bias": (Q if part == "q" else K,) for part in "qkv"}
_TELECHAT_OUTER = {
    "transformer.word_embeddings.weight": (VOCAB, HIDDEN),
    "transformer.ln_f.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN),
}
_TELECHAT_ATTENTION = {
    "self_attention.query.weight": (Q, HIDDEN),
    "self_attention.key_value.weight": (2 * K, HIDDEN),
    "self_attention.dense.weight": (HIDDEN, Q),
    "self_attention.dense.bias": (HIDDEN,),
}
_LLAMA = {
    **_LLAMA_OUTER,
    **_layers("model.layers.{}.", {**_LLAMA_NORMS, **_LLAMA_ATTENTION, **_LLAMA_FFN}),
}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "llama": _LLAMA,
    "qwen2": {**_LLAMA, **_layers("model.layers.{}.", _QKV_BIASES)},
    "fm9g": {name: shape for name, shape in _LLAMA.items() if name != "lm_head.weight"},
    "telechat": {
        **_TELECHAT_OUTER,
        **_layers(
            "transformer.h.{}.",
            {**_LLAMA_NORMS, **_TELECHAT_ATTENTION, **_LLAMA_FFN, "mlp.down_proj.bias": (HIDDEN,)},
        ),
    },
    "telechat_moe": {
        **_TELECHAT_OUTER,
        **_layers(
            "transformer.h.{}.",
            {
                **_LLAMA_NORMS,
                **_TELECHAT_ATTENTION,
                "mlp.router.weight": (EXPERTS, HIDDEN),
                **{
                    f"mlp.local_experts.{expert}.{name.removeprefix('mlp.')}": shape
                    for expert in range(EXPERTS)
                    for name, shape in {**_LLAMA_FFN, "mlp.down_proj.bias": (HIDDEN,)}.items()
                },
            },
        ),
    },
    "baichuan": {
        **_LLAMA_OUTER,
        **_layers(
            "model.layers.{}.",
            {
                **_LLAMA_NORMS,
                **_LLAMA_FFN,
                "self_attn.W_pack.weight": (Q + 2 * K, HIDDEN),
                "self_attn.o_proj.weight": (HIDDEN, Q),
            },
        ),
    },
    "internlm2": {
        "model.tok_embeddings.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "output.weight": (VOCAB, HIDDEN),
        **_layers(
            "model.layers.{}.",
            {
                "attention.wqkv.weight": (Q + 2 * K, HIDDEN),
                "attention.wo.weight": (HIDDEN, Q),
                "feed_forward.w1.weight": (FFN, HIDDEN),
                "feed_forward.w2.weight": (HIDDEN, FFN),
                "feed_forward.w3.weight": (FFN, HIDDEN),
                "attention_norm.weight": (HIDDEN,),
                "ffn_norm.weight": (HIDDEN,),
            },
        ),
    },
    "chatglm": {
        "transformer.embedding.word_embeddings.weight": (VOCAB, HIDDEN),
        "transformer.encoder.final_layernorm.weight": (HIDDEN,),
        "transformer.output_layer.weight": (VOCAB, HIDDEN),
        **_layers(
            "transformer.encoder.layers.{}.",
            {
                **_LLAMA_NORMS,
                "self_attention.query_key_value.weight": (Q + 2 * K, HIDDEN),
                "self_attention.query_key_value.bias": (Q + 2 * K,),
                "self_attention.dense.weight": (HIDDEN, Q),
                "mlp.dense_h_to_4h.weight": (2 * FFN, HIDDEN),
                "mlp.dense_4h_to_h.weight": (HIDDEN, FFN),
            },
        ),
    },
}


def random_arrays(family: str) -> dict[str, Array]:
    """A checkpoint of this family by HuggingFace's names."""
    rng = np.random.default_rng(len(family))
    return {name: rng.normal(size=shape).astype("f4") for name, shape in SHAPES[family].items()}


def views_of(arrays: Arrays, folder: Path) -> Mapping[str, View]:
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "w")
    return read_tensor_file(folder / "w").tensors


def converted(arrays: Arrays, source: Layout, target: Layout, folder: Path) -> dict[str, Array]:
    """From one layout to another."""
    packed = target.pack(source.unpack(views_of(arrays, folder), FACTS), FACTS)
    return {name: array_of(view) for name, view in packed.items()}


def every_layout() -> Iterator[tuple[str, Layout]]:
    for family in SHAPES:
        for layout in LAYOUTS[family].all():
            has_experts = any(part.startswith("expert") for entry in layout.entries for part in entry.parts)
            fits = has_experts if family == "telechat_moe" else "gmm" not in layout.name
            if fits:
                yield family, layout


@pytest.mark.parametrize(
    ("family", "layout"), list(every_layout()), ids=lambda value: getattr(value, "name", value)
)
def test_there_and_back_is_the_same_bits(family: str, layout: Layout, tmp_path: Path) -> None:
    arrays = random_arrays(family)
    there = converted(arrays, LAYOUTS[family].hf, layout, tmp_path)
    found = detect(views_of(there, tmp_path), family, FACTS)
    assert found == [(family, layout)]
    back = converted(there, layout, LAYOUTS[family].hf, tmp_path)
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


def test_telechat_as_its_own_script(tmp_path: Path) -> None:
    arrays, layouts = random_arrays("telechat"), LAYOUTS["telechat"]
    plain = converted(arrays, layouts.hf, layouts.r1, tmp_path)
    prefix, before = "model.layers.1.", "transformer.h.1."
    packed = arrays[before + "self_attention.key_value.weight"]
    assert np.array_equal(plain[prefix + "attention.wk_v.weight"], packed)
    assert np.array_equal(plain[prefix + "feed_forward.w2.bias"], arrays[before + "mlp.down_proj.bias"])
    assert np.array_equal(plain["model.norm_out.weight"], arrays["transformer.ln_f.weight"])
    blocks = np.split(packed, 2 * KV)
    joined = converted(plain, layouts.r1, layouts.r1_qkv, tmp_path)
    expected = np.concatenate([plain[prefix + "attention.wq.weight"], *blocks[::2], *blocks[1::2]])
    assert np.array_equal(joined[prefix + "attention.w_qkv.weight"], expected)
    gates = [plain[prefix + f"feed_forward.{name}.weight"] for name in ("w1", "w3")]
    assert np.array_equal(joined[prefix + "feed_forward.w_gate_hidden.weight"], np.concatenate(gates))
    assert not {name for name in joined if ".wq." in name or ".wk_v." in name or ".w1." in name}


def test_experts_are_stacked_and_swapped_for_the_grouped_product(tmp_path: Path) -> None:
    arrays, layouts = random_arrays("telechat_moe"), LAYOUTS["telechat_moe"]
    stacked = converted(arrays, layouts.hf, layouts.r1, tmp_path)
    one = "transformer.h.0.mlp.local_experts.{}.{}"
    name = "model.layers.0.feed_forward.ffn.{}"
    expected = np.stack([arrays[one.format(expert, "down_proj.weight")] for expert in range(EXPERTS)])
    assert np.array_equal(stacked[name.format("w2.weight")], expected)
    biases = np.stack([arrays[one.format(expert, "down_proj.bias")] for expert in range(EXPERTS)])
    assert np.array_equal(stacked[name.format("w2.bias")], biases[None, :, None])
    assert "model.layers.0.feed_forward.router.dense.weight" in stacked
    swapped_layout = layouts.named(R1, gmm=True)
    assert swapped_layout is not None
    swapped = converted(stacked, layouts.r1, swapped_layout, tmp_path)
    assert np.array_equal(swapped[name.format("w2.weight")], expected.transpose(0, 2, 1))


def test_chatglm_apart(tmp_path: Path) -> None:
    arrays, layouts = random_arrays("chatglm"), LAYOUTS["chatglm"]
    apart = converted(arrays, layouts.hf, layouts.r1, tmp_path)
    prefix = "transformer.encoder.layers.0."
    for kind in ("weight", "bias"):
        q, k, v = np.split(arrays[f"{prefix}self_attention.query_key_value.{kind}"], [Q, Q + K])
        for part, expected in (("wq", q), ("wk", k), ("wv", v)):
            assert np.array_equal(apart[f"{prefix}self_attention.{part}.{kind}"], expected)
    gate, up = np.split(arrays[prefix + "mlp.dense_h_to_4h.weight"], 2)
    assert np.array_equal(apart[prefix + "mlp.dense_left.weight"], gate)
    assert np.array_equal(apart[prefix + "mlp.dense_right.weight"], up)
    assert layouts.named(R1) == layouts.r1_qkv
    together = converted(arrays, layouts.hf, layouts.r1_qkv, tmp_path)
    renamed = "transformer.embedding.word_embeddings.weight"
    assert together.keys() ^ arrays.keys() == {renamed, "transformer.embedding.embedding_weight"}


def test_baichuan_thirds(tmp_path: Path) -> None:
    arrays, layouts = random_arrays("baichuan"), LAYOUTS["baichuan"]
    apart = converted(arrays, layouts.hf, layouts.r1, tmp_path)
    parts = [apart[f"model.layers.0.attention.{part}.weight"] for part in ("wq", "wk", "wv")]
    assert np.array_equal(np.concatenate(parts), arrays["model.layers.0.self_attn.W_pack.weight"])


def test_internlm2_groups(tmp_path: Path) -> None:
    arrays, layouts = random_arrays("internlm2"), LAYOUTS["internlm2"]
    packed = arrays["model.layers.0.attention.wqkv.weight"]
    default = layouts.named(R1)
    assert default is not None
    together = converted(arrays, layouts.hf, default, tmp_path)
    assert np.array_equal(together["model.layers.0.attention.w.weight"], packed)
    apart = converted(arrays, layouts.hf, layouts.r1, tmp_path)
    groups = packed.reshape(KV, HEADS // KV + 2, WIDTH, HIDDEN)
    expected = {"wq": groups[:, :-2], "wk": groups[:, -2], "wv": groups[:, -1]}
    for part, rows in expected.items():
        assert np.array_equal(apart[f"model.layers.0.attention.{part}.weight"], rows.reshape(-1, HIDDEN))


def test_meta_turns_heads_as_huggingface_does(tmp_path: Path) -> None:
    arrays, layouts = random_arrays("llama"), LAYOUTS["llama"]
    meta = converted(arrays, layouts.hf, layouts.others[META], tmp_path)
    for part, rows, heads in (("q", Q, HEADS), ("k", K, KV)):
        stored = meta[f"layers.0.attention.w{part}.weight"]
        turned = stored.reshape(heads, WIDTH // 2, 2, HIDDEN).swapaxes(1, 2).reshape(rows, HIDDEN)
        assert np.array_equal(turned, arrays[f"model.layers.0.self_attn.{part}_proj.weight"])
    assert np.array_equal(meta["output.weight"], arrays["lm_head.weight"])


@pytest.mark.parametrize("family", ["llama", "qwen2", "fm9g", "telechat"])
def test_mindformers_2_has_megatron_names(family: str, tmp_path: Path) -> None:
    layouts = LAYOUTS[family]
    named = converted(random_arrays(family), layouts.hf, layouts.others[MCORE], tmp_path)
    assert "embedding.word_embeddings.weight" in named
    assert named["decoder.layers.1.self_attention.linear_k.weight"].shape == (K, HIDDEN)
    assert named["decoder.layers.1.mlp.hidden.weight"].shape == (FFN, HIDDEN)
    assert "decoder.layers.0.pre_mlp_layernorm.weight" in named


def test_bmtrain_names(tmp_path: Path) -> None:
    layouts = LAYOUTS["fm9g"]
    named = converted(random_arrays("fm9g"), layouts.hf, layouts.others[BMTRAIN], tmp_path)
    assert "input_embedding.weight" in named
    assert "encoder.layers.0.self_att.self_attention.project_q.weight" in named
    assert "encoder.layers.1.ffn.ffn.w_in.w_1.weight" in named


def test_a_lonely_part_is_a_fault(tmp_path: Path) -> None:
    arrays, layouts = random_arrays("llama"), LAYOUTS["baichuan"]
    del arrays["model.layers.1.self_attn.v_proj.weight"]
    with pytest.raises(Fault, match=r"layers.1.self_attn.W_pack.weight .*layer 1 has no v"):
        converted(arrays, LAYOUTS["llama"].hf, layouts.hf, tmp_path)


def test_what_a_form_has_no_place_for_is_a_fault(tmp_path: Path) -> None:
    arrays, layouts = random_arrays("qwen2"), LAYOUTS["llama"]
    with pytest.raises(Fault, match="a meta checkpoint has no place for the bias"):
        converted(arrays, layouts.hf, layouts.others[META], tmp_path)


def test_heads_that_do_not_fit_name_the_tensor(tmp_path: Path) -> None:
    views = views_of(random_arrays("telechat"), tmp_path)
    with pytest.raises(Fault, match=r"key_value.weight: packs k, v in 24 rows, the config says 36"):
        LAYOUTS["telechat"].hf.unpack(views, Facts(6, 3, 6, HIDDEN, VOCAB))
    with pytest.raises(Fault) as caught:
        LAYOUTS["telechat"].hf.unpack(views, Facts())
    assert caught.value.kind is FaultKind.INVALID_REQUEST
    assert "--model" in caught.value.hint


def test_foreign_names_are_listed(tmp_path: Path) -> None:
    arrays = {**random_arrays("llama"), "model.vision.weight": np.ones(3, "f4")}
    with pytest.raises(
        Fault, match=r"1 of 22 tensors are not of a llama checkpoint in hf form: model.vision"
    ):
        detect(views_of(arrays, tmp_path), "llama", FACTS)


def test_names_alone_tell_the_layout_of_an_unknown_family(tmp_path: Path) -> None:
    found = detect(views_of(random_arrays("chatglm"), tmp_path), None, Facts())
    assert [(family, layout.name) for family, layout in found] == [("chatglm", HF)]
