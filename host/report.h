/* What `dsv4 verify` found, as text, JSON and JUnit XML. */
#ifndef DSV4_REPORT_H
#define DSV4_REPORT_H

#include <stdio.h>

#include "diagnose.h"

typedef enum { DSV4_PASSED, DSV4_FAILED, DSV4_SKIPPED, DSV4_OUTCOMES } dsv4_outcome;

/* One case. */
typedef struct {
    const dsv4_operator *op;
    char name[DSV4_NAME], reason[256], flags[128];
    dsv4_outcome outcome;
    dsv4_verdict verdict; /* of the answer, if there was one; */
    char message[1024];   /* else why not */
    double seconds;
    museum_bug bugs[DSV4_MISTAKES]; /* the diagnosis */
    bool nearly;          /* it comes near the answer, and does not equal it within tolerance */
} dsv4_result;

/* Something wrong with the vector files themselves. */
typedef struct { char file[256], message[1024]; } dsv4_failed_check;

typedef struct {
    char engine[256], vectors[256];
    const char *tolerances, *numerics; /* "fp32", "both" */
    dsv4_result *results; /* in the order of operators */
    int64_t count;
    dsv4_failed_check *checks;
    int64_t check_count;
    char (*notes)[512];
    int64_t note_count;
    bool verbose, no_diagnosis;
} dsv4_report;

/* These grow the lists; the new entry is zeroed. */
dsv4_result *dsv4_report_result(dsv4_report *report);
void dsv4_report_check(dsv4_report *report, const char *file, const char *message);
void dsv4_report_note(void *report, const char *line);
void dsv4_report_free(dsv4_report *report);

/* Cases of this outcome; of one operator, or all (NULL). */
int64_t dsv4_report_count(const dsv4_report *report, const dsv4_operator *op,
                          dsv4_outcome outcome);

/* Standard output, part by part: what comes before the cases, a row for an operator that is done,
 * and the rest. */
void dsv4_report_begin(const dsv4_report *report);
void dsv4_report_operator(const dsv4_report *report, const dsv4_operator *op);
void dsv4_report_end(const dsv4_report *report);

int dsv4_report_json(const dsv4_report *report, const char *path, dsv4_error *err);
int dsv4_report_junit(const dsv4_report *report, const char *path, dsv4_error *err);

#endif
