/* loading: who answers while the store is being opened, which can take long.
 *
 * A thread accepts early clients and answers every request with `-LOADING kvasir is loading: 43%, 1204 of
 * 2800 MiB, 12345678 keys`, writes one line a second to the log, and ends the process when it is told to
 * stop: loading changes nothing that a crash could not change too, so it may be left at any point. Afterwards
 * the sockets go on to the workers, with the request that had come in part, if any. Closed are those that
 * were to be closed anyway and those that have not read their answers.
 *
 * Memory is bounded: LOADING_SOCKETS_MAX sockets (others wait in the listeners' queues until the workers take
 * them), each with LOADING_INPUT_BYTES of input and about as much output. A request that is longer waits for
 * the workers, unanswered.
 *
 * Thread safety: loading_progress from any thread between start and stop; the rest belongs to one thread. */
#ifndef KVASIR_SERVER_LOADING_H
#define KVASIR_SERVER_LOADING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "proto/resp.h"

enum {
    LOADING_SOCKETS_MAX = 256,
    LOADING_INPUT_BYTES = 65536, /* at least one inline command */
};

struct loading_config {
    int listen_fds[2];         /* -1: none; the caller's, not to be closed before the stop */
    const char *unix_path;     /* removed when the process is told to stop; NULL: none */
    uint64_t sockets_max;      /* fewer than LOADING_SOCKETS_MAX, if so */
    struct resp_limits limits; /* of requests */
};

/* A socket to go on with. Both belong to the caller then. */
struct loading_socket {
    int fd;
    char *input; /* the beginning of a request; malloc, NULL: none */
    size_t input_len;
};

struct loading;

/* SIGTERM and SIGINT must be blocked. */
STATUS_MUST_USE status_t loading_start(const struct loading_config *config, struct loading **out);
/* How far it is. */
void loading_progress(struct loading *loading, uint64_t done_bytes, uint64_t total_bytes, uint64_t keys);
/* Ends the thread. Whatever has not been read from the sockets stays in them. */
void loading_stop(struct loading *loading);
/* After the stop: the next socket to hand on; false: that was all. */
bool loading_next(struct loading *loading, struct loading_socket *socket);
/* Stops if need be; closes the sockets that were not handed on. NULL is fine. */
void loading_destroy(struct loading *loading);

#endif
