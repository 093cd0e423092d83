/* respan_world.h: what the targets of gzip blobs share: a blob is decoded in spans, each is analysed with a
 * model and made again, and what comes out is compared. */
#ifndef RESPAN_WORLD_H
#define RESPAN_WORLD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "layerstore.h"

#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#define HISTORY LS_MODEL_MAX_HISTORY
#define ROOM (HISTORY + LS_TOKENS_CONTENT + LS_MODEL_MAX_AHEAD + LS_TOKENS_SLACK)
#define MOST_CONTENT (4u << 20) /* of a blob here; more is not looked at */

typedef struct world {
    ls_tokens *decoder;
    ls_tokens_span spans[2];
    uint32_t *tokens, *scratch;
    uint8_t *content; /* of the blob, slack on both sides */
    size_t n_content;
} world;

static void *block(size_t size) {
    void *memory = malloc(size ? size : 1);
    CHECK(memory);
    return memory;
}

static world *the_world(void) {
    static world *w;
    if (!w) {
        w = block(sizeof *w);
        w->decoder = block(ls_tokens_sizeof());
        for (int i = 0; i < 2; i++) {
            w->spans[i].content = block(ROOM);
            w->spans[i].content_room = ROOM;
            w->spans[i].tokens = block(4 * LS_TOKENS_TOKENS);
            w->spans[i].events = block(sizeof(ls_event) * LS_TOKENS_EVENTS);
            w->spans[i].bytes = block(LS_TOKENS_BYTES);
        }
        w->tokens = block(4 * LS_TOKENS_TOKENS);
        w->scratch = block(8 * LS_TOKENS_TOKENS);
        w->content = block(MOST_CONTENT + 2 * LS_TOKENS_CONTENT + LS_TOKENS_SLACK);
    }
    return w;
}

static void *work_of(const ls_model_facts *m) {
    return aligned_alloc(64, (ls_respan_sizeof(m->id) + 63) / 64 * 64);
}

/* The span from what the model mispredicts: the blob's bits, or it is not followed. Content of the span begins at
 * `offset`; all of the blob's content is there. */
static void compare(world *w, const ls_model_facts *m, ls_tokens_span *span,
                    const ls_tokens_span *following, const uint8_t *blob) {
    size_t room = 8 * span->size + 4096, length, made;
    room = room < 1u << 20 ? room : 1u << 20;
    uint8_t *corrections = block(room);
    void *work = work_of(m);
    ls_error err;
    int result = ls_respan_analyse(work, LS_RECIPE_VERSION, m->id, span, following, w->scratch,
                                   corrections, room, &length, &err);
    CHECK(result == LS_OK || result == LS_ELIMIT || result == LS_EFORMAT);
    if (result != LS_OK) {
        CHECK(m->id != 1 || result == LS_ELIMIT);
        free(work);
        free(corrections);
        return;
    }
    CHECK(length <= room);
    size_t start = (size_t)span->offset, end = start + span->size;
    size_t before = start < m->history ? start : m->history, after = w->n_content - end;
    if (after > m->ahead)
        after = m->ahead;
    /* Memory of its own, so that a byte too far is seen. */
    uint8_t *content = block(before + span->size + after + LS_TOKENS_SLACK);
    memcpy(content, w->content + start - before, before + span->size + after);
    memset(content + before + span->size + after, 0xa5, LS_TOKENS_SLACK);
    size_t out_room = (size_t)(span->end_bit / 8 - span->bit / 8) + LS_RESPAN_ROOM;
    uint8_t *out = block(out_room), *exact = block(length);
    memcpy(exact, corrections, length);
    ls_respan r = {.content = content + before,
                   .before = before,
                   .size = span->size,
                   .after = after,
                   .offset = span->offset,
                   .bit = span->bit,
                   .end_bit = span->end_bit,
                   .corrections = exact,
                   .corrections_size = length};
    result = ls_respan_make(work, LS_RECIPE_VERSION, m->id, &r, w->tokens, w->scratch, out,
                            out_room, &made, &err);
    if (result)
        fprintf(stderr, "%s: %s\n", m->name, err.reason);
    CHECK(result == LS_OK);
    CHECK(made == span->end_bit / 8 - span->bit / 8);
    CHECK(!memcmp(out, blob + span->bit / 8, made));
    free(out);
    free(exact);
    free(content);
    free(work);
    free(corrections);
}

/* Decodes a blob with the feeds and spans wanted; with a model, makes it again. Returns the decoder's result. */
static int decode(world *w, const uint8_t *blob, size_t size, size_t feed, size_t wanted,
                  const ls_model_facts *m) {
    ls_error err;
    size_t at = 0, done = 0, n = 0;
    int result = LS_TOKENS_MORE;
    /* Twice: the content first, since a span is made from what lies behind it, too. */
    for (int pass = 0; pass < (m ? 2 : 1); pass++) {
        ls_tokens_init(w->decoder);
        ls_tokens_begin(w->decoder, &w->spans[0], NULL, HISTORY);
        at = done = n = 0;
        size_t content = 0;
        int have_last = 0;
        for (;;) {
            ls_tokens_span *span = &w->spans[n & 1], *last = &w->spans[(n & 1) ^ 1];
            size_t given = done + feed < size ? done + feed : size, used;
            uint8_t *input = block(given - at);
            memcpy(input, blob + at, given - at);
            result = ls_tokens_feed(w->decoder, span, wanted, input, given - at, given == size,
                                    &used, &err);
            free(input);
            if (result < 0)
                return result;
            CHECK(used <= given - at);
            at += used;
            if (result == LS_TOKENS_MORE) {
                CHECK(given < size);
                done = given;
                continue;
            }
            CHECK(span->size <= LS_TOKENS_CONTENT && span->offset == content);
            CHECK(span->n_events || result == LS_TOKENS_END);
            if (content + span->size > MOST_CONTENT)
                return LS_ELIMIT;
            memcpy(w->content + content, span->content + span->before, span->size);
            content += span->size;
            if (pass && have_last)
                compare(w, m, last, span->n_events ? span : NULL, blob);
            have_last = 1;
            if (result == LS_TOKENS_END) {
                CHECK(at == size);
                if (pass && span->n_events)
                    compare(w, m, span, NULL, blob);
                break;
            }
            /* Its history is copied out of `span`. */
            n++;
            ls_tokens_begin(w->decoder, last, span, HISTORY);
        }
        w->n_content = content;
    }
    return result;
}

#endif
