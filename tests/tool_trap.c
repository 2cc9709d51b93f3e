/* dsv4 with the level amx on a processor without tiles, as it was compiled: see trap_amx.h. The number of
 * answered instructions of the main thread goes to standard error.
 *
 *     tool_trap verify --path fast --isa amx --threads 1 */
#include <stdio.h>

#if defined __x86_64__

#include "trap_amx.h"

/* Its own table of levels, in which tiles exist without a question; of the archive's, nothing is taken. */
#define DSV4_EMULATE_AMX 1
#include "fast/isa.c"

int dsv4_main(int argc, char **argv);
#define main dsv4_main
#include "host/dsv4.c"
#undef main

int main(int argc, char **argv)
{
    trap_amx_install();
    int status = dsv4_main(argc, argv);
    fprintf(stderr, "tool_trap: %lld tile instructions\n", (long long)trap_amx_count());
    return status;
}

#else

int main(void)
{
    fputs("tool_trap: no tile instructions on this processor\n", stderr);
    return 2;
}

#endif
