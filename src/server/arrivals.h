/* arrivals: how connections come to a worker: accepted by itself, or sent by another thread; with the mailbox
 * that such sockets, and orders to close a connection, come by.
 *
 * Worker 0 has the listeners. It gives each new socket to the worker with the fewest connections.
 *
 * Thread safety: as marked; the rest is for the worker's thread. */
#ifndef KVASIR_SERVER_ARRIVALS_H
#define KVASIR_SERVER_ARRIVALS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

struct server;
struct worker;

struct mail { /* what other threads ask of a worker */
    enum { MAIL_SOCKET, MAIL_KILL } kind;
    int fd;      /* MAIL_SOCKET: the worker owns it now, and input */
    char *input; /* bytes already read from it: the beginning of a request; malloc, NULL: none */
    size_t input_len;
    uint64_t id; /* MAIL_KILL: of the connection, which may be gone */
};

struct mailbox {
    pthread_mutex_t lock;
    struct mail *mail; /* under lock; malloc */
    unsigned count, capacity;
};

void mailbox_init(struct mailbox *box);
/* Closes the sockets that nobody has taken. */
void mailbox_deinit(struct mailbox *box);

/* Any thread. The worker wakes and reads it in its next turn. */
void arrivals_post(struct worker *worker, struct mail mail);
/* Any thread. Of the server's workers, the one with the fewest connections; `own` of those that are equal, if
 * not NULL. */
struct worker *arrivals_choose(struct server *server, struct worker *own);

/* LOOP_WOKEN: does what has been posted. */
void arrivals_read_mail(struct worker *worker);
/* LOOP_ACCEPTED; fd: the socket, or -errno. */
void arrivals_accept(struct worker *worker, int fd);

#endif
