/* model_kp7.c: klauspost/compress at levels 7 to 9 (and Go's from 1.27 on).
 *
 * A lazy search along chains by a hash of 4 bytes, in a window of 64 KiB that moves by 32 KiB: nothing before
 * its start is found, and at its end a run of literals is cut short. A match that the next position does not
 * better is compared with one that ends alike. After many literals, some are passed over. Level 9 weighs a
 * match by the bits that its bytes would take as literals, by a code made where the window moved. Blocks end
 * at 32,768 tokens. FORMAT.md, "Models", has it in full.
 *
 * The encoder's loop gives tokens in bursts, which wait in a queue. A correction empties the queue, and the
 * search begins anew behind it. */
#include <string.h>

#include "kp_impl.h"
#include "trees_go.h"

#define HASH_BITS KP7_HASH_BITS
#define WINDOW KP_WINDOW
#define MIN_LENGTH 4u
#define LOOK (MIN_LENGTH + MAX_MATCH)
#define CHECK_OFFSET 2u
#define WARM (3 * WINDOW)
#define CRC_32C 0x82f63b78u
#define FEW_FAR 4096u /* up to 1.13: so far a match of 4 bytes counts */

static void make_crc(ls_kp7 *k) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int byte = 3; byte >= 0; byte--) {
            for (int j = 0; j < 8; j++)
                c = c & 1 ? CRC_32C ^ c >> 1 : c >> 1;
            k->crc[byte][i] = c;
        }
    }
}

INLINE uint32_t hash_at(const ls_kp7 *k, uint32_t p, enum ls_kp7_age age) {
    const uint8_t *b = k->b + p;
    if (age == KP7_UNTIL_18)
        return (k->crc[0][b[0]] ^ k->crc[1][b[1]] ^ k->crc[2][b[2]] ^ k->crc[3][b[3]]) &
               ((1u << HASH_BITS) - 1);
    uint32_t v = le32(b);
    if (age == KP7_SINCE_19)
        v = v >> 24 | (v >> 8 & 0xff00) | (v << 8 & 0xff0000) | v << 24;
    return kp_hash4(v, HASH_BITS);
}

INLINE void insert(ls_kp7 *k, uint32_t p, enum ls_kp7_age age) {
    uint32_t h = hash_at(k, p, age);
    k->head = (int64_t)k->heads[h] - 1;
    k->chain[p & (WINDOW - 1)] = k->heads[h];
    k->heads[h] = p + 1;
    if (k->filled <= p)
        k->filled = p + 1;
}

/* As the loop does at its positions; where a correction led back, they are there already. */
INLINE void enter(ls_kp7 *k, enum ls_kp7_age age) {
    if (k->index >= k->insert_end)
        return;
    if (k->index < k->filled)
        k->head = (int64_t)k->chain[k->index & (WINDOW - 1)] - 1;
    else
        insert(k, k->index, age);
}

/* log2 of n >= 1, times 2^32. */
static uint64_t log2_of(uint32_t n) {
    uint32_t whole = 31;
    while (!(n >> whole))
        whole--;
    uint64_t x = (uint64_t)n << (31 - whole), part = 0;
    for (int i = 0; i < 32; i++) {
        x = x * x >> 31;
        part = part << 1 | x >> 32;
        x >>= x >> 32;
    }
    return (uint64_t)whole << 32 | part;
}

/* 1.14.0: the bits of a byte by the entropy of these, and one. Each value's share is rounded up. */
static uint32_t entropy(const uint8_t *b, uint32_t n) {
    uint32_t counts[256] = {0};
    for (uint32_t i = 0; i < n; i++)
        counts[b[i]]++;
    uint64_t sum = 0;
    for (int i = 0; i < 256; i++)
        if (counts[i])
            sum += (counts[i] * (log2_of(n) - log2_of(counts[i])) + 0xffffffff) >> 32;
    return 1 + (uint32_t)(sum / n);
}

/* The window is where it must be for the loop at index. */
static void move(ls_kp7 *k, const ls_kp7_parameters *p, int first) {
    int64_t since = (int64_t)k->index - k->origin, moved = 0;
    int64_t last = 2 * (int64_t)WINDOW - LOOK;
    if (since > last)
        moved = (since - last - 1) / WINDOW + 1;
    int64_t base = k->origin + moved * WINDOW;
    if (base == k->base && !first)
        return;
    k->base = base;
    int64_t end = base + 2 * WINDOW;
    k->window_end = end < (int64_t)k->end ? (uint32_t)end : k->end;
    k->insert_end = k->window_end < MIN_LENGTH - 1 ? 0 : k->window_end - (MIN_LENGTH - 1);
    if (p->weighs == KP7_BY_ENTROPY) {
        /* What is not followed by more is searched when the input ends, and nothing is measured then. */
        int64_t from = first && moved ? base + WINDOW - LOOK + 1 : k->index;
        int full = end < (int64_t)k->end && from >= 0 && from < end;
        k->bits = full ? entropy(k->b + from, (uint32_t)(end - from)) : 8;
        return;
    }
    if (!p->weighs || k->index >= k->window_end)
        return;
    uint32_t counts[256] = {0}, stop = k->window_end;
    if (stop - k->index > p->sample)
        stop = k->index + p->sample;
    for (uint32_t i = k->index; i < stop; i++)
        counts[k->b[i]]++;
    for (int i = 0; i < 256; i++)
        counts[i] &= 0xffff;
    ls_code code;
    (p->unlimited ? ls_go_code_120 : ls_go_code)(counts, 256, MAX_BITS, &code);
    memcpy(k->weights, code.lengths, sizeof k->weights);
}

static void put(ls_kp7 *k, ls_token t) {
    k->queue[k->queued++] = t;
}

static void put_literal(ls_kp7 *k, uint32_t p) {
    put(k, k->b[p]);
}

/* What a match saves against literals, in bits, about. The distance's extra bits are those of the next
 * distance, and of 32,768 those of symbol 14: the encoder looks it up that way. */
static int32_t gain(const ls_kp7 *k, const ls_kp7_parameters *p, uint32_t pos, uint32_t length,
                    uint32_t dist) {
    if (p->weighs == KP7_BY_ENTROPY)
        return (int32_t)(length * k->bits) - (32 - __builtin_clz(dist));
    int32_t bits = 0;
    for (uint32_t i = 0; i < length; i++)
        bits += k->weights[k->b[pos + i]];
    uint32_t symbol = dist == 32768 ? 14 : ls_dist_symbol(dist + 1);
    uint32_t extra = length == MAX_MATCH ? 0 : ls_length_extra[ls_length_symbol[length]];
    return bits - ls_dist_extra[symbol] - p->cost - (int32_t)extra;
}

INLINE int find(const ls_kp7 *k, const ls_kp7_parameters *p, uint32_t pos, int64_t candidate,
                uint32_t look, int64_t least_index, enum ls_kp7_age age, uint32_t *length,
                uint32_t *dist) {
    uint32_t most = look < MAX_MATCH ? look : MAX_MATCH;
    uint32_t nice = p->nice < most ? p->nice : most, best = MIN_LENGTH - 1;
    int32_t best_gain =
        p->weighs == KP7_BY_ENTROPY ? (int32_t)(MIN_LENGTH * k->bits) - 12 : p->least;
    int found = 0;
    const uint8_t *here = k->b + pos;
    for (uint32_t tries = p->chain; tries; tries--) {
        if (candidate >= (int64_t)pos)
            break;
        uint32_t i = (uint32_t)candidate;
        if (k->b[i + best] == here[best]) {
            uint32_t n = same(k->b, pos, i, pos + most);
            if (n > best && (age < KP7_SINCE_19 || n > MIN_LENGTH || pos - i <= FEW_FAR)) {
                int32_t g = p->weighs ? gain(k, p, pos, n, pos - i) : INT32_MAX;
                if (g > best_gain) {
                    best = n;
                    *dist = pos - i;
                    if (p->weighs)
                        best_gain = g;
                    found = 1;
                    if (n >= nice)
                        break;
                }
            }
        }
        if (candidate <= least_index)
            break;
        candidate = (int64_t)k->chain[i & (WINDOW - 1)] - 1;
        if (candidate < least_index)
            break;
    }
    *length = best;
    return found;
}

/* Before a match is taken that began at the position before the loop's: another that ends alike, if it is
 * longer. What is not equal at its beginning becomes literals. */
INLINE void other(ls_kp7 *k, uint32_t look, int64_t least, uint32_t *length, uint32_t *dist) {
    const uint8_t *b = k->b;
    uint32_t prior = k->index - 1, before = *length;
    if (before >= MAX_MATCH - CHECK_OFFSET || prior + before >= k->insert_end)
        return;
    uint32_t end = prior + (look < MAX_MATCH + CHECK_OFFSET ? look : MAX_MATCH + CHECK_OFFSET);
    int64_t from = (int64_t)k->heads[hash_at(k, prior + before, KP7_SINCE_115_15)] - 1 - before;
    if ((int64_t)prior - from == *dist || from <= least + CHECK_OFFSET || from >= (int64_t)prior ||
        from < 0)
        return;
    uint32_t t = (uint32_t)from;
    uint32_t n = same(b, prior + CHECK_OFFSET, t + CHECK_OFFSET, end);
    if (n <= before)
        return;
    *dist = prior - t;
    for (uint32_t i = CHECK_OFFSET; i-- > 0; n++) {
        if (n >= MAX_MATCH || b[prior + i] != b[t + i]) {
            for (uint32_t j = 0; j <= i; j++) {
                put_literal(k, prior + j);
                k->index++;
                enter(k, KP7_SINCE_115_15);
            }
            break;
        }
    }
    *length = n;
}

/* Up to 1.15.14: its last two bytes and the two behind them are looked for, and it is compared whole. */
INLINE void other_early(ls_kp7 *k, uint32_t look, int64_t least, uint32_t *length, uint32_t *dist) {
    uint32_t prior = k->index - 1, before = *length;
    if (prior + before + CHECK_OFFSET >= k->insert_end)
        return;
    uint32_t end = prior + (look < MAX_MATCH ? look : MAX_MATCH), at = before - CHECK_OFFSET;
    int64_t from = (int64_t)k->heads[hash_at(k, prior + at, KP7_SINCE_114_4)] - 1 - at;
    if (from <= least || from >= (int64_t)prior || from < 0)
        return;
    uint32_t n = same(k->b, prior, (uint32_t)from, end);
    if (n > before) {
        *length = n;
        *dist = prior - (uint32_t)from;
    }
}

/* One turn of the encoder's loop: some tokens, or none. */
INLINE void turn_of(ls_kp7 *k, const ls_kp7_parameters *p, enum ls_kp7_age age) {
    move(k, p, 0);
    uint32_t look = k->window_end > k->index ? k->window_end - k->index : 0;
    if (!look) {
        if (k->waiting)
            put_literal(k, k->index - 1);
        k->waiting = 0;
        return;
    }
    enter(k, age);
    uint32_t before = k->length, before_dist = k->dist;
    k->length = MIN_LENGTH - 1;
    k->dist = 0;
    int64_t least = (int64_t)k->index - WINDOW;
    if (least < k->base)
        least = k->base;
    if (k->head >= least && k->head >= 0 && look > before && before < p->lazy) {
        uint32_t length, dist = 0;
        if (find(k, p, k->index, k->head, look, least, age, &length, &dist)) {
            k->length = length;
            k->dist = dist;
        }
    }
    if (before >= MIN_LENGTH && k->length <= before) {
        if (age == KP7_SINCE_115_15)
            other(k, look, least, &before, &before_dist);
        else if (age == KP7_SINCE_114_4)
            other_early(k, look, least, &before, &before_dist);
        put(k, before_dist << 16 | before);
        uint32_t to = k->index + before - 1, stop = to < k->insert_end ? to : k->insert_end;
        for (uint32_t i = k->index + 1; i < stop; i++)
            if (i >= k->filled)
                insert(k, i, age);
        k->index = to;
        k->waiting = 0;
        k->length = MIN_LENGTH - 1;
        if (age < KP7_SINCE_19)
            k->misses = 0;
        return;
    }
    if (k->length >= MIN_LENGTH)
        k->misses = 0;
    if (!k->waiting) {
        k->index++;
        k->waiting = 1;
        return;
    }
    k->misses++;
    put_literal(k, k->index - 1);
    k->index++;
    int32_t over;
    if (age >= KP7_SINCE_19) {
        over = k->misses >> (age == KP7_SINCE_19 ? 5 : 6);
        if (k->misses < 32)
            return;
    } else {
        over = (int32_t)k->misses - (int32_t)p->chain;
        if (over <= 0)
            return;
        over = 1 + (over >> 6);
    }
    for (int32_t j = 0; j < over; j++) {
        if (k->index + 1 >= k->window_end)
            break;
        put_literal(k, k->index - 1);
        if (age < KP7_SINCE_19)
            enter(k, age);
        k->index++;
    }
    put_literal(k, k->index - 1);
    k->waiting = 0;
}

static void turn(ls_kp7 *k, const ls_kp7_parameters *p) {
    switch (p->age) {
    case KP7_SINCE_115_15:
        turn_of(k, p, KP7_SINCE_115_15);
        break;
    case KP7_SINCE_114_4:
        turn_of(k, p, KP7_SINCE_114_4);
        break;
    case KP7_SINCE_19:
        turn_of(k, p, KP7_SINCE_19);
        break;
    default:
        turn_of(k, p, KP7_UNTIL_18);
    }
}

/* The next token as predicted: 0 if there is none. */
static int next(ls_kp7 *k, const ls_kp7_parameters *p, ls_token *t) {
    if (k->taken == k->queued) {
        k->taken = k->queued = 0;
        while (!k->queued) {
            if (k->index >= k->end && !k->waiting)
                return 0;
            turn(k, p);
        }
    }
    *t = k->queue[k->taken++];
    return 1;
}

/* After a token that was not predicted, or what has become of it unknown: the search begins at `at`. */
static void restart(ls_kp7 *k, const ls_kp7_parameters *p) {
    k->taken = k->queued = 0;
    k->index = k->at;
    k->waiting = 0;
    k->length = MIN_LENGTH - 1;
    k->dist = 0;
    move(k, p, 0);
    for (uint32_t i = k->filled; i < k->at && i < k->insert_end; i++)
        insert(k, i, p->age);
}

static uint32_t size_of(ls_token t) {
    return t < 256 ? 1 : t & 0xffff;
}

static int fits(const ls_kp7 *k, ls_token t) {
    if (k->at >= k->size)
        return 0;
    if (t < 256)
        return k->b[k->at] == t;
    uint32_t length = t & 0xffff, dist = t >> 16;
    return length >= MIN_MATCH && length <= MAX_MATCH && dist >= 1 && dist <= WINDOW &&
           dist <= k->at && k->size - k->at >= length &&
           memcmp(k->b + k->at, k->b + k->at - dist, length) == 0;
}

static void skip_to(ls_kp7 *k, const ls_kp7_parameters *p, uint32_t to) {
    while (k->at < to) {
        ls_token t;
        if (!next(k, p, &t))
            break;
        k->at += size_of(t);
    }
    if (k->at != to) {
        k->at = to;
        restart(k, p);
    }
}

void ls_kp7_begin(const ls_model *model, void *state, const ls_span *span) {
    ls_kp7 *k = state;
    const ls_kp7_parameters *p = model->parameters;
    memset(k, 0, sizeof *k);
    uint64_t since = span->at - span->flushed;
    uint32_t dictionary = span->flushed >= KP_DICTIONARY ? KP_DICTIONARY : 0;
    uint64_t warm = since <= WARM ? since : WARM;
    uint32_t kept = (uint32_t)(span->before < model->history ? span->before : model->history);
    if (warm > kept)
        warm = kept;
    k->b = span->data - kept;
    k->size = kept + (uint32_t)span->size;
    k->end = k->size + (uint32_t)(span->after < model->ahead ? span->after : model->ahead);
    k->span_at = kept;
    k->origin = (int64_t)kept - (int64_t)since - (int64_t)dictionary;
    k->head = -1;
    if (p->age == KP7_UNTIL_18)
        make_crc(k);
    k->at = k->index = k->filled = kept - (uint32_t)warm;
    k->length = MIN_LENGTH - 1;
    if (warm == since && warm + dictionary <= kept) {
        /* The dictionary enters the chains, but for its last three positions, which would take more. */
        uint32_t from = k->at - dictionary;
        for (uint32_t i = from; i + MIN_LENGTH <= k->at; i++)
            insert(k, i, p->age);
        k->head = -1;
        k->filled = k->at;
    }
    move(k, p, 1);
    skip_to(k, p, kept);
}

int ls_kp7_verify(const ls_model *model, void *state, ls_asking *a) {
    ls_kp7 *k = state;
    const ls_kp7_parameters *p = model->parameters;
    for (size_t i = 0; i < a->n; i++) {
        ls_token t = 0, actual = a->tokens[i];
        int there = next(k, p, &t);
        if (!fits(k, actual))
            return LS_EFORMAT;
        k->at += size_of(actual);
        if (there && t == actual)
            continue;
        if (a->count >= a->capacity)
            return LS_ELIMIT;
        a->corrections[a->count].index = (uint32_t)(a->index + i);
        a->corrections[a->count++].actual = actual;
        restart(k, p);
    }
    return LS_OK;
}

int ls_kp7_make(const ls_model *model, void *state, ls_asking *a, size_t count, size_t until) {
    ls_kp7 *k = state;
    const ls_kp7_parameters *p = model->parameters;
    size_t room = a->n, i = 0;
    if (until > k->size - k->span_at)
        return LS_EFORMAT;
    uint32_t stop = count ? k->size : k->span_at + (uint32_t)until;
    for (; count ? i < count : k->at < stop; i++) {
        if (i == room) {
            a->n = i;
            return LS_ESPACE;
        }
        ls_token t;
        int there = next(k, p, &t);
        if (a->next < a->count && a->corrections[a->next].index == a->index + i) {
            t = a->corrections[a->next++].actual;
            if (t < 256 && k->at < k->size)
                t = k->b[k->at];
            if (!fits(k, t))
                return LS_EFORMAT;
            k->at += size_of(t);
            restart(k, p);
        } else {
            if (!there || size_of(t) > stop - k->at)
                return LS_EFORMAT;
            k->at += size_of(t);
        }
        a->tokens[i] = t;
    }
    a->n = i;
    return LS_OK;
}

int ls_kp7_skip(const ls_model *model, void *state, size_t size) {
    ls_kp7 *k = state;
    if (size > k->size - k->at)
        return LS_EFORMAT;
    skip_to(k, model->parameters, k->at + (uint32_t)size);
    return LS_OK;
}

const ls_kp7_parameters ls_kp7_level7 = {12, 16, 24, 0, 0, 0, 0, 0, KP7_SINCE_115_15};
const ls_kp7_parameters ls_kp7_level8 = {30, 40, 64, 0, 0, 0, 0, 0, KP7_SINCE_115_15};
const ls_kp7_parameters ls_kp7_level9 = {258, 258, 1024, 1, 0, 32768, 3, 4, KP7_SINCE_115_15};
const ls_kp7_parameters ls_kp7_level9_120 = {258, 258, 1024, 1, 1, 32768, 3, 4, KP7_SINCE_115_15};
const ls_kp7_parameters ls_kp7_level9_whole = {258, 258, 1024, 1, 0, 65536, 3, 4, KP7_SINCE_115_15};
const ls_kp7_parameters ls_kp7_level7_114 = {12, 16, 24, 0, 0, 0, 0, 0, KP7_SINCE_114_4};
const ls_kp7_parameters ls_kp7_level8_114 = {30, 40, 64, 0, 0, 0, 0, 0, KP7_SINCE_114_4};
const ls_kp7_parameters ls_kp7_level9_114 = {258, 258, 1024, 1, 0, 65536, 6, 0, KP7_SINCE_114_4};
const ls_kp7_parameters ls_kp7_level7_1140 = {10, 12, 16, KP7_BY_ENTROPY, 0,
                                              0,  0,  0,  KP7_SINCE_114_4};
const ls_kp7_parameters ls_kp7_level8_1140 = {24, 32, 64, KP7_BY_ENTROPY, 0,
                                              0,  0,  0,  KP7_SINCE_114_4};
const ls_kp7_parameters ls_kp7_level9_1140 = {258, 258, 1024, KP7_BY_ENTROPY, 0,
                                              0,   0,   0,    KP7_SINCE_114_4};
const ls_kp7_parameters ls_kp7_level7_19 = {8, 24, 16, 0, 0, 0, 0, 0, KP7_SINCE_19};
const ls_kp7_parameters ls_kp7_level8_19 = {16, 24, 64, 0, 0, 0, 0, 0, KP7_SINCE_19};
const ls_kp7_parameters ls_kp7_level9_19 = {258, 258, 4096, 0, 0, 0, 0, 0, KP7_SINCE_19};
const ls_kp7_parameters ls_kp7_level7_18 = {8, 24, 16, 0, 0, 0, 0, 0, KP7_UNTIL_18};
const ls_kp7_parameters ls_kp7_level8_18 = {16, 24, 64, 0, 0, 0, 0, 0, KP7_UNTIL_18};
const ls_kp7_parameters ls_kp7_level9_18 = {258, 258, 4096, 0, 0, 0, 0, 0, KP7_UNTIL_18};
