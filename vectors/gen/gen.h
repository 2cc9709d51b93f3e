/* Makes the golden vectors: inputs by seed, outputs by ref/, tolerances by measurement.
 *
 * A plan is one case to be made. Its build function adds parameters and inputs; the same plan and seed
 * give the same bytes everywhere, because inputs are made with integers, correctly rounded
 * operations and sqrt only. */
#ifndef DSV4_GEN_H
#define DSV4_GEN_H

#include "host/cases.h"

typedef enum { EXACT = 1, RELEASED = 2, BOTH = 3 } gen_contracts;

typedef struct gen_plan gen_plan;

/* Numbers from a counter: splitmix64. */
typedef struct { uint64_t key, count; } gen_random;

typedef struct {
    dsv4_case *c;
    const gen_plan *plan;
    gen_random random;
} gen;

typedef void gen_build(gen *g);

struct gen_plan {
    const char *op, *name, *flags, *reason;
    gen_contracts contracts;
    gen_build *build;
    int64_t n[8];  /* whatever the build function takes: sizes first */
    double x[4];
};

/* One list per file, ending with a plan without an operator. */
extern const gen_plan gen_elements[], gen_mixture[], gen_attention[], gen_whole[];

/* ---- numbers ---- */
uint64_t gen_bits(gen *g);
int64_t gen_below(gen *g, int64_t n);
double gen_normal(gen *g);            /* mean 0, variance 1, within 3.5 */
double gen_to_bf16(double x);

/* ---- inputs; dims end with 0 ---- */
#define GEN_DIMS(...) ((const int64_t[]){__VA_ARGS__, 0})
bool gen_released(const gen *g);
void gen_set(gen *g, const char *param, double value);

/* Zeros, to be filled: float * for values, int64_t * for indices, uint8_t * for codes. */
float *gen_floats(gen *g, const char *name, dsv4_format format, const int64_t *dims);
int64_t *gen_indices(gen *g, const char *name, const int64_t *dims);
uint8_t *gen_codes(gen *g, const char *name, dsv4_format format, const int64_t *dims);

/* offset + gain x normal, rounded to bf16. */
float *gen_values(gen *g, const char *name, const int64_t *dims, double offset, double gain);
/* A value that *released* keeps in binary32: there of 24 bits, in *exact* of 8. */
float *gen_values_f32(gen *g, const char *name, const int64_t *dims, double offset, double gain);
void gen_range(gen *g, const char *name, int64_t count, int64_t first); /* first, first + 1 .. */

typedef enum { PLAIN, FP8, FP4 } gen_weight;
/* Matrix slot [rows, cols] whose product with unit inputs has values around `gain`. */
void gen_matrix(gen *g, const char *name, gen_weight kind, int64_t rows, int64_t cols, double gain);
/* The same, not stored: made by recipe splitmix64. */
void gen_matrix_recipe(gen *g, const char *name, gen_weight kind, int64_t rows, int64_t cols);
/* FP8 or FP4 in released, plain in exact. Large ones are made by recipe; of those whose output is
 * normalised, smaller ones too. */
void gen_quantised(gen *g, const char *name, gen_weight kind, int64_t rows, int64_t cols,
                   double gain);
void gen_before_norm(gen *g, const char *name, gen_weight kind, int64_t rows, int64_t cols);

/* Rope parameters: of Flash, with R; or small ones for which YaRN's ramp falls among few pairs. */
void gen_rope(gen *g, int64_t R, bool compressed);
void gen_rope_small(gen *g, int64_t R, bool compressed);

/* Inputs `sequence` and `calls`: runs of (sequence, rows), ending with rows 0; a new call begins where
 * `call` is set. */
typedef struct { int64_t sequence, rows; bool call; } gen_run;
void gen_schedule(gen *g, const gen_run *runs);
void gen_chunks(gen *g, int64_t rows, int64_t chunk); /* one sequence */

/* ---- outputs ---- */
/* Builds, answers and measures one case. 0 or -1. */
int gen_case(const gen_plan *plan, dsv4_numerics numerics, const char *directory, dsv4_case *c,
             dsv4_error *err);

/* Writes the checkpoints of whole-model cases into DIRECTORY/models. */
int gen_models(const char *directory, dsv4_error *err);

/* measure.c: whether correct engines agree on every choice, and by how much their values differ. */
int gen_measure(dsv4_case *c, bool *agree, dsv4_error *err);

#endif
