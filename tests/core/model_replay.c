/* model_replay.c: asks the models of csrc/deflate/ for the decisions of a gzip file, on the command line.
 *
 *   model_replay ID FILE [SPAN]     prints what was predicted, as one line of JSON
 *   model_replay ID FILE make FROM FLUSHED    prints the tokens (4 bytes each, lowest first) that the model
 *                                   gives to the content in FILE from an offset on, flushed before at another
 *
 * It has its own decoder, small and slow, which shares nothing with the library's. Spans end at flushes, and
 * where SPAN bytes (the model's by default) are full and a block begins. Each is verified, then made again
 * with the corrections found; what was made is compared token by token. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deflate/model.h"

typedef struct block {
    int type;
    size_t token, tokens;  /* in `all` */
    size_t content, bytes; /* in the member's content */
    uint32_t hlit, hdist, n_runs;
    uint8_t lengths[320], runs[320], extra[320], codelen[19];
} block;

static const uint8_t *in;
static size_t in_size, bit_at;
static uint8_t *out;
static size_t out_size, out_room;
static ls_token *all;
static size_t n_all, room_all;
static block *blocks;
static size_t n_blocks, room_blocks;

static void fail(const char *why) {
    fprintf(stderr, "model_replay: %s at bit %zu\n", why, bit_at);
    exit(2);
}

static uint32_t bits(uint32_t n) {
    uint32_t v = 0;
    for (uint32_t i = 0; i < n; i++, bit_at++) {
        if (bit_at / 8 >= in_size)
            fail("truncated");
        v |= (uint32_t)(in[bit_at / 8] >> (bit_at & 7) & 1) << i;
    }
    return v;
}

/* A code as RFC 1951 3.2.2 has it: counts per length, symbols in order. */
typedef struct code {
    uint16_t count[16], symbol[288];
} code;

static void build(code *c, const uint8_t *lengths, uint32_t n) {
    uint16_t at[16];
    memset(c, 0, sizeof *c);
    for (uint32_t i = 0; i < n; i++)
        c->count[lengths[i]]++;
    c->count[0] = 0;
    at[1] = 0;
    for (int i = 1; i < 15; i++)
        at[i + 1] = (uint16_t)(at[i] + c->count[i]);
    for (uint32_t i = 0; i < n; i++)
        if (lengths[i])
            c->symbol[at[lengths[i]]++] = (uint16_t)i;
}

static uint32_t decode(const code *c) {
    int value = 0, first = 0, index = 0;
    for (int length = 1; length <= 15; length++) {
        value |= (int)bits(1);
        int count = c->count[length];
        if (value - count < first)
            return c->symbol[index + (value - first)];
        index += count;
        first = (first + count) << 1;
        value <<= 1;
    }
    fail("bad code");
    return 0;
}

static void token(ls_token t) {
    if (n_all == room_all)
        all = realloc(all, (room_all = room_all * 2 + 4096) * sizeof *all);
    all[n_all++] = t;
}

static void byte(uint8_t v) {
    if (out_size == out_room)
        out = realloc(out, out_room = out_room * 2 + 65536);
    out[out_size++] = v;
}

static void header(block *b, code *litlen, code *dist) {
    static const uint8_t order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                      11, 4,  12, 3, 13, 2, 14, 1, 15};
    b->hlit = bits(5) + 257;
    b->hdist = bits(5) + 1;
    uint32_t n = bits(4) + 4, at = 0;
    for (uint32_t i = 0; i < n; i++)
        b->codelen[order[i]] = (uint8_t)bits(3);
    code c;
    build(&c, b->codelen, 19);
    while (at < b->hlit + b->hdist) {
        uint32_t s = decode(&c), count = 1, value = s, extra = 0;
        if (s == 16) {
            extra = bits(2);
            count = 3 + extra;
            value = b->lengths[at - 1];
        } else if (s >= 17) {
            extra = bits(s == 17 ? 3 : 7);
            count = (s == 17 ? 3 : 11) + extra;
            value = 0;
        }
        b->runs[b->n_runs] = (uint8_t)s;
        b->extra[b->n_runs++] = (uint8_t)extra;
        while (count-- && at < 320)
            b->lengths[at++] = (uint8_t)value;
    }
    build(litlen, b->lengths, b->hlit);
    build(dist, b->lengths + b->hlit, b->hdist);
}

/* One member's deflate stream, from bit_at on. */
static void inflate(void) {
    for (int final = 0; !final;) {
        if (n_blocks == room_blocks)
            blocks = realloc(blocks, (room_blocks = room_blocks * 2 + 64) * sizeof *blocks);
        block *b = &blocks[n_blocks++];
        memset(b, 0, sizeof *b);
        b->token = n_all;
        b->content = out_size;
        final = (int)bits(1);
        b->type = (int)bits(2);
        code litlen, dist;
        if (b->type == 0) {
            bit_at = (bit_at + 7) & ~(size_t)7;
            uint32_t n = bits(16);
            bits(16);
            for (; n; n--)
                byte((uint8_t)bits(8));
        } else if (b->type < 3) {
            if (b->type == 1) {
                uint8_t lengths[288];
                for (int i = 0; i < 288; i++)
                    lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
                build(&litlen, lengths, 288);
                memset(lengths, 5, 30);
                build(&dist, lengths, 30);
            } else {
                header(b, &litlen, &dist);
            }
            for (uint32_t s; (s = decode(&litlen)) != 256;) {
                if (s < 256) {
                    token(s);
                    byte((uint8_t)s);
                    continue;
                }
                uint32_t length = s == 285 ? 258 : 3 + ls_length_base[s - 257] - 3;
                length = ls_length_base[s - 257] + bits(ls_length_extra[s - 257]);
                uint32_t d = decode(&dist);
                uint32_t distance = ls_dist_base[d] + bits(ls_dist_extra[d]);
                if (distance > out_size)
                    fail("distance before the start");
                token(distance << 16 | length);
                for (uint32_t i = 0; i < length; i++)
                    byte(out[out_size - distance]);
            }
        } else {
            fail("reserved block type");
        }
        b->tokens = n_all - b->token;
        b->bytes = out_size - b->content;
    }
    bit_at = (bit_at + 7) & ~(size_t)7;
}

static size_t tokens_seen, wrong, trees_seen, trees_wrong, unequal, variants[4];
static size_t first_wrong = SIZE_MAX;

static void span(const ls_model *m, void *state, size_t from, size_t to, uint64_t flushed,
                 size_t segment_end) {
    size_t begin = blocks[from].content, end = blocks[to - 1].content + blocks[to - 1].bytes;
    size_t rest = segment_end - end;
    ls_span s = {.data = out + begin,
                 .before = begin < m->history ? begin : m->history,
                 .size = end - begin,
                 .after = rest < m->ahead ? rest : m->ahead,
                 .at = begin,
                 .flushed = flushed};
    size_t room = 1 << 22, count = 0;
    ls_correction *found = malloc(room * sizeof *found);
    size_t *per_block = calloc(to - from + 1, sizeof *per_block);
    m->begin(m, state, &s);
    uint32_t index = 0;
    for (size_t i = from; i < to; i++) {
        block *b = &blocks[i];
        if (!b->bytes)
            continue;
        if (b->type == 0) {
            if (m->skip(m, state, b->bytes) != LS_OK)
                fail("skip");
            continue;
        }
        ls_asking a = {.tokens = all + b->token,
                       .n = b->tokens,
                       .index = index,
                       .corrections = found + count,
                       .capacity = room - count};
        int code = m->verify(m, state, &a);
        if (code != LS_OK) {
            fprintf(stderr, "verify gives %d in block %zu\n", code, i);
            exit(2);
        }
        if (a.count && first_wrong == SIZE_MAX)
            first_wrong = b->token + found[count].index - index;
        per_block[i - from] = a.count;
        count += a.count;
        index += (uint32_t)b->tokens;
        tokens_seen += b->tokens;
        if (b->type != 2 || !m->trees)
            continue;
        trees_seen++;
        ls_code litlen, dist;
        uint32_t hlit, hdist, right = 0;
        for (uint32_t v = 0; v < 4 && !right; v++) {
            memset(&litlen, 0, sizeof litlen);
            memset(&dist, 0, sizeof dist);
            if (!m->trees(m, state, v, all + b->token, b->tokens, &litlen, &dist, &hlit, &hdist))
                break;
            if (hlit == b->hlit && hdist == b->hdist && !memcmp(litlen.lengths, b->lengths, hlit) &&
                !memcmp(dist.lengths, b->lengths + hlit, hdist)) {
                right = 1;
                variants[v]++;
            }
        }
        uint8_t runs[320], extra[320];
        uint32_t n = m->runs(b->lengths, b->hlit, b->hdist, runs, extra), counts[19] = {0};
        for (uint32_t j = 0; j < n; j++)
            counts[runs[j]]++;
        ls_code codelen;
        m->codelen(counts, &codelen);
        if (!right || n != b->n_runs || memcmp(runs, b->runs, n) || memcmp(extra, b->extra, n) ||
            memcmp(codelen.lengths, b->codelen, 19))
            trees_wrong++;
    }
    wrong += count;
    /* Made again: by content, or by count, in turn. */
    m->begin(m, state, &s);
    index = 0;
    count = 0;
    ls_token *made = malloc((end - begin + 8) * sizeof *made);
    for (size_t i = from; i < to; i++) {
        block *b = &blocks[i];
        if (!b->bytes)
            continue;
        if (b->type == 0) {
            m->skip(m, state, b->bytes);
            continue;
        }
        ls_asking a = {.tokens = made,
                       .n = end - begin + 8,
                       .index = index,
                       .corrections = found + count,
                       .count = per_block[i - from]};
        int code = m->make(m, state, &a, i & 1 ? b->tokens : 0, b->content + b->bytes - begin);
        if (code != LS_OK || a.n != b->tokens || a.next != a.count ||
            memcmp(made, all + b->token, a.n * sizeof *made))
            unequal++;
        count += per_block[i - from];
        index += (uint32_t)b->tokens;
    }
    free(made);
    free(per_block);
    free(found);
}

/* The tokens of content, as one block. */
static int make(const ls_model *m, void *state, const uint8_t *content, size_t size, size_t from,
                size_t flushed) {
    ls_span s = {.data = content + from,
                 .before = from < m->history ? from : m->history,
                 .size = size - from,
                 .at = from,
                 .flushed = flushed};
    ls_token *made = malloc((size - from + 8) * sizeof *made);
    ls_asking a = {.tokens = made, .n = size - from + 8};
    m->begin(m, state, &s);
    int code = m->make(m, state, &a, 0, size - from);
    for (size_t i = 0; i < a.n; i++)
        for (int shift = 0; shift < 32; shift += 8)
            putchar((int)(made[i] >> shift & 255));
    free(made);
    return code == LS_OK ? 0 : 2;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    const ls_model *m = NULL, *tables[] = {ls_models_gofast, ls_models_kp, ls_models_kpgreedy};
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const ls_model *each = tables[t]; each->id; each++)
            if (each->id == (uint32_t)atoi(argv[1]))
                m = each;
    FILE *f = fopen(argv[2], "rb");
    if (!m || !f)
        return 2;
    uint8_t *file = malloc(1u << 30);
    in = file;
    in_size = fread(file, 1, 1u << 30, f);
    fclose(f);
    size_t most = argc > 3 ? (size_t)atol(argv[3]) : m->span, at = 0, content = 0;
    void *state = aligned_alloc(64, (m->state + 63) / 64 * 64);
    memset(state, 0xa5, m->state);
    if (argc > 5)
        return make(m, state, file, in_size, (size_t)atol(argv[4]), (size_t)atol(argv[5]));
    while (at + 18 <= in_size && in[at] == 0x1f && in[at + 1] == 0x8b) {
        int flags = in[at + 3];
        at += 10;
        if (flags & 4)
            at += 2 + (size_t)in[at] + 256 * (size_t)in[at + 1];
        for (int bit = 8; bit <= 16; bit *= 2)
            if (flags & bit)
                at += strlen((const char *)in + at) + 1;
        bit_at = at * 8;
        out_size = n_all = n_blocks = 0;
        inflate();
        out = realloc(out, out_room = out_size + 65536);
        content += out_size;
        at = bit_at / 8 + 8;
        uint64_t flushed = 0;
        for (size_t from = 0; from < n_blocks;) {
            size_t flush = from;
            while (flush < n_blocks && (blocks[flush].type || blocks[flush].bytes))
                flush++;
            size_t segment_end = flush < n_blocks ? blocks[flush].content : out_size;
            while (from < flush) {
                size_t to = from + 1;
                while (to < flush && blocks[to].content - blocks[from].content < most)
                    to++;
                span(m, state, from, to, flushed, segment_end);
                from = to;
            }
            flushed = segment_end;
            from = flush + 1;
        }
    }
    printf("{\"model\": \"%s\", \"bytes\": %zu, \"content\": %zu, \"tokens\": %zu, "
           "\"mispredicted\": %zu, \"trees\": %zu, \"trees_wrong\": %zu, \"unequal\": %zu, "
           "\"variants\": [%zu, %zu, %zu, %zu], \"first\": %lld}\n",
           m->name, in_size, content, tokens_seen, wrong, trees_seen, trees_wrong, unequal,
           variants[0], variants[1], variants[2], variants[3], (long long)first_wrong);
    return 0;
}
