#include "toc/toc_format.h"

#include <inttypes.h>
#include <stdio.h>
#include <xxhash.h>

void toc_name(char name[TOC_NAME_BYTES], uint64_t number, bool temporary)
{
    snprintf(name, TOC_NAME_BYTES, "toc-%010" PRIu64 ".%s", number, temporary ? "tmp" : "kv");
}

bool toc_parse_name(const char *name, uint64_t *number, bool *temporary)
{
    char again[TOC_NAME_BYTES];
    if (sscanf(name, "toc-%10" SCNu64 ".", number) != 1)
        return false;
    toc_name(again, *number, false);
    *temporary = false;
    if (strcmp(name, again) == 0)
        return true;
    toc_name(again, *number, true);
    *temporary = true;
    return strcmp(name, again) == 0;
}

uint64_t toc_page_checksum(const char *page, uint64_t offset, uint64_t generation)
{
    return XXH3_64bits_withSeed(page + 16, TOC_PAGE_BYTES - 16, offset ^ generation);
}

uint64_t toc_list_checksum(const char *list, uint64_t bytes, uint64_t offset, uint64_t generation)
{
    return XXH3_64bits_withSeed(list, bytes, offset ^ generation);
}

uint64_t toc_block_checksum(const char *block, uint64_t offset, uint64_t generation)
{
    return XXH3_64bits_withSeed(block + 8, TOC_BLOCK_BYTES - 8, offset ^ generation);
}
