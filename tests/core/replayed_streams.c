/* replayed_streams.c: a deflate decoder of its own, and the models asked about what it read (replayed_streams.py).
 *
 * The decoder is slow and plain, and shares nothing with the core's: bit by bit canonical codes. What it
 * finds is kept: tokens, blocks, their trees as they were transmitted. `seam_ask` then replays a model
 * over spans of the stream, as a store would, and counts what it got wrong, both ways of asking. */
#include <stdlib.h>
#include <string.h>

#include "deflate/model.h"

#define SEAM_SLACK 64

typedef struct block {
    uint8_t kind, final;
    size_t content, size; /* of the content */
    size_t token, tokens;
    uint32_t hlit, hdist, runs;
    uint8_t lengths[320], symbols[320], extra[320], codelen[19];
} block;

typedef struct seam {
    const uint8_t *in;
    size_t n, bit;
    uint8_t *content;
    size_t size, room;
    ls_token *tokens;
    size_t n_tokens, tokens_room;
    block *blocks;
    size_t n_blocks, blocks_room;
} seam;

typedef struct canon {
    uint16_t count[16], symbols[320];
} canon;

static int bits(seam *s, uint32_t n, uint32_t *out) {
    *out = 0;
    for (uint32_t i = 0; i < n; i++, s->bit++) {
        if (s->bit >= 8 * s->n)
            return 0;
        *out |= (uint32_t)(s->in[s->bit >> 3] >> (s->bit & 7) & 1) << i;
    }
    return 1;
}

static void canonical(canon *c, const uint8_t *lengths, uint32_t n) {
    uint16_t at[16] = {0};
    memset(c->count, 0, sizeof c->count);
    for (uint32_t i = 0; i < n; i++)
        c->count[lengths[i]]++;
    c->count[0] = 0;
    for (uint32_t i = 1; i < 15; i++)
        at[i + 1] = (uint16_t)(at[i] + c->count[i]);
    for (uint32_t i = 0; i < n; i++)
        if (lengths[i])
            c->symbols[at[lengths[i]]++] = (uint16_t)i;
}

static int symbol(seam *s, const canon *c, uint32_t *out) {
    int32_t code = 0, first = 0, index = 0;
    for (uint32_t length = 1; length <= 15; length++) {
        uint32_t b;
        if (!bits(s, 1, &b))
            return 0;
        code |= (int32_t)b;
        int32_t count = c->count[length];
        if (code - first < count) {
            *out = c->symbols[index + code - first];
            return 1;
        }
        index += count;
        first = (first + count) << 1;
        code <<= 1;
    }
    return 0;
}

static int grow(void **array, size_t need, size_t *room, size_t each) {
    if (need <= *room)
        return 1;
    size_t next = need * 2 + 4096;
    void *more = realloc(*array, next * each);
    if (more == NULL)
        return 0;
    *array = more;
    *room = next;
    return 1;
}

static int add_content(seam *s, const uint8_t *from, size_t dist, size_t n) {
    if (!grow((void **)&s->content, s->size + n + SEAM_SLACK, &s->room, 1))
        return 0;
    for (size_t i = 0; i < n; i++, s->size++)
        s->content[s->size] = from ? from[i] : s->content[s->size - dist];
    return 1;
}

static int add_token(seam *s, ls_token token) {
    if (!grow((void **)&s->tokens, s->n_tokens + 1, &s->tokens_room, sizeof token))
        return 0;
    s->tokens[s->n_tokens++] = token;
    return 1;
}

static int read_trees(seam *s, block *b) {
    static const uint8_t order[19] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                      11, 4,  12, 3, 13, 2, 14, 1, 15};
    uint32_t v, n;
    canon c;
    if (!bits(s, 5, &v))
        return 0;
    b->hlit = v + 257;
    if (!bits(s, 5, &v))
        return 0;
    b->hdist = v + 1;
    if (!bits(s, 4, &n) || b->hlit > 286 || b->hdist > 30)
        return 0;
    for (uint32_t i = 0; i < n + 4; i++) {
        if (!bits(s, 3, &v))
            return 0;
        b->codelen[order[i]] = (uint8_t)v;
    }
    canonical(&c, b->codelen, 19);
    for (uint32_t i = 0; i < b->hlit + b->hdist;) {
        uint32_t sym, extra = 0, repeat = 1;
        uint8_t length = 0;
        if (!symbol(s, &c, &sym))
            return 0;
        if (sym < 16) {
            length = (uint8_t)sym;
        } else {
            if ((sym == 16 && i == 0) || !bits(s, sym == 16 ? 2 : sym == 17 ? 3 : 7, &extra))
                return 0;
            length = sym == 16 ? b->lengths[i - 1] : 0;
            repeat = extra + (sym == 18 ? 11 : 3);
        }
        if (i + repeat > b->hlit + b->hdist)
            return 0;
        b->symbols[b->runs] = (uint8_t)sym;
        b->extra[b->runs++] = (uint8_t)extra;
        for (; repeat; repeat--)
            b->lengths[i++] = length;
    }
    return 1;
}

static int read_body(seam *s, const canon *litlen, const canon *dist) {
    for (;;) {
        uint32_t sym, extra, d;
        if (!symbol(s, litlen, &sym))
            return 0;
        if (sym == 256)
            return 1;
        if (sym < 256) {
            uint8_t byte = (uint8_t)sym;
            if (!add_token(s, sym) || !add_content(s, &byte, 0, 1))
                return 0;
            continue;
        }
        if (sym > 285 || !bits(s, ls_length_extra[sym - 257], &extra) || !symbol(s, dist, &d) ||
            d > 29)
            return 0;
        uint32_t length = ls_length_base[sym - 257] + extra;
        if (!bits(s, ls_dist_extra[d], &extra))
            return 0;
        uint32_t back = ls_dist_base[d] + extra;
        if (back > s->size || !add_token(s, back << 16 | length) ||
            !add_content(s, NULL, back, length))
            return 0;
    }
}

void seam_free(seam *s) {
    if (s) {
        free(s->content);
        free(s->tokens);
        free(s->blocks);
        free(s);
    }
}

/* Reads one raw deflate stream; *used becomes its bytes. NULL if it is none. */
seam *seam_read(const uint8_t *in, size_t n, size_t *used) {
    seam *s = calloc(1, sizeof *s);
    if (s == NULL)
        return NULL;
    s->in = in;
    s->n = n;
    for (uint32_t final = 0; !final;) {
        uint32_t kind;
        if (!grow((void **)&s->blocks, s->n_blocks + 1, &s->blocks_room, sizeof(block)) ||
            !bits(s, 1, &final) || !bits(s, 2, &kind) || kind == 3)
            goto bad;
        block *b = &s->blocks[s->n_blocks++];
        memset(b, 0, sizeof *b);
        b->kind = (uint8_t)kind;
        b->final = (uint8_t) final;
        b->content = s->size;
        b->token = s->n_tokens;
        canon litlen, dist;
        if (kind == 0) {
            uint32_t size, inverse;
            s->bit = (s->bit + 7) & ~(size_t)7;
            if (!bits(s, 16, &size) || !bits(s, 16, &inverse) || size != (inverse ^ 0xffff) ||
                s->bit / 8 + size > n || !add_content(s, in + s->bit / 8, 0, size))
                goto bad;
            s->bit += 8 * (size_t)size;
        } else {
            if (kind == 1) {
                b->hlit = 288;
                b->hdist = 30;
                for (uint32_t i = 0; i < 288; i++)
                    b->lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
                memset(b->lengths + 288, 5, 30);
            } else if (!read_trees(s, b)) {
                goto bad;
            }
            canonical(&litlen, b->lengths, b->hlit);
            canonical(&dist, b->lengths + b->hlit, b->hdist);
            if (!read_body(s, &litlen, &dist))
                goto bad;
        }
        b->size = s->size - b->content;
        b->tokens = s->n_tokens - b->token;
    }
    *used = (s->bit + 7) / 8;
    /* What lies behind the content is unspecified: make it differ from what reading zeros would give. */
    if (!grow((void **)&s->content, s->size + SEAM_SLACK, &s->room, 1))
        goto bad;
    memset(s->content + s->size, 0xa5, SEAM_SLACK);
    return s;
bad:
    seam_free(s);
    return NULL;
}

size_t seam_size(const seam *s) {
    return s->size;
}

const uint8_t *seam_content(const seam *s) {
    return s->content;
}

size_t seam_tokens(const seam *s) {
    return s->n_tokens;
}

const ls_token *seam_token_list(const seam *s) {
    return s->tokens;
}

typedef struct report {
    uint64_t tokens, wrong; /* mispredicted */
    uint64_t trees, trees_wrong;
    uint64_t spans, made_wrong; /* blocks whose tokens were not made again */
    uint64_t first_wrong;       /* content offset of the first mispredicted token's block */
    int64_t error;              /* LS_..., of a call */
} report;

static void ask_trees(const ls_model *m, void *state, const seam *s, const block *b, report *out) {
    ls_code litlen, dist, codelen;
    uint32_t hlit, hdist, counts[19] = {0};
    uint8_t symbols[320], extra[320], lengths[320];
    int right = 0;
    out->trees++;
    for (uint32_t variant = 0; !right && m->trees(m, state, variant, s->tokens + b->token,
                                                  b->tokens, &litlen, &dist, &hlit, &hdist);
         variant++)
        right = hlit == b->hlit && hdist == b->hdist && !memcmp(litlen.lengths, b->lengths, hlit) &&
                !memcmp(dist.lengths, b->lengths + hlit, hdist);
    if (right) {
        memcpy(lengths, litlen.lengths, hlit);
        memcpy(lengths + hlit, dist.lengths, hdist);
        uint32_t n = m->runs(lengths, hlit, hdist, symbols, extra);
        for (uint32_t i = 0; i < n; i++)
            counts[symbols[i]]++;
        m->codelen(counts, &codelen);
        right = n == b->runs && !memcmp(symbols, b->symbols, n) && !memcmp(extra, b->extra, n) &&
                !memcmp(codelen.lengths, b->codelen, 19);
    }
    out->trees_wrong += !right;
}

static int ask_span(const ls_model *m, void *state, const seam *s, size_t first, size_t last,
                    const ls_span *span, int make, report *out) {
    size_t capacity = 0, n = 0;
    for (size_t i = first; i < last; i++)
        capacity += s->blocks[i].tokens;
    ls_correction *corrections = malloc((capacity + 1) * sizeof *corrections);
    size_t *counts = calloc(last - first + 1, sizeof *counts);
    ls_token *made = malloc((capacity + 1) * sizeof *made);
    int result = corrections && counts && made ? LS_OK : LS_ESPACE;
    uint32_t index = 0;
    m->begin(m, state, span);
    for (size_t i = first; i < last && result == LS_OK; i++) {
        const block *b = &s->blocks[i];
        if (b->kind == 0) {
            if (b->size)
                result = m->skip(m, state, b->size);
            continue;
        }
        if (!b->tokens)
            continue;
        ls_asking a = {.tokens = s->tokens + b->token,
                       .n = b->tokens,
                       .index = index,
                       .corrections = corrections + n,
                       .capacity = capacity - n};
        result = m->verify(m, state, &a);
        if (a.count && !out->wrong)
            out->first_wrong = b->content;
        counts[i - first] = a.count;
        n += a.count;
        out->wrong += a.count;
        index += (uint32_t)b->tokens;
        if (b->kind == 2)
            ask_trees(m, state, s, b, out);
    }
    out->tokens += index;
    out->spans++;
    if (make && result == LS_OK) {
        size_t used = 0;
        index = 0;
        m->begin(m, state, span);
        for (size_t i = first; i < last && result == LS_OK; i++) {
            const block *b = &s->blocks[i];
            if (b->kind == 0) {
                if (b->size)
                    result = m->skip(m, state, b->size);
                continue;
            }
            if (!b->tokens)
                continue;
            ls_asking a = {.tokens = made,
                           .n = capacity + 1,
                           .index = index,
                           .corrections = corrections + used,
                           .count = counts[i - first]};
            /* Both ways to say where a block ends. */
            result = i & 1 ? m->make(m, state, &a, b->tokens, 0)
                           : m->make(m, state, &a, 0, b->content + b->size - (size_t)(span->at));
            out->made_wrong += a.n != b->tokens || a.next != a.count ||
                               memcmp(made, s->tokens + b->token, a.n * sizeof *made) != 0;
            used += counts[i - first];
            index += (uint32_t)b->tokens;
        }
    }
    free(corrections);
    free(counts);
    free(made);
    return result;
}

static const ls_model *model_of(const ls_model *const *tables, uint32_t id) {
    for (; *tables; tables++)
        for (const ls_model *m = *tables; m->id; m++)
            if (m->id == id)
                return m;
    return NULL;
}

extern const ls_model *const seam_tables[];

/* Replays model `id` over the stream in spans of about `size` bytes. `make`: also the other way. */
int seam_ask(const seam *s, uint32_t id, size_t size, int make, report *out) {
    const ls_model *m = model_of(seam_tables, id);
    memset(out, 0, sizeof *out);
    if (m == NULL)
        return 0;
    void *state = aligned_alloc(64, (m->state + 63) & ~(size_t)63);
    size_t i = 0;
    uint64_t flushed = 0;
    while (i < s->n_blocks && out->error == LS_OK && state) {
        const block *b = &s->blocks[i];
        if (!b->size) {
            if (b->kind == 0 && !(m->flags & LS_MODEL_UNFLUSHED))
                flushed = b->content;
            i++;
            continue;
        }
        size_t last = i, begin = b->content, end = begin;
        for (; last < s->n_blocks && end - begin < size; last++) {
            const block *c = &s->blocks[last];
            if (c->kind == 0 && !c->size && !(m->flags & LS_MODEL_UNFLUSHED))
                break;
            end = c->content + c->size;
        }
        size_t input = end;
        for (size_t k = last; k < s->n_blocks && input - end < m->ahead; k++) {
            const block *c = &s->blocks[k];
            if (c->kind == 0 && !c->size && !(m->flags & LS_MODEL_UNFLUSHED))
                break;
            input = c->content + c->size;
        }
        ls_span span = {
            .data = s->content + begin, .size = end - begin, .at = begin, .flushed = flushed};
        span.before = begin < m->history ? begin : m->history;
        span.after = input - end < m->ahead ? input - end : m->ahead;
        out->error = ask_span(m, state, s, i, last, &span, make, out);
        i = last;
    }
    free(state);
    return 1;
}

/* The tokens of a model for content that is one block, flushed nowhere: for vectors. */
size_t seam_make(uint32_t id, const uint8_t *content, size_t size, ls_token *tokens, size_t room) {
    const ls_model *m = model_of(seam_tables, id);
    void *state = m ? aligned_alloc(64, (m->state + 63) & ~(size_t)63) : NULL;
    if (state == NULL)
        return 0;
    ls_span span = {.data = content, .size = size};
    ls_asking a = {.tokens = tokens, .n = room};
    m->begin(m, state, &span);
    int result = m->make(m, state, &a, 0, size);
    free(state);
    return result == LS_OK ? a.n : 0;
}

const ls_model *const seam_tables[] = {ls_models_zlib, ls_models_golazy, NULL};
