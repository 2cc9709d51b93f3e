#include "report.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"

/* ---- lists ---- */

/* Room for one more item; the array doubles at every power of two. */
static void *grow(void *array, int64_t count, size_t size)
{
    if ((count & (count - 1)) != 0)
        return array;
    void *larger = dsv4_alloc(2 * (size_t)count + 1, size);
    if (count > 0)
        memcpy(larger, array, (size_t)count * size);
    free(array);
    return larger;
}

static void copy_text(char *to, size_t size, const char *from)
{
    snprintf(to, size, "%s", from);
    for (char *c = to; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
}

dsv4_result *dsv4_report_result(dsv4_report *report)
{
    report->results = grow(report->results, report->count, sizeof *report->results);
    dsv4_result *result = &report->results[report->count++];
    memset(result, 0, sizeof *result);
    return result;
}

void dsv4_report_check(dsv4_report *report, const char *file, const char *message)
{
    report->checks = grow(report->checks, report->check_count, sizeof *report->checks);
    dsv4_failed_check *check = &report->checks[report->check_count++];
    copy_text(check->file, sizeof check->file, file);
    copy_text(check->message, sizeof check->message, message);
}

void dsv4_report_note(void *to, const char *line)
{
    dsv4_report *report = to;
    report->notes = grow(report->notes, report->note_count, sizeof *report->notes);
    copy_text(report->notes[report->note_count++], sizeof *report->notes, line);
}

void dsv4_report_free(dsv4_report *report)
{
    free(report->results);
    free(report->checks);
    free(report->notes);
    *report = (dsv4_report){0};
}

int64_t dsv4_report_count(const dsv4_report *report, const dsv4_operator *op, dsv4_outcome outcome)
{
    int64_t count = 0;
    for (int64_t i = 0; i < report->count; i++)
        count += (op == NULL || report->results[i].op == op) &&
                 report->results[i].outcome == outcome;
    return count;
}

static int64_t total(const dsv4_report *report, const dsv4_operator *op)
{
    int64_t count = 0;
    for (int outcome = 0; outcome < DSV4_OUTCOMES; outcome++)
        count += dsv4_report_count(report, op, (dsv4_outcome)outcome);
    return count;
}

/* The worst error of an operator's answers, in tolerances. */
static double worst(const dsv4_report *report, const dsv4_operator *op)
{
    double ratio = 0;
    for (int64_t i = 0; i < report->count; i++)
        if (report->results[i].op == op)
            ratio = fmax(ratio, report->results[i].verdict.ratio);
    return ratio;
}

static bool was_answered(const dsv4_report *report, const dsv4_operator *op)
{
    for (int64_t i = 0; i < report->count; i++)
        if (report->results[i].op == op && report->results[i].verdict.slots > 0)
            return true;
    return false;
}

/* ---- words ---- */

static void number_text(char text[32], const dsv4_slot_verdict *v, double value)
{
    snprintf(text, 32, v->integer ? "%.0f" : "%.9g", value);
}

/* "y[5,2]: expected 1, got 2 (error 1 is 30 times the tolerance); 17 of 16384 wrong" */
static void slot_text(char *text, size_t size, const dsv4_slot_verdict *v)
{
    if (v->rank < 0) {
        snprintf(text, size, "%s", v->note);
        return;
    }
    char index[112], expected[32], got[32], why[256] = "", error[96];
    dsv4_index_text(index, sizeof index, v->rank, v->index);
    number_text(expected, v, v->expected);
    number_text(got, v, v->got);
    double ratio = v->tolerance > 0 ? v->error / v->tolerance : INFINITY;
    if (v->note[0] != '\0')
        snprintf(why, sizeof why, " (%s)", v->note);
    error[0] = '\0';
    if (!v->integer && isfinite(ratio))
        snprintf(error, sizeof error, " (error %.3g is %.3g times the tolerance)", v->error, ratio);
    else if (!v->integer && isfinite(v->error))
        snprintf(error, sizeof error, " (error %.3g, no tolerance)", v->error);
    snprintf(text, size, "%s%s: expected %s, got %s%s%s; %" PRId64 " of %" PRId64 " %swrong",
             v->slot->name, index, expected, got, error, why, v->wrong, v->count,
             v->slot->judge == DSV4_JUDGE_SELECTION ? "rows " : "");
}

static void failure_text(char *text, size_t size, const dsv4_result *r)
{
    const dsv4_slot_verdict *v = dsv4_verdict_failure(&r->verdict);
    if (v == NULL)
        snprintf(text, size, "%s", r->message);
    else
        slot_text(text, size, v);
}

enum { DIAGNOSIS_TEXT = DSV4_MISTAKES * 40 };

/* "rope-half-split", "a + b + c", or "". */
static void diagnosis_text(char *text, size_t size, const museum_bug *bugs)
{
    size_t length = 0;
    text[0] = '\0';
    for (int i = 0; i < DSV4_MISTAKES && bugs[i] != BUG_NONE && length < size; i++)
        length += (size_t)snprintf(text + length, size - length, "%s%s", i > 0 ? " + " : "",
                                   museum_exhibits[bugs[i]].id);
}

static bool blames(const dsv4_result *r, museum_bug bug)
{
    for (int i = 0; i < DSV4_MISTAKES && r->bugs[i] != BUG_NONE; i++)
        if (r->bugs[i] == bug)
            return true;
    return false;
}

static int64_t explained_by(const dsv4_report *report, museum_bug bug)
{
    int64_t count = 0;
    for (int64_t i = 0; i < report->count; i++)
        count += blames(&report->results[i], bug);
    return count;
}

static const char *rule_of(const dsv4_result *r)
{
    const dsv4_slot_verdict *v = dsv4_verdict_failure(&r->verdict);
    return v != NULL && v->slot->rule != NULL ? v->slot->rule : "";
}

static bool answer_was_judged(const dsv4_result *r)
{
    const dsv4_slot_verdict *v = dsv4_verdict_failure(&r->verdict);
    return v != NULL && !v->misshaped;
}

/* Failed operators that `op` uses, in order; false where there are none. */
static bool failed_parts(const dsv4_report *report, const dsv4_operator *op, char *text,
                         size_t size)
{
    size_t length = 0;
    for (int i = 0; i < dsv4_operator_count; i++) {
        const dsv4_operator *part = &dsv4_operators[i];
        if (part != op && length < size && dsv4_report_count(report, part, DSV4_FAILED) > 0 &&
            dsv4_operator_uses(op, part))
            length += (size_t)snprintf(text + length, size - length, "%s%s",
                                       length > 0 ? ", " : "", part->name);
    }
    return length > 0;
}

/* ---- standard output ---- */

static int name_width(void)
{
    int width = 0;
    for (int i = 0; i < dsv4_operator_count; i++)
        width = (int)strlen(dsv4_operators[i].name) > width ? (int)strlen(dsv4_operators[i].name)
                                                            : width;
    return width;
}

void dsv4_report_begin(const dsv4_report *report)
{
    printf("%s\nvectors %s, numerics %s, tolerances of %s\n\n", report->engine, report->vectors,
           report->numerics, report->tolerances);
    printf("%-*s  %6s  %6s  %6s  %7s  %s\n", name_width(), "operator", "cases", "passed", "failed",
           "skipped", "worst error / tolerance");
    fflush(stdout);
}

static void print_case(const dsv4_result *r)
{
    static const char *const words[] = {"passed", "FAILED", "skipped"};
    printf("  %-8s%s/%s", words[r->outcome], r->op->name, r->name);
    if (r->outcome == DSV4_PASSED)
        printf("  %.3g", r->verdict.ratio);
    if (r->reason[0] != '\0')
        printf("  (%s)", r->reason);
    putchar('\n');
}

void dsv4_report_operator(const dsv4_report *report, const dsv4_operator *op)
{
    if (total(report, op) == 0)
        return;
    printf("%-*s  %6" PRId64 "  %6" PRId64 "  %6" PRId64 "  %7" PRId64 "  ", name_width(), op->name,
           total(report, op), dsv4_report_count(report, op, DSV4_PASSED),
           dsv4_report_count(report, op, DSV4_FAILED),
           dsv4_report_count(report, op, DSV4_SKIPPED));
    if (was_answered(report, op))
        printf("%.3g\n", worst(report, op));
    else
        printf("-\n");
    for (int64_t i = 0; i < report->count && report->verbose; i++)
        if (report->results[i].op == op)
            print_case(&report->results[i]);
    fflush(stdout);
}

/* The story of a mistake is told once. */
static void print_story(const char *lead, museum_bug bug, bool told[BUGS])
{
    if (bug == BUG_NONE || told[bug])
        return;
    printf("%s%s: %s\n", lead, museum_exhibits[bug].id, museum_exhibits[bug].story);
    told[bug] = true;
}

static void print_diagnosis(const dsv4_report *report, const dsv4_result *r, bool told[BUGS])
{
    char text[512];
    diagnosis_text(text, sizeof text, r->bugs);
    if (r->bugs[0] != BUG_NONE && (r->bugs[1] != BUG_NONE || told[r->bugs[0]])) {
        printf("    %s %s\n", r->nearly ? "nearly equals" : "equals", text);
        for (int i = 0; i < DSV4_MISTAKES; i++)
            print_story("    ", r->bugs[i], told);
    } else if (r->bugs[0] != BUG_NONE) {
        print_story(r->nearly ? "    nearly equals " : "    equals ", r->bugs[0], told);
    } else if (report->no_diagnosis) {
        return;
    } else if (answer_was_judged(r) && failed_parts(report, r->op, text, sizeof text)) {
        printf("    no known bug; uses operators that fail: %s\n", text);
    } else if (answer_was_judged(r)) {
        printf("    no known bug\n");
    }
}

static void print_failure(const dsv4_report *report, const dsv4_result *r, bool told[BUGS])
{
    char text[1200];
    failure_text(text, sizeof text, r);
    const char *rule = rule_of(r);
    bool valued = dsv4_verdict_failure(&r->verdict) != NULL &&
                  dsv4_verdict_failure(&r->verdict)->rank >= 0;
    printf("FAIL %s/%s%s%s\n", r->op->name, r->name, valued ? " " : ": ", text);
    for (int i = 0; i < r->verdict.slots; i++) {
        const dsv4_slot_verdict *v = &r->verdict.slot[i];
        if (v->passed || v == dsv4_verdict_failure(&r->verdict))
            continue;
        slot_text(text, sizeof text, v);
        printf("    also %s\n", text);
    }
    if (rule[0] != '\0')
        printf("    rule %s, spec/%.*s.md\n", rule, (int)strcspn(rule, "."), rule);
    if (r->reason[0] != '\0')
        printf("    case: %s%s%s%s\n", r->reason, r->flags[0] != '\0' ? " [" : "", r->flags,
               r->flags[0] != '\0' ? "]" : "");
    print_diagnosis(report, r, told);
}

/* The mistakes found, in the order of the operators, and the operators that are wrong in unknown
 * ways. */
static void print_summary(const dsv4_report *report)
{
    printf("\nWhat is wrong\n");
    bool told[BUGS] = {false};
    const dsv4_operator *first = NULL;
    for (int64_t i = 0; i < report->count; i++) {
        const dsv4_result *r = &report->results[i];
        if (r->outcome == DSV4_FAILED && first == NULL)
            first = r->op;
        for (int b = 0; b < DSV4_MISTAKES; b++) {
            museum_bug bug = r->bugs[b];
            if (bug == BUG_NONE || told[bug])
                continue;
            int64_t explains = explained_by(report, bug);
            told[bug] = true;
            printf("  %s explains %" PRId64 " failure%s, first in %s (rule %s)\n",
                   museum_exhibits[bug].id, explains, explains == 1 ? "" : "s", r->op->name,
                   museum_exhibits[bug].rule);
        }
    }
    for (int o = 0; o < dsv4_operator_count; o++) {
        int64_t unexplained = 0;
        for (int64_t i = 0; i < report->count; i++)
            unexplained += report->results[i].op == &dsv4_operators[o] &&
                           report->results[i].outcome == DSV4_FAILED &&
                           report->results[i].bugs[0] == BUG_NONE;
        if (unexplained > 0)
            printf("  %s: %" PRId64 " failure%s%s\n", dsv4_operators[o].name, unexplained,
                   unexplained == 1 ? "" : "s",
                   report->no_diagnosis ? "" : " without a known cause");
    }
    if (first != NULL)
        printf("  Look at %s first: spec/%s.md\n", first->name, first->chapter);
}

void dsv4_report_end(const dsv4_report *report)
{
    if (report->check_count + report->note_count > 0)
        putchar('\n');
    for (int64_t i = 0; i < report->check_count; i++)
        printf("FAIL manifest: %s: %s\n", report->checks[i].file, report->checks[i].message);
    for (int64_t i = 0; i < report->note_count; i++)
        printf("note: %s\n", report->notes[i]);
    int64_t failed = dsv4_report_count(report, NULL, DSV4_FAILED);
    if (failed > 0)
        putchar('\n');
    bool told[BUGS] = {false};
    for (int64_t i = 0; i < report->count; i++)
        if (report->results[i].outcome == DSV4_FAILED)
            print_failure(report, &report->results[i], told);
    if (failed > 0)
        print_summary(report);
    printf("\n%" PRId64 " cases: %" PRId64 " passed, %" PRId64 " failed, %" PRId64 " skipped",
           report->count, dsv4_report_count(report, NULL, DSV4_PASSED), failed,
           dsv4_report_count(report, NULL, DSV4_SKIPPED));
    if (report->check_count > 0)
        printf("; %" PRId64 " of the vector files are damaged", report->check_count);
    putchar('\n');
    fflush(stdout);
}

/* ---- JSON ---- */

/* JSON has no infinities and no NaN: they become strings. */
static json_t *json_number(double value)
{
    return isfinite(value) ? json_real(value)
                           : json_string(isnan(value) ? "nan" : value > 0 ? "inf" : "-inf");
}

static json_t *json_failure(const dsv4_result *r)
{
    char text[1200], diagnosis[DIAGNOSIS_TEXT];
    failure_text(text, sizeof text, r);
    diagnosis_text(diagnosis, sizeof diagnosis, r->bugs);
    json_t *failure = json_object();
    json_object_set_new(failure, "operator", dsv4_json_text(r->op->name));
    json_object_set_new(failure, "case", dsv4_json_text(r->name));
    json_object_set_new(failure, "message", dsv4_json_text(text));
    const dsv4_slot_verdict *v = dsv4_verdict_failure(&r->verdict);
    json_object_set_new(failure, "slot", v != NULL ? dsv4_json_text(v->slot->name) : json_null());
    bool valued = v != NULL && v->rank >= 0;
    json_t *index = valued ? json_array() : json_null();
    for (int i = 0; valued && i < v->rank; i++)
        json_array_append_new(index, json_integer(v->index[i]));
    json_object_set_new(failure, "index", index);
    json_object_set_new(failure, "expected", valued ? json_number(v->expected) : json_null());
    json_object_set_new(failure, "got", valued ? json_number(v->got) : json_null());
    json_object_set_new(failure, "error", valued ? json_number(v->error) : json_null());
    json_object_set_new(failure, "tolerance", valued ? json_number(v->tolerance) : json_null());
    json_object_set_new(failure, "wrong", v != NULL ? json_integer(v->wrong) : json_null());
    json_object_set_new(failure, "values", v != NULL ? json_integer(v->count) : json_null());
    json_object_set_new(failure, "rule", dsv4_json_text(rule_of(r)));
    json_object_set_new(failure, "reason", dsv4_json_text(r->reason));
    json_object_set_new(failure, "diagnosis", dsv4_json_text(diagnosis));
    json_object_set_new(failure, "nearly", json_boolean(r->nearly));
    return failure;
}

static json_t *json_operator(const dsv4_report *report, const dsv4_operator *op)
{
    json_t *row = json_object();
    json_object_set_new(row, "operator", dsv4_json_text(op->name));
    json_object_set_new(row, "cases", json_integer(total(report, op)));
    json_object_set_new(row, "passed", json_integer(dsv4_report_count(report, op, DSV4_PASSED)));
    json_object_set_new(row, "failed", json_integer(dsv4_report_count(report, op, DSV4_FAILED)));
    json_object_set_new(row, "skipped", json_integer(dsv4_report_count(report, op, DSV4_SKIPPED)));
    json_object_set_new(row, "worst", was_answered(report, op) ? json_number(worst(report, op))
                                                               : json_null());
    return row;
}

/* The mistakes that were found, in the order of the operators. */
static json_t *json_mistakes(const dsv4_report *report)
{
    json_t *list = json_array();
    bool told[BUGS] = {false};
    for (int64_t i = 0; i < report->count; i++)
        for (int b = 0; b < DSV4_MISTAKES; b++) {
            museum_bug bug = report->results[i].bugs[b];
            if (bug == BUG_NONE || told[bug])
                continue;
            told[bug] = true;
            json_t *mistake = json_object();
            json_object_set_new(mistake, "id", dsv4_json_text(museum_exhibits[bug].id));
            json_object_set_new(mistake, "rule", dsv4_json_text(museum_exhibits[bug].rule));
            json_object_set_new(mistake, "story", dsv4_json_text(museum_exhibits[bug].story));
            json_object_set_new(mistake, "operator", dsv4_json_text(report->results[i].op->name));
            json_object_set_new(mistake, "failures", json_integer(explained_by(report, bug)));
            json_array_append_new(list, mistake);
        }
    return list;
}

static json_t *json_report(const dsv4_report *report)
{
    json_t *root = json_object(), *operators = json_array(), *failures = json_array(),
           *checks = json_array(), *notes = json_array();
    for (int i = 0; i < dsv4_operator_count; i++)
        if (total(report, &dsv4_operators[i]) > 0)
            json_array_append_new(operators, json_operator(report, &dsv4_operators[i]));
    for (int64_t i = 0; i < report->count; i++)
        if (report->results[i].outcome == DSV4_FAILED)
            json_array_append_new(failures, json_failure(&report->results[i]));
    for (int64_t i = 0; i < report->check_count; i++) {
        json_t *check = json_object();
        json_object_set_new(check, "check", dsv4_json_text("manifest"));
        json_object_set_new(check, "file", dsv4_json_text(report->checks[i].file));
        json_object_set_new(check, "message", dsv4_json_text(report->checks[i].message));
        json_array_append_new(checks, check);
    }
    for (int64_t i = 0; i < report->note_count; i++)
        json_array_append_new(notes, dsv4_json_text(report->notes[i]));
    json_object_set_new(root, "engine", dsv4_json_text(report->engine));
    json_object_set_new(root, "vectors", dsv4_json_text(report->vectors));
    json_object_set_new(root, "numerics", dsv4_json_text(report->numerics));
    json_object_set_new(root, "precision", dsv4_json_text(report->tolerances));
    json_object_set_new(root, "cases", json_integer(report->count));
    json_object_set_new(root, "passed", json_integer(dsv4_report_count(report, NULL, DSV4_PASSED)));
    json_object_set_new(root, "failed", json_integer(dsv4_report_count(report, NULL, DSV4_FAILED)));
    json_object_set_new(root, "skipped",
                        json_integer(dsv4_report_count(report, NULL, DSV4_SKIPPED)));
    json_object_set_new(root, "operators", operators);
    json_object_set_new(root, "failures", failures);
    json_object_set_new(root, "mistakes", json_mistakes(report));
    json_object_set_new(root, "failed_checks", checks);
    json_object_set_new(root, "notes", notes);
    return root;
}

/* Ends the writing of a report file. */
static int finish(FILE *file, bool good, const char *path, dsv4_error *err)
{
    good = !ferror(file) && good;
    good = fclose(file) == 0 && good;
    return good ? 0 : dsv4_fail(err, "%s: cannot write: %s", path, strerror(errno));
}

int dsv4_report_json(const dsv4_report *report, const char *path, dsv4_error *err)
{
    FILE *file = fopen(path, "w");
    if (file == NULL)
        return dsv4_fail(err, "%s: cannot write: %s", path, strerror(errno));
    json_t *root = json_report(report);
    bool good = json_dumpf(root, file, JSON_INDENT(2)) == 0 && fputc('\n', file) != EOF;
    json_decref(root);
    return finish(file, good, path, err);
}

/* ---- JUnit XML ---- */

/* Messages may hold any bytes: what XML cannot carry becomes "?". */
static void xml_text(FILE *file, const char *text)
{
    for (; *text != '\0'; text++)
        switch (*text) {
        case '&': fputs("&amp;", file); break;
        case '<': fputs("&lt;", file); break;
        case '>': fputs("&gt;", file); break;
        case '"': fputs("&quot;", file); break;
        case '\'': fputs("&apos;", file); break;
        default: fputc((unsigned char)*text < ' ' || (unsigned char)*text >= 0x7f ? '?' : *text,
                       file);
        }
}

static void junit_case(FILE *file, const dsv4_result *r)
{
    fprintf(file, "    <testcase classname=\"dsv4.%s\" name=\"", r->op->name);
    xml_text(file, r->name);
    fprintf(file, "\" time=\"%.6f\"", r->seconds);
    if (r->outcome == DSV4_PASSED) {
        fprintf(file, "/>\n");
        return;
    }
    if (r->outcome == DSV4_SKIPPED) {
        fprintf(file, "><skipped/></testcase>\n");
        return;
    }
    char text[1200];
    failure_text(text, sizeof text, r);
    fprintf(file, ">\n      <failure message=\"");
    xml_text(file, text);
    fprintf(file, "\">");
    if (rule_of(r)[0] != '\0') {
        fprintf(file, "rule ");
        xml_text(file, rule_of(r));
        fputc('\n', file);
    }
    diagnosis_text(text, sizeof text, r->bugs);
    if (text[0] != '\0') {
        fprintf(file, r->nearly ? "nearly equals " : "equals ");
        xml_text(file, text);
        if (r->bugs[1] == BUG_NONE) {
            fprintf(file, ": ");
            xml_text(file, museum_exhibits[r->bugs[0]].story);
        }
        fputc('\n', file);
    }
    fprintf(file, "</failure>\n    </testcase>\n");
}

static void junit_operator(FILE *file, const dsv4_report *report, const dsv4_operator *op)
{
    if (total(report, op) == 0)
        return;
    fprintf(file, "  <testsuite name=\"%s\" tests=\"%" PRId64 "\" failures=\"%" PRId64
            "\" errors=\"0\" skipped=\"%" PRId64 "\">\n", op->name, total(report, op),
            dsv4_report_count(report, op, DSV4_FAILED),
            dsv4_report_count(report, op, DSV4_SKIPPED));
    for (int64_t i = 0; i < report->count; i++)
        if (report->results[i].op == op)
            junit_case(file, &report->results[i]);
    fprintf(file, "  </testsuite>\n");
}

static void junit_checks(FILE *file, const dsv4_report *report)
{
    if (report->check_count == 0)
        return;
    fprintf(file, "  <testsuite name=\"manifest\" tests=\"%" PRId64 "\" failures=\"%" PRId64
            "\" errors=\"0\" skipped=\"0\">\n", report->check_count, report->check_count);
    for (int64_t i = 0; i < report->check_count; i++) {
        fprintf(file, "    <testcase classname=\"dsv4.manifest\" name=\"");
        xml_text(file, report->checks[i].file);
        fprintf(file, "\"><failure message=\"");
        xml_text(file, report->checks[i].message);
        fprintf(file, "\"/></testcase>\n");
    }
    fprintf(file, "  </testsuite>\n");
}

int dsv4_report_junit(const dsv4_report *report, const char *path, dsv4_error *err)
{
    FILE *file = fopen(path, "w");
    if (file == NULL)
        return dsv4_fail(err, "%s: cannot write: %s", path, strerror(errno));
    int64_t failed = dsv4_report_count(report, NULL, DSV4_FAILED);
    fprintf(file, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
            "<testsuites name=\"dsv4 verify\" tests=\"%" PRId64 "\" failures=\"%" PRId64
            "\" errors=\"0\" skipped=\"%" PRId64 "\">\n", report->count + report->check_count,
            failed + report->check_count, dsv4_report_count(report, NULL, DSV4_SKIPPED));
    junit_checks(file, report);
    for (int i = 0; i < dsv4_operator_count; i++)
        junit_operator(file, report, &dsv4_operators[i]);
    fprintf(file, "</testsuites>\n");
    return finish(file, true, path, err);
}
