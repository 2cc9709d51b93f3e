/* bandwidth THREADS SECONDS: bytes per second that so many threads read, as `dsv4 bench` measures it. */
#include <stdio.h>
#include <stdlib.h>

#include "host/limits.h"

int main(int argc, char **argv)
{
    int threads = argc == 3 ? atoi(argv[1]) : 0;
    double seconds = argc == 3 ? atof(argv[2]) : 0;
    if (threads < 1 || !(seconds > 0)) {
        fprintf(stderr, "usage: bandwidth THREADS SECONDS\n");
        return 2;
    }
    /* No cache holds so much. */
    dsv4_limits limits = {.threads = {1, threads}, .read_bytes = 13.0 * (1 << 20) * 80};
    dsv4_rate rate;
    dsv4_error err = {""};
    if (dsv4_limits_read(&limits, 1, seconds, &rate, &err) != 0) {
        fprintf(stderr, "bandwidth: %s\n", err.text);
        return 2;
    }
    printf("%.0f\n", rate.median);
    return 0;
}
