/* Expiry. */
#include "server/commands.h"

enum { COND_NX = 1, COND_XX = 2, COND_GT = 4, COND_LT = 8 };

struct expire_options {
    uint64_t expire_ms;
    unsigned conditions;
};

static bool stage_expire(struct command_call *call, struct store_entry *entries, void *context)
{
    const struct expire_options *o = context;
    bool wanted = store_entry_live(entries, 0);
    if (wanted) {
        uint64_t old = store_entry_expire_ms(entries, 0); /* 0: none, which counts as infinitely far */
        if ((o->conditions & COND_NX && old) || (o->conditions & COND_XX && !old) ||
            (o->conditions & COND_GT && (!old || o->expire_ms <= old)) ||
            (o->conditions & COND_LT && old && o->expire_ms >= old))
            wanted = false;
    }
    if (wanted && !command_expiry_fits(call, entries))
        return false;
    if (wanted)
        store_stage_expire(call->sw, entries, 0, o->expire_ms);
    reply_integer(call->reply, wanted);
    return true;
}

static bool parse_conditions(struct command_call *call, unsigned *conditions)
{
    static const char *const words[] = {"nx", "xx", "gt", "lt"};
    for (int i = 3; i < call->argc; i++) {
        unsigned w = 0;
        while (w < 4 && !command_word_is(call->argv[i], words[w]))
            w++;
        if (w == 4) {
            reply_error(call->reply, "ERR Unsupported option %.*s", (int)call->argv[i].len,
                        call->argv[i].data);
            return false;
        }
        *conditions |= 1u << w;
    }
    if (*conditions & COND_NX && *conditions & (COND_XX | COND_GT | COND_LT)) {
        reply_error(call->reply, "ERR NX and XX, GT or LT options at the same time are not compatible");
        return false;
    }
    if (*conditions & COND_GT && *conditions & COND_LT) {
        reply_error(call->reply, "ERR GT and LT options at the same time are not compatible");
        return false;
    }
    return true;
}

static enum command_result expire(struct command_call *call, bool seconds, bool absolute)
{
    struct expire_options o = {0};
    if (!parse_conditions(call, &o.conditions) ||
        !command_expire_ms(call, call->argv[2], seconds, absolute, false, &o.expire_ms))
        return COMMAND_DONE;
    return command_write_one(call, 0, stage_expire, &o);
}

enum command_result command_expire(struct command_call *call)
{
    return expire(call, true, false);
}

enum command_result command_pexpire(struct command_call *call)
{
    return expire(call, false, false);
}

enum command_result command_expireat(struct command_call *call)
{
    return expire(call, true, true);
}

enum command_result command_pexpireat(struct command_call *call)
{
    return expire(call, false, true);
}

static bool stage_persist(struct command_call *call, struct store_entry *entries, void *context)
{
    (void)context;
    bool has = store_entry_live(entries, 0) && store_entry_expire_ms(entries, 0);
    if (has && !command_expiry_fits(call, entries))
        return false;
    if (has)
        store_stage_expire(call->sw, entries, 0, 0);
    reply_integer(call->reply, has);
    return true;
}

enum command_result command_persist(struct command_call *call)
{
    return command_write_one(call, 0, stage_persist, NULL);
}

static enum command_result reply_expiry(struct command_call *call, bool seconds, bool absolute)
{
    struct store_key own;
    struct store_view view;
    enum store_result r = store_find(call->sw, command_key(call, 1, &own), &view);
    if (r == STORE_BUSY)
        return COMMAND_AGAIN;
    int64_t answer = -2;
    bool exists = store_result_exists(r);
    if (exists && view.expire_ms == 0) {
        answer = -1;
    } else if (exists) {
        answer = (int64_t)view.expire_ms - (absolute ? 0 : (int64_t)call->sw->now_ms);
        if (seconds)
            answer = answer / 1000 + (answer % 1000 >= 500); /* nearest, without overflow */
    }
    command_looked_up(call, exists);
    reply_integer(call->reply, answer);
    return COMMAND_DONE;
}

enum command_result command_ttl(struct command_call *call)
{
    return reply_expiry(call, true, false);
}

enum command_result command_pttl(struct command_call *call)
{
    return reply_expiry(call, false, false);
}

enum command_result command_expiretime(struct command_call *call)
{
    return reply_expiry(call, true, true);
}

enum command_result command_pexpiretime(struct command_call *call)
{
    return reply_expiry(call, false, true);
}
