/* The notation, which only this file's table uses, so nothing here checks it (the tests do):
 *   key            an argument of that name, a string unless =TYPE follows; "key" is of type key
 *   GET            a word to be typed as it is
 *   EX seconds     a word and the argument behind it
 *   [...] <...>    what may be left out, and what belongs together; "label:" behind the bracket names it
 *   a|b            one of them (between brackets)
 *   x...           once or more */
#include "server/command_syntax.h"

#include <ctype.h>
#include <string.h>

#include "base/bytes.h"
#include "server/reply.h"

#define EXPIRY_TIMES                                                                                         \
    "EX seconds=integer|PX milliseconds=integer|EXAT unix-time-seconds=unix-time|"                           \
    "PXAT unix-time-milliseconds=unix-time|"
#define EXPIRY_CONDITION " [condition:NX|XX|GT|LT]"

static const struct {
    const char *name, *syntax;
} table[] = {
    {"get", "key"},
    {"set", "key value [condition:NX|XX] [GET] [expiration:" EXPIRY_TIMES "KEEPTTL]"},
    {"setnx", "key value"},
    {"setex", "key seconds=integer value"},
    {"psetex", "key milliseconds=integer value"},
    {"getset", "key value"},
    {"getdel", "key"},
    {"getex", "key [expiration:" EXPIRY_TIMES "PERSIST]"},
    {"mget", "key..."},
    {"mset", "<data:key value>..."},
    {"msetnx", "<data:key value>..."},
    {"append", "key value"},
    {"strlen", "key"},
    {"getrange", "key start=integer end=integer"},
    {"substr", "key start=integer end=integer"},
    {"setrange", "key offset=integer value"},
    {"incr", "key"},
    {"decr", "key"},
    {"incrby", "key increment=integer"},
    {"decrby", "key decrement=integer"},
    {"incrbyfloat", "key increment=double"},
    {"del", "key..."},
    {"unlink", "key..."},
    {"exists", "key..."},
    {"touch", "key..."},
    {"type", "key"},
    {"keys", "pattern=pattern"},
    {"scan", "cursor=integer [MATCH pattern=pattern] [COUNT count=integer] [TYPE type]"},
    {"expire", "key seconds=integer" EXPIRY_CONDITION},
    {"pexpire", "key milliseconds=integer" EXPIRY_CONDITION},
    {"expireat", "key unix-time-seconds=unix-time" EXPIRY_CONDITION},
    {"pexpireat", "key unix-time-milliseconds=unix-time" EXPIRY_CONDITION},
    {"ttl", "key"},
    {"pttl", "key"},
    {"expiretime", "key"},
    {"pexpiretime", "key"},
    {"persist", "key"},
    {"kids", "path=key [FROM name] [LIMIT count=integer] [VALUES]"},
    {"range", "from to [LIMIT count=integer] [REV] [KEYS]"},
    {"deltree", "path=key"},
    {"flushall", "[mode:ASYNC|SYNC]"},
    {"flushdb", "[mode:ASYNC|SYNC]"},
    {"ping", "[message]"},
    {"echo", "message"},
    {"hello", "[arguments:protover=integer [AUTH username password] [SETNAME clientname]]"},
    {"auth", "[username] password"},
    {"select", "index=integer"},
    {"client", "<subcommand:ID|INFO|GETNAME|SETNAME connection-name|SETINFO attribute value|LIST "
               "[filter:TYPE type|ID client-id=integer...]|KILL <filter:option value>...|REPLY "
               "<mode:ON|OFF|SKIP>>"},
    {"command", "[subcommand:COUNT|LIST|DOCS [command-name...]|INFO [command-name...]]"},
    {"config", "<subcommand:GET parameter...|SET <data:parameter value>...|RESETSTAT|REWRITE>"},
    {"info", "[section...]"},
    {"bgsave", "[SCHEDULE]"},
    {"backup", "directory"},
    {"shutdown", "[save-selector:NOSAVE|SAVE] [NOW] [FORCE] [ABORT]"},
};

struct item {
    struct slice token, name, type; /* of a plain one; data NULL: none */
    struct slice inner;             /* of a group, without the brackets */
    bool is_group, optional, multiple;
};

static struct slice take(struct slice *rest, size_t n)
{
    struct slice taken = slice_make(rest->data, n);
    rest->data += n;
    rest->len -= n;
    return taken;
}

/* Takes what stands before the first character of that kind that no bracket encloses. */
static struct slice take_until(struct slice *rest, char end)
{
    size_t n = 0;
    for (int depth = 0; n < rest->len && (depth > 0 || rest->data[n] != end); n++)
        depth += rest->data[n] == '[' || rest->data[n] == '<'   ? 1
                 : rest->data[n] == ']' || rest->data[n] == '>' ? -1
                                                                : 0;
    struct slice taken = take(rest, n);
    if (rest->len)
        take(rest, 1);
    return taken;
}

static bool take_dots(struct slice *word)
{
    if (word->len < 3 || memcmp(word->data + word->len - 3, "...", 3) != 0)
        return false;
    word->len -= 3;
    return true;
}

static struct item take_item(struct slice *rest)
{
    struct item item = {0};
    struct slice word = take_until(rest, ' ');
    item.multiple = take_dots(&word);
    item.is_group = word.data[0] == '[' || word.data[0] == '<';
    if (item.is_group) {
        item.optional = word.data[0] == '[';
        item.inner = slice_make(word.data + 1, word.len - 2);
        return item;
    }
    if (isupper((unsigned char)word.data[0])) {
        item.token = word;
        item.type = SLICE_LITERAL("pure-token");
        if (rest->len == 0 || !islower((unsigned char)rest->data[0]))
            return item;
        word = take_until(rest, ' ');
        item.multiple = take_dots(&word);
    }
    item.name = take_until(&word, '=');
    item.type = word.len ? word : SLICE_LITERAL("string");
    if (slice_equal(item.name, SLICE_LITERAL("key")))
        item.type = item.name;
    return item;
}

static unsigned count_parts(struct slice rest, char between)
{
    unsigned count = 0;
    for (; rest.len; count++)
        take_until(&rest, between);
    return count;
}

static void reply_lower(struct reply *r, struct slice text)
{
    char lower[32];
    size_t n = text.len < sizeof lower ? text.len : sizeof lower;
    for (size_t i = 0; i < n; i++)
        lower[i] = (char)tolower((unsigned char)text.data[i]);
    reply_bulk(r, slice_make(lower, n));
}

/* What all arguments have. The array of its parts follows, if it has some. */
static void reply_head(struct reply *r, const struct item *item, bool has_parts)
{
    reply_map(r, 2u + (item->token.data != NULL) + (item->optional || item->multiple) + has_parts);
    reply_bulk_text(r, "name");
    reply_lower(r, item->name.data ? item->name : item->token);
    reply_bulk_text(r, "type");
    reply_bulk(r, item->type);
    if (item->token.data) {
        reply_bulk_text(r, "token");
        reply_bulk(r, item->token);
    }
    if (item->optional || item->multiple) {
        reply_bulk_text(r, "flags");
        reply_set(r, (uint64_t)item->optional + item->multiple);
        if (item->optional)
            reply_status(r, "optional");
        if (item->multiple)
            reply_status(r, "multiple");
    }
    if (has_parts)
        reply_bulk_text(r, "arguments");
}

static unsigned count_items(struct slice rest)
{
    unsigned count = 0;
    for (; rest.len; count++)
        take_item(&rest);
    return count;
}

static void reply_item(struct reply *r, const struct item *item);

/* Items that belong together, as one argument. as: the label and the flags. */
static void reply_sequence(struct reply *r, struct slice list, struct item as)
{
    unsigned count = count_items(list);
    struct slice rest = list;
    struct item first = take_item(&rest);
    if (count == 1) {
        first.optional |= as.optional;
        first.multiple |= as.multiple;
        reply_item(r, &first);
        return;
    }
    if (as.name.data == NULL)
        as.name = first.name.data ? first.name : first.token;
    as.type = SLICE_LITERAL("block");
    reply_head(r, &as, true);
    reply_array(r, count);
    while (list.len) {
        struct item part = take_item(&list);
        reply_item(r, &part);
    }
}

static void reply_item(struct reply *r, const struct item *item)
{
    if (!item->is_group) {
        reply_head(r, item, false);
        return;
    }
    struct item as = {.optional = item->optional, .multiple = item->multiple};
    struct slice rest = item->inner;
    size_t label = 0;
    while (label < rest.len && (islower((unsigned char)rest.data[label]) || rest.data[label] == '-'))
        label++;
    if (label < rest.len && rest.data[label] == ':') {
        as.name = take(&rest, label);
        take(&rest, 1);
    }
    unsigned count = count_parts(rest, '|');
    if (count == 1) {
        reply_sequence(r, rest, as);
        return;
    }
    as.type = SLICE_LITERAL("oneof");
    reply_head(r, &as, true);
    reply_array(r, count);
    while (rest.len)
        reply_sequence(r, take_until(&rest, '|'), (struct item){0});
}

const char *command_syntax_find(const char *name)
{
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strcmp(table[i].name, name) == 0)
            return table[i].syntax;
    return NULL;
}

void command_syntax_reply(struct reply *r, const char *syntax)
{
    struct slice rest = slice_make(syntax, strlen(syntax));
    reply_array(r, count_items(rest));
    while (rest.len) {
        struct item item = take_item(&rest);
        reply_item(r, &item);
    }
}
