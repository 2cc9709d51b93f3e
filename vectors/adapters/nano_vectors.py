#!/usr/bin/env python3
"""Answers of the PyPI package nano-deepseek-v4 to the golden vectors (exact), in float64.

    nano_vectors.py VECTORS OUT.h5 NOTES.json

Then: dsv4 verify --candidate OUT.h5 --numerics exact. Its code runs as it is; where an operator is only
a part of a function, the function runs with stand-ins for its other parts.
"""

import importlib.metadata
import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from adapter import (Float64, Skip, answer_all, config_of, empty, fill, hadamard, layer_sizes,
                     moe_sizes, runs, scatter, tensor, values)
import nano_deepseek_v4 as nano
from nano_deepseek_v4 import modeling

KINDS = {0: "sliding_attention", 4: "compressed_sparse_attention"}
HCA = "heavily_compressed_attention"


def make_config(config):
    """DeepSeekV4Config of one layer. nano takes HCA ratios other than 128 only by keys of its own."""
    config = dict(config)
    ratio = config["compress_ratios"][0]
    kind = KINDS.get(ratio, HCA)
    config["compress_rate_hca"] = ratio if kind == HCA else 128
    if config["compress_rate_hca"] == 4:
        raise Skip("an HCA layer of ratio 4")
    try:
        return nano.DeepSeekV4Config.from_official_json(config)
    except ValueError as refusal:
        raise Skip(f"refused: {refusal}")


class Give(nn.Module):
    """A stand-in that returns what it was made of."""

    def __init__(self, *result):
        super().__init__()
        self.result = result

    def forward(self, *args, **kwargs):
        return self.result if len(self.result) > 1 else self.result[0]


class Spy(Float64):
    """Keeps the first argument of the last call of each function."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen[getattr(function, "__name__", "")] = args[0] if args else None
        return super().__torch_function__(function, types, args, kwargs)


# ---- weights -------------------------------------------------------------------------------------

COMPRESSOR = {"kv_proj.weight": "wkv", "gate_proj.weight": "wgate", "position_bias": "ape",
              "norm.weight": "norm"}
ATTENTION = {"q_a_proj.weight": "wq_a", "q_a_norm.weight": "q_norm", "q_b_proj.weight": "wq_b",
             "kv_proj.weight": "wkv", "kv_norm.weight": "kv_norm", "attention_sink": "attn_sink",
             "o_a_proj.weight": "wo_a", "o_b_proj.weight": "wo_b"}


def attention_weights(case, ratio, prefix=""):
    weights = {name: values(case, prefix + slot) for name, slot in ATTENTION.items()}
    kind = {0: None, 4: "csa"}.get(ratio, "hca")
    if kind is not None:
        weights |= {f"{kind}.{name}": values(case, f"{prefix}compressor.{slot}")
                    for name, slot in COMPRESSOR.items()}
    if kind == "csa":
        weights |= {f"csa.indexer.{name}": values(case, f"{prefix}indexer.compressor.{slot}")
                    for name, slot in COMPRESSOR.items()}
        weights["csa.indexer.q_b_proj.weight"] = values(case, f"{prefix}indexer.wq_b")
        weights["csa.indexer.weights_proj.weight"] = values(case, f"{prefix}indexer.weights_proj")
    return weights


def expert_weights(case, prefix):
    return {"gate_up_proj.weight": torch.cat([values(case, prefix + "w1"), values(case, prefix + "w3")]),
            "down_proj.weight": values(case, prefix + "w2")}


def moe_weights(case):
    weights = {"gate.weight": values(case, "ffn.gate")}
    if case.params["hash"]:
        weights["tid2eid"] = values(case, "ffn.gate.tid2eid")
    else:
        weights["e_score_correction_bias"] = values(case, "ffn.gate.bias")
    experts = {f"experts.{e}.": f"ffn.experts.{e}." for e in range(weights["gate.weight"].shape[0])}
    for name, slot in (experts | {"shared_experts.0.": "ffn.shared_experts."}).items():
        weights |= {name + key: value for key, value in expert_weights(case, slot).items()}
    return weights


# ---- quantised weights ---------------------------------------------------------------------------


def dequantised(case, slot):
    """A matrix of codes by nano's own decoding."""
    weight, scale = tensor_of_codes(case, f"{slot}.weight"), tensor_of_codes(case, f"{slot}.scale")
    fp4 = case.formats[f"in/{slot}.weight"] == "e2m1"
    shape = (weight.shape[0], weight.shape[1] * (2 if fp4 else 1))
    scale = scale.view(torch.float8_e8m0fnu)
    if not fp4:
        weight = weight.view(torch.float8_e4m3fn)
    return nano.dequantize_with_scale(weight, scale, shape)


def tensor_of_codes(case, name):
    return torch.from_numpy(case.inputs[name].copy())


def linear_of_codes(case):
    return {"y": F.linear(tensor(case.inputs["x"]), dequantised(case, "w"))}


def decode_e4m3(case):
    codes = tensor_of_codes(case, "codes").view(torch.float8_e4m3fn)
    return {"values": nano.dequantize_with_scale(codes, torch.ones(1, 1), codes.shape).flatten()}


def decode_e2m1(case):
    codes = tensor_of_codes(case, "codes")
    return {"values": nano.dequantize_with_scale(codes, torch.tensor(1.), (2 * len(codes),))}


def grouped(case):
    w, x = values(case, "w"), values(case, "x")
    module = modeling.GroupedLinear(x.shape[1] * x.shape[2], w.shape[0] // x.shape[1], x.shape[1])
    return {"y": fill(module, {"weight": w})(x.flatten(1))}


# ---- small operators -----------------------------------------------------------------------------


def rmsnorm(case):
    weight = values(case, "weight")
    return {"y": fill(modeling.RMSNorm(len(weight), case.params["rms_norm_eps"]),
                      {"weight": weight})(values(case, "x"))}


def rmsnorm_head(case):
    return {"y": modeling.UnweightedRMSNorm(case.params["rms_norm_eps"])(values(case, "x"))}


def angles(case, positions):
    """As DeepSeekV4Attention and the compressors call it: theta by the kind of layer, nothing else."""
    theta = case.params["compress_rope_theta" if case.params["compressed"] else "rope_theta"]
    return modeling.rope_cos_sin(positions, int(case.params["qk_rope_head_dim"]), theta)


def rope_frequencies(case):
    cos, sin = angles(case, torch.tensor([[1]]))
    return {"freq": torch.atan2(sin, cos)[0, 0]}


def rope(case, sign=1):
    cos, sin = angles(case, values(case, "positions")[None])
    return {"y": modeling.apply_partial_rope(values(case, "x")[None, None], cos, sign * sin)[0, 0]}


def embed(case):
    weight = values(case, "embed")
    config = make_config(config_of(case, vocab_size=max(2, weight.shape[0]), hidden_size=weight.shape[1],
                                   num_hidden_layers=1))
    model = modeling.DeepSeekV4Model(config)
    fill(model.embed_tokens, {"weight": weight})
    given = {}

    class Keep(nn.Module):
        def forward(self, streams, *args):
            given["h"] = streams
            return streams, None

    model.layers = nn.ModuleList([Keep()])
    model(values(case, "token_ids")[None])
    return {"h": given["h"][0]}


# ---- hyper-connections ---------------------------------------------------------------------------


def mhc_mix(case):
    x = values(case, "x")
    module = modeling.HyperConnection(make_config(config_of(case, hidden_size=x.shape[2])))
    post, comb, collapsed = fill(module, {k: values(case, k) for k in ("fn", "base", "scale")})(x[None])
    # pre leaves it only as u = pre x: solved for pre.
    pre = torch.linalg.lstsq(x.transpose(1, 2), collapsed[0][..., None]).solution[..., 0]
    return {"pre": pre, "post": post[0], "comb": comb[0]}


def mhc_sinkhorn(case):
    logits = values(case, "logits")
    T, n, _ = logits.shape
    module = modeling.HyperConnection(make_config(config_of(case)))
    comb = torch.empty_like(logits)
    for t in range(T):
        base = torch.cat([torch.zeros(2 * n), logits[t].flatten()])
        fill(module, {"fn": torch.zeros_like(module.fn), "base": base, "scale": torch.ones(3)})
        comb[t] = module(torch.ones(1, 1, n, 8))[1][0, 0]
    return {"comb": comb}


def mhc_post(case):
    x, n = values(case, "x"), int(case.params["hc_mult"])
    layer = modeling.DeepSeekV4DecoderLayer(make_config(config_of(case, hidden_size=x.shape[2])), 0)
    zeros = torch.zeros(1, len(x), x.shape[2])
    layer.attn_hc = Give(values(case, "post")[None], values(case, "comb")[None], zeros)
    layer.self_attn = Give(values(case, "y")[None])
    layer.ffn_hc = Give(torch.zeros(1, len(x), n), torch.eye(n).expand(1, len(x), n, n), zeros)
    layer.moe = Give(zeros, zeros)
    return {"x_new": layer(x[None], None, torch.arange(len(x))[None], None)[0][0]}


def head(case):
    h, w = values(case, "h"), values(case, "head")
    config = make_config(config_of(case, hidden_size=h.shape[2], vocab_size=w.shape[0]))
    collapse = fill(modeling.HyperHead(config),
                    {k: values(case, f"hc_head_{k}") for k in ("fn", "base", "scale")})
    norm = fill(modeling.RMSNorm(config.hidden_size, config.rms_norm_eps), {"weight": values(case, "norm")})
    return {"logits": F.linear(norm(collapse(h[None]))[0], w)}


# ---- compressors, indexer ------------------------------------------------------------------------


def compressor(case):
    x, ape, r = values(case, "x"), values(case, "ape"), int(case.params["ratio"])
    index, csa = bool(case.params["index"]), case.operator == "compressor_csa"
    d, N = values(case, "norm").shape[0], len(case.inputs["sequence"])
    config = make_config(config_of(case, hidden_size=x.shape[1], head_dim=d, index_head_dim=d))
    weights = {name: values(case, slot) for name, slot in COMPRESSOR.items()}
    if csa and index:
        module = make_indexer(config, weights)
    elif csa:
        module = modeling.CSACompressor(config)
        module.indexer = Give(None, None)
        fill(module, weights)
    else:
        module = fill(modeling.HCACompressor(config), weights)
    entries = {}
    for calls in runs(case):
        cache = modeling.DeepSeekV4LayerCache()
        for call in calls:
            u = x[call.rows]
            if csa and index:
                made = module._compress(u, call.positions, cache)[0]
            elif csa:
                made = module(u, None, call.positions, cache)[0][:, 0]
            else:
                made = module(u, call.positions, cache)[0][:, 0]
        for b, rows in enumerate(calls[-1].rows):
            s, length = int(case.inputs["sequence"][rows[-1]]), int(calls[-1].seen[b].sum())
            entries[s] = made[b, :length // r]
    entries = torch.cat([entries[s] for s in sorted(entries)])
    return {"entries": hadamard(entries) if index else entries}


def make_indexer(config, weights):
    module = modeling.CSAIndexer(config)
    zeros = {k: torch.zeros_like(v) for k, v in module.named_parameters()}
    return fill(module, zeros | weights)


def indexer_query(case):
    wq_b, qr = values(case, "wq_b"), values(case, "qr")
    n_i, T = int(case.params["index_n_heads"]), len(qr)
    d_i, R = wq_b.shape[0] // n_i, int(case.params["qk_rope_head_dim"])
    config = make_config(config_of(case, q_lora_rank=qr.shape[1], index_head_dim=d_i, head_dim=2 * R))
    module = make_indexer(config, {"q_b_proj.weight": wq_b})
    module._compress = lambda *args: (torch.zeros(1, 1, d_i), torch.zeros(1, 1, dtype=torch.long))
    with Spy() as spy:
        module(torch.zeros(1, T, config.hidden_size), qr[None], values(case, "positions")[None])
    return {"iq": hadamard(spy.seen["matmul"][0])}


def indexer_score(case):
    iq, w, keys = (values(case, k) for k in ("iq", "w", "keys"))
    T, n_i, d_i = iq.shape
    config = make_config(config_of(case, index_n_heads=n_i, index_head_dim=d_i, hidden_size=n_i,
                                   q_lora_rank=n_i * d_i))
    module = make_indexer(config, {"q_b_proj.weight": torch.eye(n_i * d_i),
                                   "weights_proj.weight": torch.eye(n_i)})
    module._compress = lambda *args: (keys[None], torch.zeros(1, len(keys), dtype=torch.long))
    with Spy() as spy:  # at position 0, where nothing turns and, by their ends, all keys are visible
        module(w[None], iq.flatten(1)[None], torch.zeros(1, T, dtype=torch.long))
    return {"score": spy.seen["topk"][0]}


def indexer_select(case):
    """Two heads over keys that are unit vectors, weighing 1 and -1: relu(s) - relu(-s) is any score s."""
    score, positions = values(case, "score"), values(case, "positions")
    T, G = score.shape
    k, r = min(int(case.params["index_topk"]), G), int(case.params["ratio"])
    config = make_config(config_of(case, index_n_heads=2, index_head_dim=G, hidden_size=2, q_lora_rank=2 * G))
    module = make_indexer(config, {"q_b_proj.weight": torch.eye(2 * G), "weights_proj.weight": torch.eye(2)})
    module.rope_dim = 0
    ends = (torch.arange(1, G + 1) * r - 1)[None]
    module._compress = lambda *args: (torch.eye(G)[None], ends)
    heads = torch.cat([score.clamp(min=0), (-score).clamp(min=0)], 1)
    mask, _ = module(torch.tensor([1., -1.]).expand(1, T, 2), heads[None], positions[None])
    selected = torch.full((T, k), -1)
    for t in range(T):
        kept = mask[0, t].nonzero().flatten()
        selected[t, :len(kept)] = kept
    return {"selected": selected}


# ---- attention -----------------------------------------------------------------------------------


def core_attn(case):
    q, entries, listed = values(case, "q"), values(case, "entries"), values(case, "list")
    T, H, d = q.shape
    module = modeling.DeepSeekV4Attention(make_config(config_of(case, num_attention_heads=H, head_dim=d,
                                                                o_groups=1)), "sliding_attention").eval()
    module.attention_sink.data = values(case, "attn_sink")
    e = entries[listed.clamp(min=0)][:, None].expand(T, H, -1, d)
    return {"out": module._core_attention(q[:, :, None], e, e, (listed >= 0)[:, None])[:, :, 0]}


def attention_output(case):
    core, wo_a, wo_b = (values(case, k) for k in ("core", "wo_a", "wo_b"))
    T, H, d = core.shape
    g = int(case.params["o_groups"])
    config = make_config(config_of(case, num_attention_heads=H, head_dim=d, hidden_size=len(wo_b),
                                   o_lora_rank=len(wo_a) // g))
    module = modeling.DeepSeekV4Attention(config, config.layer_types[0]).eval()
    module.hca = Give(torch.zeros(1, 1, 0, d), None)
    fill(module.o_a_proj, {"weight": wo_a})
    fill(module.o_b_proj, {"weight": wo_b})
    module._core_attention = lambda *args: core.transpose(0, 1)[None]
    return {"y": module(torch.zeros(1, T, len(wo_b)), values(case, "positions")[None])[0]}


def recorded(forward):
    """Calls it -> its result, and the results of apply_partial_rope on the way: the first two calls of
    an attention rotate q and kv."""
    original, kept = modeling.apply_partial_rope, []

    def keep(*args):
        kept.append(original(*args))
        return kept[-1]

    modeling.apply_partial_rope = keep
    try:
        return forward(), kept
    finally:
        modeling.apply_partial_rope = original


def attention(case):
    x, ratio = values(case, "x"), int(case.params["ratio"])
    config = make_config(config_of(case, **layer_sizes(case, "attn.")))
    module = modeling.DeepSeekV4Attention(config, config.layer_types[0])
    fill(module, attention_weights(case, ratio, "attn."))
    out = {slot: empty(case, slot) for slot in ("y", "q", "kv")}
    for calls in runs(case):
        cache = modeling.DeepSeekV4LayerCache()
        for call in calls:
            y, turned = recorded(lambda: module(x[call.rows], call.positions, call.mask, cache))
            scatter(out["y"], call, y)
            scatter(out["q"], call, turned[0].transpose(1, 2))
            scatter(out["kv"], call, turned[1][:, 0])
    return out


# ---- experts -------------------------------------------------------------------------------------


def gate(case):
    x, w = values(case, "x"), values(case, "weight")
    hashed = case.operator == "gate_hash"
    sizes = dict(hidden_size=x.shape[1], n_routed_experts=len(w), num_hash_layers=int(hashed))
    if hashed:
        sizes["vocab_size"] = len(case.inputs["tid2eid"])
    config = make_config(config_of(case, **sizes) | {"num_hash_layers": int(hashed)})
    config.norm_topk_prob = bool(case.params["norm_topk_prob"])
    module = modeling.DeepSeekV4MoE(config, "hash_moe" if hashed else "moe")
    fill(module.gate, {"weight": w})
    if hashed:
        module.set_hash_routing_table(values(case, "tid2eid"))
    else:
        module.e_score_correction_bias.copy_(values(case, "bias"))
    ids = values(case, "token_ids")[None] if hashed else None
    index, weight, _ = module.route(x[None], ids)
    return {"route_index": index[0], "route_weight": weight[0]}


def expert(case):
    x, (I, D) = values(case, "x"), values(case, "w1").shape
    config = make_config(config_of(case, hidden_size=D, moe_intermediate_size=I, n_routed_experts=1))
    module = modeling.SwiGLUExpert(config)
    fill(module, expert_weights(case, ""))
    if "weight" not in case.inputs:
        return {"y": module(x)}
    # The routing weight is applied by the mixture: one of a single expert, and no shared one.
    config.n_shared_experts = 0
    moe = modeling.DeepSeekV4MoE(config, "moe")
    moe.experts = nn.ModuleList([module])
    moe.route = lambda *args: (torch.zeros(1, len(x), 1, dtype=torch.long),
                               values(case, "weight")[None, :, None], None)
    return {"y": moe(x[None], None)[0][0]}


def moe(case):
    config = make_config(config_of(case, **moe_sizes(case)))
    module = fill(modeling.DeepSeekV4MoE(config, config.mlp_layer_types[0]), moe_weights(case))
    return {"y": module(values(case, "x")[None], values(case, "token_ids")[None])[0][0]}


# ---- layers and models ---------------------------------------------------------------------------


def layer_weights(case):
    weights = {f"self_attn.{k}": v
               for k, v in attention_weights(case, int(case.params["ratio"]), "attn.").items()}
    weights |= {f"moe.{k}": v for k, v in moe_weights(case).items()}
    for k in ("attn", "ffn"):
        weights[f"{k}_norm.weight"] = values(case, f"{k}_norm")
        weights |= {f"{k}_hc.{part}": values(case, f"hc_{k}_{part}") for part in ("fn", "base", "scale")}
    return weights


def block(case):
    h, ids = values(case, "h"), values(case, "token_ids")
    config = make_config(config_of(case, **layer_sizes(case, "attn.") | moe_sizes(case)))
    layer = modeling.DeepSeekV4DecoderLayer(config, 0)
    fill(layer, layer_weights(case))
    out = empty(case, "h_new")
    for calls in runs(case):
        cache = modeling.DeepSeekV4LayerCache()
        for call in calls:
            scatter(out, call, layer(h[call.rows], ids[call.rows], call.positions, call.mask, cache)[0])
    return {"h_new": out}


def mtp(case):
    """The module takes what the head matrix gets of the main model. As in every released model layer 0,
    like which it is built, routes by token id; it runs whole sequences, without a cache."""
    if "main.norm.weight" not in case.inputs:
        raise Skip("it takes the main model's collapsed and normed vector, which this case has not")
    h, next_ids, embedding = values(case, "h"), values(case, "next_ids"), values(case, "embed")
    if case.params["hash"] or "batch" in case.params:
        raise Skip("it has no table of token ids for MTP, and no mask")
    sizes = layer_sizes(case, "attn.") | moe_sizes(case) | {"vocab_size": len(embedding)}
    official = config_of(case, **sizes) | {"num_hash_layers": 1}
    module = modeling.DeepSeekV4MTPModule(make_config(official), 0)
    weights = {f"layer.{k}": v for k, v in layer_weights(case).items()}
    weights |= {f"{k}.weight": values(case, k) for k in ("enorm", "hnorm", "e_proj", "h_proj", "norm")}
    weights |= {f"hc_head.{k}": values(case, f"hc_head_{k}") for k in ("fn", "base", "scale")}
    fill(module, weights)
    collapse = fill(modeling.HyperHead(module.layer.self_attn.config),
                    {k: values(case, f"main.hc_head_{k}") for k in ("fn", "base", "scale")})
    norm = fill(modeling.RMSNorm(h.shape[2], case.params["rms_norm_eps"]),
                {"weight": values(case, "main.norm")})
    out = {slot: empty(case, slot) for slot in ("logits", "q", "kv") if slot in case.outputs}
    for calls in runs(case):
        rows = torch.cat([call.rows[0] for call in calls])
        future = next_ids[rows]
        ids = torch.cat([future[:1], future[:-1]])  # the next token of the row before
        v = norm(collapse(h[rows][None]))
        positions = torch.arange(len(rows))[None]
        result, turned = recorded(lambda: module(v, embedding[future][None], ids[None], positions))
        out["logits"][rows] = F.linear(result[0], values(case, "head"))
        if "q" in out:
            out["q"][rows], out["kv"][rows] = turned[0][0].transpose(0, 1), turned[1][0, 0]
    return out


MODELS = {}


def load_model(directory):
    if directory not in MODELS:
        official = json.loads((Path(directory) / "config.json").read_text())
        ratios = official["compress_ratios"][:official["num_hidden_layers"]]
        hca = {r for r in ratios if r not in (0, 4)}
        if len(hca) > 1:
            raise Skip("HCA ratios of several sizes")
        official["compress_ratios"] = ratios
        official["compress_rate_hca"] = hca.pop() if hca else 128
        with torch._C.DisableTorchFunction():  # it reads the file's own types
            model = nano.DeepSeekV4ForCausalLM(nano.DeepSeekV4Config.from_official_json(official))
            report = nano.load_deepseek_official_checkpoint(model, directory)
            if report.conversion.unconverted_keys:
                raise KeyError(f"not read: {report.conversion.unconverted_keys[:3]}")
        MODELS[directory] = model.double().eval()
    return MODELS[directory]


def forward(case):
    model, ids = load_model(case.checkpoint), values(case, "token_ids")
    out = {"logits": empty(case, "logits")}
    for calls in runs(case):
        cache = None
        for call in calls:
            result = model(ids[call.rows], attention_mask=call.mask, position_ids=call.positions,
                           past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            scatter(out["logits"], call, result.logits)
    # MTP runs in training only: a whole sequence with labels, without a cache or a mask.
    if "mtp_logits" in case.outputs and "batch" not in case.params:
        out["mtp_logits"] = empty(case, "mtp_logits")
        for calls in runs(case):
            rows = torch.cat([call.rows[0] for call in calls])
            # It wants three tokens; later ones change nothing before.
            whole = torch.cat([ids[rows], torch.zeros(2, dtype=torch.long)])[None]
            logits = model(whole, labels=whole).mtp_logits[0][0]
            out["mtp_logits"][rows[:-1]] = logits[:len(rows) - 1]
            out["mtp_logits"][rows[-1]] = 0
    return out


def muon(case):
    G, B, M = (values(case, k) for k in ("G", "B", "M"))
    p = case.params
    weight = nn.Parameter(M.clone())
    optimiser = nano.Muon([weight], lr=p["learning_rate"], momentum=p["momentum"],
                          weight_decay=p["weight_decay"], update_rescale=p["rescale"])
    weight.grad = G.clone()
    optimiser.state[weight]["momentum_buffer"] = B.clone()
    optimiser.step()
    return {"B_new": optimiser.state[weight]["momentum_buffer"], "M_new": weight.detach()}


OPERATORS = {
    "quant_e4m3_decode": decode_e4m3, "quant_e2m1_decode": decode_e2m1,
    "linear_fp8": linear_of_codes, "linear_fp4": linear_of_codes, "linear_grouped": grouped,
    "rmsnorm": rmsnorm, "rmsnorm_head": rmsnorm_head, "rope_frequencies": rope_frequencies,
    "rope": rope, "rope_inverse": lambda case: rope(case, -1), "embed": embed, "mhc_mix": mhc_mix,
    "mhc_sinkhorn": mhc_sinkhorn, "mhc_post": mhc_post, "compressor_csa": compressor,
    "compressor_hca": compressor, "indexer_query": indexer_query, "indexer_score": indexer_score,
    "indexer_select": indexer_select, "core_attn": core_attn, "attention_output": attention_output,
    "attention_swa": attention, "attention_csa": attention, "attention_hca": attention,
    "gate_score": gate, "gate_hash": gate, "expert": expert, "moe": moe, "block": block, "head": head,
    "mtp": mtp, "forward": forward, "muon": muon,
}
ABSENT = {
    "quant_e4m3_encode": "no quantiser: the package only decodes",
    "quant_e2m1_encode": "no quantiser: the package only decodes",
    "quant_e8m0_decode": "torch's own type",
    "linear_plain": "torch's own", "linear_f32": "torch's own",
    "hadamard": "left out by the package; it changes no score in exact numerics",
    "mhc_pre": "a line inside of HyperConnection, which mhc_mix runs",
    "compressor_entry": "the end of the compressors' functions, which compressor_csa and _hca run",
    "indexer_weights": "two lines inside of the indexer, which attention_csa runs",
}
UNSHOWN = [
    "The MTP layer takes the attention kind of layer 0, which in Pro is HCA; then it has a compressor "
    "of random weights.",
    "After `DeepSeekV4Cache.crop` the overlapping half of the next CSA entry, and index key, is pooled "
    "without ape.",
    "The FP8 codes of NaN, stored as bytes, are read as 480.",
    "Muon raises a norm of the update below 1e-7 to 1e-7; as parameters, wo_a is flattened the other "
    "way, and w1 and w3 are orthogonalised as one matrix.",
]
REMARKS = [
    "Indexer queries and keys are multiplied with the Hadamard matrix by the adapter: the package "
    "leaves the transform out, which changes no score.",
    "mtp_logits come from a whole pass with labels, since the package runs MTP in training only; not "
    "for batches, for which it has no mask there.",
    "Left padding is given as attention_mask and position_ids that do not count it.",
]

if __name__ == "__main__":
    answer_all("nano-deepseek-v4", importlib.metadata.version("nano-deepseek-v4"), OPERATORS,
               ABSENT, REMARKS, UNSHOWN)
