/* net: addresses, listening sockets, and what an accepted connection needs. Any thread; descriptors belong to
 * the caller. */
#ifndef KVASIR_SYS_NET_H
#define KVASIR_SYS_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Whether the text of an address, or a path, is one that the calls below take. Nothing is looked up. */
STATUS_MUST_USE status_t net_check_tcp(const char *address);
STATUS_MUST_USE status_t net_check_unix(const char *path);

/* Listens on "HOST:PORT" ("[::1]:6379", "localhost:0"); *port is the one it became. Non-blocking,
 * close-on-exec. */
STATUS_MUST_USE status_t net_listen_tcp(const char *address, int *fd, int *port);
/* Listens on a path. The socket file of a dead server is replaced, a live one's is refused. */
STATUS_MUST_USE status_t net_listen_unix(const char *path, int *fd);
/* True if only this machine reaches the listening socket. */
bool net_is_loopback(int fd);

enum { NET_KEEPALIVE_S = 300 }; /* a peer that has vanished is noticed after twice that */

/* No delay, keep-alive. Fine on unix sockets too. */
void net_tune(int fd);
/* "ip:port" of both ends, or the path. */
void net_describe(int fd, char *peer, char *local, size_t bytes, bool *is_unix);
/* Where nobody reads: has the peer closed its side (or all of it), with less than so many bytes on the way?
 */
bool net_peer_has_left(int fd, uint64_t lacking);
void net_close(int fd);

#endif
