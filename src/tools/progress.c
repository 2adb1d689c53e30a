#include "tools/progress.h"

#include <inttypes.h>

enum { BAR_WIDTH = 30 };

void progress_bar(FILE *out, double share, uint64_t keys, double keys_per_s, double mb_per_s, double seconds)
{
    int done = (int)(share * BAR_WIDTH);
    double left = share > 0 ? seconds * (1 - share) / share : 0;
    char bar[BAR_WIDTH + 1];
    for (int i = 0; i < BAR_WIDTH; i++)
        bar[i] = i < done ? '#' : '.';
    bar[BAR_WIDTH] = '\0';
    fprintf(out, "[%s] %3.0f%%  %" PRIu64 " keys  %.0f keys/s  %.1f MB/s  %.0f s left", bar, share * 100,
            keys, keys_per_s, mb_per_s, left);
}
