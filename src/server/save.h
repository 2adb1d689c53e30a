/* save: how checkpoints stand, in Redis's words, for LASTSAVE and INFO (commands_save.c). Any thread. */
#ifndef KVASIR_SERVER_SAVE_H
#define KVASIR_SERVER_SAVE_H

#include <stdbool.h>
#include <stdint.h>

struct server;

struct save_status {
    bool in_progress; /* one is being written, or will be because a client has asked */
    bool last_failed;
    uint64_t last_unix_s;           /* of the last good one; none yet: of the start */
    int64_t last_duration_s;        /* -1: there was none */
    int64_t current_s;              /* since it began; -1: none is being written */
    uint64_t keys_done, keys_total; /* of the one being written; else 0 */
};

void save_status_get(struct server *server, struct save_status *out);

#endif
