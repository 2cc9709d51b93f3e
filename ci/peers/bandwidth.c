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
    dsv4_limits limits = {0};
    dsv4_error err = {""};
    int status = dsv4_limits_measure(&limits, threads, seconds, &err);
    if (status == 0)
        printf("%.0f\n", limits.read[1].median);
    else
        fprintf(stderr, "bandwidth: %s\n", err.text);
    dsv4_limits_free(&limits);
    return status == 0 ? 0 : 2;
}
