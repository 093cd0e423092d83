/* streams.c: libFuzzer target. Bytes are chance: out of them comes a valid gzip blob that no encoder makes (codes of
 * any shape, run lengths and blocks of any kind, several members); it is decoded to the content it was
 * made for, and comes back bit for bit from what a model mispredicts of it.
 *
 * When the bytes are used up, a generator seeded by them goes on. With -DSTREAMS_MAIN a program instead: streams
 * without libFuzzer, each through the choice of a model that an optimizing makes. */
#include "respan_world.h"

#define MAX_BLOB (1u << 18)
#define MAX_TEXT (1u << 17)

typedef struct maker {
    const uint8_t *data;
    size_t size, at;
    uint64_t state;
    uint8_t *out;
    size_t n, bits;
    uint8_t *text;
    size_t n_text, start;
} maker;

static uint32_t chance(maker *k, uint32_t below) {
    uint32_t v = 0;
    for (uint32_t left = below - 1; left; left >>= 8) {
        if (k->at < k->size) {
            v = v << 8 | k->data[k->at++];
        } else {
            k->state ^= k->state << 13;
            k->state ^= k->state >> 7;
            k->state ^= k->state << 17;
            v = v << 8 | (uint8_t)(k->state >> 24);
        }
    }
    return below ? v % below : 0;
}

static void put(maker *k, uint64_t value, unsigned n) {
    for (unsigned i = 0; i < n; i++, k->bits++) {
        CHECK(k->bits / 8 < MAX_BLOB);
        if (k->bits % 8 == 0)
            k->out[k->bits / 8] = 0;
        k->out[k->bits / 8] |= (uint8_t)((value >> i & 1) << (k->bits % 8));
    }
}

static void put_code(maker *k, uint32_t code, unsigned n) {
    while (n--)
        put(k, code >> n & 1, 1);
}

static void pad(maker *k) {
    while (k->bits % 8)
        put(k, chance(k, 12) == 0, 1);
}

typedef struct code {
    uint8_t lengths[320];
    uint16_t codes[320];
} code;

static void assign(code *c, unsigned n) {
    uint32_t value = 0;
    for (unsigned bits = 1; bits < 16; bits++, value <<= 1)
        for (unsigned i = 0; i < n; i++)
            if (c->lengths[i] == bits)
                c->codes[i] = (uint16_t)value++;
}

/* A complete code for the symbols marked, by splitting leaves. */
static void complete(maker *k, code *c, const uint8_t *marked, unsigned n, unsigned limit) {
    uint8_t leaves[320] = {1, 1};
    unsigned count = 0, have = 2, skew = chance(k, 2);
    memset(c, 0, sizeof *c);
    for (unsigned i = 0; i < n; i++)
        count += marked[i];
    if (count == 1)
        have = 1;
    while (have < count) {
        unsigned at = chance(k, have);
        if (skew)
            at = chance(k, at + 1);
        while (leaves[at] >= limit)
            at = (at + 1) % have;
        leaves[at]++;
        leaves[have++] = leaves[at];
    }
    for (unsigned i = 0; i < n; i++) {
        if (!marked[i])
            continue;
        unsigned at = chance(k, count);
        c->lengths[i] = leaves[at];
        leaves[at] = leaves[--count];
    }
    assign(c, n);
}

static const uint16_t length_base[29] = {3,  4,  5,  6,   7,   8,   9,   10,  11, 13,
                                         15, 17, 19, 23,  27,  31,  35,  43,  51, 59,
                                         67, 83, 99, 115, 131, 163, 195, 227, 258};
static const uint8_t length_extra[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                         2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};

static unsigned length_symbol(unsigned length) {
    unsigned s = 28;
    while (length_base[s] > length)
        s--;
    return s;
}

static unsigned dist_base(unsigned s) {
    return s < 4 ? s + 1 : ((2 + s % 2) << (s / 2 - 1)) + 1;
}

static unsigned dist_symbol(unsigned dist) {
    unsigned s = 29;
    while (dist_base(s) > dist)
        s--;
    return s;
}

static void put_lengths(maker *k, const code *litlen, unsigned hlit, const code *dist,
                        unsigned hdist) {
    static const uint8_t order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                      11, 4,  12, 3, 13, 2, 14, 1, 15};
    static const unsigned bits[3] = {2, 3, 7}, least[3] = {3, 3, 11}, most[3] = {6, 10, 138};
    uint8_t all[320], symbols[320], extra[320], marked[19] = {0};
    unsigned n = 0, total = hlit + hdist;
    memcpy(all, litlen->lengths, hlit);
    memcpy(all + hlit, dist->lengths, hdist);
    for (unsigned at = 0; at < total;) {
        unsigned run = 1, kind = chance(k, 5);
        while (at + run < total && all[at + run] == all[at])
            run++;
        int fits =
            kind < 3 && run >= least[kind] && (kind ? !all[at] : at && all[at - 1] == all[at]);
        symbols[n] = (uint8_t)(fits ? 16 + kind : all[at]);
        extra[n] = 0;
        if (fits) {
            unsigned longest = run < most[kind] ? run : most[kind];
            if (chance(k, 3))
                run = longest;
            else
                run = least[kind] + chance(k, longest - least[kind] + 1);
            extra[n] = (uint8_t)(run - least[kind]);
            at += run;
        } else {
            at++;
        }
        marked[symbols[n++]] = 1;
    }
    marked[chance(k, 19)] = 1;
    marked[0] = marked[18] = 1;
    code codelen;
    complete(k, &codelen, marked, 19, 7);
    unsigned hclen = 19;
    while (hclen > 4 && !codelen.lengths[order[hclen - 1]])
        hclen--;
    hclen += chance(k, 3) ? 0 : chance(k, 20 - hclen);
    put(k, hlit - 257, 5);
    put(k, hdist - 1, 5);
    put(k, hclen - 4, 4);
    for (unsigned i = 0; i < hclen; i++)
        put(k, codelen.lengths[order[i]], 3);
    for (unsigned i = 0; i < n; i++) {
        put_code(k, codelen.codes[symbols[i]], codelen.lengths[symbols[i]]);
        if (symbols[i] >= 16)
            put(k, extra[i], bits[symbols[i] - 16]);
    }
}

static void put_block(maker *k, unsigned final) {
    static uint32_t tokens[512];
    unsigned kind = chance(k, 5), n = 0;
    kind = kind > 2 ? 2 : kind;
    put(k, final | kind << 1, 3);
    if (!kind) {
        static const uint16_t sizes[5] = {0, 0, 1, 40, 700};
        unsigned size = sizes[chance(k, 5)];
        if (k->n_text + size > MAX_TEXT)
            size = 0;
        pad(k);
        put(k, size | (size ^ 0xffff) << 16, 32);
        for (; size; size--) {
            k->text[k->n_text] = (uint8_t)chance(k, 256);
            put(k, k->text[k->n_text++], 8);
        }
        return;
    }
    static const uint16_t counts[6] = {0, 1, 4, 30, 150, 500};
    unsigned count = counts[chance(k, 6)], ordinary = chance(k, 2);
    uint8_t literals[286] = {0}, dists[30] = {0};
    literals[256] = 1;
    for (; n < count && k->n_text + 300 < MAX_TEXT; n++) {
        size_t reach = k->n_text - k->start;
        if (reach > 32768)
            reach = 32768;
        if (!reach || chance(k, 2)) {
            tokens[n] = ordinary ? "the cat sat on a mat"[chance(k, 20)] : chance(k, 256);
            literals[tokens[n]] = 1;
            k->text[k->n_text++] = (uint8_t)tokens[n];
            continue;
        }
        unsigned length = chance(k, 4) ? 3 + chance(k, 8) : chance(k, 4) ? 3 + chance(k, 256) : 258;
        unsigned dist = 1 + (chance(k, 3) ? chance(k, (uint32_t)reach) : (uint32_t)reach - 1);
        tokens[n] = dist << 16 | length;
        literals[257 + length_symbol(length)] = 1;
        dists[dist_symbol(dist)] = 1;
        for (; length; length--, k->n_text++)
            k->text[k->n_text] = k->text[k->n_text - dist];
    }
    code litlen, dist;
    memset(&litlen, 0, sizeof litlen);
    memset(&dist, 0, sizeof dist);
    if (kind == 1) {
        memset(litlen.lengths, 8, 288);
        memset(litlen.lengths + 144, 9, 112);
        memset(litlen.lengths + 256, 7, 24);
        memset(dist.lengths, 5, 32);
        assign(&litlen, 288);
        assign(&dist, 32);
    } else {
        for (unsigned more = chance(k, 3) ? 0 : chance(k, 300); more; more--)
            literals[chance(k, 286)] = 1;
        for (unsigned more = chance(k, 3) ? 0 : chance(k, 30); more; more--)
            dists[chance(k, 30)] = 1;
        complete(k, &litlen, literals, 286, 15);
        complete(k, &dist, dists, 30, 15);
        unsigned hlit = 286, hdist = 30;
        if (chance(k, 4)) {
            while (hlit > 257 && !literals[hlit - 1])
                hlit--;
            while (hdist > 1 && !dists[hdist - 1])
                hdist--;
        }
        put_lengths(k, &litlen, hlit, &dist, hdist);
    }
    for (unsigned i = 0; i < n; i++) {
        uint32_t t = tokens[i];
        if (t < 256) {
            put_code(k, litlen.codes[t], litlen.lengths[t]);
            continue;
        }
        unsigned s = length_symbol(t & 511), d = dist_symbol(t >> 16);
        put_code(k, litlen.codes[257 + s], litlen.lengths[257 + s]);
        put(k, (t & 511) - length_base[s], length_extra[s]);
        put_code(k, dist.codes[d], dist.lengths[d]);
        put(k, (t >> 16) - dist_base(d), d < 4 ? 0 : d / 2 - 1);
    }
    put_code(k, litlen.codes[256], litlen.lengths[256]);
}

static uint32_t crc_of(const uint8_t *p, size_t n) {
    uint32_t c = ~0u;
    for (; n; n--) {
        c ^= *p++;
        for (int i = 0; i < 8; i++)
            c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
    }
    return ~c;
}

static void put_member(maker *k) {
    static const uint8_t header[10] = {0x1f, 0x8b, 8};
    for (int i = 0; i < 10; i++)
        put(k, i < 4 || chance(k, 2) ? header[i] : chance(k, 256), 8);
    if (chance(k, 4) == 0) {
        k->out[k->bits / 8 - 7] = 8;
        for (unsigned n = chance(k, 20); n; n--)
            put(k, 'a' + n, 8);
        put(k, 0, 8);
    }
    k->start = k->n_text;
    unsigned count = 1 + chance(k, 4);
    for (unsigned i = 1; i <= count; i++)
        put_block(k, i == count);
    pad(k);
    put(k, crc_of(k->text + k->start, k->n_text - k->start), 32);
    put(k, k->n_text - k->start, 32);
}

/* A stream, and how it is to be decoded. */
typedef struct stream {
    maker k;
    unsigned model;
    size_t feed, wanted;
} stream;

static stream make_stream(const uint8_t *data, size_t size) {
    static uint8_t blob[MAX_BLOB], text[MAX_TEXT];
    ls_model_facts m;
    stream s = {
        .k = {.data = data, .size = size, .out = blob, .text = text, .state = 88172645463325252u}};
    maker *k = &s.k;
    for (size_t i = 0; i < size; i++)
        k->state = (k->state ^ data[i]) * 0x100000001b3u;
    k->state |= 1;
    unsigned count = 0, members = 1 + (chance(k, 3) ? 0 : chance(k, 4));
    while (ls_respan_model(count, &m))
        count++;
    s.model = chance(k, 2) ? 0 : chance(k, count);
    for (unsigned i = 0; i < members; i++)
        put_member(k);
    if (chance(k, 8) == 0)
        put(k, 0, 8 * chance(k, 5));
    s.feed = chance(k, 2) ? 1u << 16 : 1 + chance(k, 300);
    s.wanted = chance(k, 2) ? 1u << 20 : 1 + chance(k, 3000);
    return s;
}

/* Whether the stream comes back with a model. */
static void come_back(world *w, const stream *s, const ls_model_facts *m) {
    CHECK(decode(w, s->k.out, s->k.bits / 8, s->feed, s->wanted, m) == LS_TOKENS_END);
    CHECK(w->n_content == s->k.n_text && !memcmp(w->content, s->k.text, s->k.n_text));
}

#ifndef STREAMS_MAIN
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ls_model_facts m;
    stream s = make_stream(data, size);
    ls_respan_model(s.model, &m);
    come_back(the_world(), &s, &m);
    return 0;
}
#else
#define MOST_MODELS 256

/* Of the stream's first span, the corrections of a model, or SIZE_MAX if they are `most` or more. */
static size_t cost_of(world *w, void *work, const ls_model_facts *m, size_t most) {
    static uint8_t corrections[1 << 20];
    ls_error err;
    size_t length, room = most < sizeof corrections ? most : sizeof corrections;
    int result = ls_respan_analyse(work, LS_RECIPE_VERSION, m->id, &w->spans[0], NULL, w->scratch,
                                   corrections, room, &length, &err);
    CHECK(result == LS_OK || result == LS_ELIMIT || result == LS_EFORMAT);
    return result == LS_OK && length < most ? length : SIZE_MAX;
}

/* streams FIRST COUNT [SHARE]: of each stream from a number on, the model with the fewest corrections among all that
 * take new recipes has to give it back; of those, every SHARE-th is asked, others for each stream (1: all). A
 * failure aborts, and names the stream. */
int main(int argc, char **argv) {
    unsigned long first = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    unsigned long count = argc > 2 ? strtoul(argv[2], NULL, 10) : 1000;
    unsigned long share = argc > 3 ? strtoul(argv[3], NULL, 10) : 1;
    static unsigned long taken[MOST_MODELS];
    static ls_model_facts models[MOST_MODELS];
    unsigned n = 0;
    size_t most = 0;
    unsigned long long bytes = 0, content = 0;
    for (; n < MOST_MODELS && ls_respan_model(n, &models[n]); n++) {
        size_t size = ls_respan_sizeof(models[n].id);
        most = size > most ? size : most;
    }
    void *work = aligned_alloc(64, (most + 63) / 64 * 64);
    world *w = the_world();
    CHECK(work && n && n < MOST_MODELS && share);
    for (unsigned long i = first; i < first + count; i++) {
        uint8_t seed[8];
        for (int k = 0; k < 8; k++)
            seed[k] = (uint8_t)(i * 0x9e3779b97f4a7c15u >> 8 * k);
        stream s = make_stream(seed, sizeof seed);
        size_t best = MOST_MODELS, least = SIZE_MAX, used;
        ls_error err;
        fflush(stdout);
        ls_tokens_init(w->decoder);
        ls_tokens_begin(w->decoder, &w->spans[0], NULL, HISTORY);
        int result = ls_tokens_feed(w->decoder, &w->spans[0], 1u << 20, s.k.out, s.k.bits / 8, 1,
                                    &used, &err);
        if (result != LS_TOKENS_END) {
            fprintf(stderr, "stream %lu is not decoded: %s\n", i, err.reason);
            abort();
        }
        for (unsigned k = 0; k < n; k++) {
            int asked = !models[k].superseded && (!k || (k + i) % share == 0);
            size_t cost = asked ? cost_of(w, work, &models[k], least) : SIZE_MAX;
            if (cost < least) {
                best = k;
                least = cost;
            }
        }
        if (best == MOST_MODELS) {
            fprintf(stderr, "stream %lu: no model follows it\n", i);
            abort();
        }
        come_back(w, &s, &models[best]);
        taken[best]++;
        bytes += s.k.bits / 8;
        content += s.k.n_text;
        if ((i + 1 - first) % 10000 == 0) {
            printf("%lu streams so far\n", i + 1 - first);
            fflush(stdout);
        }
    }
    for (unsigned k = 0; k < n; k++)
        if (taken[k])
            printf("%8lu took %s\n", taken[k], models[k].name);
    printf("%lu streams of %llu bytes, %llu of content, through %u models: all came back, 0 "
           "failures\n",
           count, bytes, content, n);
    return 0;
}
#endif
