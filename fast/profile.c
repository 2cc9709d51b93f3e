/* Where the time of a pass goes. Not a chapter. */
#include "fast/fast.h"

#include <time.h>

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

fast_profile fast_profile_start(dsv4_profile *sum)
{
    return (fast_profile){sum, DSV4_OUTSIDE, DSV4_PART_OTHER, now()};
}

dsv4_part fast_profile_switch(fast_profile *profile, dsv4_part part)
{
    double time = now();
    dsv4_part before = profile->part;
    profile->sum->seconds[profile->kind][before] += time - profile->since;
    profile->part = part;
    profile->since = time;
    return before;
}

void fast_profile_kind(const fast_context *c, int kind)
{
    if (c->profile == NULL)
        return;
    fast_profile_switch(c->profile, c->profile->part);
    c->profile->kind = kind;
}

void fast_linear_parts(const fast_context *c, const fast_linear_job *jobs, const dsv4_part *part,
                       int64_t count)
{
    if (c->profile == NULL) {
        fast_linear_jobs(c, jobs, count);
        return;
    }
    for (int64_t first = 0, end; first < count; first = end) {
        for (end = first + 1; end < count && part[end] == part[first];)
            end++;
        fast_enter(c, part[first]);
        fast_linear_jobs(c, jobs + first, end - first);
    }
}
