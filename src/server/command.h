/* command: the table of commands and what a handler gets.
 *
 * A handler runs on its connection's worker inside a store turn. It reads args, works on the store, writes
 * exactly one reply (or none for COMMAND_AGAIN), and returns. It never blocks. Arity was checked before. */
#ifndef KVASIR_SERVER_COMMAND_H
#define KVASIR_SERVER_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "server/reply.h"
#include "store/store.h"

struct worker;
struct conn;
struct server;

enum command_result {
    COMMAND_DONE,
    COMMAND_AGAIN, /* the store was busy, or a value must come from disk (call->conn's waiter waits then):
                      nothing was done, the reply is untouched (or rolled back); run it again in a later turn
                      */
    COMMAND_CLOSE, /* done, and close the connection after the reply was sent (QUIT) */
};

struct command_call {
    const struct command *command;
    struct worker *worker;
    struct conn *conn;
    struct server *server;
    struct store_worker *sw;
    struct reply *reply;
    struct slice *argv; /* argv[0] is the name as sent; memory valid during the call */
    int argc;
    struct store_key *keys; /* keys[i]: prepared, for the command's i-th key, when key_count > 0 */
    int cold_entry;         /* command_old_value's: the entry whose value must come from disk; -1: none */
    bool crowded;           /* command_old_value's, command_work_fits': there is no room now */
    int key_count; /* the worker prepares keys by the table's key positions when there is 1 key; else the
                      handler does */
    uint32_t hits; /* keys looked up and found: counted when the command is done without an error */
    uint32_t misses;
};

typedef enum command_result (*command_handler)(struct command_call *call);

enum command_flag {
    COMMAND_READONLY = 1,
    COMMAND_WRITE = 2,
    COMMAND_FAST = 4,
    COMMAND_ADMIN = 8,
    COMMAND_READS_VALUE = 16, /* needs the value of its key, not only to know of it: worth reading ahead */
};

struct command {
    const char *name; /* lower case */
    command_handler handler;
    int16_t arity;                         /* as Redis: exact, or -(minimum); includes the name */
    int16_t first_key, last_key, key_step; /* as Redis; 0 0 0: none; last_key -1: to the last argument */
    uint32_t flags;
    uint16_t index;    /* place in the table, for statistics */
    const char *group; /* "string", "generic", ... for COMMAND DOCS */
    const char *summary;
    const char *since;
};

extern const struct command *const *command_table; /* command_count entries */
extern const unsigned command_count;
extern const unsigned command_index_end; /* every command's index is below; those from command_count on are in
                                            no list */

/* Finds a command by name in any case; NULL if unknown. A few ns for the usual ones. */
const struct command *command_find(struct slice name);

#endif
