/* A tap for the tests of single chapters: named tensors are copied out, or given other values, on
 * their way through the code under test. */
#ifndef TESTS_SPY_H
#define TESTS_SPY_H

#include "small.h"

typedef struct {
    struct {
        const char *name;
        double *out;        /* what was shown, row by row; NULL: */
        const double *give; /* what is put in its place */
        int64_t stride;     /* of the rows in out and give; 0: as wide as they are shown */
        int64_t rows, width; /* shown so far; of the last row */
    } on[16];
    int count;
    dsv4_tap tap;
} spy;

/* Starts to listen: sets s->c.tap. */
void spy_start(small *s, spy *watch);

/* Rows of `name` go to out (indices as numbers), or are overwritten with those of `values`. */
void spy_see(spy *watch, const char *name, double *out, int64_t stride);
void spy_give(spy *watch, const char *name, const double *values, int64_t stride);

/* How many rows of `name` were shown, and the width of the last. */
int64_t spy_rows(const spy *watch, const char *name);
int64_t spy_width(const spy *watch, const char *name);

#endif
