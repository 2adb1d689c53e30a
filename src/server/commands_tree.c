/* The ordered, nested commands: RANGE, KIDS, DELTREE. */
#include "server/commands.h"
#include "server/node_list.h"

static bool limit_option(struct command_call *call, struct slice arg, uint64_t *limit)
{
    int64_t n;
    if (!command_integer(call, arg, &n))
        return false;
    if (n < 0) {
        reply_error(call->reply, "ERR LIMIT can't be negative");
        return false;
    }
    *limit = (uint64_t)n;
    return true;
}

/* Writes a node's value. What hinders is noted in missing; once something is missing nothing more is written,
 * but cold values are asked for. False: an error that ends the command. */
static bool reply_node_value(struct command_call *call, const struct node *node,
                             struct command_missing *missing)
{
    enum { TRIES = 8 };
    struct store_view view;
    enum store_result r = STORE_BUSY;
    for (unsigned tries = 0; tries < TRIES; tries++) {
        r = store_node_view(call->sw, node, &view);
        if (r != STORE_OK)
            break;
        if (missing->result != STORE_OK)
            return true;
        if (UNLIKELY(!command_reply_fits(call, view.len))) {
            r = STORE_BUSY;
            break;
        }
        struct reply_position start = reply_position(call->reply);
        char *p = reply_bulk_begin(call->reply, view.len);
        if (store_view_copy(&view, p, 0, view.len)) {
            reply_bulk_end(call->reply, view.len);
            return true;
        }
        reply_rollback(call->reply, start);
        r = STORE_BUSY;
    }
    if (r == STORE_ABSENT) /* deleted meanwhile */
        r = STORE_BUSY;
    struct store_key key;
    store_key_prepare(call->sw, &key, store_node_key(node));
    return command_note_missing(call, missing, r, &key, &view, true);
}

/* Collects nodes, then writes what is wanted of them, all as of one instant, until both have gone well. The
 * room is the reply's; collect ends early, and write may, when it is full. */
static enum command_result reply_walk(struct command_call *call, struct command_room *room,
                                      void (*collect)(void *walk),
                                      struct command_missing (*write)(void *walk), void *walk)
{
    *room = command_room(call);
    if (command_room_is_full(room))
        return COMMAND_AGAIN;
    struct reply_position start = reply_position(call->reply);
    for (unsigned attempt = 0;; attempt++) {
        struct command_missing missing = {STORE_OK, 0};
        if (store_snapshot_begin(call->sw, NULL, 0, attempt) == STORE_BUSY)
            return COMMAND_AGAIN;
        collect(walk);
        if (!command_room_is_full(room))
            missing = write(walk);
        bool same = store_snapshot_end(call->sw), full = command_room_is_full(room);
        bool stopped = store_walk_stopped(call->sw);
        if (same && missing.result == STORE_OK && !full && !stopped)
            return COMMAND_DONE;
        reply_rollback(call->reply, start);
        if (full)
            return command_room_failed(call, room, "use LIMIT");
        if (stopped)
            return COMMAND_AGAIN;
        /* A node that was busy although nothing else changed: its writer is in the middle. */
        if (missing.result != STORE_OK && (same || missing.result != STORE_BUSY))
            return command_value_failed(call, missing.result, missing.address);
    }
}

/* ---- RANGE ---- */

struct range {
    struct command_call *call;
    struct slice from, to; /* data NULL: that end is open */
    uint64_t limit;
    bool reverse, keys_only;
    struct command_room room;
    struct node_list list;
};

static bool parse_range(struct command_call *call, struct range *range)
{
    struct slice from = call->argv[1], to = call->argv[2];
    *range = (struct range){.call = call, .from = from, .to = to, .limit = UINT64_MAX};
    if (slice_equal(from, SLICE_LITERAL("-")))
        range->from = slice_make("", 0);
    if (slice_equal(to, SLICE_LITERAL("+")))
        range->to = slice_make(NULL, 0);
    for (int i = 3; i < call->argc; i++) {
        if (command_word_is(call->argv[i], "rev")) {
            range->reverse = true;
        } else if (command_word_is(call->argv[i], "keys")) {
            range->keys_only = true;
        } else if (command_word_is(call->argv[i], "limit") && i + 1 < call->argc) {
            if (!limit_option(call, call->argv[++i], &range->limit))
                return false;
        } else {
            command_syntax_error(call);
            return false;
        }
    }
    return true;
}

static void collect_range(void *walk)
{
    struct range *range = walk;
    bool reverse = range->reverse;
    uint64_t bytes = 0;
    struct store_cursor cursor;
    const struct node *node;
    range->list.count = 0;
    store_cursor_seek(&cursor, range->call->sw, reverse ? range->to : range->from, reverse);
    while (range->list.count < range->limit && (node = store_cursor_next(&cursor))) {
        struct slice key = store_node_key(node);
        if (reverse ? slice_compare(key, range->from) < 0
                    : range->to.data && slice_compare(key, range->to) >= 0)
            break;
        bytes += key.len + NODE_LIST_ITEM_BYTES;
        if (UNLIKELY(!command_room_fits(&range->room, bytes)))
            break;
        node_list_add(&range->list, node);
    }
}

static struct command_missing write_range(void *walk)
{
    struct range *range = walk;
    struct command_call *call = range->call;
    struct command_missing missing = {STORE_OK, 0};
    reply_array(call->reply, range->list.count * (range->keys_only ? 1 : 2));
    for (size_t i = 0; i < range->list.count; i++) {
        const struct node *node = node_list_at(&range->list, i);
        if (missing.result == STORE_OK)
            reply_bulk(call->reply, store_node_key(node));
        if (!range->keys_only && !reply_node_value(call, node, &missing))
            break;
        if (UNLIKELY(!command_room_ok(call, &range->room, i)))
            break;
    }
    return missing;
}

enum command_result command_range(struct command_call *call)
{
    struct range range;
    if (!parse_range(call, &range))
        return COMMAND_DONE;
    enum command_result result = reply_walk(call, &range.room, collect_range, write_range, &range);
    node_list_deinit(&range.list);
    return result;
}

/* ---- KIDS ---- */

struct kids {
    struct command_call *call;
    struct slice prefix; /* of all children's keys: "" or ending in '/' */
    struct slice from;
    uint64_t limit;
    bool values;
    struct command_room room;
    uint64_t bytes; /* about, of what was found */
    char *key;      /* prefix, a name, and a byte or two: built here; malloc */
    size_t key_capacity;
    struct slice last; /* newest name, in an index key */
    bool has_last;
    struct kid *items; /* malloc */
    size_t count, capacity;
};

/* One child: its name lies in a key of the index; node is the child's own, or NULL. */
struct kid {
    struct slice name;
    const struct node *node;
};

static struct slice kids_key(struct kids *k, struct slice name, const char *suffix, size_t suffix_len)
{
    size_t len = k->prefix.len + name.len + suffix_len;
    if (len >= k->key_capacity) {
        k->key_capacity = len * 2 + 64;
        k->key = realloc(k->key, k->key_capacity);
        CHECK(k->key != NULL);
    }
    memcpy(k->key, k->prefix.data, k->prefix.len);
    memcpy(k->key + k->prefix.len, name.data, name.len);
    memcpy(k->key + k->prefix.len + name.len, suffix, suffix_len);
    return slice_make(k->key, len);
}

static void kids_add_found(struct kids *k, struct slice name, const struct node *node)
{
    if (k->count == k->capacity) {
        k->capacity = k->capacity ? k->capacity * 2 : 256;
        k->items = realloc(k->items, k->capacity * sizeof *k->items);
        CHECK(k->items != NULL);
    }
    k->items[k->count++] = (struct kid){name, node};
    k->bytes += name.len + sizeof(struct kid);
}

static void kids_add(struct kids *k, struct slice name, const struct node *node)
{
    kids_add_found(k, name, node);
    k->last = name;
    k->has_last = true;
}

static size_t common_len(struct slice a, struct slice b)
{
    size_t n = a.len < b.len ? a.len : b.len, i = 0;
    while (i < n && a.data[i] == b.data[i])
        i++;
    return i;
}

/* What is behind the prefix in a key that has it. */
static struct slice kids_rest(const struct kids *k, const struct node *node)
{
    struct slice key = store_node_key(node);
    return slice_make(key.data + k->prefix.len, key.len - k->prefix.len);
}

/* Length of the shortest beginning of a name that may still have to be added: behind the last one and not
 * before `from`. The name itself is both. */
static size_t shortest_wanted(const struct kids *k, struct slice name)
{
    size_t least = k->has_last ? common_len(name, k->last) + 1 : 0;
    size_t same = common_len(name, k->from);
    size_t from = same < k->from.len ? same + 1 : same;
    return least > from ? least : from;
}

/* Keys are in byte order, names must be too, and '/' is not the smallest byte: the keys below "bash/" come
 * after those below "bash-doc/", but "bash" is the smaller name. So before a new name is added, each of its
 * beginnings that is followed by a byte below '/' is looked for as a path. `known`: so many first bytes it
 * shares with the name before, for which that was done.
 *
 * The shorter the beginning, the later its path in the order of keys. So they are looked for from the longest
 * on, and the key found last tells how many of the next ones cannot be there: a name may have 64 Ki bytes. */
static void kids_add_shorter(struct kids *k, struct slice name, size_t known)
{
    size_t first = k->count, least = shortest_wanted(k, name), shared = name.len;
    if (k->has_last && known > least)
        least = known;
    for (size_t len = name.len; len-- > least;) {
        if ((unsigned char)name.data[len] >= '/' || shared < len)
            continue; /* shared: the key found last is behind this path and not in it */
        struct store_cursor cursor;
        struct slice below = kids_key(k, slice_make(name.data, len), "/", 1);
        store_cursor_seek(&cursor, k->call->sw, below, false);
        const struct node *node = store_cursor_next(&cursor);
        if (node == NULL || !slice_starts_with(store_node_key(node), k->prefix))
            break; /* nor are there keys behind */
        shared = common_len(kids_rest(k, node), name);
        if (slice_starts_with(store_node_key(node), below))
            kids_add_found(k, slice_make(kids_rest(k, node).data, len), NULL);
    }
    for (size_t i = first, j = k->count; i + 1 < j; i++) { /* the shorter name is the smaller one */
        struct kid swap = k->items[i];
        k->items[i] = k->items[--j];
        k->items[j] = swap;
    }
    if (k->count > k->limit)
        k->count = (size_t)k->limit;
}

static void collect_kids(void *walk)
{
    struct kids *k = walk;
    struct store_cursor cursor;
    const struct node *node;
    struct slice previous = slice_make("", 0);
    k->count = 0;
    k->bytes = 0;
    k->has_last = false;
    store_cursor_seek(&cursor, k->call->sw, kids_key(k, k->from, "", 0), false);
    while (k->count < k->limit && command_room_fits(&k->room, k->bytes) &&
           (node = store_cursor_next(&cursor))) {
        struct slice key = store_node_key(node);
        if (!slice_starts_with(key, k->prefix))
            break;
        struct slice rest = kids_rest(k, node);
        const char *slash = memchr(rest.data, '/', rest.len);
        struct slice name = slice_make(rest.data, slash ? (size_t)(slash - rest.data) : rest.len);
        bool is_new = !k->has_last || slice_compare(name, k->last) > 0;
        if (is_new && slice_compare(name, k->from) >= 0) {
            kids_add_shorter(k, name, common_len(name, previous));
            if (k->count < k->limit)
                kids_add(k, name, slash ? NULL : node);
            previous = name;
        }
        if (slash) /* jump over the rest of the subtree: '0' is the byte behind '/' */
            store_cursor_seek(&cursor, k->call->sw, kids_key(k, name, "0", 1), false);
    }
}

static struct command_missing write_kids(void *walk)
{
    struct kids *k = walk;
    struct command_missing missing = {STORE_OK, 0};
    reply_array(k->call->reply, k->count * (k->values ? 2 : 1));
    for (size_t i = 0; i < k->count; i++) {
        if (UNLIKELY(!command_room_ok(k->call, &k->room, i)))
            break;
        if (missing.result == STORE_OK)
            reply_bulk(k->call->reply, k->items[i].name);
        if (!k->values)
            continue;
        if (k->items[i].node) {
            if (!reply_node_value(k->call, k->items[i].node, &missing))
                break;
        } else if (missing.result == STORE_OK) {
            reply_null(k->call->reply);
        }
    }
    return missing;
}

static bool parse_kids(struct command_call *call, struct kids *k)
{
    *k = (struct kids){.call = call, .limit = UINT64_MAX, .from = slice_make("", 0)};
    for (int i = 2; i < call->argc; i++) {
        if (command_word_is(call->argv[i], "values")) {
            k->values = true;
        } else if (command_word_is(call->argv[i], "from") && i + 1 < call->argc) {
            k->from = call->argv[++i];
        } else if (command_word_is(call->argv[i], "limit") && i + 1 < call->argc) {
            if (!limit_option(call, call->argv[++i], &k->limit))
                return false;
        } else {
            command_syntax_error(call);
            return false;
        }
    }
    if (!command_key_ok(call, call->argv[1]) || !command_key_ok(call, k->from))
        return false;
    struct slice path = call->argv[1];
    bool complete = path.len == 0 || path.data[path.len - 1] == '/';
    char *prefix = command_scratch(call, path.len + 1);
    memcpy(prefix, path.data, path.len);
    prefix[path.len] = '/';
    k->prefix = slice_make(prefix, path.len + !complete);
    return true;
}

enum command_result command_kids(struct command_call *call)
{
    struct kids k;
    if (!parse_kids(call, &k))
        return COMMAND_DONE;
    enum command_result result = reply_walk(call, &k.room, collect_kids, write_kids, &k);
    free(k.key);
    free(k.items);
    return result;
}

/* ---- DELTREE ---- */

enum command_result command_deltree(struct command_call *call)
{
    uint64_t count;
    if (!command_key_ok(call, call->argv[1]))
        return COMMAND_DONE;
    enum store_result r = store_delete_tree(call->sw, call->argv[1], &count);
    if (r != STORE_OK)
        return command_store_failed(call, r);
    reply_integer(call->reply, (int64_t)count);
    return COMMAND_DONE;
}
