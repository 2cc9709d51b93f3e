/* `dsv4 bench`: speed, and how near it comes to what the machine can do. */
#ifndef DSV4_BENCH_H
#define DSV4_BENCH_H

/* 0; 2 with one line on standard error where it cannot run. */
int dsv4_bench_main(int argc, char **argv);

#endif
