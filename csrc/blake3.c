/* blake3.c: the tree of BLAKE3 (paper, section 2.4 and 5.1): chunks, parents, the root.
 *
 * Two ways through it. Up to TILE chunks at once, `hash_flat`: the chaining values of all chunks side
 * by side, then level by level up to the root; a tree in which the odd node of each level goes up
 * unchanged is the left-balanced tree that the paper asks for. Longer or streamed input, `ls_blake3`:
 * whole subtrees of a power of two of chunks, on a stack that is merged one step late, because
 * whatever turns out to be the last merge is the root and needs its flag.
 *
 * Cost: one pass; 8 KiB of stack. Nothing is allocated, nothing fails. */
#include "blake3_impl.h"

#define TILE 256     /* chunks: 256 KiB, so that every chunk of a store goes the flat way */
#define MAX_DEPTH 56 /* 2^54 chunks are 2^64 bytes; two more, as merging is late */

struct ls_blake3 {
    const ls_b3_path *path;
    uint64_t chunks; /* whole ones before the current one */
    uint32_t key[8];
    uint32_t flags;
    /* The current chunk: blocks that are in `cv`, and bytes that wait in `block`. */
    uint32_t cv[8];
    uint32_t blocks;
    uint32_t fill;
    uint32_t depth;
    uint8_t block[LS_B3_BLOCK];
    uint8_t stack[MAX_DEPTH * LS_BLAKE3_LEN];
};

/* ---- which path ---------------------------------------------------------------------------- */

uint32_t ls_simd_supported(void) {
    uint32_t mask = 1u << LS_SIMD_PORTABLE;
#ifdef LS_B3_X86
    if (__builtin_cpu_supports("avx2"))
        mask |= 1u << LS_SIMD_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"))
        mask |= 1u << LS_SIMD_AVX512;
#endif
#ifdef LS_B3_NEON
    mask |= 1u << LS_SIMD_NEON;
#endif
    return mask;
}

static const ls_b3_path *path_for(int simd) {
    uint32_t can = ls_simd_supported();
    if (simd != LS_SIMD_AUTO)
        can &= simd > 0 && simd < 32 ? 1u << simd : 0;
#ifdef LS_B3_X86
    if (can & 1u << LS_SIMD_AVX512)
        return &ls_b3_avx512;
    if (can & 1u << LS_SIMD_AVX2)
        return &ls_b3_avx2;
#endif
#ifdef LS_B3_NEON
    if (can & 1u << LS_SIMD_NEON)
        return &ls_b3_neon;
#endif
    (void)can;
    return &ls_b3_portable;
}

static uint32_t load_key(uint32_t words[8], const uint8_t *key) {
    static const uint32_t iv[8] = LS_B3_IV;
    for (size_t i = 0; i < 8; i++)
        words[i] = key ? ls_b3_load(key + 4 * i) : iv[i];
    return key ? LS_B3_KEYED : 0;
}

static void store_cv(uint8_t out[LS_BLAKE3_LEN], const uint32_t cv[8]) {
    for (size_t i = 0; i < 8; i++)
        ls_b3_store(out + 4 * i, cv[i]);
}

/* ---- nodes --------------------------------------------------------------------------------- */

/* One chunk of 0 to 1024 bytes; `flags` may hold ROOT, which goes to its last block. */
static void hash_chunk(const ls_b3_path *path, const uint32_t key[8], uint32_t flags,
                       const uint8_t *data, size_t size, uint64_t counter, uint8_t *out) {
    uint32_t cv[8], first = LS_B3_CHUNK_START, inner = flags & ~LS_B3_ROOT;
    size_t before = size ? (size - 1) / LS_B3_BLOCK : 0, length = size - before * LS_B3_BLOCK;
    const uint8_t *last = data + before * LS_B3_BLOCK;
    uint8_t padded[LS_B3_BLOCK];
    memcpy(cv, key, sizeof cv);
    if (before) {
        path->blocks(cv, data, before, counter, inner, first);
        first = 0;
    }
    if (length < LS_B3_BLOCK) {
        memset(padded, 0, sizeof padded);
        if (length)
            memcpy(padded, last, length);
        last = padded;
    }
    path->block(cv, last, (uint32_t)length, counter, flags | first | LS_B3_CHUNK_END);
    store_cv(out, cv);
}

static void hash_parent(const ls_b3_path *path, const uint32_t key[8], uint32_t flags,
                        const uint8_t *children, uint8_t *out) {
    uint32_t cv[8];
    memcpy(cv, key, sizeof cv);
    path->block(cv, children, LS_B3_BLOCK, 0, flags | LS_B3_PARENT);
    store_cv(out, cv);
}

/* The chaining values of all chunks of `data`, the last of which may be a part of one. */
static void hash_chunks(const ls_b3_path *path, const uint32_t key[8], uint32_t flags,
                        const uint8_t *data, size_t size, uint64_t counter, uint8_t *out) {
    while (size) {
        ls_b3_job job;
        size_t whole = size / LS_B3_CHUNK, rest = size % LS_B3_CHUNK;
        size_t tap = rest ? (rest - 1) / LS_B3_BLOCK : 0, n = whole;
        uint8_t padded[LS_B3_CHUNK];
        size_t need = whole < path->max_lanes ? path->min_tap[whole] : 0;
        int share = need && tap >= need;
        if (n > path->max_lanes)
            n = path->max_lanes;
        if (n < 2 && !share) {
            size_t length = size < LS_B3_CHUNK ? size : LS_B3_CHUNK;
            hash_chunk(path, key, flags, data, length, counter, out);
            data += length;
            size -= length;
            out += LS_BLAKE3_LEN;
            counter++;
            continue;
        }
        job.blocks = LS_B3_CHUNK_BLOCKS;
        job.key = key;
        job.flags = flags;
        job.first = LS_B3_CHUNK_START;
        job.last = LS_B3_CHUNK_END;
        job.tap = 0;
        for (job.n = 0; job.n < n; job.n++) {
            job.in[job.n] = data + job.n * LS_B3_CHUNK;
            job.counter[job.n] = counter + job.n;
        }
        data += n * LS_B3_CHUNK;
        size -= n * LS_B3_CHUNK;
        counter += n;
        if (share) {
            memcpy(padded, data, rest);
            memset(padded + rest, 0, sizeof padded - rest);
            job.in[job.n] = padded;
            job.counter[job.n++] = counter;
            job.tap = tap;
        }
        path->lanes(&job, out);
        out += n * LS_BLAKE3_LEN;
        if (share) {
            path->block(job.tapped, padded + tap * LS_B3_BLOCK,
                        (uint32_t)(rest - tap * LS_B3_BLOCK), counter, flags | LS_B3_CHUNK_END);
            store_cv(out, job.tapped);
            return;
        }
    }
}

/* Merges `n` chaining values, in place, until two are left (or the one there was). */
static void merge_levels(const ls_b3_path *path, const uint32_t key[8], uint32_t flags,
                         uint8_t *cvs, size_t n) {
    while (n > 2) {
        size_t pairs = n / 2;
        for (size_t done = 0; done < pairs;) {
            ls_b3_job job;
            job.n = pairs - done < path->max_lanes ? pairs - done : path->max_lanes;
            if (job.n == 1) {
                hash_parent(path, key, flags, cvs + 64 * done, cvs + 32 * done);
                done++;
                continue;
            }
            job.blocks = 1;
            job.key = key;
            job.flags = flags | LS_B3_PARENT;
            job.first = job.last = 0;
            job.tap = 0;
            for (size_t i = 0; i < job.n; i++) {
                job.in[i] = cvs + 64 * (done + i);
                job.counter[i] = 0;
            }
            path->lanes(&job, cvs + 32 * done);
            done += job.n;
        }
        if (n & 1)
            memcpy(cvs + 32 * pairs, cvs + 32 * (n - 1), LS_BLAKE3_LEN);
        n = pairs + (n & 1);
    }
}

/* All of an input of at most TILE chunks. */
static void hash_flat(const ls_b3_path *path, const uint32_t key[8], uint32_t flags,
                      const uint8_t *data, size_t size, uint8_t *out) {
    uint8_t cvs[TILE * LS_BLAKE3_LEN];
    if (size <= LS_B3_CHUNK) {
        hash_chunk(path, key, flags | LS_B3_ROOT, data, size, 0, out);
        return;
    }
    hash_chunks(path, key, flags, data, size, 0, cvs);
    merge_levels(path, key, flags, cvs, (size + LS_B3_CHUNK - 1) / LS_B3_CHUNK);
    hash_parent(path, key, flags | LS_B3_ROOT, cvs, out);
}

/* ---- streamed ------------------------------------------------------------------------------ */

size_t ls_blake3_sizeof(void) {
    return sizeof(ls_blake3);
}

static void begin_chunk(ls_blake3 *h) {
    memcpy(h->cv, h->key, sizeof h->cv);
    h->blocks = h->fill = 0;
}

static void init_with(ls_blake3 *h, const ls_b3_path *path, const uint32_t key[8], uint32_t flags) {
    h->path = path;
    h->chunks = 0;
    memcpy(h->key, key, sizeof h->key);
    h->flags = flags;
    h->depth = 0;
    begin_chunk(h);
}

void ls_blake3_init(ls_blake3 *h, int simd, const uint8_t *key) {
    uint32_t words[8], flags = load_key(words, key);
    init_with(h, path_for(simd), words, flags);
}

/* Makes good what was put off: there is more input, so none of these merges is the root. */
static void merge_stack(ls_blake3 *h) {
    uint32_t due = (uint32_t)__builtin_popcountll(h->chunks);
    for (; h->depth > due; h->depth--) {
        uint8_t *pair = h->stack + LS_BLAKE3_LEN * (h->depth - 2);
        hash_parent(h->path, h->key, h->flags, pair, pair);
    }
}

/* Adds to the current chunk, which keeps its last block back: it may be the end. */
static void fill_chunk(ls_blake3 *h, const uint8_t *data, size_t size) {
    while (size) {
        uint32_t first = h->blocks ? 0 : LS_B3_CHUNK_START;
        if (h->fill == LS_B3_BLOCK) {
            h->path->blocks(h->cv, h->block, 1, h->chunks, h->flags, first);
            h->blocks++;
            h->fill = 0;
            continue;
        }
        size_t n;
        if (!h->fill && size > LS_B3_BLOCK) {
            n = (size - 1) / LS_B3_BLOCK;
            h->path->blocks(h->cv, data, n, h->chunks, h->flags, first);
            h->blocks += (uint32_t)n;
            n *= LS_B3_BLOCK;
        } else {
            n = LS_B3_BLOCK - h->fill < size ? LS_B3_BLOCK - h->fill : size;
            memcpy(h->block + h->fill, data, n);
            h->fill += (uint32_t)n;
        }
        data += n;
        size -= n;
    }
}

static void end_chunk(const ls_blake3 *h, uint32_t cv[8]) {
    uint8_t padded[LS_B3_BLOCK] = {0};
    memcpy(padded, h->block, h->fill);
    memcpy(cv, h->cv, sizeof h->cv);
    h->path->block(cv, padded, h->fill, h->chunks,
                   h->flags | LS_B3_CHUNK_END | (h->blocks ? 0 : LS_B3_CHUNK_START));
}

/* How many of `whole` chunks make one aligned subtree. */
static size_t subtree(uint64_t chunks, size_t whole) {
    size_t n = TILE;
    while (n > whole || (chunks & (n - 1)))
        n /= 2;
    return n;
}

void ls_blake3_update(ls_blake3 *h, const uint8_t *data, size_t size) {
    uint8_t cvs[TILE * LS_BLAKE3_LEN];
    while (size) {
        size_t have = h->blocks * LS_B3_BLOCK + h->fill, n;
        merge_stack(h);
        if (have == LS_B3_CHUNK) {
            uint32_t cv[8];
            end_chunk(h, cv);
            store_cv(h->stack + LS_BLAKE3_LEN * h->depth++, cv);
            h->chunks++;
            begin_chunk(h);
            continue;
        }
        if (have || size <= LS_B3_CHUNK) {
            n = LS_B3_CHUNK - have < size ? LS_B3_CHUNK - have : size;
            fill_chunk(h, data, n);
        } else {
            size_t chunks = subtree(h->chunks, size / LS_B3_CHUNK);
            size_t keep = chunks > 1 ? 2 : 1; /* the top of the subtree may be the root */
            n = chunks * LS_B3_CHUNK;
            hash_chunks(h->path, h->key, h->flags, data, n, h->chunks, cvs);
            merge_levels(h->path, h->key, h->flags, cvs, chunks);
            memcpy(h->stack + LS_BLAKE3_LEN * h->depth, cvs, keep * LS_BLAKE3_LEN);
            h->depth += (uint32_t)keep;
            h->chunks += chunks;
        }
        data += n;
        size -= n;
    }
}

void ls_blake3_final(const ls_blake3 *h, uint8_t *out, size_t out_size) {
    uint8_t node[LS_B3_BLOCK] = {0}, block[LS_B3_BLOCK];
    uint32_t depth = h->depth, length = h->fill, flags = h->flags, cv[8];
    if (!depth) { /* one chunk, whose last block is the root */
        memcpy(cv, h->cv, sizeof cv);
        memcpy(node, h->block, h->fill);
        flags |= LS_B3_CHUNK_END | (h->blocks ? 0 : LS_B3_CHUNK_START);
    } else {
        uint8_t *right = node + LS_BLAKE3_LEN;
        if (h->blocks || h->fill) {
            end_chunk(h, cv);
            store_cv(right, cv);
        } else
            memcpy(right, h->stack + LS_BLAKE3_LEN * --depth, LS_BLAKE3_LEN);
        for (;; depth--) {
            memcpy(node, h->stack + LS_BLAKE3_LEN * (depth - 1), LS_BLAKE3_LEN);
            if (depth == 1)
                break;
            hash_parent(h->path, h->key, h->flags, node, right);
        }
        memcpy(cv, h->key, sizeof cv);
        length = LS_B3_BLOCK;
        flags |= LS_B3_PARENT;
    }
    for (uint64_t counter = 0; out_size; counter++) {
        size_t n = out_size < sizeof block ? out_size : sizeof block;
        ls_b3_output(cv, node, length, counter, flags | LS_B3_ROOT, block);
        memcpy(out, block, n);
        out += n;
        out_size -= n;
    }
}

/* ---- at once ------------------------------------------------------------------------------- */

static void hash_one(const ls_b3_path *path, const uint32_t key[8], uint32_t flags,
                     const uint8_t *data, size_t size, uint8_t *out) {
    if (size <= (size_t)TILE * LS_B3_CHUNK) {
        hash_flat(path, key, flags, data, size, out);
        return;
    }
    ls_blake3 h;
    init_with(&h, path, key, flags);
    ls_blake3_update(&h, data, size);
    ls_blake3_final(&h, out, LS_BLAKE3_LEN);
}

void ls_blake3_hash(int simd, const uint8_t *key, const uint8_t *data, size_t size,
                    uint8_t *out32) {
    uint32_t words[8], flags = load_key(words, key);
    hash_one(path_for(simd), words, flags, data, size, out32);
}

void ls_blake3_many(int simd, const uint8_t *key, const uint8_t *base, const ls_extent *ext,
                    size_t n, uint8_t *out) {
    const ls_b3_path *path = path_for(simd);
    uint32_t words[8], flags = load_key(words, key);
    for (size_t i = 0; i < n; i++)
        hash_one(path, words, flags, base + ext[i].offset, (size_t)ext[i].length,
                 out + LS_BLAKE3_LEN * i);
}
