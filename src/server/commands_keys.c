/* Keys as such: deleting, counting, listing. */
#include "base/parse.h"
#include "server/commands.h"
#include "server/glob.h"
#include "server/node_list.h"
#include "server/scan_cursor.h"
#include "sys/clock.h"

enum {
    SCAN_COUNT_DEFAULT = 10,
    SCAN_PART = 16, /* of the longest reply, that a call may look at: the client comes again anyway */
};

static bool stage_del(struct command_call *call, struct store_entry *entries, void *context)
{
    (void)context;
    unsigned n = (unsigned)call->argc - 1;
    int64_t count = 0;
    for (unsigned i = 0; i < n; i++) {
        count += store_entry_live(entries, i);
        store_stage_delete(entries, i);
    }
    reply_integer(call->reply, count);
    return true;
}

enum command_result command_del(struct command_call *call)
{
    unsigned n = (unsigned)call->argc - 1;
    if (n == 1)
        return command_write_one(call, 0, stage_del, NULL);
    struct store_entry *entries = command_scratch(call, n * sizeof *entries);
    command_prepare_keys(call, &entries[0].key, sizeof *entries, n, 1);
    return command_write(call, entries, n, (uint64_t)n * 32, stage_del, NULL);
}

enum command_result command_exists(struct command_call *call)
{
    unsigned n = (unsigned)call->argc - 1;
    const struct store_key *keys = command_all_keys(call);
    if (keys == NULL)
        return COMMAND_DONE;
    for (unsigned attempt = 0;; attempt++) {
        int64_t count = 0;
        bool busy = false;
        if (store_snapshot_begin(call->sw, keys, n, attempt) == STORE_BUSY)
            return COMMAND_AGAIN;
        for (unsigned i = 0; i < n; i++) {
            struct store_view view;
            enum store_result r = store_find(call->sw, &keys[i], &view);
            count += store_result_exists(r);
            busy |= r == STORE_BUSY;
        }
        bool same = store_snapshot_end(call->sw);
        if (busy)
            return COMMAND_AGAIN;
        if (same) {
            call->hits = (uint32_t)count;
            call->misses = n - (uint32_t)count;
            reply_integer(call->reply, count);
            return COMMAND_DONE;
        }
    }
}

enum command_result command_type(struct command_call *call)
{
    struct store_key own;
    struct store_view view;
    enum store_result r = store_find(call->sw, command_key(call, 1, &own), &view);
    if (r == STORE_BUSY)
        return COMMAND_AGAIN;
    command_looked_up(call, store_result_exists(r));
    reply_status(call->reply, store_result_exists(r) ? "string" : "none");
    return COMMAND_DONE;
}

enum command_result command_dbsize(struct command_call *call)
{
    reply_integer(call->reply, (int64_t)store_count(call->sw));
    return COMMAND_DONE;
}

enum command_result command_flush(struct command_call *call)
{
    bool known = call->argc == 2 &&
                 (command_word_is(call->argv[1], "async") || command_word_is(call->argv[1], "sync"));
    if (call->argc > 1 && !known)
        return command_syntax_error(call);
    enum store_result r = store_delete_tree(call->sw, slice_make("", 0), NULL);
    if (r != STORE_OK)
        return command_store_failed(call, r);
    reply_ok(call->reply);
    return COMMAND_DONE;
}

/* The reply waits for every write until now: a key may have been seen whose writer was still at it, so that
 * its version was not known. */
static void depend_on_all(struct command_call *call)
{
    (void)store_count(call->sw);
}

enum command_result command_randomkey(struct command_call *call)
{
    const struct node *node = store_random(call->sw, clock_monotonic_us() * 0x9e3779b97f4a7c15ull);
    depend_on_all(call);
    if (store_walk_stopped(call->sw))
        return COMMAND_AGAIN;
    if (node)
        reply_bulk(call->reply, store_node_key(node));
    else
        reply_null(call->reply);
    return COMMAND_DONE;
}

/* ---- KEYS ---- */

static void collect_matching(struct command_call *call, struct slice pattern, struct node_list *list,
                             struct command_room *room)
{
    uint64_t bytes = 0;
    struct store_cursor cursor;
    const struct node *node;
    struct slice prefix = glob_prefix(pattern, command_scratch(call, pattern.len + 1));
    list->count = 0;
    store_cursor_seek(&cursor, call->sw, prefix, false);
    while (command_room_fits(room, bytes) && (node = store_cursor_next(&cursor)) &&
           slice_starts_with(store_node_key(node), prefix)) {
        if (!glob_matches(pattern, store_node_key(node)))
            continue;
        node_list_add(list, node);
        bytes += store_node_key(node).len + NODE_LIST_ITEM_BYTES;
    }
}

/* Writes them as far as there is room. */
static void reply_list(struct command_call *call, const struct node_list *list, struct command_room *room)
{
    reply_array(call->reply, list->count);
    for (size_t i = 0; i < list->count && !command_room_is_full(room); i++) {
        reply_bulk(call->reply, store_node_key(node_list_at(list, i)));
        (void)command_room_ok(call, room, i);
    }
}

enum command_result command_keys(struct command_call *call)
{
    struct node_list list = {0};
    struct command_room room = command_room(call);
    if (command_room_is_full(&room))
        return COMMAND_AGAIN;
    struct reply_position start = reply_position(call->reply);
    for (unsigned attempt = 0;; attempt++) {
        if (store_snapshot_begin(call->sw, NULL, 0, attempt) == STORE_BUSY) {
            node_list_deinit(&list);
            return COMMAND_AGAIN;
        }
        collect_matching(call, call->argv[1], &list, &room);
        bool same = store_snapshot_end(call->sw);
        if (store_walk_stopped(call->sw)) {
            node_list_deinit(&list);
            return COMMAND_AGAIN;
        }
        if (same)
            break;
    }
    if (!command_room_is_full(&room))
        reply_list(call, &list, &room);
    node_list_deinit(&list);
    if (!command_room_is_full(&room))
        return COMMAND_DONE;
    reply_rollback(call->reply, start);
    return command_room_failed(call, &room, "use SCAN, or RANGE with KEYS and LIMIT");
}

/* ---- SCAN ---- */

struct scan_options {
    struct slice pattern; /* data NULL: all */
    int64_t count;
    bool nothing; /* TYPE of something else than strings */
};

static bool parse_scan_options(struct command_call *call, struct scan_options *o)
{
    *o = (struct scan_options){.count = SCAN_COUNT_DEFAULT};
    for (int i = 2; i < call->argc; i += 2) {
        bool has_value = i + 1 < call->argc;
        if (has_value && command_word_is(call->argv[i], "count")) {
            if (!command_integer(call, call->argv[i + 1], &o->count))
                return false;
            if (o->count < 1) {
                command_syntax_error(call);
                return false;
            }
        } else if (has_value && command_word_is(call->argv[i], "match")) {
            o->pattern = call->argv[i + 1];
        } else if (has_value && command_word_is(call->argv[i], "type")) {
            o->nothing = !command_word_is(call->argv[i + 1], "string");
        } else {
            command_syntax_error(call);
            return false;
        }
    }
    return true;
}

/* False: an error was answered. */
static bool scan_number(struct command_call *call, uint64_t *number)
{
    *number = 0; /* of an empty text too, as strtoul, which Redis uses */
    if (call->argv[1].len == 0 || parse_u64(call->argv[1], number))
        return true;
    reply_error(call->reply, "ERR invalid cursor");
    return false;
}

/* Key to go on at (scratch memory); false: an error was answered. */
static bool scan_start(struct command_call *call, const struct scan_options *o, uint64_t number, char *buffer,
                       struct slice *from, struct slice *prefix)
{
    *prefix = o->pattern.data ? glob_prefix(o->pattern, buffer) : slice_make(buffer, 0);
    *from = *prefix;
    if (number == 0)
        return true;
    char *key = buffer + o->pattern.len;
    size_t len;
    if (!scan_cursors_get(server_scan_cursors(call->server), number, key, &len)) {
        reply_error(call->reply, "ERR invalid cursor");
        return false;
    }
    /* A position of a scan without this pattern may lie before all that can match. */
    if (slice_compare(slice_make(key, len), *prefix) > 0)
        *from = slice_make(key, len);
    return true;
}

enum command_result command_scan(struct command_call *call)
{
    struct scan_options o;
    struct slice from, prefix;
    uint64_t number;
    if (!scan_number(call, &number) || !parse_scan_options(call, &o))
        return COMMAND_DONE;
    size_t texts = o.pattern.len + STORE_KEY_BYTES_MAX; /* a prefix and a key: scan_start's */
    size_t offset = (texts + 7) & ~(size_t)7;
    uint64_t most = store_count(call->sw) + 1;
    uint64_t bytes_max = budget_reply_max(call->server) / SCAN_PART, bytes = 0;
    if (most > bytes_max / NODE_LIST_ITEM_BYTES)
        most = bytes_max / NODE_LIST_ITEM_BYTES;
    size_t capacity = (uint64_t)o.count < most ? (size_t)o.count : (size_t)most;
    if (!command_reply_fits(call, capacity * NODE_LIST_ITEM_BYTES))
        return COMMAND_AGAIN;
    char *scratch = command_scratch(call, offset + capacity * sizeof(void *));
    const struct node **found = (const struct node **)(void *)(scratch + offset);
    if (!scan_start(call, &o, number, scratch, &from, &prefix))
        return COMMAND_DONE;
    struct store_cursor cursor;
    const struct node *node = NULL;
    size_t count = 0;
    store_cursor_seek(&cursor, call->sw, from, false);
    for (size_t looked = 0; (node = store_cursor_next(&cursor)); looked++) {
        struct slice key = store_node_key(node);
        if (!slice_starts_with(key, prefix)) {
            node = NULL;
            break;
        }
        if (looked == capacity || bytes > bytes_max)
            break; /* this one is where the next call goes on */
        if (!o.nothing && (!o.pattern.data || glob_matches(o.pattern, key)))
            found[count++] = node;
        bytes += key.len + NODE_LIST_ITEM_BYTES;
    }
    if (store_walk_stopped(call->sw))
        return COMMAND_AGAIN;
    depend_on_all(call);
    uint64_t next = node ? scan_cursors_put(server_scan_cursors(call->server), store_node_key(node)) : 0;
    reply_array(call->reply, 2);
    reply_bulk_integer(call->reply, (int64_t)next);
    reply_array(call->reply, count);
    for (size_t i = 0; i < count; i++)
        reply_bulk(call->reply, store_node_key(found[i]));
    return COMMAND_DONE;
}
