/* conn: one client connection: its stream, its unfinished input, its output, its place in the worker's lists.
 *
 * Thread safety: a connection belongs to one worker. Other workers may only look at the fields marked
 * "registry", under server->registry_lock, and at the relaxed atomics. The registry keeps a connection's
 * memory alive while it is listed: conn_destroy takes it out first.
 *
 * An idle connection owns no buffer: input memory exists while an unfinished command waits, output chunks
 * while something is unsent. */
#ifndef KVASIR_SERVER_CONN_H
#define KVASIR_SERVER_CONN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "proto/resp.h"
#include "server/reply.h"
#include "store/store.h"
#include "sys/loop.h"

struct worker;
struct source;

enum {
    CONN_OUTPUT_BYTES_MAX = 1 << 20, /* unsent output beyond this stops a connection's commands and reading */
    CONN_INPUT_BYTES_PAUSE = 1 << 20, /* waiting input of a stopped connection beyond this stops reading */
    CONN_TURN_COMMANDS_MAX = 4096,    /* commands of one connection in one turn */
    CONN_ARGUMENT_BYTES = 256,        /* held for an argument: key, entry, place in lists */
    CONN_NAME_BYTES = 128,
    CONN_ADDRESS_BYTES = 128,
};

enum conn_flag {
    CONN_CLOSING = 1,      /* closes when its output has been sent; no more commands */
    CONN_CLOSED = 2,       /* given up; waits for LOOP_CLOSED */
    CONN_PARKED = 4,       /* its next command must wait (COMMAND_AGAIN) */
    CONN_FULL = 8,         /* too much unsent output */
    CONN_SENDING = 16,     /* one send is outstanding */
    CONN_READ_OFF = 32,    /* reading is stopped */
    CONN_EOF = 64,         /* the peer sends no more */
    CONN_REPLY_OFF = 128,  /* CLIENT REPLY OFF */
    CONN_REPLY_SKIP = 256, /* this command's reply is left out: CLIENT REPLY SKIP came before it */
    CONN_COUNTED = 512,    /* counts against --max-clients */
    CONN_FETCHING = 1024,  /* waiter or ahead is in use */
    CONN_BEYOND = 2048,    /* the one that may have more input than the common share allows (budget.h) */
    CONN_REPLY_SKIP_NEXT = 4096, /* CLIENT REPLY SKIP: this reply and the next command's are left out */
    CONN_WORKS = 8192,           /* its command waits until memory is free for what it makes (work_bytes) */
    CONN_NO_ROOM = 16384,        /* its command was refused room the last time, since room_us */
    CONN_ROOM_LATER = 32768,     /* no room for what stands behind its parked command: see budget_reserve */
    CONN_REPLY_MUTE = CONN_REPLY_OFF | CONN_REPLY_SKIP | CONN_REPLY_SKIP_NEXT,
    CONN_STOPPED = CONN_CLOSING | CONN_CLOSED | CONN_PARKED | CONN_FULL, /* runs no commands */
};

struct conn_link {
    struct conn_link *next, *previous; /* NULL: in no list */
};

struct conn {
    /* what every command touches */
    struct reply reply;
    struct worker *worker;
    uint32_t flags; /* enum conn_flag */
    uint32_t turn;  /* the worker's turn in which turn_commands was counted */
    uint32_t turn_commands;
    uint32_t waiting_pieces; /* of its data in the worker's backlog */
    uint64_t hold_from;      /* this turn's held output: first offset and newest LSN; 0: none */
    uint64_t hold_lsn;
    struct source *source;                            /* its input in the current group */
    struct conn_link dirty, held, retry, saving, all; /* the worker's lists */
    uint64_t save_ticket; /* of the checkpoint or backup that its parked command waits for; 0: none */
    bool save_is_backup;
    uint64_t
        log_wait_bytes; /* for its parked command to have room in the log; 0: it waits for something else */

    /* values from disk (CONN_FETCHING) */
    struct store_waiter waiter; /* for cold values that its command needs */
    uint32_t ahead;             /* commands behind the parked one whose values were asked for */
    uint32_t ahead_seen;        /* of those, looked at again in this group */

    /* input that could not be used up yet */
    char *input;
    size_t input_position; /* bytes of input already executed */
    size_t input_len;
    size_t input_capacity;
    struct resp_request request; /* progress in the unfinished command at input_position */

    /* memory (budget.c) */
    struct conn_link waiting_room;    /* the worker's line of those that wait for room for input */
    uint64_t room_number;             /* place of its request in the order of that line; 0: none yet */
    bool grows;                       /* it waits there, and holds a part of the share */
    uint64_t reserved;                /* bytes of input that there is room for; 0: it needs none */
    uint64_t wanted;                  /* bytes, while it is in that list */
    uint64_t work_bytes;              /* of the value that its command makes, beyond what came with it */
    bool work_granted;                /* it had the memory in its turn */
    uint32_t work_turn;               /* the worker's: in which */
    uint64_t room_us;                 /* monotonic; CONN_NO_ROOM, or in the list of those that wait */
    uint64_t hopeless_us;             /* since when no room could come for it */
    uint32_t hopeless_tries;          /* so many one after the other */
    uint64_t untouched;               /* of reserved: not written to; in worker->untouched_bytes */
    uint64_t counted;                 /* what it has added to worker->input_memory */
    uint64_t seen_input, seen_output; /* at the last look who stands still */
    uint32_t still_looks;             /* so many looks one after the other it stood still */

    struct loop_stream stream;
    struct iovec pieces[LOOP_PIECES_MAX]; /* of the outstanding send */

    /* for CLIENT LIST. Written by the owner; strings under registry_lock, numbers relaxed. */
    struct conn *registry_next, *registry_previous; /* registry */
    uint64_t id;
    uint64_t created_us;        /* monotonic */
    _Atomic uint64_t active_us; /* last seen busy, monotonic */
    _Atomic uint64_t output_bytes;
    _Atomic uint32_t input_bytes;
    _Atomic uint16_t last_command; /* index in the table */
    _Atomic uint8_t resp;
    bool is_unix;
    char name[CONN_NAME_BYTES];    /* registry */
    char library[CONN_NAME_BYTES]; /* registry */
    char library_version[32];      /* registry */
    char address[CONN_ADDRESS_BYTES];
    char local_address[CONN_ADDRESS_BYTES];
};

#define CONN_OF(link, member) ((struct conn *)(void *)((char *)(link)-offsetof(struct conn, member)))

/* Circular lists with a head of the same type. */
static inline void conn_list_init(struct conn_link *list)
{
    list->next = list->previous = list;
}

static inline bool conn_list_empty(const struct conn_link *list)
{
    return list->next == list;
}

static inline void conn_list_add(struct conn_link *list, struct conn_link *link)
{
    if (link->next)
        return; /* is in it */
    link->previous = list->previous;
    link->next = list;
    list->previous->next = link;
    list->previous = link;
}

static inline void conn_list_remove(struct conn_link *link)
{
    if (link->next == NULL)
        return;
    link->next->previous = link->previous;
    link->previous->next = link->next;
    link->next = link->previous = NULL;
}

/* Takes a connected socket into the worker's loop. NULL (socket closed) when out of memory. counted: against
 * max-clients. */
struct conn *conn_create(struct worker *worker, int fd, bool counted);
/* After LOOP_CLOSED, or when the loop is gone. */
void conn_destroy(struct conn *conn);

/* Gives the connection up now; unsent output is lost. */
void conn_close(struct conn *conn);
/* Closes it once its output has been sent. */
void conn_close_after_reply(struct conn *conn);

/* Appends to the input. Nothing in the current group may point into it. */
void conn_input_append(struct conn *conn, const char *data, size_t len);
/* Everything before position was used up. */
void conn_input_consume(struct conn *conn, size_t position);

/* Sends what may leave, if no send is outstanding; files the connection as held or closes it as fits. */
void conn_flush(struct conn *conn, uint64_t commit_lsn);
/* Receives in the loop's present way, see loop->careful. */
void conn_read_anew(struct conn *conn);
/* LOOP_SENT. */
void conn_sent(struct conn *conn, int result);

/* Its parked command waits for values from disk: store_waiter_next names it when they are there. */
static inline bool conn_awaits_values(const struct conn *conn)
{
    return conn->flags & CONN_PARKED && store_waiter_waits(&conn->waiter);
}

/* Its parked command waits for a checkpoint or a backup: save_has_ended tells. */
static inline bool conn_awaits_saving(const struct conn *conn)
{
    return conn->flags & CONN_PARKED && conn->save_ticket;
}

/* What the unfinished command will take, as far as is known: its bytes, or for many arguments what is held
 * for each of them while it runs. */
static inline uint64_t conn_announced(const struct conn *conn)
{
    uint64_t bytes = resp_request_announced(&conn->request);
    uint64_t arguments = (uint64_t)conn->request.argc_wanted * CONN_ARGUMENT_BYTES;
    return bytes > arguments || conn->request.skipping ? bytes : arguments;
}

static inline bool conn_has_input(const struct conn *conn)
{
    return conn->input_position < conn->input_len;
}

#endif
