#!/usr/bin/env python3
"""Answers of the PyPI package transformers (DeepseekV4) to the golden vectors (exact), in float64.

    transformers_vectors.py VECTORS OUT.h5 NOTES.json

Then: dsv4 verify --candidate OUT.h5 --numerics exact. Its code runs as it is; where an operator is only
a part of a function, the function runs with stand-ins for its other parts.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
import transformers  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM, DynamicCache  # noqa: E402
from transformers.masking_utils import create_sliding_window_causal_mask  # noqa: E402
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling  # noqa: E402

from adapter import (Skip, answer_all, config_of, empty, fill, hadamard, layer_sizes, moe_sizes,  # noqa: E402
                     runs, scatter, values)
from transformers_logits import read_weights  # noqa: E402

KINDS = {0: "sliding_attention", 4: "compressed_sparse_attention"}
HCA = "heavily_compressed_attention"


def make_config(config):
    """DeepseekV4Config of a config.json. Of compress_ratios transformers knows 0, 4 and 128; of its own
    keys below, any one HCA ratio. It refuses integers where it has floats."""
    config = dict(config)
    ratios = config.pop("compress_ratios")[:config["num_hidden_layers"]]
    hca = {ratio for ratio in ratios if ratio not in KINDS}
    if len(hca) > 1:
        raise Skip("HCA ratios of several sizes")
    config["layer_types"] = [KINDS.get(ratio, HCA) for ratio in ratios]
    config["compress_rates"] = {KINDS[4]: 4, HCA: hca.pop() if hca else 128}
    for key in ("routed_scaling_factor", "swiglu_limit", "hc_eps", "rms_norm_eps"):
        config[key] = float(config[key])
    made = DeepseekV4Config.from_dict(config)
    made._attn_implementation = made._experts_implementation = "eager"
    return made


class Give(nn.Module):
    """A stand-in that returns what it was made of."""

    def __init__(self, *result):
        super().__init__()
        self.result = result

    def forward(self, *args, **kwargs):
        return self.result if len(self.result) > 1 else self.result[0]


# ---- weights -------------------------------------------------------------------------------------

COMPRESSOR = {"kv_proj.weight": "wkv", "gate_proj.weight": "wgate", "position_bias": "ape",
              "kv_norm.weight": "norm"}
ATTENTION = {"q_a_proj.weight": "wq_a", "q_a_norm.weight": "q_norm", "q_b_proj.weight": "wq_b",
             "kv_proj.weight": "wkv", "kv_norm.weight": "kv_norm", "sinks": "attn_sink",
             "o_a_proj.weight": "wo_a", "o_b_proj.weight": "wo_b"}


def attention_weights(case, ratio, prefix="attn."):
    weights = {name: values(case, prefix + slot) for name, slot in ATTENTION.items()}
    if ratio:
        weights |= {f"compressor.{name}": values(case, f"{prefix}compressor.{slot}")
                    for name, slot in COMPRESSOR.items()}
    if ratio == 4:
        weights |= {f"compressor.indexer.{name}": values(case, f"{prefix}indexer.compressor.{slot}")
                    for name, slot in COMPRESSOR.items()}
        weights["compressor.indexer.q_b_proj.weight"] = values(case, f"{prefix}indexer.wq_b")
        weights["compressor.indexer.scorer.weights_proj.weight"] = values(
            case, f"{prefix}indexer.weights_proj")
    return weights


def moe_weights(case):
    weights = {"gate.weight": values(case, "ffn.gate")}
    if case.params["hash"]:
        weights["gate.tid2eid"] = values(case, "ffn.gate.tid2eid")
    else:
        weights["gate.e_score_correction_bias"] = values(case, "ffn.gate.bias")
    E = len(weights["gate.weight"])
    w1, w2, w3 = (torch.stack([values(case, f"ffn.experts.{e}.w{k}") for e in range(E)]) for k in (1, 2, 3))
    weights["experts.gate_up_proj"], weights["experts.down_proj"] = torch.cat([w1, w3], 1), w2
    for name, slot in {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}.items():
        weights[f"shared_experts.{name}.weight"] = values(case, f"ffn.shared_experts.{slot}")
    return weights


# ---- small operators -----------------------------------------------------------------------------


def grouped(case):
    w, x = values(case, "w"), values(case, "x")
    module = modeling.DeepseekV4GroupedLinear(x.shape[2], w.shape[0], x.shape[1])
    return {"y": fill(module, {"weight": w})(x[None])[0].flatten(1)}


def rmsnorm(case):
    weight = values(case, "weight")
    return {"y": fill(modeling.DeepseekV4RMSNorm(len(weight), case.params["rms_norm_eps"]),
                      {"weight": weight})(values(case, "x"))}


def rmsnorm_head(case):
    return {"y": modeling.DeepseekV4UnweightedRMSNorm(case.params["rms_norm_eps"])(values(case, "x"))}


def rotary(case, head_dim):
    """The rotary module of a model with this case's parameters, and which of its two kinds it is."""
    R = int(case.params["qk_rope_head_dim"])
    module = modeling.DeepseekV4RotaryEmbedding(make_config(config_of(case, head_dim=head_dim,
                                                                      qk_rope_head_dim=R)))
    return module, "compress" if case.params["compressed"] else "main"


def rope_frequencies(case):
    module, kind = rotary(case, 2 * int(case.params["qk_rope_head_dim"]))
    return {"freq": getattr(module, f"{kind}_inv_freq")}


def rope(case, sign=1):
    x = values(case, "x")
    module, kind = rotary(case, x.shape[1])
    cos, sin = module(x, values(case, "positions")[None], layer_type=kind)
    return {"y": modeling.apply_rotary_pos_emb(x[None, None], cos, sign * sin)[0, 0]}


def embed(case):
    weight = values(case, "embed")
    config = make_config(config_of(case, vocab_size=max(2, weight.shape[0]), hidden_size=weight.shape[1]))
    config.pad_token_id = None
    model = modeling.DeepseekV4Model(config)
    model.embed_tokens = nn.Embedding.from_pretrained(weight)
    given = {}

    class Keep(nn.Module):
        def forward(self, streams, **kwargs):
            given["h"] = streams
            return streams

    model.layers = nn.ModuleList([Keep()])
    model(values(case, "token_ids")[None], use_cache=False)
    return {"h": given["h"][0]}


# ---- hyper-connections ---------------------------------------------------------------------------


def mhc_mix(case):
    x = values(case, "x")
    module = modeling.DeepseekV4HyperConnection(make_config(config_of(case, hidden_size=x.shape[2])))
    post, comb, collapsed = fill(module, {k: values(case, k) for k in ("fn", "base", "scale")})(x[None])
    # pre leaves it only as u = pre x: solved for pre.
    pre = torch.linalg.lstsq(x.transpose(1, 2), collapsed[0][..., None]).solution[..., 0]
    return {"pre": pre, "post": post[0], "comb": comb[0]}


def mhc_sinkhorn(case):
    logits = values(case, "logits")
    T, n, _ = logits.shape
    module = modeling.DeepseekV4HyperConnection(make_config(config_of(case)))
    comb = torch.empty_like(logits)
    for t in range(T):
        base = torch.cat([torch.zeros(2 * n), logits[t].flatten()])
        fill(module, {"fn": torch.zeros_like(module.fn), "base": base, "scale": torch.ones(3)})
        comb[t] = module(torch.ones(1, 1, n, 8))[1][0, 0]
    return {"comb": comb}


def mhc_post(case):
    x, n = values(case, "x"), int(case.params["hc_mult"])
    layer = modeling.DeepseekV4DecoderLayer(make_config(config_of(case, hidden_size=x.shape[2])), 0)
    zeros = torch.zeros(1, len(x), x.shape[2])
    layer.attn_hc = Give(values(case, "post")[None], values(case, "comb")[None], zeros)
    layer.self_attn = Give(values(case, "y")[None], None)
    layer.ffn_hc = Give(torch.zeros(1, len(x), n), torch.eye(n).expand(1, len(x), n, n), zeros)
    layer.mlp = Give(zeros)
    return {"x_new": layer(x[None])[0]}


def head(case):
    h, w = values(case, "h"), values(case, "head")
    config = make_config(config_of(case, hidden_size=h.shape[2], vocab_size=w.shape[0]))
    collapse = fill(modeling.DeepseekV4HyperHead(config),
                    {k: values(case, f"hc_head_{k[3:]}") for k in ("hc_fn", "hc_base", "hc_scale")})
    norm = fill(modeling.DeepseekV4RMSNorm(config.hidden_size, config.rms_norm_eps),
                {"weight": values(case, "norm")})
    return {"logits": F.linear(norm(collapse(h[None]))[0], w)}


# ---- compressors, indexer ------------------------------------------------------------------------


def compressor(case):
    x, r = values(case, "x"), int(case.params["ratio"])
    index, csa = bool(case.params["index"]), case.operator == "compressor_csa"
    d = len(values(case, "norm"))
    config = make_config(config_of(case, hidden_size=x.shape[1], head_dim=d, index_head_dim=d))
    weights = {name: values(case, slot) for name, slot in COMPRESSOR.items()}
    name = "indexer" if index else "compressor"
    if csa and index:
        module = make_indexer(config, weights)
    elif csa:
        module = modeling.DeepseekV4CSACompressor(config)
        module.indexer = nn.Module()  # none: what it selects is no part of this operator
        fill(module, weights)
        module.indexer = Give(None)
        module.indexer.forward = lambda u, *args: torch.zeros(*u.shape[:2], 0, dtype=torch.long)
    else:
        module = fill(modeling.DeepseekV4HCACompressor(config), weights)
    entries = {}
    for calls in runs(case):
        cache = DynamicCache(config=config)
        for call in calls:
            u = x[call.rows]
            module(u, torch.zeros(*u.shape[:2], config.q_lora_rank), call.positions, cache, 0)
        made = cache.layers[0].compressed_kv[name]
        for b, rows in enumerate(calls[-1].rows):
            s, length = int(case.inputs["sequence"][rows[-1]]), int(calls[-1].seen[b].sum())
            entries[s] = made[b, :length // r]
    entries = torch.cat([entries[s] for s in sorted(entries)])
    return {"entries": hadamard(entries) if index else entries}


def make_indexer(config, weights):
    module = modeling.DeepseekV4Indexer(config)
    zeros = {k: torch.zeros_like(v) for k, v in module.named_parameters()}
    return fill(module, zeros | weights)


def keys_made(count, d_i):
    """A cache in whose one layer the indexer has made `count` keys, none of them now."""
    layer = SimpleNamespace(
        store_compression_weights=lambda name, kv, gate: (kv[:, :0], gate[:, :0], 0),
        update_compressor_states=lambda name, made: made.new_zeros(1, count, d_i))
    return SimpleNamespace(layers=[layer])


def indexer_query(case):
    wq_b, qr = values(case, "wq_b"), values(case, "qr")
    n_i, T, R = int(case.params["index_n_heads"]), len(qr), int(case.params["qk_rope_head_dim"])
    d_i = wq_b.shape[0] // n_i
    config = make_config(config_of(case, q_lora_rank=qr.shape[1], index_head_dim=d_i, head_dim=2 * R))
    module, seen = make_indexer(config, {"q_b_proj.weight": wq_b}), {}
    module.scorer.register_forward_hook(lambda scorer, args, result: seen.update(iq=args[0]))
    module(torch.zeros(1, T, config.hidden_size), qr[None], values(case, "positions")[None],
           keys_made(1, d_i), 0)
    return {"iq": hadamard(seen["iq"][0])}


def indexer_score(case):
    iq, w, keys = (values(case, k) for k in ("iq", "w", "keys"))
    n_i, d_i = iq.shape[1:]
    config = make_config(config_of(case, index_n_heads=n_i, index_head_dim=d_i, hidden_size=n_i))
    scorer = fill(modeling.DeepseekV4IndexerScorer(config), {"weights_proj.weight": torch.eye(n_i)})
    return {"score": scorer(iq[None], keys[None], w[None])[0]}


def indexer_select(case):
    score, positions = values(case, "score"), values(case, "positions")
    T, G = score.shape
    config = make_config(config_of(case))
    module = make_indexer(config, {})
    module.scorer = Give(score[None])
    return {"selected": module(torch.zeros(1, T, config.hidden_size), torch.zeros(1, T, config.q_lora_rank),
                               positions[None], keys_made(G, config.index_head_dim), 0)[0]}


# ---- attention -----------------------------------------------------------------------------------


def core_attn(case):
    q, entries, listed = values(case, "q"), values(case, "entries"), values(case, "list")
    T, H, d = q.shape
    module = SimpleNamespace(sinks=values(case, "attn_sink"), num_key_value_groups=H, training=False)
    mask = torch.zeros(listed.shape).masked_fill(listed < 0, -torch.inf)[:, None, None]
    e = entries[listed.clamp(min=0)][:, None]
    return {"out": modeling.eager_attention_forward(module, q[:, :, None], e, e, mask, d ** -.5)[0][:, 0]}


def patched(name, replacement, run):
    original = getattr(modeling, name)
    setattr(modeling, name, replacement)
    try:
        return run()
    finally:
        setattr(modeling, name, original)


def attention_output(case):
    core, wo_a, wo_b = (values(case, k) for k in ("core", "wo_a", "wo_b"))
    T, H, d = core.shape
    config = make_config(config_of(case, num_attention_heads=H, head_dim=d, hidden_size=len(wo_b),
                                   o_lora_rank=len(wo_a) // int(case.params["o_groups"])))
    module = modeling.DeepseekV4Attention(config, 0).eval()
    module.compressor = None
    fill(module.o_a_proj, {"weight": wo_a})
    fill(module.o_b_proj, {"weight": wo_b})
    u, positions = torch.zeros(1, T, len(wo_b)), values(case, "positions")[None]
    return {"y": patched("eager_attention_forward", lambda *args, **kwargs: (core[None], None),
                         lambda: module(u, position_embeddings(config, u, positions), positions, None)[0][0])}


def position_embeddings(config, u, positions):
    rotary_emb = modeling.DeepseekV4RotaryEmbedding(config)
    return {kind: rotary_emb(u, positions, layer_type=kind) for kind in ("main", "compress")}


def layer_arguments(config, call, u, cache):
    """What DeepseekV4Model gives to a layer: u [B, S, any] only tells how many rows there are."""
    return {"position_embeddings": position_embeddings(config, u, call.positions),
            "position_ids": call.positions, "past_key_values": cache,
            "attention_mask": create_sliding_window_causal_mask(
                config=config, inputs_embeds=u, attention_mask=call.mask, past_key_values=cache,
                position_ids=call.positions)}


def recorded(run):
    """Calls it -> its result, and the results of apply_rotary_pos_emb on the way: the first two calls
    of an attention rotate q and kv."""
    original, kept = modeling.apply_rotary_pos_emb, []

    def keep(*args, **kwargs):
        kept.append(original(*args, **kwargs))
        return kept[-1]

    return patched("apply_rotary_pos_emb", keep, run), kept


def attention(case):
    x, ratio = values(case, "x"), int(case.params["ratio"])
    config = make_config(config_of(case, **layer_sizes(case, "attn.")))
    module = fill(modeling.DeepseekV4Attention(config, 0), attention_weights(case, ratio))
    out = {slot: empty(case, slot) for slot in ("y", "q", "kv")}
    for calls in runs(case):
        cache = DynamicCache(config=config)
        for call in calls:
            u = x[call.rows]
            arguments = layer_arguments(config, call, u, cache)
            (y, _), turned = recorded(lambda: module(u, **arguments))
            scatter(out["y"], call, y)
            scatter(out["q"], call, turned[0].transpose(1, 2))
            scatter(out["kv"], call, turned[1][:, 0])
    return out


# ---- experts -------------------------------------------------------------------------------------


def gate(case):
    x, w = values(case, "x"), values(case, "weight")
    sizes = dict(hidden_size=x.shape[1], n_routed_experts=len(w))
    if case.operator == "gate_hash":
        config = make_config(config_of(case, vocab_size=len(case.inputs["tid2eid"]), **sizes))
        module = fill(modeling.DeepseekV4HashRouter(config),
                      {"weight": w, "tid2eid": values(case, "tid2eid")})
        _, weight, index = module(x, values(case, "token_ids"))
    else:
        module = modeling.DeepseekV4TopKRouter(make_config(config_of(case, **sizes)))
        _, weight, index = fill(module, {"weight": w, "e_score_correction_bias": values(case, "bias")})(x)
    return {"route_index": index, "route_weight": weight}


def expert(case):
    x, (I, D) = values(case, "x"), values(case, "w1").shape
    config = make_config(config_of(case, hidden_size=D, moe_intermediate_size=I, n_routed_experts=1))
    w1, w2, w3 = (values(case, k) for k in ("w1", "w2", "w3"))
    if "weight" not in case.inputs:
        module = fill(modeling.DeepseekV4MLP(config),
                      {"gate_proj.weight": w1, "down_proj.weight": w2, "up_proj.weight": w3})
        return {"y": module(x)}
    module = fill(modeling.DeepseekV4Experts(config),
                  {"gate_up_proj": torch.cat([w1, w3])[None], "down_proj": w2[None]})
    return {"y": module(x, torch.zeros(len(x), 1, dtype=torch.long), values(case, "weight")[:, None])}


def moe(case):
    config = make_config(config_of(case, **moe_sizes(case)))
    module = fill(modeling.DeepseekV4SparseMoeBlock(config, 0), moe_weights(case))
    return {"y": module(values(case, "x")[None], values(case, "token_ids")[None])[0]}


# ---- layers and models ---------------------------------------------------------------------------


def block(case):
    h, ids, ratio = values(case, "h"), values(case, "token_ids"), int(case.params["ratio"])
    config = make_config(config_of(case, **layer_sizes(case, "attn.") | moe_sizes(case)))
    layer = modeling.DeepseekV4DecoderLayer(config, 0)
    weights = {f"self_attn.{k}": v for k, v in attention_weights(case, ratio).items()}
    weights |= {f"mlp.{k}": v for k, v in moe_weights(case).items()}
    for k, norm in (("attn", "input_layernorm"), ("ffn", "post_attention_layernorm")):
        weights[f"{norm}.weight"] = values(case, f"{k}_norm")
        weights |= {f"{k}_hc.{part}": values(case, f"hc_{k}_{part}") for part in ("fn", "base", "scale")}
    fill(layer, weights)
    out = empty(case, "h_new")
    for calls in runs(case):
        cache = DynamicCache(config=config)
        for call in calls:
            streams = h[call.rows]
            arguments = layer_arguments(config, call, streams[:, :, 0], cache)
            scatter(out, call, layer(streams, input_ids=ids[call.rows], **arguments))
    return {"h_new": out}


MODELS = {}


def load_model(directory):
    """transformers maps the released names itself; the weights arrive dequantised."""
    if directory not in MODELS:
        official = json.loads((Path(directory) / "config.json").read_text())
        official.pop("quantization_config", None)
        with torch._C.DisableTorchFunction():  # it reads the file's own types
            weights = read_weights(Path(directory))
        model, loading = DeepseekV4ForCausalLM.from_pretrained(
            None, config=make_config(official), state_dict=weights,
            dtype=torch.float64, attn_implementation="eager", experts_implementation="eager",
            output_loading_info=True, ignore_mismatched_sizes=True)
        for problem, what in loading.items():
            if what:
                raise KeyError(f"{problem}: {sorted(what)[:3]}")
        MODELS[directory] = model.eval()
    return MODELS[directory]


def forward(case):
    model, ids = load_model(case.checkpoint), values(case, "token_ids")
    out = empty(case, "logits")
    for calls in runs(case):
        cache = DynamicCache(config=model.config)
        for call in calls:
            result = model(ids[call.rows], attention_mask=call.mask, position_ids=call.positions,
                           past_key_values=cache, use_cache=True)
            scatter(out, call, result.logits)
    return {"logits": out}


OPERATORS = {
    "linear_grouped": grouped, "rmsnorm": rmsnorm, "rmsnorm_head": rmsnorm_head,
    "rope_frequencies": rope_frequencies, "rope": rope, "rope_inverse": lambda case: rope(case, -1),
    "embed": embed, "mhc_mix": mhc_mix, "mhc_sinkhorn": mhc_sinkhorn, "mhc_post": mhc_post,
    "compressor_csa": compressor, "compressor_hca": compressor, "indexer_query": indexer_query,
    "indexer_score": indexer_score, "indexer_select": indexer_select, "core_attn": core_attn,
    "attention_output": attention_output, "attention_swa": attention, "attention_csa": attention,
    "attention_hca": attention, "gate_score": gate, "gate_hash": gate, "expert": expert, "moe": moe,
    "block": block, "head": head, "forward": forward,
}
QUANTISED = "its FP8 and FP4 code runs on accelerators only"
ABSENT = {
    "quant_e4m3_decode": QUANTISED, "quant_e4m3_encode": QUANTISED, "quant_e2m1_decode": QUANTISED,
    "quant_e2m1_encode": QUANTISED, "quant_e8m0_decode": QUANTISED, "linear_fp8": QUANTISED,
    "linear_fp4": QUANTISED, "linear_plain": "torch's own", "linear_f32": "torch's own",
    "hadamard": "left out by the package; it changes no score in exact numerics",
    "mhc_pre": "a line inside of HyperConnection, which mhc_mix runs",
    "compressor_entry": "the end of the compressors' functions, which compressor_csa and _hca run",
    "indexer_weights": "two lines inside of the scorer, which attention_csa runs",
    "mtp": "the package has no MTP: it ignores mtp.*", "muon": "no optimiser of its own",
}
UNSHOWN = [
    "The rotary width is int(head_dim * (qk_rope_head_dim / head_dim)), which is one less for some "
    "sizes (30 of 44); not for those of the released models.",
    "1e-20 is added to the sum of the chosen scores (gate logits of about -75 and less).",
    "sliding_window 1: decoding keeps all keys, and fails.",
    "original_max_position_embeddings 0 is divided by; compress_ratios other than 0, 4 and 128 need "
    "keys of its own.",
]
REMARKS = [
    "Indexer queries and keys are multiplied with the Hadamard matrix by the adapter: the package "
    "leaves the transform out, which changes no score.",
    "Matrices of FP8 and FP4 codes are dequantised by the adapter.",
    "mtp_logits are not offered: the package has no MTP.",
    "Left padding is given as generate() gives it: attention_mask, and position_ids that do not count it.",
]

if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    answer_all("transformers", transformers.__version__, OPERATORS, ABSENT, REMARKS, UNSHOWN)
