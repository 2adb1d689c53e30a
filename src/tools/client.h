/* client: a blocking RESP2 connection for the one-shot tools, and the blocking connect that all tools share.
 *
 * Thread safety: a client belongs to one thread. SIGPIPE never comes from here (MSG_NOSIGNAL). */
#ifndef KVASIR_TOOLS_CLIENT_H
#define KVASIR_TOOLS_CLIENT_H

#include "base/bytes.h"
#include "base/status.h"
#include "tools/reply_scan.h"

/* Connects to HOST:PORT, [IPV6]:PORT, :PORT, PORT (here), or the path of a Unix socket (anything with a '/').
 * Blocks. TCP_NODELAY is set. The caller owns *fd. Errors say what to do. */
STATUS_MUST_USE status_t client_connect(const char *address, int *fd);

struct client;

STATUS_MUST_USE status_t client_open(const char *address, struct client **out);
void client_close(struct client *client); /* NULL is fine */

/* Queues a request; sends when much has collected. */
STATUS_MUST_USE status_t client_send(struct client *client, int argc, const struct slice *argv);

/* Sends what is queued and waits for the next whole reply. *reply lives until the next call. Take it apart
 * with reply_item_read. */
STATUS_MUST_USE status_t client_receive(struct client *client, struct slice *reply);

#endif
