/* options: the command line of one tool, as a table: --name VALUE, --name=VALUE, and flags without a value.
 *
 * The same table reads a config file of `name value` lines. Unknown names and bad values are refused, naming
 * the option.
 *
 *     struct option_spec specs[] = {
 *         {"threads", OPTION_U64, &threads, "N", "worker threads (default: cores)", .min = 1, .max = 64},
 *         {"io", OPTION_CHOICE, &io, "auto|uring|epoll", "event loop"},
 *         {"json", OPTION_FLAG, &json, NULL, "one JSON object on stdout"},
 *         {0},
 *     };
 *
 * Ownership: texts and ports point into argv, or into the buffer that options_read_file returns.
 * Thread safety: none needed; one thread reads the command line. */
#ifndef KVASIR_TOOLS_OPTIONS_H
#define KVASIR_TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

enum option_kind {
    OPTION_FLAG,    /* bool: true when named; in a config file also yes|no|true|false */
    OPTION_TEXT,    /* const char * */
    OPTION_ADDRESS, /* const char *: has a colon */
    OPTION_PORT,    /* const char *: a port from 1 to 65535 */
    OPTION_U64,     /* uint64_t, min..max */
    OPTION_SIZE,    /* uint64_t bytes: 64M, 2G; min..max */
    OPTION_DOUBLE,  /* double, min..max */
    OPTION_CHOICE,  /* int: index of the value among value_name's words, which are separated by '|' */
};

struct option_spec {
    const char *name; /* without dashes; NULL ends the table */
    enum option_kind kind;
    void *into;             /* where the value goes; holds the default before */
    const char *value_name; /* "HOST:PORT", for the help text; the words of an OPTION_CHOICE */
    const char *help;
    uint64_t min, max; /* of numbers; max 0: no upper limit */
};

/* Sets one option by its name without dashes. value NULL: none was given. The text must live as long as the
 * option. */
STATUS_MUST_USE status_t options_set(const struct option_spec *specs, const char *name, const char *value);

/* Takes the options out of argv[1..]; the positional arguments move to argv[1..*positional_count] in order.
 * "--" ends the options; "-" and negative numbers are positional. *help becomes true when --help or -h is
 * among them (the rest is unread). */
STATUS_MUST_USE status_t options_parse(const struct option_spec *specs, int argc, char **argv,
                                       int *positional_count, bool *help);

/* Reads a config file: `name value` a line (also `name = value`), '#' starts a comment line, a value may
 * stand in double quotes. On success *buffer is what OPTION_TEXT values point into; the caller frees it when
 * they are no longer needed. */
STATUS_MUST_USE status_t options_read_file(const struct option_spec *specs, const char *path, char **buffer);

/* "usage: kvasir <usage>", what the tool is about, and the table. */
void options_print_help(FILE *out, const char *usage, const char *about, const struct option_spec *specs);

/* The whole start of a tool: parses; prints help (returns 0) or the error on stderr (returns 2); -1 to go on.
 * Refuses when the count of positional arguments is not in min..max. name: "get". */
int options_begin(const char *name, const char *usage, const char *about, const struct option_spec *specs,
                  int argc, char **argv, int positional_min, int positional_max, int *positional_count);

#endif
