/* subcommand: tables of subcommands (CLIENT LIST, CONFIG GET ...) and the errors and HELP that go with them.
 */
#ifndef KVASIR_SERVER_SUBCOMMAND_H
#define KVASIR_SERVER_SUBCOMMAND_H

#include "server/command.h"

struct subcommand {
    const char *name; /* lower case; NULL ends the table */
    int arity;        /* as in struct command, both names included */
    command_handler handler;
    const char *help; /* "LIST [TYPE ...]\n    What it does." ; NULL: not listed */
};

/* Runs argv[1] of the call. */
enum command_result subcommand_run(struct command_call *call, const struct subcommand *table);

/* Text equals in any case. */
bool subcommand_is(struct slice text, const char *lower_case);

#endif
