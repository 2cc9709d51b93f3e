/* What the machine can do at most, measured: how fast it reads, and how fast it multiplies and
 * adds. */
#ifndef DSV4_LIMITS_H
#define DSV4_LIMITS_H

#include "error.h"

enum { DSV4_MAX_LIMITS = 16, DSV4_LIMIT_THREADS = 2 };

/* Of several measurements. Bytes, or operations, per second. */
typedef struct { double median, best; } dsv4_rate;

typedef struct {
    const char *key, *level, *name; /* "fma_f32", "avx512", "FP32 FMA" */
    dsv4_rate rate[DSV4_LIMIT_THREADS];
} dsv4_limit;

typedef struct {
    int threads[DSV4_LIMIT_THREADS]; /* 1, and N; the same where N is 1 */
    double read_bytes;               /* of the buffer that is read */
    dsv4_rate read[DSV4_LIMIT_THREADS];
    int count;
    dsv4_limit limit[DSV4_MAX_LIMITS];
    int matrix; /* limit of products of matrices: the highest that takes operands from memory */
    struct dsv4_read_buffer *buffer; /* owned */
} dsv4_limits;

/* With `threads` threads, at least 1. Takes about `seconds`; where that is less than half a second,
 * the buffer is smaller than it should be, and a cache may hold it. -1 where threads or memory are
 * refused. */
int dsv4_limits_measure(dsv4_limits *limits, int threads, double seconds, dsv4_error *err);

/* Reading, of the same memory, and `matrix`, once more, with limits->threads[n]. */
int dsv4_limits_again(const dsv4_limits *limits, int n, double seconds, dsv4_rate *reading,
                      dsv4_rate *matrix, dsv4_error *err);

void dsv4_limits_free(dsv4_limits *limits); /* also after an error, and of zeros */

#endif
