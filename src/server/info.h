/* info: the text of INFO, from the counters of workers, store and log. Any worker may ask. */
#ifndef KVASIR_SERVER_INFO_H
#define KVASIR_SERVER_INFO_H

#include <stddef.h>

#include "server/command.h"

/* The sections that the call's arguments name. The caller frees it. */
char *info_text(const struct command_call *call, size_t *size);

/* CONFIG RESETSTAT: counters of the Stats, Commandstats and Errorstats sections start from here. */
void info_reset(struct server *server);

#endif
