/* node: one key in the index, with its value or where the value is.
 *
 *   offset  size  field
 *        0     8  sequence: LSN of the newest write << 1, low bit set while a writer is changing the node
 *        8     4  meta: key length, size class, flags
 *       12     4  value length, bytes
 *       16        key, padded to 8, then the payload area up to the end of the size class
 *
 * The payload is [expire_ms, 8 bytes, if NODE_EXPIRES] [address, 8 bytes, if NODE_MOVED] [value, unless
 * NODE_COLD]. It lies in the area itself when it fits, else the area's first word is a pointer to an
 * immutable block with it (NODE_EXTERNAL) that is replaced as a whole.
 *
 * Where the value lies on disk: a node's newest write is mostly the record with its value, so the version in
 * the sequence is the value's address too, at no cost. Only when a later write left the value alone (EXPIRE),
 * the address has a word of its own (NODE_MOVED).
 *
 * Value in memory or not, a node never changes between the two: another node takes its place in the index,
 * with the same key and version, so who still reads the old one reads a good state. Where the cleaner moves
 * the value of a node that is NODE_COLD and NODE_MOVED it stores the address, one word: readers get the old
 * one or the new one, and the value lies at both.
 *
 * Reading: take the sequence (acquire); copy what is needed with relaxed word loads; take the sequence again
 * after an acquire fence; equal and even means what was copied is one state (a seqlock; Boehm, "Can seqlocks
 * get along with programming language memory models?", 2012). Key, key length and class never change after
 * the node was published. Writing: under the key's lock (keylock.h) only. */
#ifndef KVASIR_INDEX_NODE_H
#define KVASIR_INDEX_NODE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"

enum {
    NODE_KEY_BITS = 17, /* 0 .. 65536 */
    NODE_CLASS_SHIFT = 17,
    NODE_TOMBSTONE = 1 << 25, /* deleted; stays until the delete is durable */
    NODE_EXTERNAL = 1 << 26,
    NODE_EXPIRES = 1 << 27,
    NODE_COLD = 1 << 28,     /* the value is on disk only */
    NODE_MOVED = 1 << 29,    /* the value's address is not the version */
    NODE_REPLACED = 1 << 30, /* overwritten by a write that put another node in its place: look again */
};

/* Read since the hand of the second-chance queue was here. The only bit that readers set. */
#define NODE_TOUCHED (1u << 31)

struct node {
    _Atomic uint64_t sequence;
    _Atomic uint32_t meta;
    _Atomic uint32_t value_len;
    char data[];
};

_Static_assert(sizeof(struct node) == 16, "the header's size is part of the memory budget");

static inline uint32_t node_key_len(uint32_t meta)
{
    return meta & ((1u << NODE_KEY_BITS) - 1);
}

static inline unsigned node_class(uint32_t meta)
{
    return meta >> NODE_CLASS_SHIFT & 0xff;
}

/* Relaxed: key length and class are constant; flags are validated by the sequence. */
static inline uint32_t node_meta(const struct node *node)
{
    return atomic_load_explicit(&((struct node *)(uintptr_t)node)->meta, memory_order_relaxed);
}

static inline struct slice node_key(const struct node *node)
{
    return slice_make(node->data, node_key_len(node_meta(node)));
}

/* Start of the payload area. */
static inline char *node_area(const struct node *node, uint32_t key_len)
{
    return (char *)(uintptr_t)node->data + ((key_len + 7u) & ~7u);
}

#endif
