/* prng: pseudo-random numbers, Zipf-distributed ranks and permutations; reproducible from a seed, not for
 * secrets.
 *
 * Thread safety: a generator belongs to one thread; struct zipf and struct permutation are read-only once
 * made. Sources: xoshiro256** (Blackman, Vigna); Zipf after Gray et al., "Quickly Generating Billion-Record
 * Synthetic Databases", as YCSB uses it. */
#ifndef KVASIR_BASE_PRNG_H
#define KVASIR_BASE_PRNG_H

#include <stdint.h>

struct prng {
    uint64_t state[4];
};

void prng_seed(struct prng *p, uint64_t seed);

/* splitmix64's mixing function: a bijection whose results look random. */
static inline uint64_t prng_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static inline uint64_t prng_next(struct prng *p)
{
    uint64_t *s = p->state;
    uint64_t x = s[1] * 5, result = ((x << 7) | (x >> 57)) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return result;
}

/* Uniform in 0..n-1, n > 0 (bias below n / 2^64). */
static inline uint64_t prng_below(struct prng *p, uint64_t n)
{
    return (uint64_t)(((unsigned __int128)prng_next(p) * n) >> 64);
}

/* Uniform in [0, 1). */
static inline double prng_unit(struct prng *p)
{
    return (double)(prng_next(p) >> 11) * 0x1p-53;
}

struct zipf {
    uint64_t n;
    double alpha, zeta, eta, second;
};

/* Ranks 0..n-1, rank r with weight 1/(r+1)^theta; 0 < theta < 1. */
void zipf_init(struct zipf *z, uint64_t n, double theta);
uint64_t zipf_next(const struct zipf *z, struct prng *p);

struct permutation {
    uint64_t n, mask;
    unsigned shift;
    uint64_t seed;
};

/* A pseudo-random bijection of 0..n-1, n > 0. */
void permutation_init(struct permutation *p, uint64_t n, uint64_t seed);
uint64_t permutation_at(const struct permutation *p, uint64_t i);

#endif
