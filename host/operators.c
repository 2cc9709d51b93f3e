#include "operators.h"

#include <string.h>

static const struct { const char *name; int64_t size; } formats[DSV4_FORMATS] = {
    [DSV4_FORMAT_F64] = {"f64", 8},   [DSV4_FORMAT_F32] = {"f32", 4},
    [DSV4_FORMAT_BF16] = {"bf16", 4}, [DSV4_FORMAT_E4M3] = {"e4m3", 1},
    [DSV4_FORMAT_E2M1] = {"e2m1", 1}, [DSV4_FORMAT_E8M0] = {"e8m0", 1},
    [DSV4_FORMAT_I64] = {"i64", 8},
};

const char *dsv4_format_name(dsv4_format format)
{
    return formats[format].name;
}

int64_t dsv4_format_size(dsv4_format format)
{
    return formats[format].size;
}

/* Rows of the table. Inputs are required unless stated; outputs too. */
#define VALUES(name, dims) {name, DSV4_SLOT_VALUES, dims, false, DSV4_JUDGE_VALUES, NULL, NULL}
#define MAYBE(name, dims) {name, DSV4_SLOT_VALUES, dims, true, DSV4_JUDGE_VALUES, NULL, NULL}
#define INDICES(name, dims) {name, DSV4_SLOT_INDICES, dims, false, DSV4_JUDGE_VALUES, NULL, NULL}
#define MAYBE_INDICES(name, dims) \
    {name, DSV4_SLOT_INDICES, dims, true, DSV4_JUDGE_VALUES, NULL, NULL}
#define CODES(name, dims) {name, DSV4_SLOT_CODES, dims, false, DSV4_JUDGE_VALUES, NULL, NULL}
#define MATRIX(name, dims) {name, DSV4_SLOT_MATRIX, dims, false, DSV4_JUDGE_VALUES, NULL, NULL}
#define MAYBE_MATRIX(name, dims) {name, DSV4_SLOT_MATRIX, dims, true, DSV4_JUDGE_VALUES, NULL, NULL}
#define OUT(name, dims, rule) {name, DSV4_SLOT_VALUES, dims, false, DSV4_JUDGE_VALUES, NULL, rule}
#define MAYBE_OUT(name, dims, rule) \
    {name, DSV4_SLOT_VALUES, dims, true, DSV4_JUDGE_VALUES, NULL, rule}
#define SCALE(name, dims, rule) {name, DSV4_SLOT_VALUES, dims, false, DSV4_JUDGE_SCALE, NULL, rule}
#define CHOICE(name, dims, beside, rule) \
    {name, DSV4_SLOT_INDICES, dims, false, DSV4_JUDGE_SELECTION, beside, rule}
#define WEIGHTS(name, dims, beside, rule) \
    {name, DSV4_SLOT_VALUES, dims, false, DSV4_JUDGE_WEIGHTS, beside, rule}
#define END {NULL, DSV4_SLOT_VALUES, NULL, false, DSV4_JUDGE_VALUES, NULL, NULL}
#define SLOTS (const dsv4_slot[])

#define ROPE "qk_rope_head_dim rope_theta compress_rope_theta compressed factor " \
             "original_max_position_embeddings beta_fast beta_slow"
#define LAYER "rms_norm_eps " ROPE

/* The weights of layers. Names are those of the checkpoint without "layers.L.". */
#define ATTENTION \
    VALUES("attn.attn_sink", "H"), MATRIX("attn.wq_a", "Q D"), VALUES("attn.q_norm.weight", "Q"), \
    MATRIX("attn.wq_b", "H*d Q"), MATRIX("attn.wkv", "d D"), VALUES("attn.kv_norm.weight", "d"), \
    MATRIX("attn.wo_a", "g*o H*d/g"), MATRIX("attn.wo_b", "D g*o")
#define COMPRESSOR(one, prefix, width, head) \
    one(prefix "ape", "r " width), one(prefix "norm.weight", head), \
    one(prefix "wkv.weight", width " D"), one(prefix "wgate.weight", width " D")
#define INDEXER(matrix, one) \
    matrix("attn.indexer.wq_b", "n_i*d_i Q"), matrix("attn.indexer.weights_proj", "n_i D"), \
    COMPRESSOR(one, "attn.indexer.compressor.", "2*d_i", "d_i")
#define MIXTURE \
    VALUES("ffn.gate.weight", "E D"), MAYBE("ffn.gate.bias", "E"), \
    MAYBE_INDICES("ffn.gate.tid2eid", "V k"), MATRIX("ffn.experts.*.w1", "I D"), \
    MATRIX("ffn.experts.*.w2", "D I"), MATRIX("ffn.experts.*.w3", "I D"), \
    MATRIX("ffn.shared_experts.w1", "I D"), MATRIX("ffn.shared_experts.w2", "D I"), \
    MATRIX("ffn.shared_experts.w3", "I D")
#define HC(name) \
    VALUES(name "_fn", "(2+n)*n n*D"), VALUES(name "_base", "(2+n)*n"), VALUES(name "_scale", "3")
#define HC_HEAD \
    VALUES("hc_head_fn", "n n*D"), VALUES("hc_head_base", "n"), VALUES("hc_head_scale", "1")
#define BLOCK(compressor, matrix) \
    ATTENTION, COMPRESSOR(compressor, "attn.compressor.", "c*d", "d"), INDEXER(matrix, compressor), \
    VALUES("attn_norm.weight", "D"), VALUES("ffn_norm.weight", "D"), HC("hc_attn"), HC("hc_ffn"), \
    MIXTURE
#define SCHEDULE INDICES("sequence", "N"), INDICES("calls", "C")
#define ATTENTION_PARAMS "sliding_window num_attention_heads o_groups ratio " LAYER
#define GATE_PARAMS "num_experts_per_tok routed_scaling_factor norm_topk_prob"
#define MOE_PARAMS GATE_PARAMS " hash swiglu_limit"
#define HC_PARAMS "hc_mult hc_sinkhorn_iters hc_eps"
#define BLOCK_PARAMS ATTENTION_PARAMS " " MOE_PARAMS " " HC_PARAMS " index_n_heads index_topk batch"

#define ATTENTION_OUT \
    OUT("y", "N D", "attention.out.3"), MAYBE_OUT("q", "N H d", "attention.query.3"), \
    MAYBE_OUT("kv", "N d", "attention.kv.2"), END

const dsv4_operator dsv4_operators[] = {
    {"quant_e4m3_decode", "quant", "E4M3 codes to values", "",
     SLOTS{CODES("codes", "N"), END}, SLOTS{OUT("values", "N", "quant.e4m3.1"), END}},
    {"quant_e4m3_encode", "quant", "values to the nearest E4M3 values", "",
     SLOTS{VALUES("x", "N"), END}, SLOTS{OUT("values", "N", "quant.e4m3.2"), END}},
    {"quant_e2m1_decode", "quant", "packed E2M1 codes to values", "",
     SLOTS{CODES("codes", "N"), END}, SLOTS{OUT("values", "2*N", "quant.e2m1.1"), END}},
    {"quant_e2m1_encode", "quant", "values to the nearest E2M1 values", "",
     SLOTS{VALUES("x", "N"), END}, SLOTS{OUT("values", "N", "quant.e2m1.2"), END}},
    {"quant_e8m0_decode", "quant", "E8M0 bytes to scales", "",
     SLOTS{CODES("codes", "N"), END}, SLOTS{OUT("values", "N", "quant.e8m0.1"), END}},
    {"quant_act", "quant", "activations through FP8 and back, in blocks", "block",
     SLOTS{VALUES("x", "T K"), END}, SLOTS{OUT("y", "T K", "quant.act.3"), END}},
    {"quant_kv", "quant", "QDQ of a KV entry", "qk_rope_head_dim",
     SLOTS{VALUES("x", "T d"), END}, SLOTS{OUT("y", "T d", "quant.kv.1"), END}},
    {"quant_index", "quant", "QDQ of an indexer vector (after the Hadamard transform)", "",
     SLOTS{VALUES("x", "T d_i"), END}, SLOTS{OUT("y", "T d_i", "quant.index.2"), END}},

    {"linear_fp8", "linear", "product with an FP8 matrix", "",
     SLOTS{VALUES("x", "T K"), MATRIX("w", "O K"), END}, SLOTS{OUT("y", "T O", "linear.round.1"), END}},
    {"linear_fp4", "linear", "product with an FP4 matrix", "",
     SLOTS{VALUES("x", "T K"), MATRIX("w", "O K"), END}, SLOTS{OUT("y", "T O", "linear.round.1"), END}},
    {"linear_plain", "linear", "product with a plain matrix", "",
     SLOTS{VALUES("x", "T K"), MATRIX("w", "O K"), END}, SLOTS{OUT("y", "T O", "linear.plain.1"), END}},
    {"linear_f32", "linear", "a binary32 map", "",
     SLOTS{VALUES("x", "T K"), MATRIX("w", "O K"), END}, SLOTS{OUT("y", "T O", "linear.f32.1"), END}},
    {"linear_grouped", "linear", "each group of the input with its rows of the matrix", "o_groups",
     SLOTS{VALUES("x", "T g K"), MATRIX("w", "g*o K"), END},
     SLOTS{OUT("y", "T g*o", "linear.grouped.2"), END}},

    {"rmsnorm", "rmsnorm", "RMSNorm with a weight", "rms_norm_eps",
     SLOTS{VALUES("x", "T K"), VALUES("weight", "K"), END},
     SLOTS{OUT("y", "T K", "rmsnorm.weight.2"), END}},
    {"rmsnorm_head", "rmsnorm", "normalisation of query heads, without a weight", "rms_norm_eps",
     SLOTS{VALUES("x", "T H d"), END}, SLOTS{OUT("y", "T H d", "rmsnorm.head.2"), END}},
    {"rope_frequencies", "rope", "rotary frequencies, YaRN included", ROPE,
     SLOTS{END}, SLOTS{OUT("freq", "R/2", "rope.yarn.4"), END}},
    {"rope", "rope", "rotation of the last R values at positions", ROPE,
     SLOTS{VALUES("x", "T d"), INDICES("positions", "T"), END},
     SLOTS{OUT("y", "T d", "rope.rotate.2"), END}},
    {"rope_inverse", "rope", "rotation back", ROPE,
     SLOTS{VALUES("x", "T d"), INDICES("positions", "T"), END},
     SLOTS{OUT("y", "T d", "rope.inverse.1"), END}},
    {"hadamard", "hadamard", "Walsh-Hadamard transform", "",
     SLOTS{VALUES("x", "T d_i"), END}, SLOTS{OUT("y", "T d_i", "hadamard.scale.1"), END}},
    {"embed", "embed", "token ids to streams", "hc_mult",
     SLOTS{INDICES("token_ids", "T"), VALUES("embed.weight", "V D"), END},
     SLOTS{OUT("h", "T n D", "embed.streams.1"), END}},

    {"mhc_mix", "mhc", "pre, post and comb from the streams", "rms_norm_eps " HC_PARAMS,
     SLOTS{VALUES("x", "T n D"), VALUES("fn", "(2+n)*n n*D"), VALUES("base", "(2+n)*n"),
           VALUES("scale", "3"), END},
     SLOTS{OUT("pre", "T n", "mhc.mix.2"), OUT("post", "T n", "mhc.mix.3"),
           OUT("comb", "T n n", "mhc.sinkhorn.3"), END}},
    {"mhc_sinkhorn", "mhc", "logits to a doubly stochastic matrix", HC_PARAMS,
     SLOTS{VALUES("logits", "T n n"), END}, SLOTS{OUT("comb", "T n n", "mhc.sinkhorn.3"), END}},
    {"mhc_pre", "mhc", "streams to the sublayer's input", "hc_mult",
     SLOTS{VALUES("pre", "T n"), VALUES("x", "T n D"), END}, SLOTS{OUT("u", "T D", "mhc.pre.2"), END}},
    {"mhc_post", "mhc", "the sublayer's output to new streams", "hc_mult",
     SLOTS{VALUES("post", "T n"), VALUES("comb", "T n n"), VALUES("y", "T D"),
           VALUES("x", "T n D"), END},
     SLOTS{OUT("x_new", "T n D", "mhc.post.2"), END}},

    {"compressor_entry", "compressor", "a pooled entry to a finished one", "index ratio " LAYER,
     SLOTS{VALUES("pooled", "G d"), INDICES("group", "G"), VALUES("norm.weight", "d"), END},
     SLOTS{OUT("entries", "G d", "compressor.entry.4"), END}},
    {"compressor_csa", "compressor", "tokens to overlapping entries, in one call or several",
     "index ratio batch " LAYER,
     SLOTS{VALUES("x", "N D"), SCHEDULE, COMPRESSOR(VALUES, "", "2*d", "d"), END},
     SLOTS{OUT("entries", "G d", "compressor.entry.4"), END}},
    {"compressor_hca", "compressor", "tokens to entries of their own group, in one call or several",
     "index ratio batch " LAYER,
     SLOTS{VALUES("x", "N D"), SCHEDULE, COMPRESSOR(VALUES, "", "d", "d"), END},
     SLOTS{OUT("entries", "G d", "compressor.entry.4"), END}},

    {"indexer_query", "indexer", "indexer queries", "index_n_heads " ROPE,
     SLOTS{VALUES("qr", "T Q"), INDICES("positions", "T"), MATRIX("wq_b", "n_i*d_i Q"), END},
     SLOTS{OUT("iq", "T n_i d_i", "indexer.query.3"), END}},
    {"indexer_weights", "indexer", "the heads' weights", "index_n_heads index_head_dim",
     SLOTS{VALUES("x", "T D"), MATRIX("weights_proj", "n_i D"), END},
     SLOTS{SCALE("w", "T n_i", "indexer.weight.2"), END}},
    {"indexer_score", "indexer", "scores of all keys", "",
     SLOTS{VALUES("iq", "T n_i d_i"), VALUES("w", "T n_i"), VALUES("keys", "G d_i"), END},
     SLOTS{SCALE("score", "T G", "indexer.score.2"), END}},
    {"indexer_select", "indexer", "the best visible entries", "index_topk ratio",
     SLOTS{VALUES("score", "T G"), INDICES("positions", "T"), END},
     SLOTS{CHOICE("selected", "T k_i", "score", "indexer.select.2"), END}},

    {"core_attn", "core_attn", "softmax attention over listed entries, with a sink", "",
     SLOTS{VALUES("q", "T H d"), VALUES("entries", "M d"), INDICES("list", "T L"),
           VALUES("attn_sink", "H"), END},
     SLOTS{OUT("out", "T H d", "core_attn.out.1"), END}},
    {"attention_output", "attention", "rotation back, wo_a by groups, wo_b", "o_groups " ROPE,
     SLOTS{VALUES("core", "T H d"), INDICES("positions", "T"), MATRIX("wo_a", "g*o H*d/g"),
           MATRIX("wo_b", "D g*o"), END},
     SLOTS{OUT("y", "T D", "attention.out.3"), END}},
    {"attention_swa", "attention", "attention of an SWA layer", ATTENTION_PARAMS " batch",
     SLOTS{VALUES("x", "N D"), SCHEDULE, ATTENTION, END}, SLOTS{ATTENTION_OUT}},
    {"attention_csa", "attention", "attention of a CSA layer",
     ATTENTION_PARAMS " index_n_heads index_topk batch",
     SLOTS{VALUES("x", "N D"), SCHEDULE, ATTENTION,
           COMPRESSOR(VALUES, "attn.compressor.", "2*d", "d"), INDEXER(MATRIX, VALUES), END},
     SLOTS{ATTENTION_OUT}},
    {"attention_hca", "attention", "attention of an HCA layer", ATTENTION_PARAMS " batch",
     SLOTS{VALUES("x", "N D"), SCHEDULE, ATTENTION, COMPRESSOR(VALUES, "attn.compressor.", "d", "d"),
           END},
     SLOTS{ATTENTION_OUT}},

    {"gate_score", "gate", "experts by score, and their weights", GATE_PARAMS,
     SLOTS{VALUES("x", "T D"), VALUES("weight", "E D"), VALUES("bias", "E"), END},
     SLOTS{CHOICE("route_index", "T k", "biased", "gate.topk.1"),
           WEIGHTS("route_weight", "T k", "route_index", "gate.weight.2"),
           MAYBE_OUT("biased", "T E", "gate.topk.1"), END}},
    {"gate_hash", "gate", "experts by token id, and their weights", GATE_PARAMS,
     SLOTS{VALUES("x", "T D"), VALUES("weight", "E D"), INDICES("token_ids", "T"),
           INDICES("tid2eid", "V k"), END},
     SLOTS{CHOICE("route_index", "T k", NULL, "gate.hash.1"),
           WEIGHTS("route_weight", "T k", "route_index", "gate.weight.2"), END}},
    {"expert", "expert", "one expert: clamped SwiGLU; without `weight`, the shared one",
     "swiglu_limit",
     SLOTS{VALUES("x", "T D"), MAYBE("weight", "T"), MATRIX("w1", "I D"), MATRIX("w2", "D I"),
           MATRIX("w3", "I D"), END},
     SLOTS{OUT("y", "T D", "expert.out.1"), END}},
    {"moe", "moe", "the mixture of experts of a layer", MOE_PARAMS,
     SLOTS{VALUES("x", "T D"), INDICES("token_ids", "T"), MIXTURE, END},
     SLOTS{OUT("y", "T D", "moe.round.1"), END}},
    {"block", "block", "one layer", BLOCK_PARAMS,
     SLOTS{VALUES("h", "N n D"), INDICES("token_ids", "N"), SCHEDULE, BLOCK(MAYBE, MAYBE_MATRIX),
           END},
     SLOTS{OUT("h_new", "N n D", "block.moe.1"), END}},
    {"head", "head", "streams to logits", "rms_norm_eps hc_mult hc_eps",
     SLOTS{VALUES("h", "T n D"), HC_HEAD, VALUES("norm.weight", "D"), VALUES("head.weight", "V D"),
           END},
     SLOTS{OUT("logits", "T V", "head.logits.1"), END}},
    {"mtp", "mtp", "streams and the next token to the logits after it", BLOCK_PARAMS,
     SLOTS{VALUES("h", "N n D"), INDICES("next_ids", "N"), SCHEDULE, BLOCK(MAYBE, MAYBE_MATRIX),
           MATRIX("e_proj", "D D"), MATRIX("h_proj", "D D"), VALUES("enorm.weight", "D"),
           VALUES("hnorm.weight", "D"), VALUES("norm.weight", "D"), HC_HEAD,
           VALUES("embed.weight", "V D"), VALUES("head.weight", "V D"),
           /* not to be used: what an engine may take for MTP's own */
           MAYBE("main.norm.weight", "D"), MAYBE("main.hc_head_fn", "n n*D"),
           MAYBE("main.hc_head_base", "n"), MAYBE("main.hc_head_scale", "1"), END},
     SLOTS{OUT("logits", "N V", "mtp.head.1"), MAYBE_OUT("q", "N H d", "attention.query.3"),
           MAYBE_OUT("kv", "N d", "attention.kv.2"), END}},
    {"forward", "forward", "a whole model, in one call or several", "batch",
     SLOTS{INDICES("token_ids", "N"), SCHEDULE, END},
     SLOTS{OUT("logits", "N V", "forward.head.1"), MAYBE_OUT("mtp_logits", "N V", "mtp.head.1"),
           END}},
    {"muon", "muon", "one step of the optimiser",
     "momentum learning_rate weight_decay rescale",
     SLOTS{VALUES("G", "rows cols"), VALUES("B", "rows cols"), VALUES("M", "rows cols"), END},
     SLOTS{OUT("B_new", "rows cols", "muon.momentum.1"),
           OUT("M_new", "rows cols", "muon.update.1"), END}},
};

const int dsv4_operator_count = sizeof dsv4_operators / sizeof *dsv4_operators;

const dsv4_operator *dsv4_operator_find(const char *name)
{
    for (int i = 0; i < dsv4_operator_count; i++)
        if (strcmp(dsv4_operators[i].name, name) == 0)
            return &dsv4_operators[i];
    return NULL;
}
