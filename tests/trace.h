/* Every tensor of one pass, kept in memory, to hold another pass against it. */
#ifndef TESTS_TRACE_H
#define TESTS_TRACE_H

#include "host/path.h"

/* What the tensors of one name differ by, all layers together. */
typedef struct {
    const char *name;
    double scale;       /* the largest magnitude kept */
    double worst;       /* the largest difference; NaN if there is one */
    int64_t seen, same; /* values compared, and those within 1e-6 scale */
} trace_difference;

typedef struct {
    struct trace_row *rows;
    int64_t count, room, at;
    trace_difference of[24];
} trace;

/* A tap that keeps what it sees. The trace starts as all 0. */
dsv4_tap trace_keeper(trace *t);

/* A tap that compares what it sees with what was kept; `feeder` puts that in its place as well, so
 * that a difference is the one of a step. A tensor that was not kept ends the test. Each of the two
 * functions starts a new comparison; the keeper comes before. */
dsv4_tap trace_comparer(trace *t);
dsv4_tap trace_feeder(trace *t);

/* Ends the test unless every value kept was compared, and none differs by more than `bound` of its
 * tensor's scale. */
void trace_within(const trace *t, const char *what, double bound);

/* Ends the test unless every value kept was compared, and of each name `share` of them are the
 * same, the others within `bound` of the scale. */
void trace_mostly(const trace *t, const char *what, double share, double bound);

void trace_free(trace *t);

#endif
