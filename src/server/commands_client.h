/* commands_client: names of connections, which HELLO and RESET set too. */
#ifndef KVASIR_SERVER_COMMANDS_CLIENT_H
#define KVASIR_SERVER_COMMANDS_CLIENT_H

#include "server/command.h"

/* False: not a fit name, and the error is the reply. */
bool client_name_check(struct command_call *call, struct slice name);
void client_name_set(struct command_call *call, struct slice name);

#endif
