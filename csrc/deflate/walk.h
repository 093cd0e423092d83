/* walk.h: one span on its way into corrections or out of them; shared by respan.c, segments.c, span_blocks.c
 * and block_tree.c. */
#ifndef LS_WALK_H
#define LS_WALK_H

#include "respan_impl.h"

#define VARIANTS 8 /* of a model's trees that can be named */

/* Contexts, by what they are about. */
typedef struct ls_contexts {
    ls_corr_bit inside, at, flushed[2];
    ls_corr_bit item[4], ending[4], fills, same_size, after, more;
    ls_corr_bit ordinary[4], stored[4], fixed[4], final[8], end[4], stored_size[4], padding, filled;
    ls_corr_bit has_corrections[2], literal[2], length[256], dist[32];
    ls_corr_bit variant, is_literal, variants[VARIANTS];
    ls_corr_bit runs, codelen, hclen;
    ls_corr_bit hlit[32], hdist[32], same_length[2][2][16], lengths[2][16][16];
    ls_corr_bit run[3][2], run_extra[3][128], codelens[8], hclens[16];
    ls_corr_bit same_header, plain_header, expected[10], computed, byte[256];
    ls_corr_number numbers, sizes, counts, corrections, gaps, steps, bytes;
} ls_contexts;

typedef struct ls_walk {
    ls_corr c;
    uint32_t version; /* of the recipe */
    const ls_model *m;
    void *state;
    const uint8_t *content; /* the span's */
    size_t size, pos;
    size_t before;   /* bytes in front of `content` that are the member's, in making: at most */
    size_t after;    /* bytes behind it that are the member's, in making: at most */
    uint64_t offset; /* content in the blob before the span */
    uint64_t at;     /* content in the member before `pos` */
    uint64_t flushed;
    uint32_t index; /* tokens before this block */
    uint32_t blocks;
    uint32_t kind;      /* of the block before, 0 ordinary */
    uint32_t last_size; /* of the stored block before */
    size_t last_segment;
    int whole;     /* the member begins in this span */
    size_t member; /* then: where */
    ls_token *tokens;
    ls_correction *corrections;
    size_t capacity;     /* analysis: corrections of a block that are still worth it */
    size_t mispredicted; /* tokens so far */
    ls_error *err;
    /* analysis */
    const ls_tokens_span *span;
    size_t next;  /* event */
    size_t token; /* of the span */
    /* making */
    ls_bits bits;
    const uint8_t *end;
    /* both */
    const uint8_t *last_header;
    size_t last_header_size;
    uint8_t header_copy[64];
    ls_header header, other;
    ls_code litlen, dist;
    ls_counts counts;
    ls_bits_table table, fixed;
    int has_fixed, has_crc;
    ls_crc_table crc;
    ls_contexts x;
} ls_walk;

/* The tree of a dynamic block with these tokens: as the model has it, or as it is said here. Analysis: it is in
 * `header`; `*variant` says which (below VARIANTS; VARIANTS: none), `*plain` whether all else is as the
 * model has it. */
void ls_tree_look(ls_walk *w, const ls_token *tokens, size_t n, uint32_t *variant, int *plain);
/* Codes it, and in making fills `header`. `plain`: variant 0 and nothing else. */
int ls_tree_code(ls_walk *w, const ls_token *tokens, size_t n, uint32_t variant, int plain);
/* Fills `header` as the model has it for these tokens. */
int ls_tree_plain(ls_walk *w, const ls_token *tokens, size_t n);
/* Whether a fixed block of these tokens has no more bytes than a dynamic one with `header`. */
int ls_tree_fixed(ls_walk *w, const ls_token *tokens, size_t n);

/* What the model sees as one input. */
enum ls_ending { ENDING_CUT, ENDING_FLUSH, ENDING_MEMBER };

typedef struct ls_stretch {
    size_t start, end; /* in the span's content */
    uint32_t ending;
} ls_stretch;

/* How far the model's input goes on from the next event: content, and what ends it. */
void ls_scan(const ls_walk *w, ls_stretch *g);
/* The next one, its blocks, and what ends it. */
int ls_run_segment(ls_walk *w, ls_stretch *g);
/* Zeros, trailing bytes, or the header that begins a member (1), or the end (2). Negative: wrong. */
int ls_between(ls_walk *w);

/* A block of a segment; `*final`: the last of its member. */
int ls_span_block(ls_walk *w, const ls_stretch *g, uint32_t *final);
int ls_stored_block(ls_walk *w, const ls_stretch *g, const ls_event *e, uint32_t final);
/* On a byte boundary. */
int ls_put_bytes(ls_walk *w, const uint8_t *p, size_t n);
/* The bits up to the byte boundary: said only if one is set. In making their number is known. */
int ls_padding(ls_walk *w, uint32_t value, uint64_t bit);

static inline int ls_misfit(const ls_walk *w, const char *reason) {
    return ls_fail(w->err, LS_EFORMAT, w->offset + w->pos, reason);
}

static inline int ls_too_much(const ls_walk *w) {
    return ls_fail(w->err, LS_ELIMIT, w->offset + w->pos, "too much is mispredicted");
}

static inline const ls_event *ls_next_event(const ls_walk *w) {
    return !w->c.reading && w->next < w->span->n_events ? &w->span->events[w->next] : NULL;
}

static inline int ls_is_flush(const ls_walk *w, const ls_event *e) {
    return e->kind == LS_EVENT_STORED && !e->size && !e->final &&
           !(w->m->flags & LS_MODEL_UNFLUSHED);
}

static inline int ls_room_for(ls_walk *w, size_t n) {
    return (size_t)(w->end - w->bits.at) >= n + 16 ? LS_OK
                                                   : ls_misfit(w, "more comes out than should");
}

/* Content before here that the model may know: of this member, and there. */
static inline size_t ls_before(const ls_walk *w) {
    size_t before = w->whole ? w->pos - w->member : w->pos + w->before;
    return before > w->at ? (size_t)w->at : before;
}

static inline void ls_advance(ls_walk *w, size_t size) {
    w->pos += size;
    w->at += size;
}

#endif
