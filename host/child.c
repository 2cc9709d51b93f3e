#include "child.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

/* What goes over the socket: the number of a case; back comes a reply, the text of `open`, and
 * every output with its values, binary64 or int64. */
enum { MAGIC = 0x34767364, MAX_TEXT = 1 << 24 };

typedef struct {
    uint32_t magic;
    int32_t status; /* of open or answer */
    int32_t outs;
    int32_t text; /* bytes of text that follow */
    dsv4_error err;
} reply;

typedef struct {
    char name[DSV4_NAME];
    int32_t integer;
    int64_t count;
} reply_output;

struct dsv4_child {
    dsv4_child_work work;
    const dsv4_case_file *file;
    pid_t pid; /* 0 while there is none */
    int socket;
};

/* ---- in the child ---- */

static void send_all(int fd, const void *data, size_t size)
{
    for (const char *at = data; size > 0;) {
        ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            _exit(0); /* nobody listens any more */
        at += sent;
        size -= (size_t)sent;
    }
}

static bool receive_request(int fd, int64_t *index)
{
    size_t have = 0;
    while (have < sizeof *index) {
        ssize_t got = recv(fd, (char *)index + have, sizeof *index - have, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        have += (size_t)got;
    }
    return true;
}

/* Only what has the expected form goes over. */
static int check_answer(const dsv4_case *c, const dsv4_case *answer, dsv4_error *err)
{
    for (int i = 0; i < answer->outs; i++) {
        const dsv4_array *got = &answer->out[i], *want = dsv4_case_out(c, got->name);
        if (want == NULL)
            continue;
        bool integer = got->format == DSV4_FORMAT_I64;
        if (integer != (want->format == DSV4_FORMAT_I64))
            return dsv4_fail(err, "out/%s: %s, expected %s", got->name,
                             integer ? "integers" : "floats", integer ? "floats" : "integers");
        if (got->count != want->count)
            return dsv4_fail(err, "out/%s: %" PRId64 " values, expected %" PRId64, got->name,
                             got->count, want->count);
    }
    return 0;
}

static void send_answer(int fd, const dsv4_case *c, const dsv4_case *answer)
{
    for (int i = 0; i < answer->outs; i++) {
        const dsv4_array *out = &answer->out[i];
        if (dsv4_case_out(c, out->name) == NULL)
            continue;
        reply_output header = {.integer = out->format == DSV4_FORMAT_I64, .count = out->count};
        memcpy(header.name, out->name, sizeof header.name);
        send_all(fd, &header, sizeof header);
        if (header.integer) {
            send_all(fd, out->data, (size_t)out->count * sizeof(int64_t));
            continue;
        }
        double *values = dsv4_alloc((size_t)out->count, sizeof *values);
        for (int64_t k = 0; k < out->count; k++)
            values[k] = dsv4_array_value(out, k);
        send_all(fd, values, (size_t)out->count * sizeof *values);
        free(values);
    }
}

static int32_t known_outputs(const dsv4_case *c, const dsv4_case *answer)
{
    int32_t count = 0;
    for (int i = 0; i < answer->outs; i++)
        count += dsv4_case_out(c, answer->out[i].name) != NULL;
    return count;
}

static void answer_case(const dsv4_child *child, int fd, const dsv4_case *c)
{
    reply header = {.magic = MAGIC};
    dsv4_case answer = {.op = c->op, .numerics = c->numerics};
    memcpy(answer.name, c->name, sizeof answer.name);
    header.status = child->work.answer(child->work.context, c, &answer, &header.err);
    fflush(stdout);
    if (header.status == 0)
        header.status = check_answer(c, &answer, &header.err);
    header.outs = header.status == 0 ? known_outputs(c, &answer) : 0;
    send_all(fd, &header, sizeof header);
    if (header.status == 0)
        send_answer(fd, c, &answer);
    dsv4_case_free(&answer);
}

static void open_work(const dsv4_child *child, int fd)
{
    reply header = {.magic = MAGIC};
    char *text = NULL;
    if (child->work.open != NULL)
        header.status = child->work.open(child->work.context, &text, &header.err);
    fflush(stdout);
    size_t length = text != NULL ? strlen(text) : 0;
    header.text = (int32_t)(length < MAX_TEXT ? length : MAX_TEXT);
    send_all(fd, &header, sizeof header);
    if (header.text > 0)
        send_all(fd, text, (size_t)header.text);
    free(text);
    if (header.status != 0)
        _exit(0);
}

_Noreturn static void serve(const dsv4_child *child, int fd)
{
    if (fd > 3) /* no file of ours is within its reach */
        close_range(3, (unsigned)fd - 1, 0);
    close_range((unsigned)fd + 1, ~0u, 0);
    setpgid(0, 0); /* what it starts ends with it */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGSYS, SIGPIPE};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        signal(faults[i], SIG_DFL); /* a handler of ours would hide what happened */
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    dup2(STDERR_FILENO, STDOUT_FILENO); /* standard output is the report's */
    open_work(child, fd);
    int64_t index;
    while (receive_request(fd, &index))
        if (child->file != NULL && index >= 0 && index < child->file->count)
            answer_case(child, fd, &child->file->c[index]);
    _exit(0);
}

/* ---- in the parent ---- */

static int how_it_ended(int status, dsv4_error *err)
{
    if (WIFSIGNALED(status))
        return dsv4_fail(err, "crashed: signal %d (%s)", WTERMSIG(status),
                         strsignal(WTERMSIG(status)));
    if (WEXITSTATUS(status) != 0)
        return dsv4_fail(err, "exited with status %d", WEXITSTATUS(status));
    return 0;
}

int dsv4_child_wait(int pid, double timeout, dsv4_error *err)
{
    const double deadline = dsv4_now() + timeout;
    int status = 0;
    pid_t ended;
    for (long pause = 200000;; pause = pause < 20000000 ? 2 * pause : pause) {
        ended = waitpid(pid, &status, WNOHANG);
        if ((ended < 0 && errno != EINTR) || ended > 0 || dsv4_now() > deadline)
            break;
        nanosleep(&(struct timespec){0, pause}, NULL);
    }
    kill(-pid, SIGKILL);
    if (ended > 0)
        return how_it_ended(status, err);
    kill(pid, SIGKILL); /* it may not yet lead its group */
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return dsv4_fail(err, "gave no answer within %g s", timeout);
}

static void forget(dsv4_child *child)
{
    if (child->pid == 0)
        return;
    close(child->socket);
    child->pid = 0;
}

/* The child closed its end, or broke the protocol: -1 with how it ended. */
static int lost(dsv4_child *child, const char *what, dsv4_error *err)
{
    if (dsv4_child_wait(child->pid, 1, err) == 0)
        dsv4_fail(err, "%s", what);
    forget(child);
    return -1;
}

static int receive(dsv4_child *child, void *data, size_t size, double deadline, dsv4_error *err)
{
    for (char *at = data; size > 0;) {
        double left = deadline - dsv4_now();
        struct pollfd ready = {.fd = child->socket, .events = POLLIN};
        int events =
            left > 0 ? poll(&ready, 1, left < 1e6 ? (int)(left * 1000) + 1 : 1000000000) : 0;
        if (events < 0 && errno == EINTR)
            continue;
        if (events <= 0) {
            kill(-child->pid, SIGKILL);
            dsv4_fail(err, "gave no answer within %g s", child->work.timeout);
            return lost(child, "", err);
        }
        ssize_t got = recv(child->socket, at, size, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return lost(child, "ended without an answer (exit status 0)", err);
        at += got;
        size -= (size_t)got;
    }
    return 0;
}

static int receive_reply(dsv4_child *child, reply *header, double deadline, dsv4_error *err)
{
    if (receive(child, header, sizeof *header, deadline, err) != 0)
        return -1;
    if (header->magic != MAGIC || header->text < 0 || header->text > MAX_TEXT || header->outs < 0 ||
        header->outs > DSV4_MAX_SLOTS) {
        kill(-child->pid, SIGKILL);
        dsv4_fail(err, "sent garbage in place of an answer");
        return lost(child, "", err);
    }
    header->err.text[sizeof header->err.text - 1] = '\0';
    return 0;
}

/* The greeting of a new child: what `open` returned, and its text, to be freed. */
static int receive_greeting(dsv4_child *child, char **text, dsv4_error *err)
{
    reply header;
    double deadline = dsv4_now() + child->work.timeout;
    if (receive_reply(child, &header, deadline, err) != 0)
        return -1;
    *text = dsv4_alloc((size_t)header.text + 1, 1);
    if (receive(child, *text, (size_t)header.text, deadline, err) != 0)
        return -1;
    if (header.status == 0)
        return 0;
    dsv4_fail(err, "%s", header.err.text[0] != '\0' ? header.err.text : "cannot be opened");
    return lost(child, "", err);
}

static int start(dsv4_child *child, char **text, dsv4_error *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return dsv4_fail(err, "cannot start a process: %s", strerror(errno));
    fflush(NULL); /* or the child might write it again */
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        serve(child, ends[1]);
    }
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return dsv4_fail(err, "cannot start a process: %s", strerror(errno));
    }
    child->pid = pid;
    child->socket = ends[0];
    char *greeting = NULL;
    int result = receive_greeting(child, &greeting, err);
    if (result == 0 && text != NULL)
        *text = greeting;
    else
        free(greeting);
    return result;
}

dsv4_child *dsv4_child_start(const dsv4_child_work *work, const dsv4_case_file *file, char **text,
                             dsv4_error *err)
{
    dsv4_child *child = dsv4_alloc(1, sizeof *child);
    *child = (dsv4_child){.work = *work, .file = file};
    if (start(child, text, err) != 0) {
        free(child);
        return NULL;
    }
    return child;
}

static int receive_output(dsv4_child *child, const dsv4_case *c, dsv4_case *answer,
                          double deadline, dsv4_error *err)
{
    reply_output header;
    if (receive(child, &header, sizeof header, deadline, err) != 0)
        return -1;
    header.name[sizeof header.name - 1] = '\0';
    const dsv4_array *want = dsv4_case_out(c, header.name);
    if (want == NULL || header.count != want->count ||
        (header.integer != 0) != (want->format == DSV4_FORMAT_I64) ||
        dsv4_case_out(answer, header.name) != NULL) {
        kill(-child->pid, SIGKILL);
        dsv4_fail(err, "sent garbage in place of an answer");
        return lost(child, "", err);
    }
    dsv4_array *out = dsv4_case_add_out(answer, want->name,
                                        header.integer ? DSV4_FORMAT_I64 : DSV4_FORMAT_F64,
                                        want->rank, want->shape);
    return receive(child, out->data, (size_t)out->count * sizeof(double), deadline, err);
}

int dsv4_child_answer(dsv4_child *child, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    if (child->pid == 0 && start(child, NULL, err) != 0)
        return -1;
    const double deadline = dsv4_now() + child->work.timeout;
    int64_t index = c - child->file->c;
    if (send(child->socket, &index, sizeof index, MSG_NOSIGNAL) != (ssize_t)sizeof index)
        return lost(child, "ended before the case", err);
    reply header;
    if (receive_reply(child, &header, deadline, err) != 0)
        return -1;
    for (int i = 0; i < header.outs; i++)
        if (receive_output(child, c, answer, deadline, err) != 0)
            return -1;
    if (header.status == 0 || header.status == 1)
        return header.status;
    return dsv4_fail(err, "%s", header.err.text[0] != '\0' ? header.err.text : "failed");
}

void dsv4_child_stop(dsv4_child *child)
{
    if (child == NULL)
        return;
    if (child->pid != 0) {
        dsv4_error ignored = {""};
        kill(-child->pid, SIGKILL);
        kill(child->pid, SIGKILL);
        dsv4_child_wait(child->pid, 5, &ignored);
        forget(child);
    }
    free(child);
}
