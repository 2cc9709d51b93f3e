/* A tap that holds a forward pass against a trace file, tensor by tensor. */
#ifndef TESTS_AGAINST_H
#define TESTS_AGAINST_H

#include "host/h5.h"
#include "host/path.h"

/* What was seen of one dataset of the file. */
typedef struct {
    char name[96], tensor[32]; /* and its last component */
    dsv4_h5_data want;
    double scale;       /* largest finite magnitude in it */
    int64_t seen, same; /* values compared, and identical ones */
    double worst;       /* largest |got - want| */
    double worst_steps; /* of QDQ outputs: the same in steps of the format around the value */
    int64_t rows, unlike; /* rows of indices: compared, and not the same set */
    int64_t not_best;   /* selections that leave out a better score than one they hold */
} against_tensor;

typedef struct {
    dsv4_h5 *file;
    const dsv4_config *config;
    bool feed; /* every step computes from the file's tensors: the tap overwrites ours */
    against_tensor *tensors;
    int64_t count;
    double *scores;    /* the visible index scores of the token in hand */
    int64_t *route;    /* our route_index, for the route_weight that follows */
    dsv4_tap tap;
} against;

void against_open(against *a, const char *path, const dsv4_config *config, bool feed);
void against_close(against *a);

/* Compares a whole result, such as "logits", as if the pass had shown it. */
against_tensor *against_rows(against *a, const char *name, int64_t row, int64_t rows, int64_t width,
                             const double *got);

/* The first dataset of the file's trace that the pass has not shown; NULL where it has shown all. To be
 * freed. */
char *against_unseen(against *a);

/* The spacing of bf16 numbers around x. */
double bf16_step(double x);

#endif
