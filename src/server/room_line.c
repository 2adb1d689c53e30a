#include "server/room_line.h"

#include "server/server.h"
#include "server/worker.h"

void room_line_init(struct room_line *line)
{
    conn_list_init(&line->conns);
    line->at = &line->conns;
    atomic_init(&line->oldest, UINT64_MAX);
}

static void note_oldest(struct room_line *line)
{
    struct conn_link *first = line->conns.next;
    atomic_store(&line->oldest,
                 first == &line->conns ? UINT64_MAX : CONN_OF(first, waiting_room)->room_number);
}

/* Who has a number already is among the oldest. */
static struct conn_link *first_younger(struct room_line *line, uint64_t number)
{
    struct conn_link *link = line->conns.next;
    while (link != &line->conns && CONN_OF(link, waiting_room)->room_number < number)
        link = link->next;
    return link;
}

void room_line_join(struct conn *conn)
{
    struct room_line *line = &conn->worker->room_line;
    struct budget *budget = &conn->worker->server->budget;
    struct conn_link *before = &line->conns;
    if (conn->room_number)
        before = first_younger(line, conn->room_number);
    else
        conn->room_number = 1 + atomic_fetch_add_explicit(&budget->numbers, 1, memory_order_relaxed);
    conn_list_add(before, &conn->waiting_room);
    note_oldest(line);
    atomic_fetch_add(&budget->waiting, 1);
}

void room_line_grows(struct conn *conn, bool grows)
{
    struct budget *budget = &conn->worker->server->budget;
    if (grows == conn->grows)
        return;
    conn->grows = grows;
    atomic_fetch_add(&budget->growing, grows ? 1 : UINT32_MAX);
}

void room_line_leave(struct conn *conn)
{
    room_line_grows(conn, false);
    struct room_line *line = &conn->worker->room_line;
    if (line->at == &conn->waiting_room)
        line->at = conn->waiting_room.next;
    conn_list_remove(&conn->waiting_room);
    note_oldest(line);
    atomic_fetch_sub(&conn->worker->server->budget.waiting, 1);
}

void room_line_request_done(struct conn *conn)
{
    if (!room_line_waits(conn)) /* else it keeps its place for what stands behind */
        conn->room_number = 0;
}

bool room_line_is_first(const struct conn *conn)
{
    const struct server *server = conn->worker->server;
    uint64_t number = conn->room_number ? conn->room_number : UINT64_MAX;
    for (unsigned i = 0; i < server->worker_count; i++)
        if (atomic_load(&server->workers[i]->room_line.oldest) < number)
            return false;
    return true;
}
