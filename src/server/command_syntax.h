/* command_syntax: the arguments of each command, as COMMAND DOCS tells them, from which clients make their
 * help and their hints. Thread safety: any (constant tables).
 */
#ifndef KVASIR_SERVER_COMMAND_SYNTAX_H
#define KVASIR_SERVER_COMMAND_SYNTAX_H

struct reply;

/* Its syntax in the notation of command_syntax.c; NULL: it takes no arguments. name is in lower case. */
const char *command_syntax_find(const char *name);
/* The arguments of such a syntax, as an array of maps like Redis's. */
void command_syntax_reply(struct reply *r, const char *syntax);

#endif
