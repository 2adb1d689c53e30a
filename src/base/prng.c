#include "base/prng.h"

#include <math.h>

void prng_seed(struct prng *p, uint64_t seed)
{
    for (int i = 0; i < 4; i++)
        p->state[i] = prng_mix(seed + (uint64_t)i * 0x9e3779b97f4a7c15u);
}

/* sum of 1/i^theta for i = 1..n: the head exactly, the tail by its integral (Euler-Maclaurin; error below
 * 1e-9). */
static double zeta(uint64_t n, double theta)
{
    enum { HEAD = 10000 };
    double sum = 0;
    for (uint64_t i = 1; i <= (n < HEAD ? n : HEAD); i++)
        sum += pow((double)i, -theta);
    if (n > HEAD) {
        double a = HEAD, b = (double)n;
        sum += (pow(b, 1 - theta) - pow(a, 1 - theta)) / (1 - theta) + (pow(b, -theta) - pow(a, -theta)) / 2;
    }
    return sum;
}

void zipf_init(struct zipf *z, uint64_t n, double theta)
{
    z->n = n;
    z->alpha = 1 / (1 - theta);
    z->zeta = zeta(n, theta);
    z->second = 1 + pow(0.5, theta);
    z->eta = (1 - pow(2.0 / (double)n, 1 - theta)) / (1 - zeta(2, theta) / z->zeta);
}

uint64_t zipf_next(const struct zipf *z, struct prng *p)
{
    double u = prng_unit(p), uz = u * z->zeta;
    if (uz < 1 || z->n == 1)
        return 0;
    if (uz < z->second || z->n == 2)
        return 1;
    uint64_t rank = (uint64_t)((double)z->n * pow(z->eta * u - z->eta + 1, z->alpha));
    return rank < z->n ? rank : z->n - 1;
}

void permutation_init(struct permutation *p, uint64_t n, uint64_t seed)
{
    unsigned bits = n > 1 ? 64 - (unsigned)__builtin_clzll(n - 1) : 1;
    p->n = n;
    p->mask = bits == 64 ? UINT64_MAX : (1ull << bits) - 1;
    p->shift = (bits + 1) / 2;
    p->seed = prng_mix(seed);
}

/* Each step (xor with the seed, odd factor, sum, xor with itself shifted right; all modulo a power of two) is
 * a bijection of the next power of two; what falls outside of 0..n-1 is mapped again until it is inside,
 * fewer than twice on average. */
uint64_t permutation_at(const struct permutation *p, uint64_t i)
{
    do {
        i = ((i ^ p->seed) * 0xd1342543de82ef95u) & p->mask;
        i ^= i >> p->shift;
        i = (i * 0xaf251af3b0f025b5u + (p->seed >> 32)) & p->mask;
        i ^= i >> p->shift;
        i = (i * 0x9fb21c651e98df25u) & p->mask;
        i ^= i >> p->shift;
    } while (i >= p->n);
    return i;
}
