/* Sizes, weights and schedules of cases that are layers or parts of one. */
#ifndef DSV4_GEN_LAYERS_H
#define DSV4_GEN_LAYERS_H

#include "gen.h"

#include <stdio.h>

typedef struct { int64_t D, H, d, R, Q, g, o, n_i, d_i, E, k, I, n, V; } gen_geometry;
extern const gen_geometry gen_tiny, gen_tiny_released, gen_real;

/* Of a plan: n = geometry, ratio, schedule, rows, chunk (or stretch) ... */
enum { TINY, REAL };
enum { FULL, CHUNKS, TAIL, PACKED, INTERLEAVED, PADDED };

const gen_geometry *gen_sizes(const gen *g);
int64_t gen_schedule_rows(const gen *g);
void gen_plan_schedule(gen *g);
double gen_input_gain(const gen_geometry *z);
void gen_layer_rope(gen *g, const gen_geometry *z, bool compressed);
void gen_attention_weights(gen *g, const gen_geometry *z, int64_t ratio);
void gen_attention_parameters(gen *g, const gen_geometry *z, int64_t ratio, int64_t W,
                              int64_t topk);

#endif
