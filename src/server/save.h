/* save: checkpoints and backups: what connections wait for them, and how they stand, in Redis's words, for
 * LASTSAVE and INFO (commands_save.c). Any thread, but for what is about a connection: its worker's. */
#ifndef KVASIR_SERVER_SAVE_H
#define KVASIR_SERVER_SAVE_H

#include <stdbool.h>
#include <stdint.h>

struct conn;
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

/* Of a connection with a ticket: may its command go on? */
bool save_has_ended(const struct conn *conn);
/* It waits no more (nor does it if it never did). What it asked for goes on. */
void save_forget(struct conn *conn);

#endif
