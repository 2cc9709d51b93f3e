/* dsv4 bench --operators: every operator of the table by itself, at the sizes of a model. */
#ifndef DSV4_BENCH_OPERATORS_H
#define DSV4_BENCH_OPERATORS_H

#include "path.h"

enum { DSV4_SCANNED_KEYS = 1 << 18 }; /* of 1,048,576 tokens */

typedef struct {
    const dsv4_operator *op;
    dsv4_numerics numerics; /* the other contract where the one asked for has no golden cases */
    char sizes[160];     /* "x [4, 4096], w [2048, 4096]" */
    int cases, failed;   /* golden cases that were answered, and of them those that did not pass */
    char untimed[200];   /* why there is no time; else empty */
    double seconds, ref_seconds; /* medians; the latter 0 where the path is ref itself */
    int64_t keys; /* 0, but of the row that is the indexer's scan of so many: */
    double flops; /* what that takes */
} dsv4_operator_time;

/* Judges each operator by the golden cases in directory `vectors`, times it where all of them pass,
 * and shows it; after indexer_score comes a row for a long scan. Times of paths that can tell are
 * without the conversion of operands. -1 with one line where there are no vector files. */
int dsv4_bench_operators(const dsv4_path *path, dsv4_numerics numerics, const dsv4_config *config,
                         const char *vectors,
                         void (*show)(void *context, const dsv4_operator_time *time),
                         void *context, dsv4_error *err);

#endif
