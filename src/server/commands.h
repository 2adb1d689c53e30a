/* commands: all handlers, and what they share. See command.h for what a handler gets and owes. */
#ifndef KVASIR_SERVER_COMMANDS_H
#define KVASIR_SERVER_COMMANDS_H

#include "base/check.h"
#include "server/budget.h"
#include "server/command.h"
#include "server/worker.h"

/* ---- shared ---- */

/* Longest value, bytes (the option --max-value). */
uint64_t server_value_bytes_max(const struct server *server);
/* The server's table of SCAN positions. */
struct scan_cursors *server_scan_cursors(struct server *server);
/* A buffer of the worker, of at least that size, until the next call or the end of the command. */
void *command_scratch(struct command_call *call, size_t bytes);

/* Answers what a store result means; STORE_BUSY is COMMAND_AGAIN. */
enum command_result command_store_failed(struct command_call *call, enum store_result r);
/* Answers what store_fetch_want or a look-up said about a value on disk at address; COMMAND_AGAIN when it is
 * on its way (or there by now). */
enum command_result command_value_failed(struct command_call *call, enum store_result r, uint64_t address);
/* Asks for the cold value of a view, for the command's connection. See store_fetch_want. */
enum store_result command_want(struct command_call *call, const struct store_key *key,
                               const struct store_view *view, bool scan);
/* What a command over several keys lacks. */
struct command_missing {
    enum store_result result; /* STORE_OK: nothing */
    uint64_t address;
};
/* Notes that a look-up of `key` gave `result`; asks for the value if it is cold. False: an error that ends
 * the command. Afterwards: command_value_failed. */
bool command_note_missing(struct command_call *call, struct command_missing *missing,
                          enum store_result result, const struct store_key *key,
                          const struct store_view *view, bool scan);
/* For a stage (below) that needs the bytes of entry i's old value. False: it must come from disk first, or
 * there is no room for so long a reply; the stage returns false, with no reply written. */
bool command_old_value(struct command_call *call, const struct store_entry *entries, unsigned i,
                       struct slice *value);
/* Writes the error and returns false when the key is too long. */
bool command_key_ok(struct command_call *call, struct slice key);
/* Argument `arg` as a prepared key: the worker's if it made it, else *own. */
const struct store_key *command_key(struct command_call *call, int arg, struct store_key *own);
/* Prepares and prefetches n keys, stride bytes apart, from every step-th argument, the first one first. */
void command_prepare_keys(struct command_call *call, struct store_key *first, size_t stride, unsigned n,
                          int step);
/* All arguments as prepared keys, in scratch memory. NULL: one is too long, and the error is the reply. */
struct store_key *command_all_keys(struct command_call *call);
/* May a value of len bytes be added to the reply? False: others must be sent first: COMMAND_AGAIN. */
bool command_reply_fits_slow(struct command_call *call, uint64_t len);
static inline bool command_reply_fits(struct command_call *call, uint64_t len)
{
    return LIKELY(len < call->worker->reply_bytes_free) || command_reply_fits_slow(call, len);
}
/* For a stage that makes a value of len bytes from an old one: is there memory for that, three times? False:
 * the stage returns false, with no reply written. */
bool command_work_fits_slow(struct command_call *call, uint64_t len);
static inline bool command_work_fits(struct command_call *call, uint64_t len)
{
    return LIKELY(len <= BUDGET_SMALL_BYTES) || command_work_fits_slow(call, len);
}
/* For a stage that changes the expiry of a live entry: the same for its value, if that is in memory. */
bool command_expiry_fits(struct command_call *call, const struct store_entry *entries);
/* The room for a reply of many items. */
struct command_room {
    uint64_t bytes_max;
    uint64_t pending_max; /* of the connection's output */
    bool too_long;        /* it would be longer than bytes_max */
    bool crowded;         /* others must be sent first */
};
struct command_room command_room(struct command_call *call);
/* After item i was written. False: no more may be; roll back, then command_room_failed. */
bool command_room_ok(struct command_call *call, struct command_room *room, uint64_t i);
/* Of a list that is collected first: will so many bytes fit? False: as above. */
static inline bool command_room_fits(struct command_room *room, uint64_t bytes)
{
    room->too_long = bytes > room->bytes_max;
    return !room->too_long;
}
static inline bool command_room_is_full(const struct command_room *room)
{
    return room->too_long || room->crowded;
}
/* Answers that the reply is too long, with the advice, or that it must wait. */
enum command_result command_room_failed(struct command_call *call, const struct command_room *room,
                                        const char *advice);
/* Case-insensitive comparison with a lower-case word. */
bool command_word_is(struct slice arg, const char *word);
/* For keyspace_hits and keyspace_misses: the command's one key was looked up. */
static inline void command_looked_up(struct command_call *call, bool found)
{
    call->hits = found;
    call->misses = !found;
}
/* Parses an integer argument or answers Redis's error. */
bool command_integer(struct command_call *call, struct slice arg, int64_t *value);
/* Replies "ERR syntax error". */
enum command_result command_syntax_error(struct command_call *call);

/* A write: looks at the locked entries, stages what shall be, writes the reply. False: nothing shall be
 * written (an error reply, or command_old_value said so). */
typedef bool (*command_stage)(struct command_call *call, struct store_entry *entries, void *context);
/* Locks, stages, commits, tries again when the store needed a larger log buffer. entries[i].key is set by the
 * caller. */
enum command_result command_write(struct command_call *call, struct store_entry *entries, unsigned n,
                                  uint64_t bytes_hint, command_stage stage, void *context);
/* The same for the command's one key (argument 1). */
enum command_result command_write_one(struct command_call *call, uint64_t bytes_hint, command_stage stage,
                                      void *context);

/* Parsed expiry: turns a number in seconds or ms, relative or absolute, into absolute ms; answers the error
 * if it makes no sense. */
bool command_expire_ms(struct command_call *call, struct slice arg, bool seconds, bool absolute,
                       bool positive, uint64_t *expire_ms);

/* ---- handlers ---- */

/* clang-format off */
#define COMMAND_HANDLERS(X) \
    X(append) X(auth) X(backup) X(bgsave) X(client) X(command) X(config) X(dbsize) X(decr) X(decrby) X(del) X(deltree) \
    X(echo) X(exists) X(expire) X(expireat) X(expiretime) X(flush) X(get) X(getdel) X(getex) \
    X(getrange) X(getset) X(hello) X(http) X(incr) X(incrby) X(incrbyfloat) X(info) X(keys) X(kids) \
    X(lastsave) X(mget) X(mset) X(msetnx) X(persist) X(pexpire) X(pexpireat) X(pexpiretime) X(ping) \
    X(psetex) X(pttl) X(quit) X(randomkey) X(range) X(reset) X(save) X(scan) X(select) X(set) X(setex) \
    X(setnx) X(setrange) X(shutdown) X(strlen) X(time) X(ttl) X(type)
/* clang-format on */

#define X(name) enum command_result command_##name(struct command_call *call);
COMMAND_HANDLERS(X)
#undef X

/* A command's values are too many. */
#define COMMAND_VALUES_TEXT "OOM the values of this command do not fit in memory: ask for fewer, or use LIMIT"

#endif
