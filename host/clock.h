/* Measuring time. */
#ifndef DSV4_CLOCK_H
#define DSV4_CLOCK_H

/* Seconds since some moment; never set back. */
double dsv4_now(void);

/* Sorts the samples, the least first, and returns the middle one. `count` is at least 1. */
double dsv4_median(double *sample, int count);

#endif
