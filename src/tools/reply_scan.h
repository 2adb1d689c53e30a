/* reply_scan: finds the bounds of replies (RESP2 and RESP3) in a byte stream that arrives in pieces, without
 * building anything.
 *
 * Thread safety: pure functions on the caller's memory. Slices in items point into that memory. */
#ifndef KVASIR_TOOLS_REPLY_SCAN_H
#define KVASIR_TOOLS_REPLY_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

struct reply_item {
    char type;      /* '+', '-', ':', '$', '*', ... */
    bool nil;       /* "$-1", "*-1", "_" */
    int64_t number; /* value of ':', number of items that follow an aggregate (pairs count twice), length of a
                       bulk */
    struct slice text; /* of lines and bulks */
};

/* Reads one item: a line, a bulk with its content, or the head of an aggregate whose items follow. Returns
 * its length in bytes, 0 when it is not complete yet, -1 when this is no RESP. */
int64_t reply_item_read(const char *data, size_t len, struct reply_item *item);

/* State of a scan that is continued when more bytes are there. Zero it before each reply. */
struct reply_scan {
    size_t done;      /* bytes of the reply seen as whole items */
    uint64_t pending; /* items still to come */
    uint64_t items;   /* seen so far, the first included */
};

/* Continues at data, the reply's first byte (it may have moved). Returns the reply's length in bytes once it
 * is complete, else 0; -1 when this is no RESP. */
int64_t reply_scan_continue(struct reply_scan *scan, const char *data, size_t len);

#endif
