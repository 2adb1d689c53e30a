/* The table of commands, finding one by name, and what handlers share. */
#include "server/command.h"

#include <string.h>
#include <strings.h>

#include "base/check.h"
#include "base/parse.h"
#include "server/commands.h"
#include "server/conn.h"
#include "server/server.h"

enum {
    READONLY = COMMAND_READONLY,
    WRITE = COMMAND_WRITE,
    FAST = COMMAND_FAST,
    ADMIN = COMMAND_ADMIN,
    VALUE = COMMAND_READS_VALUE,
};

#define ROW(name, handler, arity, first, last, step, flags, group, summary, since)                           \
    {                                                                                                        \
        name, command_##handler, arity, first, last, step, flags, 0, group, summary, since                   \
    }

static struct command rows[] = {
    ROW("get", get, 2, 1, 1, 1, READONLY | FAST | VALUE, "string", "Returns the string value of a key.",
        "1.0.0"),
    ROW("set", set, -3, 1, 1, 1, WRITE, "string", "Sets the string value of a key, ignoring its type.",
        "1.0.0"),
    ROW("setnx", setnx, 3, 1, 1, 1, WRITE | FAST, "string", "Sets a key only when it doesn't exist.",
        "1.0.0"),
    ROW("setex", setex, 4, 1, 1, 1, WRITE, "string", "Sets a value and an expiry in seconds.", "2.0.0"),
    ROW("psetex", psetex, 4, 1, 1, 1, WRITE, "string", "Sets a value and an expiry in milliseconds.",
        "2.6.0"),
    ROW("getset", getset, 3, 1, 1, 1, WRITE | FAST | VALUE, "string",
        "Returns the old value after setting a new one.", "1.0.0"),
    ROW("getdel", getdel, 2, 1, 1, 1, WRITE | FAST | VALUE, "string",
        "Returns the value of a key after deleting it.", "6.2.0"),
    ROW("getex", getex, -2, 1, 1, 1, WRITE | FAST | VALUE, "string",
        "Returns the value after setting its expiry.", "6.2.0"),
    ROW("mget", mget, -2, 1, -1, 1, READONLY | FAST, "string", "Atomically returns several values.", "1.0.0"),
    ROW("mset", mset, -3, 1, -1, 2, WRITE, "string", "Atomically sets several keys.", "1.0.1"),
    ROW("msetnx", msetnx, -3, 1, -1, 2, WRITE, "string", "Sets several keys only if none exists.", "1.0.1"),
    ROW("append", append, 3, 1, 1, 1, WRITE | FAST | VALUE, "string", "Appends to the value of a key.",
        "2.0.0"),
    ROW("strlen", strlen, 2, 1, 1, 1, READONLY | FAST, "string", "Returns the length of a value.", "2.2.0"),
    ROW("getrange", getrange, 4, 1, 1, 1, READONLY | VALUE, "string", "Returns a part of the value.",
        "2.4.0"),
    ROW("substr", getrange, 4, 1, 1, 1, READONLY | VALUE, "string", "Returns a part of the value.", "1.0.0"),
    ROW("setrange", setrange, 4, 1, 1, 1, WRITE | VALUE, "string", "Overwrites a part of the value.",
        "2.2.0"),
    ROW("incr", incr, 2, 1, 1, 1, WRITE | FAST | VALUE, "string", "Increments an integer by one.", "1.0.0"),
    ROW("decr", decr, 2, 1, 1, 1, WRITE | FAST | VALUE, "string", "Decrements an integer by one.", "1.0.0"),
    ROW("incrby", incrby, 3, 1, 1, 1, WRITE | FAST | VALUE, "string", "Increments an integer by a number.",
        "1.0.0"),
    ROW("decrby", decrby, 3, 1, 1, 1, WRITE | FAST | VALUE, "string", "Decrements an integer by a number.",
        "1.0.0"),
    ROW("incrbyfloat", incrbyfloat, 3, 1, 1, 1, WRITE | FAST | VALUE, "string",
        "Increments a float by a number.", "2.6.0"),
    ROW("del", del, -2, 1, -1, 1, WRITE, "generic", "Deletes keys.", "1.0.0"),
    ROW("unlink", del, -2, 1, -1, 1, WRITE | FAST, "generic", "Deletes keys.", "4.0.0"),
    ROW("exists", exists, -2, 1, -1, 1, READONLY | FAST, "generic", "Counts which of the keys exist.",
        "1.0.0"),
    ROW("touch", exists, -2, 1, -1, 1, READONLY | FAST, "generic", "Counts which of the keys exist.",
        "3.2.1"),
    ROW("type", type, 2, 1, 1, 1, READONLY | FAST, "generic", "Returns the type of a value.", "1.0.0"),
    ROW("keys", keys, 2, 0, 0, 0, READONLY, "generic", "Returns all key names that match a pattern.",
        "1.0.0"),
    ROW("scan", scan, -2, 0, 0, 0, READONLY, "generic", "Iterates over the key names.", "2.8.0"),
    ROW("randomkey", randomkey, 1, 0, 0, 0, READONLY, "generic", "Returns a random key name.", "1.0.0"),
    ROW("expire", expire, -3, 1, 1, 1, WRITE | FAST, "generic", "Sets the expiry in seconds.", "1.0.0"),
    ROW("pexpire", pexpire, -3, 1, 1, 1, WRITE | FAST, "generic", "Sets the expiry in milliseconds.",
        "2.6.0"),
    ROW("expireat", expireat, -3, 1, 1, 1, WRITE | FAST, "generic", "Sets the expiry to a Unix time.",
        "1.2.0"),
    ROW("pexpireat", pexpireat, -3, 1, 1, 1, WRITE | FAST, "generic", "Sets the expiry to a Unix time in ms.",
        "2.6.0"),
    ROW("ttl", ttl, 2, 1, 1, 1, READONLY | FAST, "generic", "Returns the remaining life in seconds.",
        "1.0.0"),
    ROW("pttl", pttl, 2, 1, 1, 1, READONLY | FAST, "generic", "Returns the remaining life in ms.", "2.6.0"),
    ROW("expiretime", expiretime, 2, 1, 1, 1, READONLY | FAST, "generic",
        "Returns the expiry as a Unix time.", "7.0.0"),
    ROW("pexpiretime", pexpiretime, 2, 1, 1, 1, READONLY | FAST, "generic", "Returns the expiry in Unix ms.",
        "7.0.0"),
    ROW("persist", persist, 2, 1, 1, 1, WRITE | FAST, "generic", "Removes the expiry of a key.", "2.2.0"),
    ROW("kids", kids, -2, 0, 0, 0, READONLY, "tree", "Lists the direct children of a path.", "0.1.0"),
    ROW("range", range, -3, 0, 0, 0, READONLY, "tree", "Lists keys and values of a range in order.", "0.1.0"),
    ROW("deltree", deltree, 2, 1, 1, 1, WRITE, "tree", "Deletes a key and all below it.", "0.1.0"),
    ROW("dbsize", dbsize, 1, 0, 0, 0, READONLY | FAST, "server", "Returns the number of keys.", "1.0.0"),
    ROW("flushall", flush, -1, 0, 0, 0, WRITE, "server", "Removes all keys.", "1.0.0"),
    ROW("flushdb", flush, -1, 0, 0, 0, WRITE, "server", "Removes all keys.", "1.0.0"),
    ROW("ping", ping, -1, 0, 0, 0, FAST, "connection", "Returns the server's liveliness response.", "1.0.0"),
    ROW("echo", echo, 2, 0, 0, 0, FAST, "connection", "Returns the given string.", "1.0.0"),
    ROW("quit", quit, -1, 0, 0, 0, FAST, "connection", "Closes the connection.", "1.0.0"),
    ROW("reset", reset, 1, 0, 0, 0, FAST, "connection", "Resets the connection.", "6.2.0"),
    ROW("hello", hello, -1, 0, 0, 0, FAST, "connection", "Handshakes with the server.", "6.0.0"),
    ROW("auth", auth, -2, 0, 0, 0, FAST, "connection", "Authenticates the connection.", "1.0.0"),
    ROW("select", select, 2, 0, 0, 0, FAST, "connection", "Changes the selected database.", "1.0.0"),
    ROW("client", client, -2, 0, 0, 0, 0, "connection", "A container for client connection commands.",
        "2.4.0"),
    ROW("command", command, -1, 0, 0, 0, 0, "server", "Returns information about all commands.", "2.8.13"),
    ROW("config", config, -2, 0, 0, 0, ADMIN, "server", "A container for server configuration commands.",
        "2.0.0"),
    ROW("info", info, -1, 0, 0, 0, 0, "server", "Returns information about the server.", "1.0.0"),
    ROW("lastsave", lastsave, 1, 0, 0, 0, FAST, "server", "Returns the time of the last save.", "1.0.0"),
    ROW("save", save, 1, 0, 0, 0, ADMIN, "server", "Writes a checkpoint and waits for it.", "1.0.0"),
    ROW("bgsave", bgsave, -1, 0, 0, 0, ADMIN, "server", "Starts to write a checkpoint.", "1.0.0"),
    ROW("backup", backup, 2, 0, 0, 0, ADMIN, "server", "Copies the data into a new folder.", "0.1.0"),
    ROW("shutdown", shutdown, -1, 0, 0, 0, ADMIN, "server", "Stops the server.", "1.0.0"),
    ROW("time", time, 1, 0, 0, 0, FAST, "server", "Returns the server time.", "2.6.0"),
};

/* The first words of what a browser sends, when a page that it shows makes it send something here. They are
 * found like commands, but COMMAND and INFO don't tell of them. */
static struct command http_rows[] = {
    ROW("post", http, -1, 0, 0, 0, 0, "", "", ""),
    ROW("host:", http, -1, 0, 0, 0, 0, "", "", ""),
};

enum {
    ROWS = sizeof rows / sizeof rows[0],
    HTTP_ROWS = sizeof http_rows / sizeof http_rows[0],
    SLOTS = 512,
    NAME_BYTES_MAX = 16
};

const unsigned command_count = ROWS, command_index_end = ROWS + HTTP_ROWS;
const struct command *const *command_table;
static const struct command *table[ROWS];

struct folded {
    uint64_t words[2];
    size_t len;
};

static struct slot {
    struct folded name;
    const struct command *command; /* NULL: free */
} slots[SLOTS];

/* The first n <= 8 bytes, the rest zero. Not memcpy, whose bytes the load of the word would have to wait for.
 */
static inline uint64_t load_word(const char *p, size_t n)
{
    if (n == 8)
        return load_u64(p);
    if (n >= 4)
        return load_u32(p) | (uint64_t)load_u32(p + n - 4) << (n - 4) * 8;
    if (n == 0)
        return 0;
    return (uint64_t)(unsigned char)p[0] | (uint64_t)(unsigned char)p[n / 2] << n / 2 * 8 |
           (uint64_t)(unsigned char)p[n - 1] << (n - 1) * 8;
}

/* Up to 16 letters in lower case, as two words; false: no command is that long. Names are letters (but for
 * "host:"), and only the upper case of a letter has the same folded byte. */
static inline bool fold(struct slice name, struct folded *folded)
{
    if (UNLIKELY(name.len == 0 || name.len > NAME_BYTES_MAX))
        return false;
    size_t first = name.len < 8 ? name.len : 8;
    folded->words[0] = load_word(name.data, first) | 0x2020202020202020ull;
    folded->words[1] = load_word(name.data + first, name.len - first) | 0x2020202020202020ull;
    folded->len = name.len;
    return true;
}

static inline unsigned slot_of(const struct folded *name)
{
    return (unsigned)((name->words[0] * 0x9e3779b97f4a7c15ull ^ name->words[1] * 0xc2b2ae3d27d4eb4full) >>
                      55) %
           SLOTS;
}

static void add_slot(struct command *command, unsigned index)
{
    struct folded name;
    command->index = (uint16_t)index;
    CHECK(fold(slice_make(command->name, strlen(command->name)), &name));
    unsigned slot = slot_of(&name);
    while (slots[slot].command)
        slot = (slot + 1) % SLOTS;
    slots[slot] = (struct slot){name, command};
}

/* Before main, single-threaded: the tables are constant afterwards. */
__attribute__((constructor)) static void command_init(void)
{
    for (unsigned i = 0; i < ROWS; i++) {
        table[i] = &rows[i];
        add_slot(&rows[i], i);
    }
    for (unsigned i = 0; i < HTTP_ROWS; i++)
        add_slot(&http_rows[i], ROWS + i);
    command_table = table;
}

const struct command *command_find(struct slice name)
{
    struct folded folded;
    if (!fold(name, &folded))
        return NULL;
    for (unsigned i = slot_of(&folded); slots[i].command; i = (i + 1) % SLOTS) {
        const struct folded *own = &slots[i].name;
        if (LIKELY(own->words[0] == folded.words[0] && own->words[1] == folded.words[1] &&
                   own->len == folded.len))
            return slots[i].command;
    }
    return NULL;
}

/* ---- shared ---- */

static enum command_result no_segment(struct command_call *call)
{
    char reason[96];
    int why = log_refused_errno(store_log(call->server->store));
    if (why)
        reply_error(
            call->reply,
            "ERR another log segment cannot be made: %s; see the server's log; writes resume when it can",
            strerror_r(why, reason, sizeof reason));
    else
        reply_error(call->reply,
                    "ERR disk full: no room for another log segment; free space in the data folder's file "
                    "system (or raise --disk-limit) and writes resume");
    return COMMAND_DONE;
}

enum command_result command_store_failed(struct command_call *call, enum store_result r)
{
    switch (r) {
    case STORE_BUSY:
        return COMMAND_AGAIN;
    case STORE_NO_SPACE:
        return no_segment(call);
    case STORE_NO_MEMORY:
        reply_error(call->reply,
                    "OOM command not allowed when used memory > 'maxmemory': delete keys or raise "
                    "--memory");
        return COMMAND_DONE;
    default:
        reply_error(call->reply, "IOERR the log could not be written; the server is stopping");
        return COMMAND_DONE;
    }
}

enum command_result command_value_failed(struct command_call *call, enum store_result r, uint64_t address)
{
    char place[STORE_ADDRESS_TEXT_BYTES];
    switch (r) {
    case STORE_CORRUPT:
        store_address_text(address, place);
        reply_error(call->reply, "ERR corrupt record of this value in %s; kvasir check tells more", place);
        return COMMAND_DONE;
    case STORE_IO:
        store_address_text(address, place);
        reply_error(call->reply,
                    "ERR this value cannot be read from %s: I/O error; other keys are not concerned", place);
        return COMMAND_DONE;
    case STORE_NO_MEMORY:
        reply_error(call->reply, COMMAND_VALUES_TEXT);
        return COMMAND_DONE;
    default: /* on its way, or there by now */
        return COMMAND_AGAIN;
    }
}

static enum store_result want(struct command_call *call, const struct store_key *key, uint64_t address,
                              uint64_t version, size_t len, bool scan)
{
    struct conn *conn = call->conn;
    conn->flags |= CONN_FETCHING; /* the worker gives the claims back */
    return store_fetch_want(call->sw, key, address, version, (uint32_t)len, &conn->waiter, scan);
}

enum store_result command_want(struct command_call *call, const struct store_key *key,
                               const struct store_view *view, bool scan)
{
    return want(call, key, view->address, view->sequence >> 1, view->len, scan);
}

bool command_note_missing(struct command_call *call, struct command_missing *missing,
                          enum store_result result, const struct store_key *key,
                          const struct store_view *view, bool scan)
{
    uint64_t address = result == STORE_BUSY ? 0 : view->address;
    if (result == STORE_COLD)
        result = command_want(call, key, view, scan);
    bool final = result == STORE_CORRUPT || result == STORE_IO || result == STORE_NO_MEMORY;
    if (result == STORE_OK) /* there by now */
        result = STORE_BUSY;
    if (final || missing->result == STORE_OK)
        *missing = (struct command_missing){result, address};
    return !final;
}

bool command_old_value(struct command_call *call, const struct store_entry *entries, unsigned i,
                       struct slice *value)
{
    *value = store_entry_value(entries, i);
    if (UNLIKELY(!command_reply_fits(call, value->len))) {
        call->crowded = true;
        return false;
    }
    if (LIKELY(!store_entry_cold(entries, i)))
        return true;
    call->cold_entry = (int)i;
    return false;
}

/* A stage needs the value of an entry whose locks are given up again. */
static enum command_result want_entry(struct command_call *call, const struct store_entry *entries)
{
    const struct store_entry *e = &entries[entries[call->cold_entry].primary];
    call->cold_entry = -1;
    enum store_result r = want(call, &e->key, e->address, e->version, e->value.len, false);
    return command_value_failed(call, r, e->address);
}

bool command_reply_fits_slow(struct command_call *call, uint64_t len)
{
    return budget_reply_fits(call->worker, reply_pending_bytes(call->reply), len);
}

bool command_work_fits_slow(struct command_call *call, uint64_t len)
{
    call->crowded = !budget_work_fits(call->conn, len);
    return !call->crowded;
}

bool command_expiry_fits(struct command_call *call, const struct store_entry *entries)
{
    return store_entry_cold(entries, 0) || command_work_fits(call, store_entry_value(entries, 0).len / 3);
}

struct command_room command_room(struct command_call *call)
{
    uint64_t most = budget_reply_max(call->server), pending = reply_pending_bytes(call->reply);
    return (struct command_room){.bytes_max = most,
                                 .pending_max = most < UINT64_MAX - pending ? pending + most : UINT64_MAX,
                                 .crowded = !command_reply_fits_slow(call, BUDGET_SMALL_BYTES)};
}

bool command_room_ok(struct command_call *call, struct command_room *room, uint64_t i)
{
    enum { ITEMS_BETWEEN_LOOKS = 128 };
    room->too_long = reply_pending_bytes(call->reply) > room->pending_max;
    if (UNLIKELY(i % ITEMS_BETWEEN_LOOKS == ITEMS_BETWEEN_LOOKS - 1))
        room->crowded = !command_reply_fits_slow(call, BUDGET_SMALL_BYTES);
    return !command_room_is_full(room);
}

enum command_result command_room_failed(struct command_call *call, const struct command_room *room,
                                        const char *advice)
{
    if (!room->too_long)
        return COMMAND_AGAIN;
    reply_error(call->reply, "ERR the reply would be longer than %llu bytes; %s",
                (unsigned long long)room->bytes_max, advice);
    return COMMAND_DONE;
}

bool command_key_ok(struct command_call *call, struct slice key)
{
    if (LIKELY(key.len <= STORE_KEY_BYTES_MAX))
        return true;
    reply_error(call->reply, "ERR key is longer than %d bytes", STORE_KEY_BYTES_MAX);
    return false;
}

const struct store_key *command_key(struct command_call *call, int arg, struct store_key *own)
{
    if (LIKELY(call->key_count == 1 && call->command->first_key == arg))
        return call->keys;
    store_key_prepare(call->sw, own, call->argv[arg]);
    return own;
}

void command_prepare_keys(struct command_call *call, struct store_key *first, size_t stride, unsigned n,
                          int step)
{
    const struct store_key *group[STORE_PREFETCH_MAX];
    char *at = (char *)first;
    for (unsigned i = 0; i < n;) {
        unsigned count = 0;
        for (; i < n && count < STORE_PREFETCH_MAX; i++, at += stride) {
            struct store_key *key = (struct store_key *)(void *)at;
            store_key_prepare(call->sw, key, call->argv[1 + (int)i * step]);
            group[count++] = key;
        }
        store_keys_prefetch_places(call->sw, group, count);
        store_keys_prefetch_nodes(call->sw, group, count);
    }
}

struct store_key *command_all_keys(struct command_call *call)
{
    unsigned n = (unsigned)call->argc - 1;
    struct store_key *keys = command_scratch(call, n * sizeof *keys);
    for (unsigned i = 0; i < n; i++) {
        if (!command_key_ok(call, call->argv[1 + i]))
            return NULL;
    }
    command_prepare_keys(call, keys, sizeof *keys, n, 1);
    return keys;
}

bool command_word_is(struct slice arg, const char *word)
{
    return strlen(word) == arg.len && strncasecmp(arg.data, word, arg.len) == 0;
}

bool command_integer(struct command_call *call, struct slice arg, int64_t *value)
{
    if (parse_i64(arg, value))
        return true;
    reply_error(call->reply, "ERR value is not an integer or out of range");
    return false;
}

enum command_result command_syntax_error(struct command_call *call)
{
    reply_error(call->reply, "ERR syntax error");
    return COMMAND_DONE;
}

enum command_result command_write(struct command_call *call, struct store_entry *entries, unsigned n,
                                  uint64_t bytes_hint, command_stage stage, void *context)
{
    enum { TRIES = 3 };
    enum store_result r = STORE_BUSY;
    for (unsigned i = 0; i < n; i++) {
        if (!command_key_ok(call, entries[i].key.name))
            return COMMAND_DONE;
    }
    struct reply_position start = reply_position(call->reply);
    for (unsigned tries = 0; r == STORE_BUSY && tries < TRIES; tries++) {
        r = store_write_begin(call->sw, entries, n, bytes_hint);
        if (r != STORE_OK)
            break;
        if (!stage(call, entries, context)) {
            store_write_abort(call->sw);
            if (UNLIKELY(call->crowded))
                return COMMAND_AGAIN;
            return UNLIKELY(call->cold_entry >= 0) ? want_entry(call, entries) : COMMAND_DONE;
        }
        r = store_write_commit(call->sw);
        if (LIKELY(r == STORE_OK))
            return COMMAND_DONE;
        reply_rollback(call->reply, start);
    }
    return command_store_failed(call, r);
}

enum command_result command_write_one(struct command_call *call, uint64_t bytes_hint, command_stage stage,
                                      void *context)
{
    struct store_entry entry;
    struct store_key own;
    if (!command_key_ok(call, call->argv[1]))
        return COMMAND_DONE;
    entry.key = *command_key(call, 1, &own);
    return command_write(call, &entry, 1, bytes_hint, stage, context);
}
