#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "files.h"
#include "host/model.h"

/* One layer of each kind and an MTP layer; the first layer is a hash layer. */
static const char base[] =
    "{\"hidden_size\": 64, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"head_dim\": 32,"
    " \"q_lora_rank\": 32, \"qk_rope_head_dim\": 16, \"o_groups\": 2, \"o_lora_rank\": 16,"
    " \"sliding_window\": 8, \"index_n_heads\": 2, \"index_head_dim\": 16, \"index_topk\": 4,"
    " \"moe_intermediate_size\": 96, \"n_routed_experts\": 3, \"num_experts_per_tok\": 2,"
    " \"num_hash_layers\": 1, \"routed_scaling_factor\": 1.5, \"swiglu_limit\": 3,"
    " \"hc_mult\": 2, \"hc_sinkhorn_iters\": 2, \"hc_eps\": 0.25, \"rms_norm_eps\": 0.125,"
    " \"rope_theta\": 10000, \"compress_rope_theta\": 160000.0,"
    " \"max_position_embeddings\": 999, \"vocab_size\": 10, \"compress_ratios\": [0, 4, 128, 0],"
    " \"num_nextn_predict_layers\": 1}";

/* The same with widths that released numerics can quantise. */
#define RELEASED_WIDTHS                                                                            \
    "hidden_size", "128", "q_lora_rank", "128", "head_dim", "80", "o_lora_rank", "64",             \
        "index_head_dim", "32", "moe_intermediate_size", "128"

/* A checkpoint directory in the making. */
typedef struct {
    char *directory;
    dsv4_config config;
    stored_tensors list;
} checkpoint;

static void parse(dsv4_config *config, const char *text)
{
    dsv4_error err = {0};
    if (dsv4_config_parse(config, text, strlen(text), "here", &err) != 0)
        fail_msg("%s", err.text);
}

static checkpoint start(const char *const changes[],
                        void fill(stored_tensors *, const dsv4_config *))
{
    checkpoint c = {.directory = files_directory()};
    char *text = files_json(base, changes);
    files_write_text(c.directory, "config.json", text);
    parse(&c.config, text);
    free(text);
    fill(&c.list, &c.config);
    return c;
}

static void finish(checkpoint *c)
{
    stored_free(&c->list);
    dsv4_config_free(&c->config);
    files_remove(c->directory);
}

static void open_model(dsv4_model *model, const checkpoint *c, dsv4_numerics numerics, bool mtp)
{
    stored_write(&c->list, c->directory, "model.safetensors");
    dsv4_error err = {0};
    if (dsv4_model_open(model, c->directory, numerics, mtp, &err) != 0)
        fail_msg("%s", err.text);
}

static void accept(const checkpoint *c, dsv4_numerics numerics)
{
    dsv4_model model;
    open_model(&model, c, numerics, true);
    dsv4_model_close(&model);
}

/* Refused by one line that has `expected` in it; and nothing is left behind. */
static void refuse(const checkpoint *c, dsv4_numerics numerics, const char *expected)
{
    stored_write(&c->list, c->directory, "model.safetensors");
    dsv4_error err = {0};
    dsv4_model model;
    if (dsv4_model_open(&model, c->directory, numerics, true, &err) == 0)
        fail_msg("accepted, expected '%s'", expected);
    if (strstr(err.text, expected) == NULL ||
        strncmp(err.text, c->directory, strlen(c->directory)) != 0)
        fail_msg("expected '%s', got '%s'", expected, err.text);
    static const dsv4_model empty;
    assert_memory_equal(&model, &empty, sizeof model);
}

/* A configuration with many different sizes; its tensors were listed from the specification,
 * without this program. */
static const char all_different[] =
    "{\"hidden_size\": 36, \"num_hidden_layers\": 3, \"num_attention_heads\": 6, \"head_dim\": 20,"
    " \"q_lora_rank\": 12, \"qk_rope_head_dim\": 8, \"o_groups\": 3, \"o_lora_rank\": 5,"
    " \"sliding_window\": 9, \"index_n_heads\": 2, \"index_head_dim\": 16, \"index_topk\": 7,"
    " \"moe_intermediate_size\": 22, \"n_routed_experts\": 2, \"num_experts_per_tok\": 1,"
    " \"num_hash_layers\": 1, \"routed_scaling_factor\": 1.5, \"swiglu_limit\": 3,"
    " \"hc_mult\": 3, \"hc_sinkhorn_iters\": 13, \"hc_eps\": 0.25, \"rms_norm_eps\": 0.125,"
    " \"rope_theta\": 10000, \"compress_rope_theta\": 160000.0,"
    " \"max_position_embeddings\": 999, \"vocab_size\": 77, \"compress_ratios\": [0, 4, 128, 5],"
    " \"num_nextn_predict_layers\": 1}";

static const char *const its_tensors[] = {
    "embed.weight BF16 77x36\nhead.weight BF16 77x36\nnorm.weight BF16 36\nhc_head_fn F32 3x108\n"
    "hc_head_base F32 3\nhc_head_scale F32 1\n",

    "layers.0.attn.attn_sink F32 6\nlayers.0.attn.wq_a.weight F8_E4M3 12x36\n"
    "layers.0.attn.wq_a.scale F8_E8M0 1x1\nlayers.0.attn.q_norm.weight BF16 12\n"
    "layers.0.attn.wq_b.weight F8_E4M3 120x12\nlayers.0.attn.wq_b.scale F8_E8M0 1x1\n"
    "layers.0.attn.wkv.weight F8_E4M3 20x36\nlayers.0.attn.wkv.scale F8_E8M0 1x1\n"
    "layers.0.attn.kv_norm.weight BF16 20\nlayers.0.attn.wo_a.weight F8_E4M3 15x40\n"
    "layers.0.attn.wo_a.scale F8_E8M0 1x1\nlayers.0.attn.wo_b.weight F8_E4M3 36x15\n"
    "layers.0.attn.wo_b.scale F8_E8M0 1x1\nlayers.0.attn_norm.weight BF16 36\n"
    "layers.0.ffn_norm.weight BF16 36\nlayers.0.ffn.gate.weight BF16 2x36\n"
    "layers.0.ffn.gate.tid2eid I64 77x1\nlayers.0.ffn.shared_experts.w1.weight F8_E4M3 22x36\n"
    "layers.0.ffn.shared_experts.w1.scale F8_E8M0 1x1\n"
    "layers.0.ffn.shared_experts.w2.weight F8_E4M3 36x22\n"
    "layers.0.ffn.shared_experts.w2.scale F8_E8M0 1x1\n"
    "layers.0.ffn.shared_experts.w3.weight F8_E4M3 22x36\n"
    "layers.0.ffn.shared_experts.w3.scale F8_E8M0 1x1\nlayers.0.hc_attn_fn F32 15x108\n"
    "layers.0.hc_attn_base F32 15\nlayers.0.hc_attn_scale F32 3\nlayers.0.hc_ffn_fn F32 15x108\n"
    "layers.0.hc_ffn_base F32 15\nlayers.0.hc_ffn_scale F32 3\n"
    "layers.0.ffn.experts.0.w1.weight I8 22x18\nlayers.0.ffn.experts.0.w1.scale F8_E8M0 22x2\n"
    "layers.0.ffn.experts.0.w2.weight I8 36x11\nlayers.0.ffn.experts.0.w2.scale F8_E8M0 36x1\n"
    "layers.0.ffn.experts.0.w3.weight I8 22x18\nlayers.0.ffn.experts.0.w3.scale F8_E8M0 22x2\n"
    "layers.0.ffn.experts.1.w1.weight I8 22x18\nlayers.0.ffn.experts.1.w1.scale F8_E8M0 22x2\n"
    "layers.0.ffn.experts.1.w2.weight I8 36x11\nlayers.0.ffn.experts.1.w2.scale F8_E8M0 36x1\n"
    "layers.0.ffn.experts.1.w3.weight I8 22x18\nlayers.0.ffn.experts.1.w3.scale F8_E8M0 22x2\n",

    "layers.1.attn.attn_sink F32 6\nlayers.1.attn.wq_a.weight F8_E4M3 12x36\n"
    "layers.1.attn.wq_a.scale F8_E8M0 1x1\nlayers.1.attn.q_norm.weight BF16 12\n"
    "layers.1.attn.wq_b.weight F8_E4M3 120x12\nlayers.1.attn.wq_b.scale F8_E8M0 1x1\n"
    "layers.1.attn.wkv.weight F8_E4M3 20x36\nlayers.1.attn.wkv.scale F8_E8M0 1x1\n"
    "layers.1.attn.kv_norm.weight BF16 20\nlayers.1.attn.wo_a.weight F8_E4M3 15x40\n"
    "layers.1.attn.wo_a.scale F8_E8M0 1x1\nlayers.1.attn.wo_b.weight F8_E4M3 36x15\n"
    "layers.1.attn.wo_b.scale F8_E8M0 1x1\nlayers.1.attn.compressor.ape F32 4x40\n"
    "layers.1.attn.compressor.norm.weight BF16 20\n"
    "layers.1.attn.compressor.wkv.weight BF16 40x36\n"
    "layers.1.attn.compressor.wgate.weight BF16 40x36\n"
    "layers.1.attn.indexer.wq_b.weight F8_E4M3 32x12\n"
    "layers.1.attn.indexer.wq_b.scale F8_E8M0 1x1\n"
    "layers.1.attn.indexer.weights_proj.weight BF16 2x36\n"
    "layers.1.attn.indexer.compressor.ape F32 4x32\n"
    "layers.1.attn.indexer.compressor.norm.weight BF16 16\n"
    "layers.1.attn.indexer.compressor.wkv.weight BF16 32x36\n"
    "layers.1.attn.indexer.compressor.wgate.weight BF16 32x36\nlayers.1.attn_norm.weight BF16 36\n"
    "layers.1.ffn_norm.weight BF16 36\nlayers.1.ffn.gate.weight BF16 2x36\n"
    "layers.1.ffn.gate.bias F32 2\nlayers.1.ffn.shared_experts.w1.weight F8_E4M3 22x36\n"
    "layers.1.ffn.shared_experts.w1.scale F8_E8M0 1x1\n"
    "layers.1.ffn.shared_experts.w2.weight F8_E4M3 36x22\n"
    "layers.1.ffn.shared_experts.w2.scale F8_E8M0 1x1\n"
    "layers.1.ffn.shared_experts.w3.weight F8_E4M3 22x36\n"
    "layers.1.ffn.shared_experts.w3.scale F8_E8M0 1x1\nlayers.1.hc_attn_fn F32 15x108\n"
    "layers.1.hc_attn_base F32 15\nlayers.1.hc_attn_scale F32 3\nlayers.1.hc_ffn_fn F32 15x108\n"
    "layers.1.hc_ffn_base F32 15\nlayers.1.hc_ffn_scale F32 3\n"
    "layers.1.ffn.experts.0.w1.weight I8 22x18\nlayers.1.ffn.experts.0.w1.scale F8_E8M0 22x2\n"
    "layers.1.ffn.experts.0.w2.weight I8 36x11\nlayers.1.ffn.experts.0.w2.scale F8_E8M0 36x1\n"
    "layers.1.ffn.experts.0.w3.weight I8 22x18\nlayers.1.ffn.experts.0.w3.scale F8_E8M0 22x2\n"
    "layers.1.ffn.experts.1.w1.weight I8 22x18\nlayers.1.ffn.experts.1.w1.scale F8_E8M0 22x2\n"
    "layers.1.ffn.experts.1.w2.weight I8 36x11\nlayers.1.ffn.experts.1.w2.scale F8_E8M0 36x1\n"
    "layers.1.ffn.experts.1.w3.weight I8 22x18\nlayers.1.ffn.experts.1.w3.scale F8_E8M0 22x2\n",

    "layers.2.attn.attn_sink F32 6\nlayers.2.attn.wq_a.weight F8_E4M3 12x36\n"
    "layers.2.attn.wq_a.scale F8_E8M0 1x1\nlayers.2.attn.q_norm.weight BF16 12\n"
    "layers.2.attn.wq_b.weight F8_E4M3 120x12\nlayers.2.attn.wq_b.scale F8_E8M0 1x1\n"
    "layers.2.attn.wkv.weight F8_E4M3 20x36\nlayers.2.attn.wkv.scale F8_E8M0 1x1\n"
    "layers.2.attn.kv_norm.weight BF16 20\nlayers.2.attn.wo_a.weight F8_E4M3 15x40\n"
    "layers.2.attn.wo_a.scale F8_E8M0 1x1\nlayers.2.attn.wo_b.weight F8_E4M3 36x15\n"
    "layers.2.attn.wo_b.scale F8_E8M0 1x1\nlayers.2.attn.compressor.ape F32 128x20\n"
    "layers.2.attn.compressor.norm.weight BF16 20\n"
    "layers.2.attn.compressor.wkv.weight BF16 20x36\n"
    "layers.2.attn.compressor.wgate.weight BF16 20x36\nlayers.2.attn_norm.weight BF16 36\n"
    "layers.2.ffn_norm.weight BF16 36\nlayers.2.ffn.gate.weight BF16 2x36\n"
    "layers.2.ffn.gate.bias F32 2\nlayers.2.ffn.shared_experts.w1.weight F8_E4M3 22x36\n"
    "layers.2.ffn.shared_experts.w1.scale F8_E8M0 1x1\n"
    "layers.2.ffn.shared_experts.w2.weight F8_E4M3 36x22\n"
    "layers.2.ffn.shared_experts.w2.scale F8_E8M0 1x1\n"
    "layers.2.ffn.shared_experts.w3.weight F8_E4M3 22x36\n"
    "layers.2.ffn.shared_experts.w3.scale F8_E8M0 1x1\nlayers.2.hc_attn_fn F32 15x108\n"
    "layers.2.hc_attn_base F32 15\nlayers.2.hc_attn_scale F32 3\nlayers.2.hc_ffn_fn F32 15x108\n"
    "layers.2.hc_ffn_base F32 15\nlayers.2.hc_ffn_scale F32 3\n"
    "layers.2.ffn.experts.0.w1.weight I8 22x18\nlayers.2.ffn.experts.0.w1.scale F8_E8M0 22x2\n"
    "layers.2.ffn.experts.0.w2.weight I8 36x11\nlayers.2.ffn.experts.0.w2.scale F8_E8M0 36x1\n"
    "layers.2.ffn.experts.0.w3.weight I8 22x18\nlayers.2.ffn.experts.0.w3.scale F8_E8M0 22x2\n"
    "layers.2.ffn.experts.1.w1.weight I8 22x18\nlayers.2.ffn.experts.1.w1.scale F8_E8M0 22x2\n"
    "layers.2.ffn.experts.1.w2.weight I8 36x11\nlayers.2.ffn.experts.1.w2.scale F8_E8M0 36x1\n"
    "layers.2.ffn.experts.1.w3.weight I8 22x18\nlayers.2.ffn.experts.1.w3.scale F8_E8M0 22x2\n",

    "mtp.0.attn.attn_sink F32 6\nmtp.0.attn.wq_a.weight F8_E4M3 12x36\n"
    "mtp.0.attn.wq_a.scale F8_E8M0 1x1\nmtp.0.attn.q_norm.weight BF16 12\n"
    "mtp.0.attn.wq_b.weight F8_E4M3 120x12\nmtp.0.attn.wq_b.scale F8_E8M0 1x1\n"
    "mtp.0.attn.wkv.weight F8_E4M3 20x36\nmtp.0.attn.wkv.scale F8_E8M0 1x1\n"
    "mtp.0.attn.kv_norm.weight BF16 20\nmtp.0.attn.wo_a.weight F8_E4M3 15x40\n"
    "mtp.0.attn.wo_a.scale F8_E8M0 1x1\nmtp.0.attn.wo_b.weight F8_E4M3 36x15\n"
    "mtp.0.attn.wo_b.scale F8_E8M0 1x1\nmtp.0.attn.compressor.ape F32 5x20\n"
    "mtp.0.attn.compressor.norm.weight BF16 20\nmtp.0.attn.compressor.wkv.weight BF16 20x36\n"
    "mtp.0.attn.compressor.wgate.weight BF16 20x36\nmtp.0.attn_norm.weight BF16 36\n"
    "mtp.0.ffn_norm.weight BF16 36\nmtp.0.ffn.gate.weight BF16 2x36\nmtp.0.ffn.gate.bias F32 2\n"
    "mtp.0.ffn.shared_experts.w1.weight F8_E4M3 22x36\n"
    "mtp.0.ffn.shared_experts.w1.scale F8_E8M0 1x1\n"
    "mtp.0.ffn.shared_experts.w2.weight F8_E4M3 36x22\n"
    "mtp.0.ffn.shared_experts.w2.scale F8_E8M0 1x1\n"
    "mtp.0.ffn.shared_experts.w3.weight F8_E4M3 22x36\n"
    "mtp.0.ffn.shared_experts.w3.scale F8_E8M0 1x1\nmtp.0.hc_attn_fn F32 15x108\n"
    "mtp.0.hc_attn_base F32 15\nmtp.0.hc_attn_scale F32 3\nmtp.0.hc_ffn_fn F32 15x108\n"
    "mtp.0.hc_ffn_base F32 15\nmtp.0.hc_ffn_scale F32 3\nmtp.0.e_proj.weight F8_E4M3 36x36\n"
    "mtp.0.e_proj.scale F8_E8M0 1x1\nmtp.0.h_proj.weight F8_E4M3 36x36\n"
    "mtp.0.h_proj.scale F8_E8M0 1x1\nmtp.0.enorm.weight BF16 36\nmtp.0.hnorm.weight BF16 36\n"
    "mtp.0.norm.weight BF16 36\nmtp.0.hc_head_fn F32 3x108\nmtp.0.hc_head_base F32 3\n"
    "mtp.0.hc_head_scale F32 1\nmtp.0.ffn.experts.0.w1.weight I8 22x18\n"
    "mtp.0.ffn.experts.0.w1.scale F8_E8M0 22x2\nmtp.0.ffn.experts.0.w2.weight I8 36x11\n"
    "mtp.0.ffn.experts.0.w2.scale F8_E8M0 36x1\nmtp.0.ffn.experts.0.w3.weight I8 22x18\n"
    "mtp.0.ffn.experts.0.w3.scale F8_E8M0 22x2\nmtp.0.ffn.experts.1.w1.weight I8 22x18\n"
    "mtp.0.ffn.experts.1.w1.scale F8_E8M0 22x2\nmtp.0.ffn.experts.1.w2.weight I8 36x11\n"
    "mtp.0.ffn.experts.1.w2.scale F8_E8M0 36x1\nmtp.0.ffn.experts.1.w3.weight I8 22x18\n"
    "mtp.0.ffn.experts.1.w3.scale F8_E8M0 22x2\n",
};

static int print_expected(void *context, const dsv4_expected *e)
{
    fprintf(context, "%s %s", e->name, dsv4_dtype_name(e->dtype));
    int64_t bytes = dsv4_dtype_size(e->dtype);
    for (int i = 0; i < e->rank; i++) {
        fprintf(context, "%s%lld", i == 0 ? " " : "x", (long long)e->shape[i]);
        bytes *= e->shape[i];
    }
    fputc('\n', context);
    assert_int_equal(e->bytes, bytes);
    return 0;
}

/* covers: checkpoint.table.1 checkpoint.table.2 checkpoint.table.3 checkpoint.table.4
 * checkpoint.table.5 checkpoint.table.6 */
static void every_tensor_is_in_its_place(void **state)
{
    (void)state;
    dsv4_config config;
    parse(&config, all_different);
    char *text;
    size_t size;
    FILE *stream = open_memstream(&text, &size);
    assert_int_equal(dsv4_model_each(&config, print_expected, stream), 0);
    fclose(stream);
    const char *rest = text;
    for (size_t i = 0; i < sizeof its_tensors / sizeof *its_tensors; i++) {
        size_t length = strlen(its_tensors[i]);
        if (strncmp(rest, its_tensors[i], length) != 0)
            assert_string_equal(rest, its_tensors[i]); /* shows both */
        rest += length;
    }
    assert_string_equal(rest, "");
    free(text);
    dsv4_config_free(&config);
}

typedef struct {
    int64_t tensors[DSV4_DTYPES + 1], bytes[DSV4_DTYPES + 1], mtp, mtp_bytes;
    int64_t component[DSV4_COMPONENTS];
} inventory;

static int count_expected(void *context, const dsv4_expected *e)
{
    inventory *in = context;
    in->tensors[e->dtype]++;
    in->bytes[e->dtype] += e->bytes;
    in->tensors[DSV4_DTYPES]++;
    in->bytes[DSV4_DTYPES] += e->bytes;
    in->component[e->component]++;
    assert_int_equal(e->mtp, strncmp(e->name, "mtp.", 4) == 0);
    in->mtp += e->mtp;
    in->mtp_bytes += e->mtp ? e->bytes : 0;
    int64_t layer = -1;
    if (e->mtp)
        layer = 43 + strtoll(e->name + strlen("mtp."), NULL, 10);
    else if (strncmp(e->name, "layers.", 7) == 0)
        layer = strtoll(e->name + strlen("layers."), NULL, 10);
    assert_int_equal(e->layer, layer);
    return 0;
}

/* covers: checkpoint.table.2 checkpoint.table.3 checkpoint.storage.4 */
static void flash_is_the_published_inventory(void **state)
{
    (void)state;
    dsv4_config config;
    parse(&config, dsv4_geometry("flash"));
    inventory in = {0};
    assert_int_equal(dsv4_model_each(&config, count_expected, &in), 0);
    dsv4_config_free(&config);
    const struct {
        dsv4_dtype dtype;
        int64_t tensors, bytes;
    } published[] = {
        {DSV4_DTYPES, 69187, 159609485896}, {DSV4_I8, 33792, 141733920768},
        {DSV4_F8_E8M0, 34167, 8858737664},  {DSV4_F8_E4M3, 375, 6023020544},
        {DSV4_BF16, 433, 2830518528},       {DSV4_F32, 417, 144672072},
        {DSV4_I64, 3, 18616320},
    };
    for (size_t i = 0; i < sizeof published / sizeof *published; i++) {
        assert_int_equal(in.tensors[published[i].dtype], published[i].tensors);
        assert_int_equal(in.bytes[published[i].dtype], published[i].bytes);
    }
    assert_int_equal(in.mtp, 1575);
    assert_int_equal(in.mtp_bytes, 3593787756);
    assert_int_equal(in.component[DSV4_EXPERTS], 44 * 256 * 6);
    assert_int_equal(in.component[DSV4_SHARED_EXPERTS], 44 * 6);
    assert_int_equal(in.component[DSV4_EMBED], 1);
    assert_int_equal(in.component[DSV4_HEAD], 1);
    assert_int_equal(in.component[DSV4_NORM], 1 + 44 * 2 + 3);
    assert_int_equal(in.component[DSV4_ATTENTION], 44 * 13);
    assert_int_equal(in.component[DSV4_COMPRESSOR], 41 * 4);
    assert_int_equal(in.component[DSV4_INDEXER], 21 * 7);
    assert_int_equal(in.component[DSV4_MHC], 3 + 44 * 6 + 3);
    assert_int_equal(in.component[DSV4_GATE], 44 * 2);
    assert_int_equal(in.component[DSV4_MTP_INPUT], 4);
    assert_int_equal(in.component[DSV4_UNEXPECTED], 0);
}

static int stop_at_ninth(void *context, const dsv4_expected *e)
{
    int *visits = context;
    assert_int_equal(e->dtype == DSV4_F8_E8M0, *visits == 8);
    return ++*visits == 9 ? 17 : 0;
}

static void a_visitor_can_stop(void **state)
{
    (void)state;
    dsv4_config config;
    parse(&config, base);
    int visits = 0;
    assert_int_equal(dsv4_model_each(&config, stop_at_ninth, &visits), 17);
    assert_int_equal(visits, 9); /* at the scale of the first layer's wq_a */
    dsv4_config_free(&config);
}

static void components_have_names(void **state)
{
    (void)state;
    for (int i = 0; i < DSV4_COMPONENTS; i++) {
        assert_true(strlen(dsv4_component_name((dsv4_component)i)) > 2);
        for (int k = 0; k < i; k++)
            assert_string_not_equal(dsv4_component_name((dsv4_component)i),
                                    dsv4_component_name((dsv4_component)k));
    }
}

/* The field is bound to the tensor of that name, whose values begin with its place in the list. */
static void check_bound(const checkpoint *c, const dsv4_matrix *matrix, const char *name)
{
    if (matrix->name == NULL || strcmp(matrix->name, name) != 0)
        fail_msg("expected %s, got %s", name, matrix->name != NULL ? matrix->name : "nothing");
    const stored_tensor *tensor = stored_find(&c->list, name);
    assert_string_equal(dsv4_dtype_name(matrix->dtype), tensor->dtype);
    assert_memory_equal(matrix->data, tensor->data, tensor->size);
    int64_t cols = tensor->shape[tensor->rank - 1] * (matrix->dtype == DSV4_I8 ? 2 : 1);
    assert_int_equal(matrix->cols, cols);
    assert_int_equal(matrix->rows, tensor->rank == 2 ? tensor->shape[0] : 1);
    assert_non_null(strstr(matrix->file, "/model.safetensors"));
    if (matrix->dtype != DSV4_I8 && matrix->dtype != DSV4_F8_E4M3) {
        assert_null(matrix->scale);
        return;
    }
    char scale[160];
    snprintf(scale, sizeof scale, "%.*s.scale", (int)(strlen(name) - strlen(".weight")), name);
    tensor = stored_find(&c->list, scale);
    assert_memory_equal(matrix->scale, tensor->data, tensor->size);
}

static void check_in(const checkpoint *c, const char *prefix, const dsv4_matrix *matrix,
                     const char *name)
{
    char full[160];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    check_bound(c, matrix, full);
}

static void check_compressor(const checkpoint *c, const char *prefix, const char *name,
                             const dsv4_compressor *compressor)
{
    char full[80];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    check_in(c, full, &compressor->ape, "ape");
    check_in(c, full, &compressor->norm, "norm.weight");
    check_in(c, full, &compressor->wkv, "wkv.weight");
    check_in(c, full, &compressor->wgate, "wgate.weight");
}

static void check_hc(const checkpoint *c, const char *prefix, const char *name, const dsv4_hc *hc)
{
    char full[80];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    check_in(c, full, &hc->fn, "_fn");
    check_in(c, full, &hc->base, "_base");
    check_in(c, full, &hc->scale, "_scale");
}

static void check_layer(const checkpoint *c, const dsv4_layer *layer, const char *prefix)
{
    check_in(c, prefix, &layer->attn.attn_sink, "attn.attn_sink");
    check_in(c, prefix, &layer->attn.wq_a, "attn.wq_a.weight");
    check_in(c, prefix, &layer->attn.q_norm, "attn.q_norm.weight");
    check_in(c, prefix, &layer->attn.wq_b, "attn.wq_b.weight");
    check_in(c, prefix, &layer->attn.wkv, "attn.wkv.weight");
    check_in(c, prefix, &layer->attn.kv_norm, "attn.kv_norm.weight");
    check_in(c, prefix, &layer->attn.wo_a, "attn.wo_a.weight");
    check_in(c, prefix, &layer->attn.wo_b, "attn.wo_b.weight");
    if (layer->kind != DSV4_SWA)
        check_compressor(c, prefix, "attn.compressor.", &layer->attn.compressor);
    else
        assert_null(layer->attn.compressor.ape.data);
    if (layer->kind == DSV4_CSA) {
        check_in(c, prefix, &layer->attn.indexer.wq_b, "attn.indexer.wq_b.weight");
        check_in(c, prefix, &layer->attn.indexer.weights_proj, "attn.indexer.weights_proj.weight");
        check_compressor(c, prefix, "attn.indexer.compressor.", &layer->attn.indexer.compressor);
    } else
        assert_null(layer->attn.indexer.wq_b.data);
    check_in(c, prefix, &layer->attn_norm, "attn_norm.weight");
    check_in(c, prefix, &layer->ffn_norm, "ffn_norm.weight");
    check_in(c, prefix, &layer->ffn.gate.weight, "ffn.gate.weight");
    if (layer->hash)
        check_in(c, prefix, &layer->ffn.gate.tid2eid, "ffn.gate.tid2eid");
    else
        check_in(c, prefix, &layer->ffn.gate.bias, "ffn.gate.bias");
    assert_null(layer->hash ? layer->ffn.gate.bias.data : layer->ffn.gate.tid2eid.data);
    check_in(c, prefix, &layer->ffn.shared_experts.w1, "ffn.shared_experts.w1.weight");
    check_in(c, prefix, &layer->ffn.shared_experts.w2, "ffn.shared_experts.w2.weight");
    check_in(c, prefix, &layer->ffn.shared_experts.w3, "ffn.shared_experts.w3.weight");
    for (int i = 0; i < c->config.n_routed_experts; i++) {
        char expert[80];
        snprintf(expert, sizeof expert, "%sffn.experts.%d.", prefix, i);
        check_in(c, expert, &layer->ffn.experts[i].w1, "w1.weight");
        check_in(c, expert, &layer->ffn.experts[i].w2, "w2.weight");
        check_in(c, expert, &layer->ffn.experts[i].w3, "w3.weight");
    }
    check_hc(c, prefix, "hc_attn", &layer->hc_attn);
    check_hc(c, prefix, "hc_ffn", &layer->hc_ffn);
    if (layer->index < c->config.num_hidden_layers) {
        assert_null(layer->e_proj.data);
        assert_null(layer->hc_head.fn.data);
        return;
    }
    check_in(c, prefix, &layer->e_proj, "e_proj.weight");
    check_in(c, prefix, &layer->h_proj, "h_proj.weight");
    check_in(c, prefix, &layer->enorm, "enorm.weight");
    check_in(c, prefix, &layer->hnorm, "hnorm.weight");
    check_in(c, prefix, &layer->norm, "norm.weight");
    check_hc(c, prefix, "hc_head", &layer->hc_head);
}

static void check_all_bound(const char *const changes[],
                            void fill(stored_tensors *, const dsv4_config *))
{
    checkpoint c = start(changes, fill);
    for (size_t i = 0; i < c.list.count; i++)
        for (size_t k = 0; k < c.list.at[i].size; k++)
            c.list.at[i].data[k] = (unsigned char)(i * 31 + k % 101);
    dsv4_model model;
    open_model(&model, &c, DSV4_EXACT, true);
    check_bound(&c, &model.embed, "embed.weight");
    check_bound(&c, &model.head, "head.weight");
    check_bound(&c, &model.norm, "norm.weight");
    check_hc(&c, "", "hc_head", &model.hc_head);
    for (int64_t i = 0; i < 4; i++) {
        const dsv4_layer *layer = i < 3 ? &model.layers[i] : &model.mtp[0];
        const char *const prefixes[] = {"layers.0.", "layers.1.", "layers.2.", "mtp.0."};
        assert_int_equal(layer->index, i);
        assert_int_equal(layer->ratio, c.config.compress_ratios[i]);
        assert_int_equal(layer->kind, dsv4_config_kind(&c.config, i));
        assert_int_equal(layer->hash, i < c.config.num_hash_layers);
        check_layer(&c, layer, prefixes[i]);
    }
    assert_int_equal(model.config.hidden_size, c.config.hidden_size);
    dsv4_model_close(&model);
    finish(&c);
}

static void fields_are_bound_to_their_tensors(void **state)
{
    (void)state;
    check_all_bound(CHANGES("hc_mult", "3"), stored_fill);
    check_all_bound(CHANGES("head_dim", "50"), stored_fill_plain);
    check_all_bound(CHANGES("num_hash_layers", "3", "compress_ratios", "[4, 0, 9, 4]"),
                    stored_fill);
    check_all_bound(CHANGES("num_hash_layers", "0", "compress_ratios", "[7, 7, 0, 7]"),
                    stored_fill_plain);
}

static void mtp_is_bound_when_asked_for(void **state)
{
    (void)state;
    checkpoint c = start(CHANGES("hidden_size", "64"), stored_fill);
    dsv4_model model;
    open_model(&model, &c, DSV4_EXACT, false);
    assert_null(model.mtp);
    dsv4_model_close(&model);
    open_model(&model, &c, DSV4_EXACT, true);
    assert_non_null(model.mtp);
    dsv4_model_close(&model);
    stored_remove(&c.list, "mtp.0.norm.weight");
    refuse(&c, DSV4_EXACT, ": tensor mtp.0.norm.weight is missing");
    open_model(&model, &c, DSV4_EXACT, false);
    dsv4_model_close(&model);
    finish(&c);

    c = start(CHANGES("num_nextn_predict_layers", "0"), stored_fill);
    open_model(&model, &c, DSV4_EXACT, true);
    assert_null(model.mtp);
    dsv4_model_close(&model);
    finish(&c);

    c = start(CHANGES("num_nextn_predict_layers", "2"), stored_fill);
    stored_find(&c.list, "mtp.1.e_proj.weight")->data[5] = 99;
    open_model(&model, &c, DSV4_EXACT, true);
    assert_int_equal(((const unsigned char *)model.mtp[1].e_proj.data)[5], 99);
    assert_int_equal(model.mtp[1].index, 4);
    dsv4_model_close(&model);
    finish(&c);
}

/* Without any one of its tensors, or with one of another shape or dtype, nothing is opened. */
/* covers: checkpoint.table.1 checkpoint.table.2 checkpoint.table.3 checkpoint.storage.1
 * checkpoint.storage.4 */
static void every_tensor_is_checked(void **state)
{
    (void)state;
    checkpoint c = start(CHANGES("n_routed_experts", "2"), stored_fill);
    size_t count = c.list.count;
    for (size_t i = 0; i < count; i++) {
        stored_tensor saved = c.list.at[i];
        char expected[240];

        c.list.at[i] = c.list.at[count - 1];
        c.list.count--;
        snprintf(expected, sizeof expected, ": tensor %s is missing", saved.name);
        refuse(&c, DSV4_EXACT, expected);
        c.list.count++;
        c.list.at[i] = saved;

        snprintf(c.list.at[i].dtype, sizeof saved.dtype, "U8");
        c.list.at[i].shape[0] = (int64_t)saved.size;
        c.list.at[i].rank = 1;
        snprintf(expected, sizeof expected, "model.safetensors: tensor %s: expected dtype ",
                 saved.name);
        refuse(&c, DSV4_EXACT, expected);
        c.list.at[i] = saved;

        c.list.at[i].shape[c.list.at[i].rank++] = 1;
        snprintf(expected, sizeof expected, "model.safetensors: tensor %s: expected shape [",
                 saved.name);
        refuse(&c, DSV4_EXACT, expected);
        c.list.at[i] = saved;

        if (saved.rank == 2 && saved.shape[0] != saved.shape[1]) {
            c.list.at[i].shape[0] = saved.shape[1];
            c.list.at[i].shape[1] = saved.shape[0];
            refuse(&c, DSV4_EXACT, expected);
            c.list.at[i] = saved;
        }
    }
    accept(&c, DSV4_EXACT);
    finish(&c);
}

/* covers: checkpoint.storage.1 checkpoint.storage.2 checkpoint.storage.4 */
static void storage_may_be_mixed(void **state)
{
    (void)state;
    checkpoint c = start(CHANGES("hidden_size", "64"), stored_fill);
    /* FP4 where the released layout has FP8, FP8 where it has FP4, and plain ones. */
    stored_change(&c.list, "layers.0.attn.wq_b.weight", "I8", 2, (const int64_t[]){128, 16}, 2048);
    stored_change(&c.list, "layers.0.attn.wq_b.scale", "F8_E8M0", 2, (const int64_t[]){128, 1},
                  128);
    const char *expert = "layers.1.ffn.experts.2.w1.weight";
    stored_change(&c.list, expert, "F8_E4M3", 2, (const int64_t[]){96, 64}, 6144);
    stored_change(&c.list, "layers.1.ffn.experts.2.w1.scale", "F8_E8M0", 2,
                  (const int64_t[]){1, 1}, 1);
    stored_change(&c.list, "layers.2.attn.wkv.weight", "BF16", 2, (const int64_t[]){32, 64}, 4096);
    stored_remove(&c.list, "layers.2.attn.wkv.scale");
    stored_change(&c.list, "layers.2.attn.wo_a.weight", "F16", 2, (const int64_t[]){32, 64}, 4096);
    stored_remove(&c.list, "layers.2.attn.wo_a.scale");
    stored_change(&c.list, "embed.weight", "F32", 2, (const int64_t[]){10, 64}, 2560);
    stored_change(&c.list, "norm.weight", "F16", 1, (const int64_t[]){64}, 128);
    stored_change(&c.list, "hc_head_base", "BF16", 1, (const int64_t[]){2}, 4);
    stored_change(&c.list, "layers.0.ffn.gate.tid2eid", "I32", 2, (const int64_t[]){10, 2}, 80);
    dsv4_model model;
    open_model(&model, &c, DSV4_EXACT, true);
    assert_int_equal(model.layers[0].attn.wq_b.dtype, DSV4_I8);
    assert_int_equal(model.layers[0].attn.wq_b.cols, 32);
    assert_int_equal(model.layers[1].ffn.experts[2].w1.dtype, DSV4_F8_E4M3);
    assert_non_null(model.layers[1].ffn.experts[2].w1.scale);
    assert_int_equal(model.layers[2].attn.wkv.dtype, DSV4_BF16);
    assert_null(model.layers[2].attn.wkv.scale);
    assert_int_equal(model.layers[0].ffn.gate.tid2eid.dtype, DSV4_I32);
    dsv4_model_close(&model);

    stored_change(&c.list, "layers.0.ffn.gate.tid2eid", "F32", 2, (const int64_t[]){10, 2}, 80);
    refuse(&c, DSV4_EXACT, "tensor layers.0.ffn.gate.tid2eid: expected dtype I64 or I32, got F32");
    finish(&c);
}

/* covers: checkpoint.storage.1 checkpoint.storage.4 */
static void plain_tensors_are_not_quantised(void **state)
{
    (void)state;
    checkpoint c = start(CHANGES("hidden_size", "64"), stored_fill);
    const char *name = "layers.1.ffn.gate.weight";
    stored_change(&c.list, name, "F8_E4M3", 2, (const int64_t[]){3, 64}, 192);
    refuse(&c, DSV4_EXACT,
           "tensor layers.1.ffn.gate.weight: expected dtype F32, BF16 or F16, got F8_E4M3");
    stored_change(&c.list, name, "I64", 2, (const int64_t[]){3, 64}, 1536);
    refuse(&c, DSV4_EXACT, "expected dtype F32, BF16 or F16, got I64");
    stored_change(&c.list, name, "F16", 2, (const int64_t[]){3, 64}, 384);
    accept(&c, DSV4_EXACT);
    stored_change(&c.list, "layers.1.attn.wq_a.weight", "I32", 2, (const int64_t[]){32, 64}, 8192);
    refuse(&c, DSV4_EXACT, "expected dtype F8_E4M3, I8, F32, BF16 or F16, got I32");
    finish(&c);
}

/* covers: checkpoint.storage.2 */
static void fp4_needs_whole_blocks(void **state)
{
    (void)state;
    checkpoint c = start(CHANGES("moe_intermediate_size", "48"), stored_fill);
    refuse(&c, DSV4_EXACT, "tensor layers.0.ffn.experts.0.w2.weight: expected a multiple of 32 "
                           "columns in FP4, got 48");
    finish(&c);
    c = start(CHANGES("moe_intermediate_size", "48"), stored_fill_plain);
    accept(&c, DSV4_EXACT);
    finish(&c);
}

/* covers: checkpoint.storage.3 checkpoint.storage.4 */
static void scales_belong_to_quantised_matrices(void **state)
{
    (void)state;
    checkpoint c = start(CHANGES("hidden_size", "64"), stored_fill);
    stored_change(&c.list, "layers.2.attn.wkv.weight", "BF16", 2, (const int64_t[]){32, 64}, 4096);
    refuse(&c, DSV4_EXACT, "tensor layers.2.attn.wkv.scale: expected no scale beside a matrix of "
                           "dtype BF16");
    stored_remove(&c.list, "layers.2.attn.wkv.scale");
    accept(&c, DSV4_EXACT);

    stored_add(&c.list, "norm.scale", "F8_E8M0", 1, (const int64_t[]){1}, 1);
    refuse(&c, DSV4_EXACT, "tensor norm.scale: expected no scale beside");
    stored_remove(&c.list, "norm.scale");

    const char *name = "layers.0.attn.wkv.scale";
    stored_change(&c.list, name, "F32", 2, (const int64_t[]){1, 1}, 4);
    refuse(&c, DSV4_EXACT, "tensor layers.0.attn.wkv.scale: expected dtype F8_E8M0, got F32");
    stored_change(&c.list, name, "F8_E8M0", 2, (const int64_t[]){1, 2}, 2);
    refuse(&c, DSV4_EXACT, "tensor layers.0.attn.wkv.scale: expected shape [1, 1], got [1, 2]");
    stored_change(&c.list, name, "F8_E8M0", 0, NULL, 1);
    refuse(&c, DSV4_EXACT, "expected shape [1, 1], got []");
    stored_remove(&c.list, name);
    refuse(&c, DSV4_EXACT, "tensor layers.0.attn.wkv.scale is missing");

    /* The same under the name that other publishers give it. */
    stored_add(&c.list, "model.layers.0.attn.wkv.weight_scale_inv", "F8_E8M0", 2,
               (const int64_t[]){1, 1}, 1)->data[0] = 77;
    dsv4_model model;
    open_model(&model, &c, DSV4_EXACT, true);
    assert_int_equal(*model.layers[0].attn.wkv.scale, 77);
    dsv4_model_close(&model);

    name = "layers.0.ffn.experts.1.w1.scale";
    stored_change(&c.list, name, "F8_E8M0", 2, (const int64_t[]){96, 4}, 384);
    refuse(&c, DSV4_EXACT, "w1.scale: expected shape [96, 2], got [96, 4]"); /* scale per 16 */
    stored_change(&c.list, "norm.weight", "BF16", 1, (const int64_t[]){65}, 130);
    refuse(&c, DSV4_EXACT, "tensor norm.weight: expected shape [64], got [65]");
    finish(&c);
}

/* Widths that do not fill the last block of 128. */
/* covers: checkpoint.storage.4 */
static void fp8_blocks_may_be_cut(void **state)
{
    (void)state;
    checkpoint c = start(CHANGES("q_lora_rank", "129", "hidden_size", "160"), stored_fill);
    const stored_tensor *scale = stored_find(&c.list, "layers.0.attn.wq_a.scale");
    assert_int_equal(scale->shape[0], 2);
    assert_int_equal(scale->shape[1], 2);
    accept(&c, DSV4_EXACT);
    finish(&c);
}

/* covers: checkpoint.released.1 checkpoint.released.2 */
static void released_numerics_need_whole_blocks(void **state)
{
    (void)state;
    const char *const good[] = {RELEASED_WIDTHS, END_OF_CHANGES};
    checkpoint c = start(good, stored_fill);
    assert_int_equal(c.config.num_attention_heads * c.config.head_dim / c.config.o_groups, 160);
    accept(&c, DSV4_RELEASED); /* although wo_a has 160 columns */
    finish(&c);

    const struct {
        const char *key, *value, *expected;
    } cases[] = {
        {"q_lora_rank", "160", "tensor layers.0.attn.wq_b.weight: expected a multiple of 128 "
                               "columns in released numerics, got 160"},
        {"hidden_size", "160", "tensor layers.0.attn.wq_a.weight: expected a multiple of 128"},
        {"o_lora_rank", "80", "tensor layers.0.attn.wo_b.weight: expected a multiple of 128"},
        {"moe_intermediate_size", "160",
         "tensor layers.0.ffn.shared_experts.w2.weight: expected a multiple of 128"},
        {"head_dim", "48", "config.json: head_dim - qk_rope_head_dim: expected a multiple of 64 in "
                           "released numerics, got 32"},
        {"index_head_dim", "16", "config.json: index_head_dim: expected a multiple of 32 in "
                                 "released numerics, got 16"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *const changes[] = {RELEASED_WIDTHS, cases[i].key, cases[i].value,
                                       END_OF_CHANGES};
        c = start(changes, stored_fill);
        refuse(&c, DSV4_RELEASED, cases[i].expected);
        accept(&c, DSV4_EXACT);
        finish(&c);
    }

    /* FP4 alone, plain matrices, and layers that are not there. */
    const char *const fp4[] = {RELEASED_WIDTHS, "moe_intermediate_size", "160", END_OF_CHANGES};
    c = start(fp4, stored_fill);
    for (size_t i = 0; i < c.list.count; i++) {
        stored_tensor *tensor = &c.list.at[i];
        if (strstr(tensor->name, "shared_experts.w2.scale") != NULL)
            snprintf(tensor->name, sizeof tensor->name, "unused.%zu", i);
        if (strstr(tensor->name, "shared_experts.w2.weight") != NULL)
            stored_change(&c.list, tensor->name, "BF16", 2, (const int64_t[]){128, 160}, 40960);
    }
    refuse(&c, DSV4_RELEASED,
           "tensor layers.0.ffn.experts.0.w2.weight: expected a multiple of 128 columns");
    finish(&c);
    const char *const plain[] = {"head_dim", "80", "index_head_dim", "32", END_OF_CHANGES};
    c = start(plain, stored_fill_plain);
    accept(&c, DSV4_RELEASED);
    finish(&c);
    const char *const no_csa[] = {RELEASED_WIDTHS, "index_head_dim", "16", "compress_ratios",
                                  "[0, 128, 0]", END_OF_CHANGES};
    c = start(no_csa, stored_fill);
    accept(&c, DSV4_RELEASED);
    finish(&c);
    const char *const mtp_csa[] = {RELEASED_WIDTHS, "index_head_dim", "16", "compress_ratios",
                                   "[0, 128, 0, 4]", END_OF_CHANGES};
    c = start(mtp_csa, stored_fill);
    refuse(&c, DSV4_RELEASED, "index_head_dim: expected a multiple of 32");
    dsv4_model model;
    open_model(&model, &c, DSV4_RELEASED, false);
    dsv4_model_close(&model);
    finish(&c);
}

static void directories_that_are_none_are_refused(void **state)
{
    (void)state;
    checkpoint c = start(CHANGES("hidden_size", "64"), stored_fill);
    dsv4_model model;
    dsv4_error err = {0};
    assert_int_equal(dsv4_model_open(&model, c.directory, DSV4_EXACT, true, &err), -1);
    assert_non_null(strstr(err.text, "found neither"));
    files_write_text(c.directory, "config.json", "{}");
    refuse(&c, DSV4_EXACT, "config.json: num_hidden_layers: expected an integer");
    err = (dsv4_error){0};
    assert_int_equal(dsv4_model_open(&model, "/nonexistent", DSV4_EXACT, true, &err), -1);
    assert_string_equal(err.text, "/nonexistent/config.json: No such file or directory");
    finish(&c);
}

typedef struct {
    int64_t good, missing, unexpected, wrong, mtp;
    char last[400]; /* the last that is not good */
} outcome;

static void count_match(void *context, const dsv4_match *match)
{
    outcome *o = context;
    o->mtp += match->mtp;
    if (match->tensor == NULL)
        o->missing++;
    else if (match->component == DSV4_UNEXPECTED)
        o->unexpected++;
    else if (match->wrong != NULL)
        o->wrong++;
    else {
        o->good++;
        assert_string_equal(match->tensor->name, match->name);
        return;
    }
    snprintf(o->last, sizeof o->last, "%s: %s", match->name,
             match->wrong != NULL ? match->wrong : "");
}

static outcome compare(const checkpoint *c)
{
    stored_write(&c->list, c->directory, "model.safetensors");
    dsv4_error err = {0};
    dsv4_checkpoint *stored = dsv4_checkpoint_open(c->directory, &err);
    assert_non_null(stored);
    outcome o = {0};
    dsv4_model_check(&c->config, stored, count_match, &o);
    dsv4_checkpoint_close(stored);
    return o;
}

#define assert_outcome(o, missing_, unexpected_, wrong_, last_)                                    \
    do {                                                                                           \
        assert_int_equal((o).missing, missing_);                                                   \
        assert_int_equal((o).unexpected, unexpected_);                                             \
        assert_int_equal((o).wrong, wrong_);                                                       \
        assert_string_equal((o).last, last_);                                                      \
    } while (0)

static void comparison_finds_what_differs(void **state)
{
    (void)state;
    checkpoint c = start(CHANGES("hidden_size", "64"), stored_fill);
    int64_t all = (int64_t)c.list.count, mtp = 0;
    for (int64_t i = 0; i < all; i++)
        mtp += strncmp(c.list.at[i].name, "mtp.", 4) == 0;
    outcome o = compare(&c);
    assert_int_equal(o.good, all);
    assert_int_equal(o.mtp, mtp);
    assert_outcome(o, 0, 0, 0, "");

    stored_remove(&c.list, "layers.1.attn.wkv.scale");
    o = compare(&c);
    assert_outcome(o, 1, 0, 0, "layers.1.attn.wkv.scale: ");
    stored_remove(&c.list, "layers.1.attn.wkv.weight"); /* stands for both */
    o = compare(&c);
    assert_outcome(o, 1, 0, 0, "layers.1.attn.wkv.weight: ");
    stored_add(&c.list, "layers.1.attn.wkv.scale", "F32", 0, NULL, 4); /* of an unknown matrix */
    o = compare(&c);
    assert_outcome(o, 1, 0, 0, "layers.1.attn.wkv.weight: ");
    assert_int_equal(o.good, all - 1);
    stored_change(&c.list, "layers.1.attn.wkv.scale", "F8_E8M0", 2, (const int64_t[]){1, 1}, 1);
    stored_add(&c.list, "layers.1.attn.wkv.weight", "F8_E4M3", 2, (const int64_t[]){31, 64}, 1984);
    o = compare(&c);
    assert_outcome(o, 0, 0, 1, "layers.1.attn.wkv.weight: expected shape [32, 64], got [31, 64]");
    stored_change(&c.list, "layers.1.attn.wkv.weight", "BF16", 2, (const int64_t[]){32, 64}, 4096);
    o = compare(&c);
    assert_outcome(o, 0, 0, 1,
                   "layers.1.attn.wkv.scale: expected no scale beside a matrix of dtype BF16");
    stored_remove(&c.list, "layers.1.attn.wkv.scale");
    stored_add(&c.list, "layers.3.x", "F64", 0, NULL, 8);
    o = compare(&c);
    assert_outcome(o, 0, 1, 0, "layers.3.x: ");
    assert_int_equal(o.mtp, mtp);
    stored_add(&c.list, "mtp.1.x", "F64", 0, NULL, 8);
    o = compare(&c);
    assert_int_equal(o.mtp, mtp + 1);
    assert_outcome(o, 0, 2, 0, "mtp.1.x: ");

    stored_free(&c.list);
    o = compare(&c);
    assert_int_equal(o.good, 0);
    assert_true(o.missing > 100);
    finish(&c);
}

/* The checkpoints of an independent implementation. */
static void foreign_checkpoints_open(void **state)
{
    (void)state;
    int seen = 0;
    const struct {
        const char *name;
        dsv4_numerics numerics;
        const char *released; /* how released numerics refuse it, or NULL */
    } cases[] = {
        {"tiny-exact", DSV4_EXACT, NULL},
        {"long-exact", DSV4_EXACT, "head_dim - qk_rope_head_dim: expected a multiple of 64"},
        {"tiny-released", DSV4_RELEASED, NULL},
        {"mild-released", DSV4_RELEASED, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *path = files_oracle(cases[i].name);
        if (path == NULL) /* the part in the repository does not have all */
            continue;
        seen++;
        for (int numerics = DSV4_EXACT; numerics <= DSV4_RELEASED; numerics++) {
            dsv4_error err = {0};
            dsv4_model model;
            int status = dsv4_model_open(&model, path, (dsv4_numerics)numerics, true, &err);
            const char *expected = numerics == DSV4_RELEASED ? cases[i].released : NULL;
            if (expected != NULL)
                assert_non_null(strstr(err.text, expected));
            else if (status != 0)
                fail_msg("%s", err.text);
            outcome o = {0};
            if (status == 0)
                dsv4_model_check(&model.config, model.checkpoint, count_match, &o);
            assert_outcome(o, 0, 0, 0, "");
            dsv4_model_close(&model);
        }
        free(path);
    }
    assert_int_not_equal(seen, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_tensor_is_in_its_place),
        cmocka_unit_test(flash_is_the_published_inventory),
        cmocka_unit_test(a_visitor_can_stop),
        cmocka_unit_test(components_have_names),
        cmocka_unit_test(fields_are_bound_to_their_tensors),
        cmocka_unit_test(mtp_is_bound_when_asked_for),
        cmocka_unit_test(every_tensor_is_checked),
        cmocka_unit_test(storage_may_be_mixed),
        cmocka_unit_test(plain_tensors_are_not_quantised),
        cmocka_unit_test(fp4_needs_whole_blocks),
        cmocka_unit_test(scales_belong_to_quantised_matrices),
        cmocka_unit_test(fp8_blocks_may_be_cut),
        cmocka_unit_test(released_numerics_need_whole_blocks),
        cmocka_unit_test(directories_that_are_none_are_refused),
        cmocka_unit_test(comparison_finds_what_differs),
        cmocka_unit_test(foreign_checkpoints_open),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL) != 0;
}
