#include "command.h"

#include <argp.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/error.h"

static char *read_all(FILE *stream)
{
    long size = fseek(stream, 0, SEEK_END) == 0 ? ftell(stream) : 0;
    char *text = dsv4_alloc((size_t)size + 1, 1);
    rewind(stream);
    text[fread(text, 1, (size_t)size, stream)] = '\0';
    fclose(stream);
    return text;
}

static void run_child(int (*run)(int, char **), int count, const char *const *words, FILE *out,
                      FILE *err)
{
    /* cmocka's handlers would go on with the next test, here in the child. */
    static const int signals[] = {SIGFPE, SIGILL, SIGSEGV, SIGBUS, SIGSYS};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        signal(signals[i], SIG_DFL);
    dup2(fileno(out), STDOUT_FILENO);
    dup2(fileno(err), STDERR_FILENO);
    argp_err_exit_status = 2; /* as main() in host/dsv4.c */
    char **argv = dsv4_alloc((size_t)count + 1, sizeof *argv);
    memcpy(argv, words, (size_t)count * sizeof *argv);
    int code = run(count, argv);
    free(argv);
    exit(code);
}

command_result command_run(int (*run)(int, char **), int count, const char *const *words)
{
    FILE *out = tmpfile(), *err = tmpfile();
    if (out == NULL || err == NULL) {
        perror("tmpfile");
        abort();
    }
    fflush(NULL); /* or the child would write the parent's output again */
    pid_t child = fork();
    if (child == 0)
        run_child(run, count, words, out, err);
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child) {
        perror("fork");
        abort();
    }
    return (command_result){
        .code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status),
        .out = read_all(out),
        .err = read_all(err),
    };
}

void command_free(command_result *result)
{
    free(result->out);
    free(result->err);
}

int scratch_enter(void **state)
{
    const char *base = getenv("TMPDIR");
    if (base == NULL)
        base = "/tmp";
    size_t size = strlen(base) + 32;
    char *path = dsv4_alloc(size, 1);
    snprintf(path, size, "%s/dsv4-test-XXXXXX", base);
    if (mkdtemp(path) == NULL || chdir(path) != 0) {
        perror(path);
        free(path);
        return -1;
    }
    *state = getcwd(NULL, 0); /* absolute, whatever TMPDIR was */
    free(path);
    return *state != NULL ? 0 : -1;
}

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *place)
{
    (void)status;
    (void)type;
    (void)place;
    return remove(path);
}

int scratch_leave(void **state)
{
    int result = chdir("/");
    if (nftw(*state, remove_entry, 8, FTW_DEPTH | FTW_PHYS) != 0)
        result = -1;
    free(*state);
    return result;
}
