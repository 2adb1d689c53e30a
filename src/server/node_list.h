/* node_list: nodes collected from a cursor before their number is known to be written. Belongs to one
 * command; nodes stay valid until the end of the store's turn. */
#ifndef KVASIR_SERVER_NODE_LIST_H
#define KVASIR_SERVER_NODE_LIST_H

#include <stdlib.h>

#include "base/check.h"
#include "store/store.h"

enum {
    NODE_LIST_FIRST = 1024,
    NODE_LIST_AHEAD = 12,
    NODE_LIST_ITEM_BYTES = 14, /* at least, for an item and what is written of it, beside its key */
};

struct node_list {
    const struct node **items; /* malloc */
    size_t count, capacity;
};

static inline void node_list_add(struct node_list *list, const struct node *node)
{
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? list->capacity * 2 : NODE_LIST_FIRST;
        list->items = realloc(list->items, list->capacity * sizeof *list->items);
        CHECK(list->items != NULL);
    }
    list->items[list->count++] = node;
}

/* Item i, with one some places ahead on its way into the cache. */
static inline const struct node *node_list_at(const struct node_list *list, size_t i)
{
    if (i + NODE_LIST_AHEAD < list->count)
        store_node_prefetch(list->items[i + NODE_LIST_AHEAD]);
    return list->items[i];
}

static inline void node_list_deinit(struct node_list *list)
{
    free(list->items);
}

#endif
