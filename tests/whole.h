/* Whole small models: written as a checkpoint, opened, run in pieces. */
#ifndef TESTS_WHOLE_H
#define TESTS_WHOLE_H

#include "files.h"
#include "host/path.h"
#include "make_checkpoint.h"

typedef struct {
    char *dir;
    dsv4_numerics numerics;
    dsv4_model model; /* with its MTP layer, if there is one */
} whole;

/* A model of random weights with the layers SWA, CSA, HCA, CSA and, as MTP, SWA: the geometry of
 * whole.c with changes as files_json() takes them, or NULL. RELEASED has the dtypes of the released
 * layout; EXACT takes the style. Ends the test with a message where it cannot. */
void whole_open(whole *w, dsv4_numerics numerics, make_style style, const char *const changes[]);
void whole_close(whole *w);

/* `n` token ids of the model's vocabulary, to be freed. */
int64_t *whole_ids(const whole *w, int64_t n, int64_t seed);

/* The reference over ids[0..n) in pieces of `chunk` -> logits [n, V] and, unless NULL, mtp_logits,
 * the token after ids[i] being ids[(i + 1) % n]. `tap` may be NULL. */
void whole_pass(const whole *w, const int64_t *ids, int64_t n, int64_t chunk, const dsv4_tap *tap,
                double *logits, double *mtp_logits);

/* The same by another path. */
void whole_pass_by(const dsv4_path *path, const whole *w, const int64_t *ids, int64_t n,
                   int64_t chunk, const dsv4_tap *tap, double *logits, double *mtp_logits);

#endif
