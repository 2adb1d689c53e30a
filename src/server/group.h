/* group: commands of several connections, parsed together, looked up together, run in order.
 *
 * Cache misses of independent look-ups overlap when they are asked for together, so the worker collects up to
 * GROUP_COMMANDS_MAX commands before it runs the first: parsing asks for the hash bucket, then all nodes are
 * asked for, then they run. Arguments are views of the receive buffers, which go back to the loop behind the
 * group.
 *
 * Belongs to one worker; single-threaded. */
#ifndef KVASIR_SERVER_GROUP_H
#define KVASIR_SERVER_GROUP_H

#include <stdint.h>

#include "server/command.h"
#include "sys/loop.h"

enum {
    GROUP_COMMANDS_MAX = 64,
    GROUP_SOURCES_MAX = 64,
    GROUP_NO_BUFFER = UINT32_MAX,
};

/* Bytes being parsed: a receive buffer, or (buffer_id == GROUP_NO_BUFFER) the connection's own input. */
struct source {
    struct conn *conn;
    const char *at; /* next byte to parse; set back when a command must wait */
    const char *end;
    const char *pause; /* from here on the rest is for the next turn */
    uint32_t buffer_id;
};

struct group_item {
    struct conn *conn;
    struct source *source;
    const struct command *command; /* NULL: unknown */
    const char *start;             /* of the command in its source */
    uint32_t argv;                 /* index of the first argument */
    uint32_t argc;
    bool has_key;
    struct store_key key;
};

struct group {
    struct worker *worker;
    uint32_t item_count, source_count;
    uint32_t places_asked, nodes_asked; /* items whose bucket, whose node has been prefetched */
    uint32_t executed;                  /* of the items, by the last run: not those that must wait */
    uint32_t argv_used, argv_capacity;
    struct slice *argv;
    char *inline_bytes; /* arguments of the one inline command a group can hold */
    struct group_item items[GROUP_COMMANDS_MAX];
    struct source sources[GROUP_SOURCES_MAX];
};

void group_init(struct group *group, struct worker *worker);
void group_deinit(struct group *group);

/* Bytes have arrived; the buffer is the group's until it gives it back to the loop. */
void group_feed(struct group *group, struct conn *conn, const char *data, size_t len, uint32_t buffer_id);
/* Goes on with a connection's waiting input. */
void group_resume(struct group *group, struct conn *conn);
/* The same, with its first command alone at first: it had to wait (the caller has taken CONN_PARKED away),
 * and may have to again. If that is for the log to have room it is not even parsed before there is: a long
 * one takes milliseconds. */
void group_retry(struct group *group, struct conn *conn);
/* Runs what was collected. */
void group_execute(struct group *group);

#endif
