/* `dsv4 inspect`: what a checkpoint holds, and whether it is what its configuration calls for. */
#ifndef DSV4_INSPECT_H
#define DSV4_INSPECT_H

/* The command: argv[0] is its name. 0, 1 when a tensor is missing, unexpected or wrong or a value
 * is NaN, 2 when it cannot run. */
int dsv4_inspect_main(int argc, char **argv);

#endif
