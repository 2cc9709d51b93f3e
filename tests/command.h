/* Runs a command in a process of its own, and gives tests a scratch directory to run it in. */
#ifndef COMMAND_H
#define COMMAND_H

#include <stddef.h>

typedef struct {
    int code;   /* exit code, or -N where signal N ended it */
    char *out;  /* all of its standard output */
    char *err;  /* all of its standard error */
} command_result;

/* Calls `run` as main() with `count` words, the first being the program's name, in a child process.
 * Release with command_free(). */
command_result command_run(int (*run)(int, char **), int count, const char *const *words);
void command_free(command_result *result);

/* command_call(dsv4_diff_main, "dsv4 diff", "a.h5", "b.h5") */
#define command_call(run, ...)                                                                     \
    command_run(run, (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)),                \
                (const char *[]){__VA_ARGS__})

/* Group setup and teardown of cmocka: a new empty current directory, and its removal. */
int scratch_enter(void **state);
int scratch_leave(void **state);

#endif
