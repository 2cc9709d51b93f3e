#include "clock.h"

#include <stdlib.h>
#include <time.h>

double dsv4_now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double dsv4_median(double *sample, int count)
{
    qsort(sample, (size_t)count, sizeof *sample, ascending);
    return sample[count / 2];
}
