#include "verify.h"

#include <argp.h>
#include <argz.h>
#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "candidate.h"
#include "clock.h"
#include "diagnose.h"
#include "path_options.h"
#include "plugin.h"

static char *joined(const char *directory, const char *name)
{
    char *path = dsv4_alloc(strlen(directory) + strlen(name) + 2, 1);
    return strcat(strcat(strcpy(path, directory), "/"), name);
}

/* ---- MANIFEST: "sha256  relative/path" lines ---- */

enum { SHA256_TEXT = 64 };

static int sha256_of(FILE *file, char text[SHA256_TEXT + 1])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int length = 0;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool good = context != NULL && EVP_DigestInit_ex(context, EVP_sha256(), NULL) == 1;
    static const size_t room = 1 << 16;
    char *buffer = dsv4_alloc(room, 1);
    size_t got;
    while (good && (got = fread(buffer, 1, room, file)) > 0)
        good = EVP_DigestUpdate(context, buffer, got) == 1;
    good = good && !ferror(file) && EVP_DigestFinal_ex(context, digest, &length) == 1;
    EVP_MD_CTX_free(context);
    free(buffer);
    for (unsigned int i = 0; good && i < length && 2 * i < SHA256_TEXT; i++)
        sprintf(text + 2 * i, "%02x", digest[i]);
    return good ? 0 : -1;
}

static bool inside(const char *path)
{
    if (path[0] == '/' || path[0] == '\0')
        return false;
    for (const char *part = path; part != NULL; part = strchr(part, '/')) {
        part += *part == '/';
        if (strncmp(part, "..", 2) == 0 && (part[2] == '/' || part[2] == '\0'))
            return false;
    }
    return true;
}

static void check_file(const char *directory, const char *name, const char *expected,
                       dsv4_report *report)
{
    char found[SHA256_TEXT + 1] = "", message[256];
    char *path = joined(directory, name);
    struct stat status;
    FILE *file = NULL;
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode))
        dsv4_report_check(report, name, "listed in MANIFEST, but not a regular file");
    else if ((file = fopen(path, "rb")) == NULL)
        dsv4_report_check(report, name, errno == ENOENT ? "listed in MANIFEST, but missing"
                                                        : strerror(errno));
    else if (sha256_of(file, found) != 0)
        dsv4_report_check(report, name, "cannot be read");
    else if (strcmp(found, expected) != 0) {
        snprintf(message, sizeof message, "sha256 is %s, MANIFEST says %s", found, expected);
        dsv4_report_check(report, name, message);
    }
    if (file != NULL)
        fclose(file);
    free(path);
}

/* One line of MANIFEST, without its end; the listed path, or NULL where it is no such line. */
static const char *listed_path(char *line)
{
    if (strspn(line, "0123456789abcdef") != SHA256_TEXT || line[SHA256_TEXT] != ' ' ||
        (line[SHA256_TEXT + 1] != ' ' && line[SHA256_TEXT + 1] != '*') ||
        !inside(line + SHA256_TEXT + 2))
        return NULL;
    line[SHA256_TEXT] = '\0';
    return line + SHA256_TEXT + 2;
}

static bool is_vector_file(const char *name)
{
    size_t length = strlen(name);
    return length > 3 && strcmp(name + length - 3, ".h5") == 0;
}

static void note_unlisted(const char *directory, const char *names, size_t size,
                          dsv4_report *report)
{
    struct dirent **found = NULL;
    int count = scandir(directory, &found, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        bool listed = !is_vector_file(found[i]->d_name);
        for (const char *name = NULL; !listed && (name = argz_next(names, size, name)) != NULL;)
            listed = strcmp(name, found[i]->d_name) == 0;
        if (!listed) {
            char line[512];
            snprintf(line, sizeof line, "%s is not listed in MANIFEST", found[i]->d_name);
            dsv4_report_note(report, line);
        }
        free(found[i]);
    }
    free(found);
}

static void check_manifest(const char *directory, dsv4_report *report)
{
    char *path = joined(directory, "MANIFEST"), *line = NULL, *names = NULL;
    size_t room = 0, size = 0;
    struct stat status;
    FILE *file = stat(path, &status) == 0 && S_ISREG(status.st_mode) ? fopen(path, "r") : NULL;
    free(path);
    if (file == NULL)
        return;
    for (ssize_t length; (length = getline(&line, &room, file)) > 0;) {
        line[strcspn(line, "\r\n")] = '\0';
        const char *name = listed_path(line);
        if (name == NULL) {
            dsv4_report_check(report, "MANIFEST", "a line is not `sha256  relative-path`");
            continue;
        }
        check_file(directory, name, line, report);
        argz_add(&names, &size, name);
    }
    if (size == 0)
        dsv4_report_check(report, "MANIFEST", "lists no file");
    note_unlisted(directory, names, size, report);
    free(names);
    free(line);
    fclose(file);
}

/* ---- which cases ---- */

static bool selected(const char *const *patterns, const dsv4_case *c)
{
    char whole[2 * DSV4_NAME + 2];
    snprintf(whole, sizeof whole, "%s/%s", c->op->name, c->name);
    for (int i = 0; patterns != NULL && patterns[i] != NULL; i++)
        if (fnmatch(patterns[i], c->op->name, 0) == 0 || fnmatch(patterns[i], whole, 0) == 0)
            return true;
    return patterns == NULL;
}

/* Whether a pattern may select a case of this operator: files of others are not read. */
static bool may_select(const char *const *patterns, const dsv4_operator *op)
{
    for (int i = 0; patterns != NULL && patterns[i] != NULL; i++) {
        size_t plain = strcspn(patterns[i], "*?[\\/");
        if (strncmp(patterns[i], op->name, plain) == 0 &&
            (patterns[i][plain] != '\0' || op->name[plain] == '\0'))
            return true;
    }
    return patterns == NULL;
}

static const char *const numerics_names[] = {[DSV4_EXACT] = "exact", [DSV4_RELEASED] = "released"};

/* The vector file of an operator and a contract: 0; 1 where there is none, or it is damaged, which
 * the report then says. */
static int read_file(const dsv4_verify_options *options, const dsv4_operator *op,
                     dsv4_numerics numerics, dsv4_case_file *file, dsv4_report *report)
{
    char name[2 * DSV4_NAME];
    snprintf(name, sizeof name, "%s_%s.h5", op->name, numerics_names[numerics]);
    char *path = joined(options->vectors, name);
    *file = (dsv4_case_file){0};
    dsv4_error why = {""};
    int result = 1;
    if (access(path, F_OK) == 0) {
        if (dsv4_case_file_read(file, path, &why) == 0)
            result = 0;
        else
            dsv4_report_check(report, name, why.text);
    }
    for (int64_t i = 0; i < file->count && result == 0; i++)
        if (file->c[i].op != op || file->c[i].numerics != numerics) {
            dsv4_report_check(report, name, "holds cases of another operator or contract");
            dsv4_case_file_free(file);
            result = 1;
        }
    free(path);
    return result;
}

/* ---- judging ---- */

/* The cases of one operator and contract that were asked for, with their answers. */
typedef struct {
    dsv4_case_file file;
    dsv4_case *answer;   /* [count] */
    int64_t *result;     /* [count]: index in the report, -1 for those not asked for */
} batch;

static void judge_case(const dsv4_verify_options *options, const dsv4_engine *engine, int begun,
                       const dsv4_error *why, const dsv4_case *c, dsv4_case *answer,
                       dsv4_result *r)
{
    dsv4_error err = {""};
    double began = dsv4_now();
    int status = begun;
    *answer = (dsv4_case){.op = c->op, .numerics = c->numerics};
    memcpy(answer->name, c->name, sizeof answer->name);
    if (begun == 0)
        status = engine->answer(engine->context, c, answer, &err);
    r->seconds = dsv4_now() - began;
    if (status == 1) {
        r->outcome = DSV4_SKIPPED;
    } else if (status != 0) {
        r->outcome = DSV4_FAILED;
        snprintf(r->message, sizeof r->message, "%s", begun != 0 ? why->text : err.text);
    } else {
        dsv4_judge_answer(c, c->out, c->outs, answer, options->strictness, &r->verdict);
        r->outcome = r->verdict.passed ? DSV4_PASSED : DSV4_FAILED;
        if (r->verdict.slots == 0) { /* the vector file expects nothing of this case */
            r->outcome = DSV4_FAILED;
            snprintf(r->message, sizeof r->message, "the vector file has no expected output");
        }
    }
}

static void judge_batch(const dsv4_verify_options *options, const dsv4_engine *engine, batch *b,
                        dsv4_report *report)
{
    bool any = false;
    b->answer = dsv4_alloc((size_t)b->file.count, sizeof *b->answer);
    b->result = dsv4_alloc((size_t)b->file.count, sizeof *b->result);
    for (int64_t i = 0; i < b->file.count; i++) {
        b->result[i] = selected(options->patterns, &b->file.c[i]) ? 0 : -1;
        any = any || b->result[i] == 0;
    }
    if (!any)
        return;
    dsv4_error why = {""};
    int begun = engine->begin != NULL ? engine->begin(engine->context, &b->file, &why) : 0;
    for (int64_t i = 0; i < b->file.count; i++) {
        if (b->result[i] < 0)
            continue;
        const dsv4_case *c = &b->file.c[i];
        b->result[i] = report->count;
        dsv4_result *r = dsv4_report_result(report);
        r->op = c->op;
        memcpy(r->name, c->name, sizeof r->name);
        memcpy(r->reason, c->reason, sizeof r->reason);
        memcpy(r->flags, c->flags, sizeof r->flags);
        judge_case(options, engine, begun, &why, c, &b->answer[i], r);
    }
    if (engine->end != NULL)
        engine->end(engine->context);
}

static void diagnose(const dsv4_verify_options *options, const dsv4_operator *op,
                     const batch batches[2], dsv4_diagnosis *diagnosis, dsv4_report *report)
{
    int64_t count = batches[0].file.count + batches[1].file.count, used = 0;
    dsv4_specimen *specimen = dsv4_alloc((size_t)count, sizeof *specimen);
    int64_t *result = dsv4_alloc((size_t)count, sizeof *result);
    for (int b = 0; b < 2; b++)
        for (int64_t i = 0; i < batches[b].file.count; i++) {
            int64_t r = batches[b].result[i];
            if (r < 0 || report->results[r].verdict.slots == 0)
                continue;
            result[used] = r;
            specimen[used++] = (dsv4_specimen){.c = &batches[b].file.c[i],
                                               .answer = &batches[b].answer[i],
                                               .verdict = &report->results[r].verdict};
        }
    dsv4_diagnose(diagnosis, op, specimen, used, options->strictness);
    for (int64_t i = 0; i < used; i++) {
        memcpy(report->results[result[i]].bugs, specimen[i].bugs, sizeof specimen[i].bugs);
        report->results[result[i]].nearly = specimen[i].nearly;
    }
    free(result);
    free(specimen);
}

/* Returns the cases that there were, asked for or not. */
static int64_t verify_operator(const dsv4_verify_options *options, const dsv4_engine *engine,
                               const dsv4_operator *op, dsv4_diagnosis *diagnosis,
                               dsv4_report *report)
{
    batch batches[2] = {{.answer = NULL}, {.answer = NULL}};
    int64_t cases = 0;
    for (int n = 0; n < 2; n++) {
        dsv4_numerics numerics = n == 0 ? DSV4_EXACT : DSV4_RELEASED;
        if (options->numerics[numerics] &&
            read_file(options, op, numerics, &batches[n].file, report) == 0)
            judge_batch(options, engine, &batches[n], report);
        cases += batches[n].file.count;
    }
    if (!options->no_diagnosis && dsv4_report_count(report, op, DSV4_FAILED) > 0)
        diagnose(options, op, batches, diagnosis, report);
    for (int n = 0; n < 2; n++) {
        for (int64_t i = 0; i < batches[n].file.count; i++)
            dsv4_case_free(&batches[n].answer[i]);
        free(batches[n].answer);
        free(batches[n].result);
        dsv4_case_file_free(&batches[n].file);
    }
    dsv4_report_operator(report, op);
    return cases;
}

int dsv4_verify(const dsv4_verify_options *options, const dsv4_engine *engine,
                dsv4_report *report, dsv4_error *err)
{
    check_manifest(options->vectors, report);
    dsv4_report_begin(report);
    dsv4_diagnosis *diagnosis = dsv4_alloc(1, sizeof *diagnosis);
    int64_t cases = 0;
    for (int i = 0; i < dsv4_operator_count; i++)
        if (may_select(options->patterns, &dsv4_operators[i]))
            cases += verify_operator(options, engine, &dsv4_operators[i], diagnosis, report);
    free(diagnosis);
    if (engine->notes != NULL)
        engine->notes(engine->context,
                      options->patterns == NULL && options->numerics[0] && options->numerics[1],
                      dsv4_report_note, report);
    dsv4_report_end(report);
    if (cases == 0 && options->patterns == NULL)
        return dsv4_fail(err, "%s: no vector file could be read", options->vectors);
    if (report->count == 0)
        return dsv4_fail(err, "%s: no case matches --op", options->vectors);
    if (dsv4_report_count(report, NULL, DSV4_SKIPPED) == report->count)
        return dsv4_fail(err, "nothing matched: %s answered none of %" PRId64 " cases",
                         engine->name, report->count);
    return 0;
}

/* ---- --list ---- */

static int list_cases(const dsv4_verify_options *options, dsv4_error *err)
{
    dsv4_report report = {0};
    int64_t listed = 0;
    for (int i = 0; i < dsv4_operator_count; i++) {
        const dsv4_operator *op = &dsv4_operators[i];
        bool named = false;
        for (int n = 0; n < 2 && may_select(options->patterns, op); n++) {
            dsv4_case_file file;
            dsv4_numerics numerics = n == 0 ? DSV4_EXACT : DSV4_RELEASED;
            if (!options->numerics[numerics] ||
                read_file(options, op, numerics, &file, &report) != 0)
                continue;
            for (int64_t c = 0; c < file.count; c++) {
                if (!selected(options->patterns, &file.c[c]))
                    continue;
                if (!named)
                    printf("%s: %s (spec/%s.md)\n", op->name, op->summary, op->chapter);
                named = true;
                printf("  %s/%s  %s\n", op->name, file.c[c].name, file.c[c].reason);
                listed++;
            }
            dsv4_case_file_free(&file);
        }
    }
    for (int64_t i = 0; i < report.check_count; i++)
        printf("FAIL manifest: %s: %s\n", report.checks[i].file, report.checks[i].message);
    bool damaged = report.check_count > 0;
    dsv4_report_free(&report);
    if (listed == 0)
        return dsv4_fail(err, "%s: no cases to list", options->vectors);
    return damaged;
}

/* ---- the command ---- */

typedef struct {
    const char *way[4];  /* path, plugin, candidate, exec */
    const char *vectors, *junit, *json;
    dsv4_tier tier;
    bool numerics[2], list, verbose, no_diagnosis;
    double timeout;
    dsv4_path_choice how;
    char *patterns;      /* argz */
    size_t patterns_size;
} verify_arguments;

enum { PATH, PLUGIN, CANDIDATE, EXEC };

static bool is_directory(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

char *dsv4_vectors_directory(const char *told, dsv4_error *err)
{
    const char *environment = getenv("DSV4_VECTORS");
    if (told == NULL && environment != NULL && environment[0] != '\0')
        told = environment;
    if (told != NULL) {
        if (is_directory(told))
            return strdup(told);
        dsv4_fail(err, "%s: no such directory of vector files", told);
        return NULL;
    }
    if (is_directory("vectors/v1"))
        return strdup("vectors/v1");
    char program[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length > 0) {
        program[length] = '\0';
        *strrchr(program, '/') = '\0';
        char *path = joined(program, "../vectors/v1"), *whole = realpath(path, NULL);
        free(path);
        if (whole != NULL && is_directory(whole))
            return whole;
        free(whole);
    }
    dsv4_fail(err, "no vector files: expected --vectors DIR, DSV4_VECTORS, or vectors/v1 here");
    return NULL;
}

static int open_path(const verify_arguments *arguments, dsv4_engine *engine, dsv4_error *err)
{
    const dsv4_path *path = dsv4_path_find(arguments->way[PATH]);
    if (path == NULL)
        return dsv4_fail(err, "no path '%s'; there is: %s", arguments->way[PATH],
                         dsv4_path_names());
    if (dsv4_path_choose(path, &arguments->how, "dsv4 verify", err) != 0)
        return -1;
    engine->answer = path->answer;
    if (path->level != NULL)
        snprintf(engine->name, sizeof engine->name, "path %s (%s)", path->name, path->level());
    else
        snprintf(engine->name, sizeof engine->name, "path %s", path->name);
    return 0;
}

static int open_engine(const verify_arguments *arguments, dsv4_engine *engine, dsv4_error *err)
{
    *engine = (dsv4_engine){.context = NULL};
    if (arguments->way[PLUGIN] != NULL)
        return dsv4_plugin_engine(engine, arguments->way[PLUGIN], arguments->timeout, err);
    if (arguments->way[CANDIDATE] != NULL)
        return dsv4_candidate_engine(engine, arguments->way[CANDIDATE], err);
    if (arguments->way[EXEC] != NULL)
        return dsv4_exec_engine(engine, arguments->way[EXEC], arguments->timeout, err);
    return open_path(arguments, engine, err);
}

static int run(const verify_arguments *arguments, const dsv4_verify_options *options,
               dsv4_error *err)
{
    if (arguments->list)
        return list_cases(options, err);
    dsv4_engine engine;
    if (open_engine(arguments, &engine, err) != 0)
        return -1;
    dsv4_report report = {.verbose = arguments->verbose, .no_diagnosis = options->no_diagnosis};
    snprintf(report.engine, sizeof report.engine, "%s", engine.name);
    snprintf(report.vectors, sizeof report.vectors, "%s", options->vectors);
    report.tolerances = options->strictness.identical ? "identical results (1e-12)"
                        : arguments->tier == DSV4_TIER_BF16 ? "bf16" : "fp32";
    report.numerics = options->numerics[0] && options->numerics[1] ? "exact and released"
                      : options->numerics[DSV4_EXACT] ? "exact" : "released";
    int result = dsv4_verify(options, &engine, &report, err);
    if (result == 0)
        result = dsv4_report_count(&report, NULL, DSV4_FAILED) + report.check_count > 0;
    dsv4_error why = {""};
    if ((arguments->json != NULL && dsv4_report_json(&report, arguments->json, &why) != 0) ||
        (arguments->junit != NULL && dsv4_report_junit(&report, arguments->junit, &why) != 0)) {
        dsv4_fail(err, "%s", why.text);
        result = -1;
    }
    if (engine.close != NULL)
        engine.close(engine.context);
    dsv4_report_free(&report);
    return result;
}

static int run_with_vectors(const verify_arguments *arguments, dsv4_error *err)
{
    char *vectors = dsv4_vectors_directory(arguments->vectors, err);
    if (vectors == NULL)
        return -1;
    size_t count = argz_count(arguments->patterns, arguments->patterns_size);
    char **patterns = dsv4_alloc(count + 1, sizeof *patterns);
    argz_extract(arguments->patterns, arguments->patterns_size, patterns);
    dsv4_verify_options options = {
        .vectors = vectors,
        .numerics = {arguments->numerics[0], arguments->numerics[1]},
        .strictness = {.tier = arguments->tier,
                       .identical = arguments->way[PATH] != NULL &&
                                    strcmp(arguments->way[PATH], "ref") == 0},
        .patterns = count > 0 ? (const char *const *)patterns : NULL,
        .no_diagnosis = arguments->no_diagnosis,
    };
    int result = run(arguments, &options, err);
    free(patterns);
    free(vectors);
    return result;
}

enum {
    KEY_PATH = 256, KEY_PLUGIN, KEY_CANDIDATE, KEY_EXEC, KEY_VECTORS, KEY_PRECISION, KEY_NUMERICS,
    KEY_OP, KEY_JUNIT, KEY_JSON, KEY_LIST, KEY_VERBOSE, KEY_NO_DIAGNOSIS, KEY_TIMEOUT
};

static void parse_numerics(verify_arguments *arguments, const char *text, struct argp_state *state)
{
    bool both = strcmp(text, "both") == 0;
    arguments->numerics[DSV4_EXACT] = both || strcmp(text, "exact") == 0;
    arguments->numerics[DSV4_RELEASED] = both || strcmp(text, "released") == 0;
    if (!arguments->numerics[0] && !arguments->numerics[1])
        argp_error(state, "--numerics: expected exact, released or both, got '%s'", text);
}

static void parse_precision(verify_arguments *arguments, const char *text,
                            struct argp_state *state)
{
    if (strcmp(text, "fp32") != 0 && strcmp(text, "bf16") != 0)
        argp_error(state, "--precision: expected fp32 or bf16, got '%s'", text);
    arguments->tier = strcmp(text, "bf16") == 0 ? DSV4_TIER_BF16 : DSV4_TIER_FP32;
}

static void parse_timeout(verify_arguments *arguments, const char *text, struct argp_state *state)
{
    char *end;
    arguments->timeout = strtod(text, &end);
    if (end == text || *end != '\0' || !(arguments->timeout > 0 && arguments->timeout <= 1e6))
        argp_error(state, "--timeout: expected seconds, more than 0 and at most 1000000, got '%s'",
                   text);
}

static void check_ways(const verify_arguments *arguments, struct argp_state *state)
{
    int ways = 0;
    for (int i = PATH; i <= EXEC; i++)
        ways += arguments->way[i] != NULL;
    if (ways > 1 || (ways == 0 && !arguments->list))
        argp_error(state, "expected one of --path, --plugin, --candidate and --exec, got %s",
                   ways == 0 ? "none" : "several");
    if (arguments->how.asked != NULL && arguments->way[PATH] == NULL)
        argp_error(state, "%s is for --path only", arguments->how.asked);
}

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    verify_arguments *arguments = state->input;
    switch (key) {
    case KEY_PATH:
    case KEY_PLUGIN:
    case KEY_CANDIDATE:
    case KEY_EXEC:
        if (arguments->way[key - KEY_PATH] != NULL)
            argp_error(state, "'%s' after '%s': only one can be verified at a time", text,
                       arguments->way[key - KEY_PATH]);
        arguments->way[key - KEY_PATH] = text;
        return 0;
    case KEY_VECTORS: arguments->vectors = text; return 0;
    case KEY_PRECISION: parse_precision(arguments, text, state); return 0;
    case KEY_NUMERICS: parse_numerics(arguments, text, state); return 0;
    case KEY_OP: return argz_add(&arguments->patterns, &arguments->patterns_size, text);
    case KEY_JUNIT: arguments->junit = text; return 0;
    case KEY_JSON: arguments->json = text; return 0;
    case KEY_LIST: arguments->list = true; return 0;
    case KEY_VERBOSE: arguments->verbose = true; return 0;
    case KEY_NO_DIAGNOSIS: arguments->no_diagnosis = true; return 0;
    case KEY_TIMEOUT: parse_timeout(arguments, text, state); return 0;
    case ARGP_KEY_INIT: state->child_inputs[0] = &arguments->how; return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "unexpected argument '%s'", text);
        return 0;
    case ARGP_KEY_END: check_ways(arguments, state); return 0;
    default: return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options_table[] = {
    {NULL, 0, NULL, 0, "What to verify, one of:", 1},
    {"path", KEY_PATH, "NAME", 0, "A path of this program: ref or fast", 1},
    {"plugin", KEY_PLUGIN, "LIB.so", 0, "A shared library with the interface of "
     "vectors/dsv4_plugin.h", 1},
    {"candidate", KEY_CANDIDATE, "OUT.h5", 0, "Outputs that a program wrote, as "
     "/OPERATOR/CASE/out/SLOT", 1},
    {"exec", KEY_EXEC, "COMMAND", 0, "A command for the shell that writes {out}, such a file, "
     "from {in}, a vector file; it runs once for each", 1},
    {NULL, 0, NULL, 0, "Against what:", 2},
    {"vectors", KEY_VECTORS, "DIR", 0, "Vector files (default: DSV4_VECTORS in the "
     "environment, vectors/v1 here, or beside this program's directory)", 2},
    {"numerics", KEY_NUMERICS, "WHICH", 0, "exact, released, or both (default)", 2},
    {"precision", KEY_PRECISION, "TIER", 0, "Tolerances for an engine that computes in fp32 "
     "(default) or keeps bf16 between operators. For --path ref they do not count: it has to "
     "give identical results, to 1e-12 of the row", 2},
    {"op", KEY_OP, "PATTERN", 0, "Only operators, or OPERATOR/CASE, that match this shell "
     "pattern; may be given several times", 2},
    {NULL, 0, NULL, 0, "How:", 3},
    {"list", KEY_LIST, NULL, 0, "List operators and cases, and verify nothing", 3},
    {"verbose", KEY_VERBOSE, NULL, 0, "Show every case", 3},
    {"no-diagnosis", KEY_NO_DIAGNOSIS, NULL, 0, "Do not look for the mistake behind wrong "
     "answers", 3},
    {"junit", KEY_JUNIT, "FILE", 0, "Write the results as JUnit XML", 3},
    {"json", KEY_JSON, "FILE", 0, "Write the results as JSON", 3},
    {"timeout", KEY_TIMEOUT, "S", 0, "Seconds that a plugin may take for a case, and a command "
     "for each case of a vector file (default 60)", 3},
    {0},
};

static const char documentation[] =
    "Verifies an implementation of DeepSeek-V4-Flash, operator by operator, with golden "
    "vectors.\v"
    "An engine may offer any of the operators; cases that it does not offer are skipped. For "
    "wrong answers the report names the value, the rule of spec/, and, where it is one, the "
    "known mistake that gives exactly these answers.\n"
    "\n"
    "Exit code: 0 all answered cases passed; 1 a case failed, or the vector files are damaged; "
    "2 cannot run, or no case was answered.";

int dsv4_verify_main(int argc, char **argv)
{
    const struct argp_child children[] = {{&dsv4_path_argp, 0, NULL, 0}, {0}};
    const struct argp argp = {.options = options_table, .parser = parse_option,
                              .doc = documentation, .children = children};
    verify_arguments arguments = {.numerics = {true, true}, .timeout = 60};
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    dsv4_error err = {""};
    int result = run_with_vectors(&arguments, &err);
    free(arguments.patterns);
    if (result < 0) {
        fflush(stdout);
        fprintf(stderr, "dsv4 verify: %s\n", err.text);
        return 2;
    }
    return result;
}
