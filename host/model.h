/* The weights of a model by their places in the architecture. spec/checkpoint.md.
 *
 * One table (in model.c) lists every tensor that a configuration calls for: it names, counts,
 * checks and binds them, so that `dsv4 inspect`, every forward path and the specification cannot
 * disagree. */
#ifndef DSV4_MODEL_H
#define DSV4_MODEL_H

#include "checkpoint.h"
#include "config.h"

/* A weight matrix [rows, cols], y = M x; a vector is a matrix of one row. */
typedef struct {
    const char *name;     /* canonical, as in the checkpoint: "layers.0.attn.wq_a.weight" */
    const char *file;     /* for messages */
    dsv4_dtype dtype;     /* I8 means E2M1 codes, two per byte, low nibble first */
    int64_t rows, cols;   /* cols counts values, not bytes: an FP4 row has cols / 2 bytes */
    const void *data;     /* unaligned, in the mapped file */
    const uint8_t *scale; /* E8M0: FP8 [ceil(rows/128), ceil(cols/128)], FP4 [rows, cols/32],
                             else NULL */
} dsv4_matrix;

typedef struct { dsv4_matrix fn, base, scale; } dsv4_hc; /* hc_attn_*, hc_ffn_*, hc_head_* */
typedef struct { dsv4_matrix ape, norm, wkv, wgate; } dsv4_compressor;
typedef struct { dsv4_matrix w1, w2, w3; } dsv4_expert;

typedef struct {
    int64_t index; /* num_hidden_layers + i for mtp.i */
    int64_t ratio; /* 0 SWA, 4 CSA, larger HCA */
    dsv4_layer_kind kind;
    bool hash;     /* experts by token id */
    struct {
        dsv4_matrix attn_sink, wq_a, q_norm, wq_b, wkv, kv_norm, wo_a, wo_b;
        dsv4_compressor compressor; /* CSA and HCA */
        struct {
            dsv4_matrix wq_b, weights_proj;
            dsv4_compressor compressor;
        } indexer; /* CSA */
    } attn;
    struct {
        struct { dsv4_matrix weight, bias, tid2eid; } gate; /* bias: score layers; tid2eid: hash */
        dsv4_expert *experts; /* [n_routed_experts], owned */
        dsv4_expert shared_experts;
    } ffn;
    dsv4_matrix attn_norm, ffn_norm;
    dsv4_hc hc_attn, hc_ffn;
    dsv4_matrix e_proj, h_proj, enorm, hnorm, norm; /* MTP only, as hc_head */
    dsv4_hc hc_head;
} dsv4_layer;

typedef struct {
    dsv4_config config;
    dsv4_checkpoint *checkpoint;
    dsv4_matrix embed, head, norm;
    dsv4_hc hc_head;
    dsv4_layer *layers; /* [num_hidden_layers] */
    dsv4_layer *mtp;    /* [num_nextn_predict_layers], bound only when asked for, else NULL */
} dsv4_model;

/* What a tensor is for, as `dsv4 inspect` sums it up. */
typedef enum {
    DSV4_EMBED, DSV4_HEAD, DSV4_NORM, DSV4_ATTENTION, DSV4_COMPRESSOR, DSV4_INDEXER, DSV4_MHC,
    DSV4_GATE, DSV4_EXPERTS, DSV4_SHARED_EXPERTS, DSV4_MTP_INPUT, /* e_proj and h_proj */
    DSV4_UNEXPECTED, /* not in the table */
    DSV4_COMPONENTS
} dsv4_component;

/* "embed", "head" and so on. */
const char *dsv4_component_name(dsv4_component component);

/* One stored tensor that a configuration calls for, in the released layout. A scale is told by its
 * dtype, F8_E8M0; without the scales, [rows, cols] is the layout of an unquantised checkpoint. */
typedef struct {
    const char *name; /* canonical; valid during the visit */
    dsv4_component component;
    bool mtp;
    int64_t layer; /* num_hidden_layers + i for mtp.i, -1 at the top level */
    dsv4_dtype dtype;
    int rank;
    int64_t shape[2]; /* as stored: an FP4 row has cols / 2 bytes, rounded up */
    int64_t bytes;
    int64_t rows, cols; /* of the matrix of values; of a scale: of the matrix that it scales */
} dsv4_expected;

/* Visits every tensor of the configuration, the MTP layers' included: the top level, then layer by
 * layer in the order of the table, a scale right after its weight. A visitor that returns anything
 * but 0 ends the visit, and that is returned. */
int dsv4_model_each(const dsv4_config *config, int (*visit)(void *, const dsv4_expected *),
                    void *context);

/* One line of the comparison of a checkpoint with its configuration. */
typedef struct {
    const char *name;
    const dsv4_tensor *tensor; /* NULL: missing */
    dsv4_component component;  /* DSV4_UNEXPECTED: the configuration has no such tensor */
    bool mtp;
    const char *wrong; /* one line about its dtype or shape, or NULL */
} dsv4_match;

/* Visits every expected tensor (a weight that may be quantised and is missing stands for its scale
 * too) and then every unexpected one. */
void dsv4_model_check(const dsv4_config *config, const dsv4_checkpoint *checkpoint,
                      void (*visit)(void *, const dsv4_match *), void *context);

/* Opens DIR/config.json and DIR's weights and binds every tensor of the layers (and, with `mtp`, of
 * the MTP layers). Missing, misshaped and wrongly typed tensors are refused; `numerics` RELEASED
 * refuses widths that it cannot quantise as well. `mtp` without MTP layers binds none, and
 * model->mtp is NULL. 0, or -1 with one line in `err`. */
int dsv4_model_open(dsv4_model *model, const char *dir, dsv4_numerics numerics, bool mtp,
                    dsv4_error *err);
void dsv4_model_close(dsv4_model *model);

#endif
