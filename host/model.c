#include "model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The symbols of the shapes in the table of spec/checkpoint.md. */
typedef enum {
    NONE, /* a vector has no rows */
    ONE, THREE, D, H, HEAD, H_HEAD, Q_LORA, GROUP_IN, GROUPS_OUT, RATIO, C_HEAD, INDEX_HEADS,
    INDEX_HEAD, INDEX_HEADS_HEAD, C_INDEX_HEAD, E, K, I, V, N, N_D, MIX,
    SYMBOLS
} symbol;

/* How the released layout stores a tensor. FP8 and FP4 have a scale of their own. */
typedef enum { FP8, FP4, BF16, F32, I64 } storage;

typedef enum { ALWAYS, COMPRESSED, CSA, HASH, SCORE, MTP } condition;

typedef struct {
    const char *name; /* below the prefix of its level */
    storage storage;
    symbol rows, cols;
    condition when;
    dsv4_component component;
    size_t offset; /* of its dsv4_matrix in dsv4_model, dsv4_layer or dsv4_expert */
} row;

#define IN_MODEL(field) offsetof(dsv4_model, field)
#define IN_LAYER(field) offsetof(dsv4_layer, field)
#define IN_EXPERT(field) offsetof(dsv4_expert, field)

/* checkpoint.table.1: The tensors at the top level are those of the first table. */
static const row model_rows[] = {
    {"embed.weight", BF16, V, D, ALWAYS, DSV4_EMBED, IN_MODEL(embed)},
    {"head.weight", BF16, V, D, ALWAYS, DSV4_HEAD, IN_MODEL(head)},
    {"norm.weight", BF16, NONE, D, ALWAYS, DSV4_NORM, IN_MODEL(norm)},
    {"hc_head_fn", F32, N, N_D, ALWAYS, DSV4_MHC, IN_MODEL(hc_head.fn)},
    {"hc_head_base", F32, NONE, N, ALWAYS, DSV4_MHC, IN_MODEL(hc_head.base)},
    {"hc_head_scale", F32, NONE, ONE, ALWAYS, DSV4_MHC, IN_MODEL(hc_head.scale)},
};

/* checkpoint.table.2: The tensors of layer L are those of the second table with the prefix
 * layers.L. and those of MTP layer i the same with the prefix mtp.i. */
static const row layer_rows[] = {
    {"attn.attn_sink", F32, NONE, H, ALWAYS, DSV4_ATTENTION, IN_LAYER(attn.attn_sink)},
    {"attn.wq_a.weight", FP8, Q_LORA, D, ALWAYS, DSV4_ATTENTION, IN_LAYER(attn.wq_a)},
    {"attn.q_norm.weight", BF16, NONE, Q_LORA, ALWAYS, DSV4_ATTENTION, IN_LAYER(attn.q_norm)},
    {"attn.wq_b.weight", FP8, H_HEAD, Q_LORA, ALWAYS, DSV4_ATTENTION, IN_LAYER(attn.wq_b)},
    {"attn.wkv.weight", FP8, HEAD, D, ALWAYS, DSV4_ATTENTION, IN_LAYER(attn.wkv)},
    {"attn.kv_norm.weight", BF16, NONE, HEAD, ALWAYS, DSV4_ATTENTION, IN_LAYER(attn.kv_norm)},
    {"attn.wo_a.weight", FP8, GROUPS_OUT, GROUP_IN, ALWAYS, DSV4_ATTENTION, IN_LAYER(attn.wo_a)},
    {"attn.wo_b.weight", FP8, D, GROUPS_OUT, ALWAYS, DSV4_ATTENTION, IN_LAYER(attn.wo_b)},

    {"attn.compressor.ape", F32, RATIO, C_HEAD, COMPRESSED, DSV4_COMPRESSOR,
     IN_LAYER(attn.compressor.ape)},
    {"attn.compressor.norm.weight", BF16, NONE, HEAD, COMPRESSED, DSV4_COMPRESSOR,
     IN_LAYER(attn.compressor.norm)},
    {"attn.compressor.wkv.weight", BF16, C_HEAD, D, COMPRESSED, DSV4_COMPRESSOR,
     IN_LAYER(attn.compressor.wkv)},
    {"attn.compressor.wgate.weight", BF16, C_HEAD, D, COMPRESSED, DSV4_COMPRESSOR,
     IN_LAYER(attn.compressor.wgate)},

    {"attn.indexer.wq_b.weight", FP8, INDEX_HEADS_HEAD, Q_LORA, CSA, DSV4_INDEXER,
     IN_LAYER(attn.indexer.wq_b)},
    {"attn.indexer.weights_proj.weight", BF16, INDEX_HEADS, D, CSA, DSV4_INDEXER,
     IN_LAYER(attn.indexer.weights_proj)},
    {"attn.indexer.compressor.ape", F32, RATIO, C_INDEX_HEAD, CSA, DSV4_INDEXER,
     IN_LAYER(attn.indexer.compressor.ape)},
    {"attn.indexer.compressor.norm.weight", BF16, NONE, INDEX_HEAD, CSA, DSV4_INDEXER,
     IN_LAYER(attn.indexer.compressor.norm)},
    {"attn.indexer.compressor.wkv.weight", BF16, C_INDEX_HEAD, D, CSA, DSV4_INDEXER,
     IN_LAYER(attn.indexer.compressor.wkv)},
    {"attn.indexer.compressor.wgate.weight", BF16, C_INDEX_HEAD, D, CSA, DSV4_INDEXER,
     IN_LAYER(attn.indexer.compressor.wgate)},

    {"attn_norm.weight", BF16, NONE, D, ALWAYS, DSV4_NORM, IN_LAYER(attn_norm)},
    {"ffn_norm.weight", BF16, NONE, D, ALWAYS, DSV4_NORM, IN_LAYER(ffn_norm)},

    {"ffn.gate.weight", BF16, E, D, ALWAYS, DSV4_GATE, IN_LAYER(ffn.gate.weight)},
    {"ffn.gate.bias", F32, NONE, E, SCORE, DSV4_GATE, IN_LAYER(ffn.gate.bias)},
    {"ffn.gate.tid2eid", I64, V, K, HASH, DSV4_GATE, IN_LAYER(ffn.gate.tid2eid)},
    {"ffn.shared_experts.w1.weight", FP8, I, D, ALWAYS, DSV4_SHARED_EXPERTS,
     IN_LAYER(ffn.shared_experts.w1)},
    {"ffn.shared_experts.w2.weight", FP8, D, I, ALWAYS, DSV4_SHARED_EXPERTS,
     IN_LAYER(ffn.shared_experts.w2)},
    {"ffn.shared_experts.w3.weight", FP8, I, D, ALWAYS, DSV4_SHARED_EXPERTS,
     IN_LAYER(ffn.shared_experts.w3)},

    {"hc_attn_fn", F32, MIX, N_D, ALWAYS, DSV4_MHC, IN_LAYER(hc_attn.fn)},
    {"hc_attn_base", F32, NONE, MIX, ALWAYS, DSV4_MHC, IN_LAYER(hc_attn.base)},
    {"hc_attn_scale", F32, NONE, THREE, ALWAYS, DSV4_MHC, IN_LAYER(hc_attn.scale)},
    {"hc_ffn_fn", F32, MIX, N_D, ALWAYS, DSV4_MHC, IN_LAYER(hc_ffn.fn)},
    {"hc_ffn_base", F32, NONE, MIX, ALWAYS, DSV4_MHC, IN_LAYER(hc_ffn.base)},
    {"hc_ffn_scale", F32, NONE, THREE, ALWAYS, DSV4_MHC, IN_LAYER(hc_ffn.scale)},

    {"e_proj.weight", FP8, D, D, MTP, DSV4_MTP_INPUT, IN_LAYER(e_proj)},
    {"h_proj.weight", FP8, D, D, MTP, DSV4_MTP_INPUT, IN_LAYER(h_proj)},
    {"enorm.weight", BF16, NONE, D, MTP, DSV4_NORM, IN_LAYER(enorm)},
    {"hnorm.weight", BF16, NONE, D, MTP, DSV4_NORM, IN_LAYER(hnorm)},
    {"norm.weight", BF16, NONE, D, MTP, DSV4_NORM, IN_LAYER(norm)},
    {"hc_head_fn", F32, N, N_D, MTP, DSV4_MHC, IN_LAYER(hc_head.fn)},
    {"hc_head_base", F32, NONE, N, MTP, DSV4_MHC, IN_LAYER(hc_head.base)},
    {"hc_head_scale", F32, NONE, ONE, MTP, DSV4_MHC, IN_LAYER(hc_head.scale)},
};

/* checkpoint.table.3: Every layer and MTP layer has the experts 0 to n_routed_experts - 1, whose
 * tensors w1, w2 and w3 have the further prefix ffn.experts.X. */
static const row expert_rows[] = {
    {"w1.weight", FP4, I, D, ALWAYS, DSV4_EXPERTS, IN_EXPERT(w1)},
    {"w2.weight", FP4, D, I, ALWAYS, DSV4_EXPERTS, IN_EXPERT(w2)},
    {"w3.weight", FP4, I, D, ALWAYS, DSV4_EXPERTS, IN_EXPERT(w3)},
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { NAME_SIZE = 96 };

/* One row of the table at one place of the architecture: a weight, with its scale if it has one. */
typedef struct {
    const row *row;
    char name[NAME_SIZE];  /* of the weight */
    char scale[NAME_SIZE]; /* the name a scale has or would have; empty where there can be none */
    int64_t layer, expert; /* -1 outside the layers, outside the experts */
    bool mtp;
    int64_t rows, cols;
} place;

typedef int place_visitor(void *context, const place *p);

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static void fill_sizes(int64_t size[SYMBOLS], const dsv4_config *c, int64_t ratio)
{
    /* checkpoint.table.4: c is 2 in a CSA layer, whose compressors have one channel for the token's
     * own group and one for the next group, and 1 in an HCA layer. */
    int64_t channels = ratio == 4 ? 2 : 1;
    const int64_t values[SYMBOLS] = {
        [NONE] = 1,
        [ONE] = 1,
        [THREE] = 3,
        [D] = c->hidden_size,
        [H] = c->num_attention_heads,
        [HEAD] = c->head_dim,
        [H_HEAD] = c->num_attention_heads * c->head_dim,
        [Q_LORA] = c->q_lora_rank,
        [GROUP_IN] = c->num_attention_heads / c->o_groups * c->head_dim,
        [GROUPS_OUT] = c->o_groups * c->o_lora_rank,
        [RATIO] = ratio,
        [C_HEAD] = channels * c->head_dim,
        [INDEX_HEADS] = c->index_n_heads,
        [INDEX_HEAD] = c->index_head_dim,
        [INDEX_HEADS_HEAD] = c->index_n_heads * c->index_head_dim,
        [C_INDEX_HEAD] = channels * c->index_head_dim,
        [E] = c->n_routed_experts,
        [K] = c->num_experts_per_tok,
        [I] = c->moe_intermediate_size,
        [V] = c->vocab_size,
        [N] = c->hc_mult,
        [N_D] = c->hc_mult * c->hidden_size,
        [MIX] = (2 + c->hc_mult) * c->hc_mult,
    };
    memcpy(size, values, sizeof values);
}

static bool is_hash(const dsv4_config *c, int64_t layer)
{
    /* checkpoint.table.5: The first num_hash_layers layers are hash layers; all others, and all MTP
     * layers, are score layers. */
    return layer < c->num_hash_layers;
}

/* checkpoint.table.6: The rows of a compressor are there in CSA and HCA layers, those of the
 * indexer in CSA layers, ffn.gate.bias in score layers, ffn.gate.tid2eid in hash layers, and the
 * last eight rows in MTP layers; there only. */
static bool applies(condition when, const dsv4_config *c, int64_t layer)
{
    switch (when) {
    case COMPRESSED:
        return dsv4_config_kind(c, layer) != DSV4_SWA;
    case CSA:
        return dsv4_config_kind(c, layer) == DSV4_CSA;
    case HASH:
        return is_hash(c, layer);
    case SCORE:
        return !is_hash(c, layer);
    case MTP:
        return layer >= c->num_hidden_layers;
    default:
        return true;
    }
}

static int visit_row(const row *r, const char *prefix, place *p, const int64_t size[SYMBOLS],
                     place_visitor *visit, void *context)
{
    p->row = r;
    p->rows = size[r->rows];
    p->cols = size[r->cols];
    int length = snprintf(p->name, sizeof p->name, "%s%s", prefix, r->name);
    int stem = length - (int)strlen(".weight");
    p->scale[0] = '\0';
    if (stem >= 0 && strcmp(p->name + stem, ".weight") == 0)
        snprintf(p->scale, sizeof p->scale, "%.*s.scale", stem, p->name);
    return visit(context, p);
}

static int visit_layer(const dsv4_config *c, int64_t layer, place_visitor *visit, void *context)
{
    place p = {.layer = layer, .expert = -1, .mtp = layer >= c->num_hidden_layers};
    int64_t size[SYMBOLS];
    fill_sizes(size, c, c->compress_ratios[layer]);

    char prefix[NAME_SIZE / 2];
    int length = snprintf(prefix, sizeof prefix, "%s.%" PRId64 ".", p.mtp ? "mtp" : "layers",
                          p.mtp ? layer - c->num_hidden_layers : layer);
    int status = 0;
    for (size_t i = 0; status == 0 && i < COUNT(layer_rows); i++)
        if (applies(layer_rows[i].when, c, layer))
            status = visit_row(&layer_rows[i], prefix, &p, size, visit, context);
    for (p.expert = 0; status == 0 && p.expert < c->n_routed_experts; p.expert++) {
        snprintf(prefix + length, sizeof prefix - (size_t)length, "ffn.experts.%" PRId64 ".",
                 p.expert);
        for (size_t i = 0; status == 0 && i < COUNT(expert_rows); i++)
            status = visit_row(&expert_rows[i], prefix, &p, size, visit, context);
    }
    return status;
}

/* Every place of the top level and of the layers below `layers`. */
static int each_place(const dsv4_config *c, int64_t layers, place_visitor *visit, void *context)
{
    place p = {.layer = -1, .expert = -1};
    int64_t size[SYMBOLS];
    fill_sizes(size, c, 0);
    int status = 0;
    for (size_t i = 0; status == 0 && i < COUNT(model_rows); i++)
        status = visit_row(&model_rows[i], "", &p, size, visit, context);
    for (int64_t layer = 0; status == 0 && layer < layers; layer++)
        status = visit_layer(c, layer, visit, context);
    return status;
}

static int64_t all_layers(const dsv4_config *c)
{
    return c->num_hidden_layers + c->num_nextn_predict_layers;
}

const char *dsv4_component_name(dsv4_component component)
{
    static const char *const names[DSV4_COMPONENTS] = {
        [DSV4_EMBED] = "embed",
        [DSV4_HEAD] = "head",
        [DSV4_NORM] = "norm",
        [DSV4_ATTENTION] = "attention",
        [DSV4_COMPRESSOR] = "compressor",
        [DSV4_INDEXER] = "indexer",
        [DSV4_MHC] = "mhc",
        [DSV4_GATE] = "gate",
        [DSV4_EXPERTS] = "experts",
        [DSV4_SHARED_EXPERTS] = "shared_experts",
        [DSV4_MTP_INPUT] = "input",
        [DSV4_UNEXPECTED] = "unexpected",
    };
    return names[component];
}

/* The shape of the scale of a matrix stored as `dtype`. */
static void scale_shape(const place *p, dsv4_dtype dtype, int64_t shape[2])
{
    if (dtype == DSV4_I8) {
        shape[0] = p->rows;
        shape[1] = ceil_div(p->cols, 32);
    } else {
        shape[0] = ceil_div(p->rows, 128);
        shape[1] = ceil_div(p->cols, 128);
    }
}

/* A dsv4_model_each under way. */
typedef struct {
    int (*visit)(void *, const dsv4_expected *);
    void *context;
} enumeration;

static int visit_expected(void *context, const place *p)
{
    static const dsv4_dtype dtypes[] = {
        [FP8] = DSV4_F8_E4M3, [FP4] = DSV4_I8,  [BF16] = DSV4_BF16,
        [F32] = DSV4_F32,     [I64] = DSV4_I64,
    };
    const enumeration *each = context;
    dsv4_dtype dtype = dtypes[p->row->storage];
    dsv4_expected e = {
        .name = p->name,
        .component = p->row->component,
        .mtp = p->mtp,
        .layer = p->layer,
        .dtype = dtype,
        .rank = p->row->rows == NONE ? 1 : 2,
        .rows = p->rows,
        .cols = p->cols,
    };
    int64_t cols = dtype == DSV4_I8 ? ceil_div(p->cols, 2) : p->cols;
    e.shape[0] = e.rank == 1 ? cols : p->rows;
    e.shape[1] = e.rank == 1 ? 0 : cols;
    e.bytes = p->rows * cols * dsv4_dtype_size(dtype);
    int status = each->visit(each->context, &e);
    if (status != 0 || (dtype != DSV4_F8_E4M3 && dtype != DSV4_I8))
        return status;
    e.name = p->scale;
    e.dtype = DSV4_F8_E8M0;
    scale_shape(p, dtype, e.shape);
    e.bytes = e.shape[0] * e.shape[1];
    return each->visit(each->context, &e);
}

int dsv4_model_each(const dsv4_config *config, int (*visit)(void *, const dsv4_expected *),
                    void *context)
{
    enumeration each = {visit, context};
    return each_place(config, all_layers(config), visit_expected, &each);
}

static bool is_quantised(const dsv4_tensor *tensor)
{
    return tensor->dtype == DSV4_F8_E4M3 || tensor->dtype == DSV4_I8;
}

/* checkpoint.storage.1: A matrix of dtype FP8 or FP4 in the table may be stored as FP8, as FP4, or
 * plainly as F32, BF16 or F16; one of dtype BF16 or F32 is stored plainly, in any of the three; one
 * of dtype I64 is stored as I64 or I32. Checkpoints may mix these from tensor to tensor. */
static int check_dtype(const place *p, const dsv4_tensor *tensor, dsv4_error *err)
{
    bool plain = tensor->dtype == DSV4_F32 || tensor->dtype == DSV4_BF16 ||
                 tensor->dtype == DSV4_F16;
    bool good;
    const char *expected;
    switch (p->row->storage) {
    case FP8:
    case FP4:
        good = plain || is_quantised(tensor);
        expected = "F8_E4M3, I8, F32, BF16 or F16";
        break;
    case I64:
        good = tensor->dtype == DSV4_I64 || tensor->dtype == DSV4_I32;
        expected = "I64 or I32";
        break;
    default:
        good = plain;
        expected = "F32, BF16 or F16";
        break;
    }
    return good ? 0 : dsv4_fail(err, "expected dtype %s, got %s", expected, tensor->dtype_name);
}

static int check_shape(const dsv4_tensor *tensor, bool vector, int64_t rows, int64_t cols,
                       dsv4_error *err)
{
    const int64_t *shape = tensor->shape;
    if (vector ? tensor->rank == 1 && shape[0] == cols
               : tensor->rank == 2 && shape[0] == rows && shape[1] == cols)
        return 0;
    char got[DSV4_MAX_RANK * 22 + 1] = "";
    for (int i = 0, n = 0; i < tensor->rank; i++)
        n += snprintf(got + n, sizeof got - (size_t)n, "%s%" PRId64, i > 0 ? ", " : "", shape[i]);
    char first[24] = "";
    if (!vector)
        snprintf(first, sizeof first, "%" PRId64 ", ", rows);
    return dsv4_fail(err, "expected shape [%s%" PRId64 "], got [%s]", first, cols, got);
}

/* The line that this and check_scale write does not name the tensor: the caller does. */
static int check_weight(const place *p, const dsv4_tensor *tensor, dsv4_error *err)
{
    if (check_dtype(p, tensor, err) != 0)
        return -1;
    int64_t cols = p->cols;
    if (tensor->dtype == DSV4_I8) {
        /* checkpoint.storage.2: An FP8 matrix is stored as F8_E4M3, and an FP4 matrix [rows, cols]
         * as I8 [rows, cols / 2], two E2M1 codes in a byte, the one with the lower column in the
         * low four bits; its cols is a multiple of 32. */
        if (cols % 32 != 0)
            return dsv4_fail(err, "expected a multiple of 32 columns in FP4, got %" PRId64, cols);
        cols /= 2;
    }
    return check_shape(tensor, p->row->rows == NONE, p->rows, cols, err);
}

static int check_scale(const place *p, const dsv4_tensor *weight, const dsv4_tensor *scale,
                       dsv4_error *err)
{
    /* checkpoint.storage.3: A plain tensor BASE.weight has no BASE.scale beside it: a reader could
     * not tell whether to apply it. */
    if (!is_quantised(weight))
        return dsv4_fail(err, "expected no scale beside a matrix of dtype %s", weight->dtype_name);
    if (scale->dtype != DSV4_F8_E8M0)
        return dsv4_fail(err, "expected dtype F8_E8M0, got %s", scale->dtype_name);
    /* checkpoint.storage.4: BASE.weight in FP8 or FP4 has its scales in BASE.scale, F8_E8M0: of FP8
     * [ceil(rows / 128), ceil(cols / 128)], one for a block of 128 x 128 values, the last ones of a
     * row or column being smaller; of FP4 [rows, cols / 32], one for 32 consecutive columns. */
    int64_t shape[2];
    scale_shape(p, weight->dtype, shape);
    return check_shape(scale, false, shape[0], shape[1], err);
}

/* A dsv4_model_check under way. */
typedef struct {
    const dsv4_checkpoint *checkpoint;
    bool *seen; /* by position in the checkpoint */
    void (*visit)(void *, const dsv4_match *);
    void *context;
} comparison;

static void report(const comparison *check, const place *p, const char *name,
                   const dsv4_tensor *tensor, const dsv4_error *wrong)
{
    if (tensor != NULL)
        check->seen[tensor - dsv4_checkpoint_at(check->checkpoint, 0)] = true;
    const dsv4_match match = {
        .name = name,
        .tensor = tensor,
        .component = p->row->component,
        .mtp = p->mtp,
        .wrong = wrong->text[0] != '\0' ? wrong->text : NULL,
    };
    check->visit(check->context, &match);
}

static int compare_place(void *context, const place *p)
{
    const comparison *check = context;
    const dsv4_tensor *weight = dsv4_checkpoint_find(check->checkpoint, p->name);
    dsv4_error wrong = {0};
    if (weight != NULL)
        check_weight(p, weight, &wrong);
    report(check, p, p->name, weight, &wrong);

    const dsv4_tensor *scale = dsv4_checkpoint_find(check->checkpoint, p->scale);
    wrong = (dsv4_error){0};
    if (scale != NULL && weight != NULL)
        check_scale(p, weight, scale, &wrong);
    if (scale != NULL || (weight != NULL && p->scale[0] != '\0' && is_quantised(weight)))
        report(check, p, p->scale, scale, &wrong);
    return 0;
}

void dsv4_model_check(const dsv4_config *config, const dsv4_checkpoint *checkpoint,
                      void (*visit)(void *, const dsv4_match *), void *context)
{
    int64_t count = dsv4_checkpoint_count(checkpoint);
    comparison check = {checkpoint, dsv4_alloc((size_t)count, sizeof(bool)), visit, context};
    each_place(config, all_layers(config), compare_place, &check);
    for (int64_t i = 0; i < count; i++) {
        const dsv4_tensor *tensor = dsv4_checkpoint_at(checkpoint, i);
        const dsv4_match match = {
            .name = tensor->name,
            .tensor = tensor,
            .component = DSV4_UNEXPECTED,
            .mtp = strncmp(tensor->name, "mtp.", strlen("mtp.")) == 0,
        };
        if (!check.seen[i])
            visit(context, &match);
    }
    free(check.seen);
}

/* A dsv4_model_open under way. */
typedef struct {
    dsv4_model *model;
    const char *dir;
    dsv4_numerics numerics;
    dsv4_error *err;
} binding;

/* The layer of that index, below num_hidden_layers + num_nextn_predict_layers. */
static dsv4_layer *layer_at(const dsv4_model *model, int64_t index)
{
    int64_t mtp = index - model->config.num_hidden_layers;
    return mtp < 0 ? &model->layers[index] : &model->mtp[mtp];
}

static dsv4_matrix *matrix_at(dsv4_model *model, const place *p)
{
    char *owner;
    if (p->layer < 0)
        owner = (char *)model;
    else if (p->expert < 0)
        owner = (char *)layer_at(model, p->layer);
    else
        owner = (char *)&layer_at(model, p->layer)->ffn.experts[p->expert];
    return (dsv4_matrix *)(owner + p->row->offset);
}

static int check_released(const place *p, const dsv4_tensor *weight, dsv4_error *err)
{
    /* checkpoint.released.1: In released numerics the columns of every FP8 and FP4 matrix are a
     * multiple of 128, because its input is quantised by 128; but for attn.wo_a, whose input is not
     * quantised. */
    if (!is_quantised(weight) || p->cols % 128 == 0 || p->row->offset == IN_LAYER(attn.wo_a))
        return 0;
    return dsv4_fail(err, "expected a multiple of 128 columns in released numerics, got %" PRId64,
                     p->cols);
}

static int bind_place(void *context, const place *p)
{
    const binding *bind = context;
    const dsv4_checkpoint *checkpoint = bind->model->checkpoint;
    const dsv4_tensor *weight = dsv4_checkpoint_find(checkpoint, p->name);
    if (weight == NULL)
        return dsv4_fail(bind->err, "%s: tensor %s is missing", bind->dir, p->name);
    const dsv4_tensor *scale = dsv4_checkpoint_find(checkpoint, p->scale);
    dsv4_error wrong = {0};
    if (check_weight(p, weight, &wrong) != 0 ||
        (bind->numerics == DSV4_RELEASED && check_released(p, weight, &wrong) != 0))
        return dsv4_fail(bind->err, "%s: tensor %s: %s", weight->file, p->name, wrong.text);
    if (scale != NULL && check_scale(p, weight, scale, &wrong) != 0)
        return dsv4_fail(bind->err, "%s: tensor %s: %s", scale->file, p->scale, wrong.text);
    if (scale == NULL && is_quantised(weight))
        return dsv4_fail(bind->err, "%s: tensor %s is missing", bind->dir, p->scale);
    *matrix_at(bind->model, p) = (dsv4_matrix){
        .name = weight->name,
        .file = weight->file,
        .dtype = weight->dtype,
        .rows = p->rows,
        .cols = p->cols,
        .data = weight->data,
        .scale = scale != NULL ? scale->data : NULL,
    };
    return 0;
}

static dsv4_layer *make_layers(const dsv4_config *config, int64_t first, int64_t count)
{
    dsv4_layer *layers = dsv4_alloc((size_t)count, sizeof *layers);
    for (int64_t i = 0; i < count; i++) {
        layers[i].index = first + i;
        layers[i].ratio = config->compress_ratios[first + i];
        layers[i].kind = dsv4_config_kind(config, first + i);
        layers[i].hash = is_hash(config, first + i);
        layers[i].ffn.experts = dsv4_alloc((size_t)config->n_routed_experts,
                                           sizeof *layers[i].ffn.experts);
    }
    return layers;
}

static void free_layers(dsv4_layer *layers, int64_t count)
{
    for (int64_t i = 0; layers != NULL && i < count; i++)
        free(layers[i].ffn.experts);
    free(layers);
}

static int check_released_config(const dsv4_config *c, int64_t layers, const char *path,
                                 dsv4_error *err)
{
    /* checkpoint.released.2: In released numerics head_dim - qk_rope_head_dim is a multiple of 64,
     * and index_head_dim, where some layer is CSA, a multiple of 32: the blocks of the KV and of
     * the indexer quantisation. */
    int64_t width = c->head_dim - c->qk_rope_head_dim;
    if (width % 64 != 0)
        return dsv4_fail(err, "%s: head_dim - qk_rope_head_dim: expected a multiple of 64 in "
                         "released numerics, got %" PRId64, path, width);
    for (int64_t layer = 0; layer < layers; layer++)
        if (dsv4_config_kind(c, layer) == DSV4_CSA && c->index_head_dim % 32 != 0)
            return dsv4_fail(err, "%s: index_head_dim: expected a multiple of 32 in released "
                             "numerics, got %" PRId64, path, c->index_head_dim);
    return 0;
}

static int open_all(dsv4_model *model, const char *dir, dsv4_numerics numerics, bool mtp,
                    dsv4_error *err)
{
    char *path = dsv4_alloc(strlen(dir) + sizeof "/config.json", 1);
    strcat(strcpy(path, dir), "/config.json");
    dsv4_config *config = &model->config;
    int status = dsv4_config_read(config, path, err);
    int64_t layers = mtp ? all_layers(config) : config->num_hidden_layers;
    if (status == 0 && numerics == DSV4_RELEASED)
        status = check_released_config(config, layers, path, err);
    free(path);
    if (status != 0)
        return -1;
    model->checkpoint = dsv4_checkpoint_open(dir, err);
    if (model->checkpoint == NULL)
        return -1;
    model->layers = make_layers(config, 0, config->num_hidden_layers);
    if (layers > config->num_hidden_layers)
        model->mtp = make_layers(config, config->num_hidden_layers,
                                 config->num_nextn_predict_layers);
    binding bind = {model, dir, numerics, err};
    return each_place(config, layers, bind_place, &bind);
}

int dsv4_model_open(dsv4_model *model, const char *dir, dsv4_numerics numerics, bool mtp,
                    dsv4_error *err)
{
    *model = (dsv4_model){0};
    if (open_all(model, dir, numerics, mtp, err) == 0)
        return 0;
    dsv4_model_close(model);
    return -1;
}

void dsv4_model_close(dsv4_model *model)
{
    free_layers(model->layers, model->config.num_hidden_layers);
    free_layers(model->mtp, model->config.num_nextn_predict_layers);
    dsv4_checkpoint_close(model->checkpoint);
    dsv4_config_free(&model->config);
    *model = (dsv4_model){0};
}
