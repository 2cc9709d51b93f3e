/* dsv4 diff: two tensor files, dataset by dataset. */
#ifndef DSV4_DIFF_H
#define DSV4_DIFF_H

/* The exit code: 0 all within the tolerance, 1 not, 2 nothing could be compared. */
int dsv4_diff_main(int argc, char **argv);

#endif
