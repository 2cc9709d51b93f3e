/* The options of commands that run a path: --threads, --isa, --deterministic. */
#ifndef DSV4_PATH_OPTIONS_H
#define DSV4_PATH_OPTIONS_H

#include <argp.h>

#include "path.h"

typedef struct {
    dsv4_path_options options;
    const char *asked; /* the first of the options that was given; NULL: none */
} dsv4_path_choice;

/* A child parser of argp; its input is a dsv4_path_choice. */
extern const struct argp dsv4_path_argp;

/* Configures the path. -1 with one line where it has no such choice, or cannot. Says on standard
 * error, as `command`, where lesser instructions run than --isa asks for. */
int dsv4_path_choose(const dsv4_path *path, const dsv4_path_choice *choice, const char *command,
                     dsv4_error *err);

#endif
