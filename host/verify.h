/* `dsv4 verify`: golden vectors against an engine. */
#ifndef DSV4_VERIFY_H
#define DSV4_VERIFY_H

#include "engine.h"
#include "report.h"

typedef struct {
    const char *vectors;   /* the directory */
    bool numerics[2];      /* [DSV4_EXACT], [DSV4_RELEASED]: asked for */
    dsv4_strictness strictness;
    const char *const *patterns; /* NULL-terminated; of operators or OPERATOR/CASE; NULL: all */
    bool no_diagnosis;
} dsv4_verify_options;

/* Fills the report, which was zeroed but for its texts, printing it on the way. 0; -1 with one line
 * where nothing could be judged. */
int dsv4_verify(const dsv4_verify_options *options, const dsv4_engine *engine,
                dsv4_report *report, dsv4_error *err);

/* Where the vector files are: as told, in the environment, here, or beside the program. To be
 * freed; NULL with one line where there is no such directory. */
char *dsv4_vectors_directory(const char *told, dsv4_error *err);

/* 0 all cases passed, 1 some failed or the vector files are damaged, 2 nothing could be judged. */
int dsv4_verify_main(int argc, char **argv);

#endif
