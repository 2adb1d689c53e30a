/* Strings: reading and writing values. */
#include "base/check.h"
#include "base/parse.h"
#include "server/commands.h"
#include "server/server.h"

enum {
    VIEW_TRIES = 8,
    MGET_BYTES_MAX = 1 << 30, /* of values, and one more: a small request that names a large value a million
                                 times must not take all memory */
    POINT_KEYS_MAX = 64,      /* a longer MGET is a walk: its values don't push others out of memory */
};

/* ---- reading ---- */

/* Writes a key's value, or null, and counts the hit or the miss. STORE_BUSY if it keeps changing; nothing is
 * written then, nor for the other results. */
static enum store_result reply_key(struct command_call *call, const struct store_key *key,
                                   struct store_view *view)
{
    struct reply *r = call->reply;
    for (unsigned tries = 0; tries < VIEW_TRIES; tries++) {
        enum store_result found = store_find(call->sw, key, view);
        if (UNLIKELY(found != STORE_OK)) {
            if (found != STORE_ABSENT)
                return found;
            reply_null(r);
            call->misses++;
            return STORE_OK;
        }
        if (UNLIKELY(!command_reply_fits(call, view->len)))
            return STORE_BUSY;
        struct reply_position start = reply_position(r);
        char *p = reply_bulk_begin(r, view->len);
        if (LIKELY(store_view_copy(view, p, 0, view->len))) {
            reply_bulk_end(r, view->len);
            call->hits++;
            return STORE_OK;
        }
        reply_rollback(r, start);
    }
    return STORE_BUSY;
}

/* A look-up found the key, but not its value. */
static enum command_result value_elsewhere(struct command_call *call, enum store_result r,
                                           const struct store_key *key, const struct store_view *view)
{
    if (r == STORE_BUSY)
        return COMMAND_AGAIN;
    if (r == STORE_COLD)
        r = command_want(call, key, view, false);
    return command_value_failed(call, r, view->address);
}

/* Writes the value of a key as a bulk. */
static enum command_result reply_view(struct command_call *call, const struct store_key *key)
{
    struct store_view view;
    enum store_result r = reply_key(call, key, &view);
    return LIKELY(r == STORE_OK) ? COMMAND_DONE : value_elsewhere(call, r, key, &view);
}

enum command_result command_get(struct command_call *call)
{
    struct store_key own;
    return reply_view(call, command_key(call, 1, &own));
}

enum command_result command_strlen(struct command_call *call)
{
    struct store_key own;
    struct store_view view;
    enum store_result r = store_find(call->sw, command_key(call, 1, &own), &view);
    if (r == STORE_BUSY)
        return COMMAND_AGAIN;
    command_looked_up(call, store_result_exists(r));
    reply_integer(call->reply, store_result_exists(r) ? view.len : 0);
    return COMMAND_DONE;
}

/* Redis's rules: negative counts from the end; out of range is cut. False: nothing is in range. */
static bool range_within(int64_t *start, int64_t *end, int64_t len)
{
    if (*start < 0 && *end < 0 && *start > *end)
        return false;
    if (*start < 0)
        *start = *start + len < 0 ? 0 : *start + len;
    if (*end < 0)
        *end = *end + len < 0 ? 0 : *end + len;
    if (*end >= len)
        *end = len - 1;
    return *start <= *end && len > 0;
}

enum command_result command_getrange(struct command_call *call)
{
    struct store_key own;
    struct store_view view;
    int64_t from, to;
    if (!command_integer(call, call->argv[2], &from) || !command_integer(call, call->argv[3], &to))
        return COMMAND_DONE;
    const struct store_key *key = command_key(call, 1, &own);
    for (unsigned tries = 0; tries < VIEW_TRIES; tries++) {
        enum store_result r = store_find(call->sw, key, &view);
        int64_t start = from, end = to;
        command_looked_up(call, r != STORE_ABSENT);
        if (r == STORE_ABSENT || (r != STORE_BUSY && !range_within(&start, &end, view.len))) {
            reply_bulk(call->reply, slice_make("", 0));
            return COMMAND_DONE;
        }
        if (UNLIKELY(r != STORE_OK))
            return value_elsewhere(call, r, key, &view);
        struct reply_position position = reply_position(call->reply);
        uint32_t len = (uint32_t)(end - start + 1);
        if (UNLIKELY(!command_reply_fits(call, len)))
            return COMMAND_AGAIN;
        char *p = reply_bulk_begin(call->reply, len);
        if (store_view_copy(&view, p, (uint32_t)start, len)) {
            reply_bulk_end(call->reply, len);
            return COMMAND_DONE;
        }
        reply_rollback(call->reply, position);
    }
    return COMMAND_AGAIN;
}

/* Writes all values; or, when some are not in memory, asks for all of those; or as many as there is room for.
 */
static struct command_missing reply_keys(struct command_call *call, const struct store_key *keys, unsigned n,
                                         struct command_room *room)
{
    struct command_missing missing = {STORE_OK, 0};
    struct store_view view;
    bool more = true;
    call->hits = call->misses = 0; /* of an attempt before */
    reply_array(call->reply, n);
    for (unsigned i = 0; i < n && more; i++) {
        enum store_result r = missing.result == STORE_OK ? reply_key(call, &keys[i], &view)
                                                         : store_find(call->sw, &keys[i], &view);
        if (UNLIKELY(r != STORE_OK && r != STORE_ABSENT))
            more = command_note_missing(call, &missing, r, &keys[i], &view, n > POINT_KEYS_MAX);
        if (i + 1 < n && UNLIKELY(!command_room_ok(call, room, i)))
            more = false;
    }
    return missing;
}

/* Without a cap there is a limit too. */
static struct command_room mget_room(struct command_call *call)
{
    struct command_room room = command_room(call);
    if (room.bytes_max > MGET_BYTES_MAX) {
        room.bytes_max = MGET_BYTES_MAX;
        room.pending_max = reply_pending_bytes(call->reply) + MGET_BYTES_MAX;
    }
    return room;
}

enum command_result command_mget(struct command_call *call)
{
    unsigned n = (unsigned)call->argc - 1;
    const struct store_key *keys = command_all_keys(call);
    if (keys == NULL)
        return COMMAND_DONE;
    struct reply_position start = reply_position(call->reply);
    struct command_room room = mget_room(call);
    if (command_room_is_full(&room))
        return COMMAND_AGAIN;
    for (unsigned attempt = 0;; attempt++) {
        if (store_snapshot_begin(call->sw, keys, n, attempt) == STORE_BUSY)
            return COMMAND_AGAIN;
        struct command_missing missing = reply_keys(call, keys, n, &room);
        bool same = store_snapshot_end(call->sw);
        bool full = command_room_is_full(&room);
        if (same && missing.result == STORE_OK && !full)
            return COMMAND_DONE;
        reply_rollback(call->reply, start);
        if (full)
            return command_room_failed(call, &room, "ask for fewer keys");
        if (missing.result != STORE_OK)
            return command_value_failed(call, missing.result, missing.address);
    }
}

/* ---- SET ---- */

struct set_options {
    struct slice value;
    uint64_t expire_ms;
    bool nx, xx, get, keep_ttl, has_expire;
};

static bool stage_plain_set(struct command_call *call, struct store_entry *entries, void *context)
{
    const struct slice *value = context;
    store_stage_set(call->sw, entries, 0, *value, 0);
    reply_ok(call->reply);
    return true;
}

static bool stage_set(struct command_call *call, struct store_entry *entries, void *context)
{
    const struct set_options *o = context;
    struct slice old = {0};
    bool live = store_entry_live(entries, 0);
    bool wanted = !(o->nx && live) && !(o->xx && !live);
    if (o->get)
        command_looked_up(call, live);
    if (o->get && live && !command_old_value(call, entries, 0, &old))
        return false;
    if (o->get && live)
        reply_bulk(call->reply, old);
    else if (o->get)
        reply_null(call->reply);
    else if (wanted)
        reply_ok(call->reply);
    else
        reply_null(call->reply);
    if (wanted)
        store_stage_set(call->sw, entries, 0, o->value,
                        o->keep_ttl ? store_entry_expire_ms(entries, 0) : o->expire_ms);
    return true;
}

bool command_expire_ms(struct command_call *call, struct slice arg, bool seconds, bool absolute,
                       bool positive, uint64_t *expire_ms)
{
    int64_t n, now = (int64_t)call->sw->now_ms;
    if (!command_integer(call, arg, &n))
        return false;
    bool bad = positive && n <= 0;
    if (seconds && (n > INT64_MAX / 1000 || n < INT64_MIN / 1000))
        bad = true;
    else if (seconds)
        n *= 1000;
    if (!bad && !absolute && n > INT64_MAX - now)
        bad = true;
    if (bad) {
        char name[32];
        size_t len = call->argv[0].len < sizeof name - 1 ? call->argv[0].len : sizeof name - 1;
        for (size_t i = 0; i < len; i++)
            name[i] = (char)(call->argv[0].data[i] | 0x20);
        name[len] = '\0';
        reply_error(call->reply, "ERR invalid expire time in '%s' command", name);
        return false;
    }
    if (!absolute)
        n += now;
    *expire_ms = n > 0 ? (uint64_t)n : 1; /* long ago: the store deletes */
    return true;
}

/* The options EX PX EXAT PXAT. True if argument i is one; *arg becomes its number's place. */
static bool expire_option(struct slice arg, bool *seconds, bool *absolute)
{
    static const struct {
        const char *word;
        bool seconds, absolute;
    } options[] = {{"ex", true, false}, {"px", false, false}, {"exat", true, true}, {"pxat", false, true}};
    for (unsigned i = 0; i < 4; i++) {
        if (command_word_is(arg, options[i].word)) {
            *seconds = options[i].seconds;
            *absolute = options[i].absolute;
            return true;
        }
    }
    return false;
}

static bool parse_set_options(struct command_call *call, struct set_options *o)
{
    int expire_at = 0;
    bool seconds = false, absolute = false;
    for (int i = 3; i < call->argc; i++) {
        struct slice arg = call->argv[i];
        bool s, a;
        if (command_word_is(arg, "nx") && !o->xx) {
            o->nx = true;
        } else if (command_word_is(arg, "xx") && !o->nx) {
            o->xx = true;
        } else if (command_word_is(arg, "get")) {
            o->get = true;
        } else if (command_word_is(arg, "keepttl") && !expire_at) {
            o->keep_ttl = true;
        } else if (expire_option(arg, &s, &a) && !o->keep_ttl &&
                   (!expire_at || (s == seconds && a == absolute)) && i + 1 < call->argc) {
            expire_at = ++i;
            seconds = s;
            absolute = a;
        } else {
            command_syntax_error(call);
            return false;
        }
    }
    return !expire_at ||
           command_expire_ms(call, call->argv[expire_at], seconds, absolute, true, &o->expire_ms);
}

enum command_result command_set(struct command_call *call)
{
    if (LIKELY(call->argc == 3))
        return command_write_one(call, call->argv[2].len, stage_plain_set, &call->argv[2]);
    struct set_options o = {.value = call->argv[2]};
    if (!parse_set_options(call, &o))
        return COMMAND_DONE;
    return command_write_one(call, o.value.len, stage_set, &o);
}

static bool stage_setnx(struct command_call *call, struct store_entry *entries, void *context)
{
    (void)context;
    bool live = store_entry_live(entries, 0);
    if (!live)
        store_stage_set(call->sw, entries, 0, call->argv[2], 0);
    reply_integer(call->reply, !live);
    return true;
}

enum command_result command_setnx(struct command_call *call)
{
    return command_write_one(call, call->argv[2].len, stage_setnx, NULL);
}

static enum command_result set_with_expiry(struct command_call *call, bool seconds)
{
    struct set_options o = {.value = call->argv[3]};
    if (!command_expire_ms(call, call->argv[2], seconds, false, true, &o.expire_ms))
        return COMMAND_DONE;
    return command_write_one(call, o.value.len, stage_set, &o);
}

enum command_result command_setex(struct command_call *call)
{
    return set_with_expiry(call, true);
}

enum command_result command_psetex(struct command_call *call)
{
    return set_with_expiry(call, false);
}

enum command_result command_getset(struct command_call *call)
{
    struct set_options o = {.value = call->argv[2], .get = true};
    return command_write_one(call, o.value.len, stage_set, &o);
}

static bool stage_getdel(struct command_call *call, struct store_entry *entries, void *context)
{
    (void)context;
    struct slice old;
    bool live = store_entry_live(entries, 0);
    command_looked_up(call, live);
    if (live && !command_old_value(call, entries, 0, &old))
        return false;
    if (live)
        reply_bulk(call->reply, old);
    else
        reply_null(call->reply);
    store_stage_delete(entries, 0);
    return true;
}

enum command_result command_getdel(struct command_call *call)
{
    return command_write_one(call, 0, stage_getdel, NULL);
}

/* ---- GETEX ---- */

struct getex_options {
    bool persist;
    int expire_at;          /* the argument with the number; 0: none */
    bool seconds, absolute; /* what it means */
};

static bool stage_getex(struct command_call *call, struct store_entry *entries, void *context)
{
    const struct getex_options *o = context;
    bool live = store_entry_live(entries, 0);
    command_looked_up(call, live);
    if (!live) {
        reply_null(call->reply);
        return true;
    }
    uint64_t expire_ms;
    if (o->expire_at &&
        !command_expire_ms(call, call->argv[o->expire_at], o->seconds, o->absolute, true, &expire_ms))
        return false;
    struct slice old;
    bool persists = o->persist && store_entry_expire_ms(entries, 0);
    if (!command_old_value(call, entries, 0, &old) ||
        ((o->expire_at || persists) && !command_expiry_fits(call, entries)))
        return false;
    reply_bulk(call->reply, old);
    if (o->expire_at)
        store_stage_expire(call->sw, entries, 0, expire_ms);
    else if (persists)
        store_stage_expire(call->sw, entries, 0, 0);
    return true;
}

enum command_result command_getex(struct command_call *call)
{
    struct getex_options o = {0};
    for (int i = 2; i < call->argc; i++) {
        bool s, a;
        if (command_word_is(call->argv[i], "persist") && !o.expire_at) {
            o.persist = true;
        } else if (expire_option(call->argv[i], &s, &a) && !o.persist && i + 1 < call->argc &&
                   (!o.expire_at || (s == o.seconds && a == o.absolute))) { /* as Redis: the last counts */
            o.expire_at = ++i;
            o.seconds = s;
            o.absolute = a;
        } else {
            return command_syntax_error(call);
        }
    }
    if (call->argc > 2)
        return command_write_one(call, 0, stage_getex, &o);
    struct store_key own;
    return reply_view(call, command_key(call, 1, &own));
}

/* ---- several at once ---- */

static bool stage_mset(struct command_call *call, struct store_entry *entries, void *context)
{
    const bool *only_if_none = context;
    unsigned n = ((unsigned)call->argc - 1) / 2;
    for (unsigned i = 0; *only_if_none && i < n; i++) {
        if (store_entry_live(entries, i)) {
            reply_integer(call->reply, 0);
            return true;
        }
    }
    for (unsigned i = 0; i < n; i++)
        store_stage_set(call->sw, entries, i, call->argv[2 + 2 * i], 0);
    if (*only_if_none)
        reply_integer(call->reply, 1);
    else
        reply_ok(call->reply);
    return true;
}

static enum command_result set_many(struct command_call *call, bool only_if_none)
{
    if (call->argc % 2 == 0) {
        reply_error(call->reply, "ERR wrong number of arguments for '%s' command", call->command->name);
        return COMMAND_DONE;
    }
    unsigned n = ((unsigned)call->argc - 1) / 2;
    struct store_entry *entries = command_scratch(call, n * sizeof *entries);
    const struct store_key *group[STORE_PREFETCH_MAX];
    unsigned grouped = 0;
    uint64_t bytes = 0;
    command_prepare_keys(call, &entries[0].key, sizeof *entries, n, 2);
    for (unsigned i = 0; i < n; i++) {
        bytes += call->argv[2 + 2 * i].len;
        group[grouped++] = &entries[i].key;
        if (grouped == STORE_PREFETCH_MAX || i == n - 1) {
            store_keys_prefetch_order(call->sw, group, grouped);
            grouped = 0;
        }
    }
    return command_write(call, entries, n, bytes + (uint64_t)n * 16, stage_mset, &only_if_none);
}

enum command_result command_mset(struct command_call *call)
{
    return set_many(call, false);
}

enum command_result command_msetnx(struct command_call *call)
{
    return set_many(call, true);
}

/* ---- changing a part ---- */

/* The new value of APPEND and SETRANGE: the old one with bytes laid over it from an offset on. */
static bool overlay(struct command_call *call, struct store_entry *entries, uint64_t offset,
                    struct slice bytes, uint64_t *len)
{
    bool live = store_entry_live(entries, 0);
    struct slice old = live ? store_entry_value(entries, 0) : slice_make("", 0);
    uint64_t old_len = old.len;
    *len = offset + bytes.len > old_len ? offset + bytes.len : old_len;
    if (*len > server_value_bytes_max(call->server)) {
        reply_error(call->reply, "ERR string exceeds maximum allowed size (proto-max-bulk-len)");
        return false;
    }
    if (*len > budget_work_max(call->server)) {
        reply_error(call->reply, "OOM the value would be longer than %llu bytes, an eighth of --memory",
                    (unsigned long long)budget_work_max(call->server));
        return false;
    }
    uint64_t from_disk = live && store_entry_cold(entries, 0) ? old_len : 0;
    if (!command_work_fits(call, *len + from_disk / 3))
        return false;
    if (live && store_entry_cold(entries, 0)) {
        call->cold_entry = 0;
        return false;
    }
    char *value = command_scratch(call, *len + 1);
    memcpy(value, old.data, old_len);
    if (offset > old_len)
        memset(value + old_len, 0, offset - old_len);
    memcpy(value + offset, bytes.data, bytes.len);
    store_stage_set(call->sw, entries, 0, slice_make(value, *len), store_entry_expire_ms(entries, 0));
    return true;
}

static bool stage_append(struct command_call *call, struct store_entry *entries, void *context)
{
    (void)context;
    uint64_t len, end = store_entry_live(entries, 0) ? store_entry_value(entries, 0).len : 0;
    if (!overlay(call, entries, end, call->argv[2], &len))
        return false;
    reply_integer(call->reply, (int64_t)len);
    return true;
}

enum command_result command_append(struct command_call *call)
{
    return command_write_one(call, call->argv[2].len, stage_append, NULL);
}

static bool stage_setrange(struct command_call *call, struct store_entry *entries, void *context)
{
    const int64_t *offset = context;
    uint64_t len = store_entry_live(entries, 0) ? store_entry_value(entries, 0).len : 0;
    if (call->argv[3].len && !overlay(call, entries, (uint64_t)*offset, call->argv[3], &len))
        return false;
    reply_integer(call->reply, (int64_t)len);
    return true;
}

enum command_result command_setrange(struct command_call *call)
{
    int64_t offset;
    if (!command_integer(call, call->argv[2], &offset))
        return COMMAND_DONE;
    if (offset < 0) {
        reply_error(call->reply, "ERR offset is out of range");
        return COMMAND_DONE;
    }
    return command_write_one(call, call->argv[3].len, stage_setrange, &offset);
}
