#include "candidate.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <signal.h>
#include <unistd.h>

#include "child.h"
#include "h5.h"
#include "judge.h"

/* A dataset of the file. */
typedef struct {
    char *name;       /* "rmsnorm/exact-small/out/y" */
    bool case_known, slot_known;
} entry;

typedef struct {
    char *path;
    entry *entries;
    int64_t count;
    dsv4_child *child;
    dsv4_h5 *file; /* in the child: HDF5 does not survive every damaged file */
} candidate;

enum { READING_TIMEOUT = 600 };

static char *copy(const char *text, size_t length)
{
    return memcpy(dsv4_alloc(length + 1, 1), text, length);
}

/* ---- in the child ---- */

static int open_candidate(void *context, char **text, dsv4_error *err)
{
    candidate *k = context;
    k->file = dsv4_h5_open(k->path, err);
    if (k->file == NULL)
        return -1;
    int64_t count, odd;
    char **names = dsv4_h5_names(k->file, &count, err);
    if (names == NULL)
        return -1;
    char **ends = dsv4_h5_odd_ends(k->file, &odd, err);
    if (ends == NULL) {
        dsv4_h5_names_free(names, count);
        return -1;
    }
    size_t size = 1;
    for (int64_t i = 0; i < count + odd; i++)
        size += strlen(i < count ? names[i] : ends[i - count]) + 1;
    char *end = *text = dsv4_alloc(size, 1);
    for (int64_t i = 0; i < count + odd; i++)
        end += sprintf(end, "%s\n", i < count ? names[i] : ends[i - count]);
    dsv4_h5_names_free(names, count);
    dsv4_h5_names_free(ends, odd);
    return 0;
}

static int take_data(const dsv4_array *want, const dsv4_h5_data *data, dsv4_case *answer,
                     dsv4_error *err)
{
    bool integer = want->format == DSV4_FORMAT_I64;
    if (data->integer != integer)
        return dsv4_fail(err, "out/%s: %s, expected %s", want->name,
                         data->integer ? "integers" : "floats", integer ? "integers" : "floats");
    if (data->rank != want->rank ||
        memcmp(data->shape, want->shape, (size_t)want->rank * sizeof *want->shape) != 0) {
        char found[200], expected[96];
        dsv4_index_text(found, sizeof found, data->rank, data->shape);
        dsv4_index_text(expected, sizeof expected, want->rank, want->shape);
        return dsv4_fail(err, "out/%s: shape %s, expected %s", want->name, found, expected);
    }
    dsv4_array *out = dsv4_case_add_out(answer, want->name,
                                        integer ? DSV4_FORMAT_I64 : DSV4_FORMAT_F64, want->rank,
                                        want->shape);
    memcpy(out->data, integer ? (void *)data->indices : (void *)data->values,
           (size_t)want->count * sizeof(double));
    return 0;
}

static int read_answer(void *context, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    const candidate *k = context;
    for (int i = 0; i < c->outs; i++) {
        char name[4 * DSV4_NAME];
        snprintf(name, sizeof name, "%s/%s/out/%s", c->op->name, c->name, c->out[i].name);
        if (!dsv4_h5_has(k->file, name)) /* the judge misses what is required */
            continue;
        dsv4_h5_data data;
        if (dsv4_h5_read(k->file, name, &data, err) != 0)
            return -1;
        int result = take_data(&c->out[i], &data, answer, err);
        dsv4_h5_data_free(&data);
        if (result != 0)
            return -1;
    }
    return 0;
}

/* ---- in the parent ---- */

static int list_entries(candidate *k, dsv4_error *err)
{
    const dsv4_child_work work = {.open = open_candidate, .context = k, .timeout = READING_TIMEOUT};
    char *text = NULL;
    dsv4_error why = {""};
    dsv4_child *child = dsv4_child_start(&work, NULL, &text, &why);
    if (child == NULL)
        return strstr(why.text, k->path) != NULL
                   ? dsv4_fail(err, "%s", why.text)
                   : dsv4_fail(err, "%s: the process that read it %s", k->path, why.text);
    dsv4_child_stop(child);
    for (const char *c = text; *c != '\0'; c++)
        k->count += *c == '\n';
    k->entries = dsv4_alloc((size_t)k->count, sizeof *k->entries);
    char *line = text;
    for (int64_t i = 0; i < k->count; i++) {
        char *end = strchr(line, '\n');
        k->entries[i].name = copy(line, (size_t)(end - line));
        line = end + 1;
    }
    free(text);
    return 0;
}

/* The part of `name` behind "OPERATOR/CASE/", or NULL where it is not of this case. It is empty
 * where something that is no group stands in the place of the operator or the case. */
static const char *within_case(const char *name, const dsv4_case *c)
{
    size_t op = strlen(c->op->name), own = strlen(c->name);
    if (strncmp(name, c->op->name, op) != 0 || (name[op] != '/' && name[op] != '\0'))
        return NULL;
    if (name[op] == '\0')
        return name + op;
    if (strncmp(name + op + 1, c->name, own) != 0)
        return NULL;
    const char *rest = name + op + 1 + own;
    return *rest == '\0' ? rest : *rest == '/' ? rest + 1 : NULL;
}

/* Whether the file has anything of this case; notes what is known about its entries. A copy of a
 * vector file, with its inputs, is a good candidate. */
static bool recognise(candidate *k, const dsv4_case *c)
{
    bool found = false;
    for (int64_t i = 0; i < k->count; i++) {
        const char *rest = within_case(k->entries[i].name, c);
        if (rest == NULL)
            continue;
        k->entries[i].case_known = true;
        bool misplaced = *rest == '\0' || strcmp(rest, "out") == 0;
        bool output = misplaced || strncmp(rest, "out/", 4) == 0;
        k->entries[i].slot_known =
            strncmp(rest, "in/", 3) == 0 ||
            (output && !misplaced && dsv4_case_out(c, rest + 4) != NULL);
        found = found || output;
    }
    return found;
}

static int begin_candidate(void *context, const dsv4_case_file *file, dsv4_error *err)
{
    candidate *k = context;
    bool found = false;
    for (int64_t i = 0; i < file->count; i++)
        found = recognise(k, &file->c[i]) || found;
    if (!found)
        return 1;
    const dsv4_child_work work = {.open = open_candidate, .answer = read_answer, .context = k,
                                  .timeout = READING_TIMEOUT};
    k->child = dsv4_child_start(&work, file, NULL, err);
    return k->child != NULL ? 0 : -1;
}

static int answer_candidate(void *context, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    candidate *k = context;
    if (!recognise(k, c))
        return 1;
    return dsv4_child_answer(k->child, c, answer, err);
}

static void end_candidate(void *context)
{
    candidate *k = context;
    dsv4_child_stop(k->child);
    k->child = NULL;
}

static bool known_operator(const char *name)
{
    char op[DSV4_NAME];
    size_t length = strcspn(name, "/");
    if (length >= sizeof op)
        return false;
    memcpy(op, name, length);
    op[length] = '\0';
    return dsv4_operator_find(op) != NULL;
}

static void note_entries(void *context, bool everything, void (*note)(void *, const char *),
                         void *report)
{
    enum { SHOWN = 20 };
    const candidate *k = context;
    int64_t unknown = 0;
    for (int64_t i = 0; i < k->count; i++) {
        const entry *e = &k->entries[i];
        const char *what = NULL;
        if (!known_operator(e->name))
            what = "no operator of this name";
        else if (!e->case_known && everything)
            what = "no case of this name";
        else if (e->case_known && !e->slot_known)
            what = "no output of this name";
        if (what == NULL || unknown++ >= SHOWN)
            continue;
        char line[512];
        snprintf(line, sizeof line, "unknown in the candidate: %.300s: %s", e->name, what);
        note(report, line);
    }
    if (unknown > SHOWN) {
        char line[64];
        snprintf(line, sizeof line, "unknown in the candidate: %" PRId64 " more", unknown - SHOWN);
        note(report, line);
    }
}

static void close_candidate(void *context)
{
    candidate *k = context;
    if (k == NULL)
        return;
    end_candidate(k);
    for (int64_t i = 0; i < k->count; i++)
        free(k->entries[i].name);
    free(k->entries);
    free(k->path);
    free(k);
}

static candidate *open_file(const char *path, dsv4_error *err)
{
    candidate *k = dsv4_alloc(1, sizeof *k);
    k->path = copy(path, strlen(path));
    if (list_entries(k, err) != 0) {
        close_candidate(k);
        return NULL;
    }
    return k;
}

int dsv4_candidate_engine(dsv4_engine *engine, const char *path, dsv4_error *err)
{
    candidate *k = open_file(path, err);
    if (k == NULL)
        return -1;
    *engine = (dsv4_engine){.context = k, .begin = begin_candidate, .answer = answer_candidate,
                            .end = end_candidate, .notes = note_entries, .close = close_candidate};
    snprintf(engine->name, sizeof engine->name, "candidate %.240s", path);
    return 0;
}

/* ---- a program ---- */

typedef struct {
    char *command;
    double timeout;
    char *directory, *out; /* of the file being answered */
    candidate *candidate;
} program;

/* `path` in single quotes, as a shell takes it for one word. */
static char *quoted(const char *path)
{
    char *text = dsv4_alloc(4 * strlen(path) + 3, 1), *end = text;
    *end++ = '\'';
    for (; *path != '\0'; path++)
        if (*path == '\'')
            end = stpcpy(end, "'\\''");
        else
            *end++ = *path;
    *end = '\'';
    return text;
}

static char *replaced(const char *text, const char *word, const char *path)
{
    char *by = quoted(path);
    size_t uses = 0;
    for (const char *at = text; (at = strstr(at, word)) != NULL; at += strlen(word))
        uses++;
    char *result = dsv4_alloc(strlen(text) + uses * strlen(by) + 1, 1), *end = result;
    for (const char *at; (at = strstr(text, word)) != NULL; text = at + strlen(word))
        end = stpcpy((char *)mempcpy(end, text, (size_t)(at - text)), by);
    strcpy(end, text);
    free(by);
    return result;
}

_Noreturn static void run_shell(const char *command)
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int nothing = open("/dev/null", O_RDONLY);
    if (nothing >= 0)
        dup2(nothing, STDIN_FILENO);
    dup2(STDERR_FILENO, STDOUT_FILENO); /* standard output is the report's */
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
}

static int run_program(const program *p, const dsv4_case_file *file, dsv4_error *err)
{
    char *half = replaced(p->command, "{in}", file->path);
    char *whole = replaced(half, "{out}", p->out);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        run_shell(whole);
    free(half);
    free(whole);
    if (pid < 0)
        return dsv4_fail(err, "cannot start a process: %s", strerror(errno));
    dsv4_error why = {""};
    double seconds = p->timeout * (double)(file->count > 0 ? file->count : 1);
    if (dsv4_child_wait(pid, seconds, &why) != 0)
        return dsv4_fail(err, "the command %s", why.text);
    return 0;
}

static int begin_program(void *context, const dsv4_case_file *file, dsv4_error *err)
{
    program *p = context;
    const char *base = getenv("TMPDIR");
    if (asprintf(&p->directory, "%s/dsv4-verify-XXXXXX",
                 base != NULL && base[0] != '\0' ? base : "/tmp") < 0) {
        p->directory = NULL;
        return dsv4_fail(err, "out of memory");
    }
    if (mkdtemp(p->directory) == NULL) {
        dsv4_fail(err, "%s: cannot make a directory: %s", p->directory, strerror(errno));
        free(p->directory);
        p->directory = NULL;
        return -1;
    }
    if (asprintf(&p->out, "%s/out.h5", p->directory) < 0) {
        p->out = NULL;
        return dsv4_fail(err, "out of memory");
    }
    if (run_program(p, file, err) != 0)
        return -1;
    if (access(p->out, F_OK) != 0)
        return 1; /* nothing offered */
    p->candidate = open_file(p->out, err);
    return p->candidate != NULL ? begin_candidate(p->candidate, file, err) : -1;
}

static int answer_program(void *context, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    return answer_candidate(((program *)context)->candidate, c, answer, err);
}

static void end_program(void *context)
{
    program *p = context;
    close_candidate(p->candidate);
    p->candidate = NULL;
    if (p->out != NULL)
        unlink(p->out);
    if (p->directory != NULL)
        rmdir(p->directory); /* unless the program left more there, which is its own */
    free(p->out);
    free(p->directory);
    p->out = p->directory = NULL;
}

static void close_program(void *context)
{
    program *p = context;
    end_program(p);
    free(p->command);
    free(p);
}

int dsv4_exec_engine(dsv4_engine *engine, const char *command, double timeout, dsv4_error *err)
{
    if (strstr(command, "{in}") == NULL || strstr(command, "{out}") == NULL)
        return dsv4_fail(err, "--exec: expected a command with {in} and {out}, got '%s'", command);
    program *p = dsv4_alloc(1, sizeof *p);
    p->command = copy(command, strlen(command));
    p->timeout = timeout;
    *engine = (dsv4_engine){.context = p, .begin = begin_program, .answer = answer_program,
                            .end = end_program, .close = close_program};
    snprintf(engine->name, sizeof engine->name, "program %.240s", command);
    return 0;
}
