/* A socket is counted against --max-clients when it is accepted, by the worker that will have it
 * (server_count_client), so that those still in a mailbox are counted too. */
#include "server/arrivals.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/logger.h"
#include "server/server.h"
#include "server/worker.h"
#include "sys/net.h"

/* ---- the mailbox ---- */

static void drop_mail(const struct mail *mail)
{
    if (mail->kind != MAIL_SOCKET)
        return;
    net_close(mail->fd);
    free(mail->input);
}

void mailbox_init(struct mailbox *box)
{
    *box = (struct mailbox){0};
    pthread_mutex_init(&box->lock, NULL);
}

void mailbox_deinit(struct mailbox *box)
{
    for (unsigned i = 0; i < box->count; i++)
        drop_mail(&box->mail[i]);
    free(box->mail);
    pthread_mutex_destroy(&box->lock);
}

void arrivals_post(struct worker *worker, struct mail mail)
{
    struct mailbox *box = &worker->mailbox;
    pthread_mutex_lock(&box->lock);
    if (box->count == box->capacity) {
        box->capacity = box->capacity ? box->capacity * 2 : 16;
        box->mail = realloc(box->mail, box->capacity * sizeof *box->mail);
        CHECK(box->mail);
    }
    box->mail[box->count++] = mail;
    pthread_mutex_unlock(&box->lock);
    loop_wake(worker->loop);
}

static void kill_connection(struct worker *worker, uint64_t id)
{
    for (struct conn_link *link = worker->all.next; link != &worker->all; link = link->next) {
        struct conn *conn = CONN_OF(link, all);
        if (conn->id == id) {
            conn_close(conn);
            return;
        }
    }
}

/* The socket is counted already. */
static void take_client(struct worker *worker, int fd, const char *input, size_t input_len)
{
    struct conn *conn = conn_create(worker, fd, true);
    if (conn == NULL)
        server_count_client(worker->server, worker, -1);
    else if (input_len)
        conn_input_append(conn, input, input_len);
}

/* While stopping nobody comes in any more. */
static void take_socket(struct worker *worker, const struct mail *mail)
{
    if (worker->stop_deadline_us) {
        server_count_client(worker->server, worker, -1);
        drop_mail(mail);
        return;
    }
    take_client(worker, mail->fd, mail->input, mail->input_len);
    free(mail->input);
}

void arrivals_read_mail(struct worker *worker)
{
    struct mailbox *box = &worker->mailbox;
    pthread_mutex_lock(&box->lock);
    struct mail *mail = box->mail;
    unsigned count = box->count;
    box->mail = NULL;
    box->count = box->capacity = 0;
    pthread_mutex_unlock(&box->lock);
    for (unsigned i = 0; i < count; i++) {
        if (mail[i].kind == MAIL_KILL)
            kill_connection(worker, mail[i].id);
        else
            take_socket(worker, &mail[i]);
    }
    free(mail);
}

/* ---- accepted here ---- */

static void refuse_client(struct worker *worker, int fd)
{
    struct conn *conn = conn_create(worker, fd, false);
    STAT_ADD(worker->stats.refused, 1);
    if (conn == NULL)
        return;
    reply_error(&conn->reply, "ERR max number of clients reached");
    conn_close_after_reply(conn);
}

struct worker *arrivals_choose(struct server *server, struct worker *own)
{
    struct worker *best = own ? own : server->workers[0];
    for (unsigned i = 0; i < server->worker_count; i++)
        if (atomic_load_explicit(&server->workers[i]->connections, memory_order_relaxed) <
            atomic_load_explicit(&best->connections, memory_order_relaxed))
            best = server->workers[i];
    return best;
}

void arrivals_accept(struct worker *worker, int fd)
{
    struct server *server = worker->server;
    if (fd < 0) {
        LOG_WARNING("cannot accept a connection: %s", strerror(-fd));
        return;
    }
    if (worker->stop_deadline_us) {
        net_close(fd);
        return;
    }
    STAT_ADD(worker->stats.accepted, 1);
    net_tune(fd);
    if (atomic_load_explicit(&server->clients, memory_order_relaxed) >=
        atomic_load_explicit(&server->clients_max, memory_order_relaxed)) {
        refuse_client(worker, fd);
        return;
    }
    struct worker *best = arrivals_choose(server, worker);
    server_count_client(server, best, 1);
    if (best == worker)
        take_client(worker, fd, NULL, 0);
    else
        arrivals_post(best, (struct mail){.kind = MAIL_SOCKET, .fd = fd});
}
