/* Runs foreign code in a process of its own: what it breaks there, breaks nothing here. */
#ifndef DSV4_CHILD_H
#define DSV4_CHILD_H

#include "cases.h"

typedef struct dsv4_child dsv4_child;

/* What the child does. `open` runs once in each new child, before any case; it may leave a text of
 * its own (malloced), which dsv4_child_start() hands on. */
typedef struct {
    int (*open)(void *context, char **text, dsv4_error *err);
    dsv4_answer_function *answer; /* as in cases.h; outputs of the expected shapes */
    void *context;
    double timeout; /* seconds for open and for each case */
} dsv4_child_work;

/* A child that answers cases of this file (NULL: it only opens). NULL with one line where it cannot
 * be started or `open` fails. */
dsv4_child *dsv4_child_start(const dsv4_child_work *work, const dsv4_case_file *file, char **text,
                             dsv4_error *err);

/* As dsv4_answer_function, `c` being one of the file's. -1 with a line that says how the child
 * ended, if it did; the next case then starts a new one. */
int dsv4_child_answer(dsv4_child *child, const dsv4_case *c, dsv4_case *answer, dsv4_error *err);

void dsv4_child_stop(dsv4_child *child); /* NULL is fine */

/* Waits for a process that leads a group of its own, at most `timeout` seconds, and ends the whole
 * group. 0 where it succeeded; -1 with "crashed: ...", "exited with status N", "gave no answer
 * within ...". */
int dsv4_child_wait(int pid, double timeout, dsv4_error *err);

#endif
