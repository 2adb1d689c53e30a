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

/* Runs the one that argv[1] names; there is an argv[1]. Answers the error when there is no such one, or with
 * another number of arguments; and HELP. */
enum command_result subcommand_run(struct command_call *call, const struct subcommand *table);

#endif
