/* block_tree.c: how a recipe says what the codes of a dynamic block are (FORMAT.md, section 16.6).
 *
 * Mostly: the model's. Else another variant of the model's, or length by length, where the model's (or,
 * if it has none, the best for the tokens) is what is expected. The run lengths that they are written in, the code
 * of those, and how many of its lengths are transmitted: as the model has it, or one by one. */
#include "walk.h"

static void count(ls_walk *w, const ls_token *tokens, size_t n) {
    ls_count(tokens, n, &w->counts);
    w->counts.litlen[END_OF_BLOCK] = 1;
}

static uint32_t used(const uint8_t *lengths, uint32_t n, uint32_t least) {
    while (n > least && !lengths[n - 1])
        n--;
    return n;
}

static void take_lengths(const ls_walk *w, ls_header *h) {
    memcpy(h->lengths, w->litlen.lengths, h->hlit);
    memcpy(h->lengths + h->hlit, w->dist.lengths, h->hdist);
}

/* The best lengths for the tokens. */
static int best_lengths(ls_walk *w, const ls_token *tokens, size_t n, ls_header *h) {
    count(w, tokens, n);
    uint32_t any = 0;
    for (uint32_t i = 0; i < DIST_SYMBOLS; i++)
        any |= w->counts.dist[i];
    if (!any)
        w->counts.dist[0] = 1;
    ls_code_make(w->counts.litlen, LITLEN_SYMBOLS, MAX_BITS, &w->litlen);
    ls_code_make(w->counts.dist, DIST_SYMBOLS, MAX_BITS, &w->dist);
    h->hlit = used(w->litlen.lengths, LITLEN_SYMBOLS, 257);
    h->hdist = used(w->dist.lengths, DIST_SYMBOLS, 1);
    take_lengths(w, h);
    return 1;
}

/* A variant of the model; of none but the first if it has no trees, or nothing to make them from. */
static int lengths_of(ls_walk *w, uint32_t variant, const ls_token *tokens, size_t n,
                      ls_header *h) {
    if (!w->m->trees || !n)
        return variant ? 0 : best_lengths(w, tokens, n, h);
    if (!w->m->trees(w->m, w->state, variant, tokens, n, &w->litlen, &w->dist, &h->hlit, &h->hdist))
        return 0;
    take_lengths(w, h);
    return 1;
}

static void runs_of(const ls_walk *w, ls_header *h) {
    h->n_runs = w->m->runs ? w->m->runs(h->lengths, h->hlit, h->hdist, h->runs, h->extra)
                           : ls_run_lengths(h->lengths, h->hlit + h->hdist, h->runs, h->extra);
}

static void codelen_of(const ls_walk *w, ls_header *h) {
    uint32_t counts[CODELEN_SYMBOLS] = {0};
    ls_code codelen;
    for (uint32_t i = 0; i < h->n_runs; i++)
        counts[h->runs[i]]++;
    if (w->m->codelen)
        w->m->codelen(counts, &codelen);
    else
        ls_code_make(counts, CODELEN_SYMBOLS, MAX_CODELEN_BITS, &codelen);
    memcpy(h->codelen, codelen.lengths, CODELEN_SYMBOLS);
}

static int same_lengths(const ls_header *a, const ls_header *b) {
    return a->hlit == b->hlit && a->hdist == b->hdist &&
           !memcmp(a->lengths, b->lengths, a->hlit + a->hdist);
}

static int same_runs(const ls_header *a, const ls_header *b) {
    return a->n_runs == b->n_runs && !memcmp(a->runs, b->runs, a->n_runs) &&
           !memcmp(a->extra, b->extra, a->n_runs);
}

void ls_tree_look(ls_walk *w, const ls_token *tokens, size_t n, uint32_t *variant, int *plain) {
    ls_header *h = &w->header, *o = &w->other;
    *variant = VARIANTS;
    *plain = 0;
    for (uint32_t v = 0; v < VARIANTS && *variant == VARIANTS; v++) {
        if (!lengths_of(w, v, tokens, n, o))
            break;
        if (same_lengths(h, o))
            *variant = v;
    }
    if (*variant)
        return;
    runs_of(w, o);
    codelen_of(w, o);
    *plain = same_runs(h, o) && !memcmp(h->codelen, o->codelen, CODELEN_SYMBOLS) &&
             h->hclen == ls_header_least(h->codelen);
}

int ls_tree_plain(ls_walk *w, const ls_token *tokens, size_t n) {
    ls_header *h = &w->header;
    if (!lengths_of(w, 0, tokens, n, h))
        return LS_EFORMAT;
    runs_of(w, h);
    codelen_of(w, h);
    h->hclen = ls_header_least(h->codelen);
    return LS_OK;
}

int ls_tree_fixed(ls_walk *w, const ls_token *tokens, size_t n) {
    const ls_header *h = &w->header;
    uint64_t fixed = 3, dynamic = 3 + 14 + 3 * h->hclen;
    count(w, tokens, n);
    ls_fixed_codes(&w->litlen, &w->dist);
    for (uint32_t i = 0; i < h->n_runs; i++) {
        uint32_t run = h->runs[i];
        dynamic += h->codelen[run] + (run < 16 ? 0u : run == 16 ? 2u : run == 17 ? 3u : 7u);
    }
    for (uint32_t i = 0; i < LITLEN_SYMBOLS; i++) {
        uint64_t times = w->counts.litlen[i];
        uint32_t extra = i > END_OF_BLOCK ? ls_length_extra[i - 257] : 0;
        fixed += times * (w->litlen.lengths[i] + extra);
        dynamic += times * ((i < h->hlit ? h->lengths[i] : 0u) + extra);
    }
    for (uint32_t i = 0; i < DIST_SYMBOLS; i++) {
        uint64_t times = w->counts.dist[i];
        fixed += times * (w->dist.lengths[i] + ls_dist_extra[i]);
        dynamic += times * ((i < h->hdist ? h->lengths[h->hlit + i] : 0u) + ls_dist_extra[i]);
    }
    return (fixed + 7) / 8 <= (dynamic + 7) / 8;
}

/* Lengths, one by one, of one of the two alphabets. */
static void code_lengths(ls_walk *w, int which, uint8_t *lengths, uint32_t n,
                         const uint8_t *expected, uint32_t n_expected) {
    uint32_t same = 1;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t guess = i < n_expected ? expected[i] : 0;
        same = !ls_corr_code(&w->c, &w->x.same_length[which][same][guess], lengths[i] != guess);
        lengths[i] =
            (uint8_t)(same ? guess
                           : ls_corr_tree(&w->c, w->x.lengths[which][guess], lengths[i], 4));
    }
}

/* Runs, one by one, where the lengths are known: what must be so is not said. */
static int code_runs(ls_walk *w, ls_header *h) {
    static const uint32_t bits[3] = {2, 3, 7}, least[3] = {3, 3, 11};
    uint32_t all = h->hlit + h->hdist, at = 0, k = 0;
    while (at < all) {
        uint8_t length = h->lengths[at];
        uint32_t symbol = h->runs[k], repeat;
        if (length) {
            repeat =
                ls_corr_code(&w->c, &w->x.run[0][at && h->lengths[at - 1] == length], symbol == 16);
        } else {
            repeat = ls_corr_code(&w->c, &w->x.run[1][0], symbol >= 16);
            if (repeat && ls_corr_code(&w->c, &w->x.run[2][0], symbol == 16))
                repeat = 4;
            else if (repeat)
                repeat = 2 + ls_corr_code(&w->c, &w->x.run[2][1], symbol == 18);
        }
        if (!repeat) {
            h->runs[k] = length;
            h->extra[k++] = 0;
            at++;
            continue;
        }
        uint32_t kind = repeat == 4 ? 0 : repeat - 1;
        uint32_t value = ls_corr_tree(&w->c, w->x.run_extra[kind], h->extra[k], bits[kind]);
        uint32_t times = least[kind] + value;
        if (times > all - at || (!kind && !at))
            return LS_EFORMAT;
        for (uint32_t i = 0; i < times; i++)
            if (h->lengths[at + i] != (kind ? 0 : h->lengths[at - 1]))
                return LS_EFORMAT;
        h->runs[k] = (uint8_t)(16 + kind);
        h->extra[k++] = (uint8_t)value;
        at += times;
    }
    h->n_runs = k;
    return LS_OK;
}

int ls_tree_code(ls_walk *w, const ls_token *tokens, size_t n, uint32_t variant, int plain) {
    ls_header *h = &w->header, *o = &w->other;
    ls_corr *c = &w->c;
    ls_contexts *x = &w->x;
    if (!plain) {
        uint32_t literal = 0;
        if (!ls_corr_code(c, &x->variant, variant != 0))
            variant = 0;
        else if ((literal = ls_corr_code(c, &x->is_literal, variant == VARIANTS)) == 0)
            variant = ls_corr_tree(c, x->variants, variant, 3);
        if (literal) {
            if (!lengths_of(w, 0, tokens, n, o))
                best_lengths(w, tokens, n, o);
            h->hlit = ls_corr_tree(c, x->hlit, h->hlit - 257, 5) + 257;
            h->hdist = ls_corr_tree(c, x->hdist, h->hdist - 1, 5) + 1;
            if (h->hlit > LITLEN_SYMBOLS || h->hdist > DIST_SYMBOLS)
                return LS_EFORMAT;
            code_lengths(w, 0, h->lengths, h->hlit, o->lengths, o->hlit);
            code_lengths(w, 1, h->lengths + h->hlit, h->hdist, o->lengths + o->hlit, o->hdist);
        } else if (c->reading && !lengths_of(w, variant, tokens, n, h)) {
            return LS_EFORMAT;
        }
    } else if (c->reading && !lengths_of(w, 0, tokens, n, h)) {
        return LS_EFORMAT;
    }
    if (plain && !c->reading)
        return LS_OK;

    /* What the model has for these lengths. */
    uint32_t other = 0;
    memcpy(o, h, sizeof *o);
    runs_of(w, o);
    if (!plain)
        other = ls_corr_code(c, &x->runs, !same_runs(h, o));
    if (other) {
        int result = code_runs(w, h);
        if (result != LS_OK)
            return result;
    } else {
        memcpy(h, o, sizeof *h);
    }
    uint8_t codelen[CODELEN_SYMBOLS];
    if (!plain) {
        memcpy(codelen, h->codelen, sizeof codelen);
        memcpy(o, h, sizeof *o);
        codelen_of(w, o);
        other = ls_corr_code(c, &x->codelen, memcmp(codelen, o->codelen, sizeof codelen) != 0);
        if (other)
            for (uint32_t i = 0; i < CODELEN_SYMBOLS; i++)
                h->codelen[i] = (uint8_t)ls_corr_tree(c, x->codelens, codelen[i], 3);
        else
            memcpy(h->codelen, o->codelen, sizeof codelen);
        uint32_t least = ls_header_least(h->codelen);
        if (ls_corr_code(c, &x->hclen, h->hclen != least))
            h->hclen = ls_corr_tree(c, x->hclens, h->hclen - 4, 4) + 4;
        else
            h->hclen = least;
        if (h->hclen < least || h->hclen > CODELEN_SYMBOLS)
            return LS_EFORMAT;
    } else {
        codelen_of(w, h);
        h->hclen = ls_header_least(h->codelen);
    }
    return LS_OK;
}
