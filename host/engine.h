/* Whoever answers golden cases to `dsv4 verify`: a path, a plugin, a file of answers, a program. */
#ifndef DSV4_ENGINE_H
#define DSV4_ENGINE_H

#include "cases.h"

typedef struct {
    char name[256]; /* for the report */
    void *context;
    /* Cases of this vector file come next. 0; 1: it offers none of them; -1 with one line: none can
     * be answered. NULL where there is nothing to prepare. */
    int (*begin)(void *context, const dsv4_case_file *file, dsv4_error *err);
    dsv4_answer_function *answer; /* `c` is one of the file's */
    void (*end)(void *context);   /* of the file, also after a begin that failed; may be NULL */
    /* Called once, after all files: lines worth knowing about the answers, such as those that
     * belong to no case. `everything`: every case was asked for. May be NULL. */
    void (*notes)(void *context, bool everything,
                  void (*note)(void *report, const char *line), void *report);
    void (*close)(void *context); /* may be NULL */
} dsv4_engine;

#endif
