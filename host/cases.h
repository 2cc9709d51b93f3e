/* Cases of golden vectors: an operator, its parameters, inputs, and expected outputs.
 * vectors/FORMAT.md describes the files. */
#ifndef DSV4_CASES_H
#define DSV4_CASES_H

#include "model.h"
#include "operators.h"

enum { DSV4_ARRAY_RANK = 4, DSV4_NAME = 64 };

/* A named array. Row-major; `data` is of the C type of the format: double, float, uint8_t,
 * int64_t. */
typedef struct {
    char name[DSV4_NAME];
    dsv4_format format;
    int rank;
    int64_t shape[DSV4_ARRAY_RANK];
    int64_t count; /* stored elements */
    void *data;    /* owned */
    char recipe[32];    /* how the data were made, if they are not stored: "splitmix64", or empty */
    uint64_t recipe_seed;
} dsv4_array;

double dsv4_array_value(const dsv4_array *array, int64_t i); /* f64, f32, bf16, i64 */

/* Allowed deviation of an output in one tier of precision, FORMAT.md "Tolerances". An element
 * passes if |got - want| <= row * (largest magnitude of its row) + element * |want|, and the slot
 * if also rms(got - want) <= rms * rms(want). */
typedef struct { double row, element, rms; } dsv4_tolerance;
typedef enum { DSV4_TIER_FP32, DSV4_TIER_BF16, DSV4_TIERS } dsv4_tier;

typedef struct { char name[DSV4_NAME]; double value; } dsv4_param;

typedef struct {
    const dsv4_operator *op;
    char name[DSV4_NAME];      /* "exact-window-127"; unique within the operator */
    char reason[256];          /* one line: why this case is there */
    char flags[128];           /* words: seam tie magnified real-size chunked packed ... */
    char checkpoint[128];      /* a model's directory beside the vector files; empty otherwise */
    char directory[4096];      /* of the vector files: where `checkpoint` is found */
    dsv4_numerics numerics;
    dsv4_param param[DSV4_MAX_PARAMS];
    int params;
    dsv4_array *in;            /* [ins], owned */
    int ins;
    dsv4_array *out;           /* [outs], owned: the expected values */
    int outs;
    dsv4_tolerance (*tolerance)[DSV4_TIERS]; /* [outs], owned; NULL in answers */
} dsv4_case;

void dsv4_case_free(dsv4_case *c);

/* A new input or output, zeroed. `format` decides the C type of data. The pointer is good until the
 * next one is added; what `data` points to stays. */
dsv4_array *dsv4_case_add_in(dsv4_case *c, const char *name, dsv4_format format, int rank,
                             const int64_t *shape);
dsv4_array *dsv4_case_add_out(dsv4_case *c, const char *name, dsv4_format format, int rank,
                              const int64_t *shape);
void dsv4_case_set(dsv4_case *c, const char *param, double value);

/* NULL where the case has none of that name. */
const dsv4_array *dsv4_case_in(const dsv4_case *c, const char *name);
const dsv4_array *dsv4_case_out(const dsv4_case *c, const char *name);

/* The parameter's value, or `otherwise`. */
double dsv4_case_param(const dsv4_case *c, const char *name, double otherwise);

/* The inputs as double [count] and int64_t [count]: copies, to be released with free(). The input
 * must exist and be of values, or of indices. */
double *dsv4_case_values(const dsv4_case *c, const char *name);
int64_t *dsv4_case_indices(const dsv4_case *c, const char *name);

/* The case's parameters as a configuration: those that it has overwrite neutral ones. The shapes of
 * the weights stand in for sizes that are no parameters (hidden_size and so on need not be given).
 * Release with dsv4_config_free(). */
void dsv4_case_config(const dsv4_case *c, dsv4_config *config);

/* Matrix slot `name` ("wq_a": inputs "wq_a.weight" and "wq_a.scale"; or a plain input `name`
 * itself, such as "hc_attn_fn"). Data belong to the case. A matrix without rows where it has
 * none. */
dsv4_matrix dsv4_case_matrix(const dsv4_case *c, const char *name);

/* A layer whose weights are the inputs of the checkpoint's names without "layers.L.":
 * "attn.wq_a.weight", "ffn.experts.3.w1.scale", "hc_attn_fn" and so on; what the case lacks stays
 * empty. `ratio` and `hash` come from the parameters `ratio` and `hash`. Release `experts` with
 * dsv4_case_layer_free(). */
void dsv4_case_layer(const dsv4_case *c, const dsv4_config *config, dsv4_layer *layer);
void dsv4_case_layer_free(dsv4_layer *layer);

/* The rows of `sequence` in the order of presentation. Stateful operators have the inputs
 * `sequence` [N], the number of the sequence that each row belongs to (-1: padding, to be ignored),
 * and `calls` [C], how many of the rows each call presents. */
typedef struct {
    int64_t rows, calls, sequences;
    int64_t *sequence; /* [rows] */
    int64_t *position; /* [rows]: of the row in its sequence; -1 for padding */
    int64_t *call;     /* [rows]: the call that presents it */
    int64_t *length;   /* [sequences]: rows of each in all */
    int64_t *start;    /* [rows]: the position at which this row's call goes on with its sequence */
} dsv4_schedule;

/* 0, or -1 with one line where the inputs contradict each other. */
int dsv4_case_schedule(const dsv4_case *c, dsv4_schedule *schedule, dsv4_error *err);
void dsv4_schedule_free(dsv4_schedule *schedule);

/* ---- files ---- */

/* Checks a case against its operator's table: slots, dims, parameters. */
int dsv4_case_check(const dsv4_case *c, dsv4_error *err);
/* The same without outputs, of which the case may have none. */
int dsv4_case_check_inputs(const dsv4_case *c, dsv4_error *err);

/* The bytes of recipe "splitmix64": byte i is byte i mod 8 (low first) of the output of
 * splitmix64 for counter i / 8: x = seed + (i / 8 + 1) 0x9e3779b97f4a7c15, then its finaliser. A
 * format makes its elements of them as FORMAT.md says. */
void dsv4_recipe_fill(dsv4_array *array);

/* All cases of one vector file. */
typedef struct { dsv4_case *c; int64_t count; char *path; } dsv4_case_file;
int dsv4_case_file_read(dsv4_case_file *file, const char *path, dsv4_error *err);
/* Writes cases (with inputs, expected outputs, tolerances); the same cases give the same bytes. */
int dsv4_case_file_write(const char *path, const dsv4_case *cases, int64_t count, dsv4_error *err);
void dsv4_case_file_free(dsv4_case_file *file);

/* Writes only outputs, as a candidate file: appends to an open file. */
struct dsv4_h5;
int dsv4_case_write_answer(struct dsv4_h5 *file, const dsv4_case *c, const dsv4_array *out,
                           int outs, dsv4_error *err);

/* ---- those who answer cases ---- */

/* Computes the outputs of a case into `answer` (op, name, numerics set; outs added by the callee).
 * 0 answered, 1 this operator is not offered, -1 with one line. */
typedef int dsv4_answer_function(void *context, const dsv4_case *c, dsv4_case *answer,
                                 dsv4_error *err);

#endif
