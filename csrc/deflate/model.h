/* model.h: how the replay of an encoder is asked for its decisions (regeneration of gzip blobs).
 *
 * A *model* is one encoder at one level, frozen and numbered for ever: the same content gives the same
 * tokens on every machine. It works on a *span*: a stretch of one deflate stream's content that is in
 * memory whole, with history before it and what follows behind it. Spans begin where a block begins, and
 * know nothing of each other: whatever an encoder would still remember from before the history is made up
 * for by corrections. So spans are analysed, and made again, side by side and from the middle.
 *
 * A span is asked for block by block. What a model predicts is compared with what is there (analysis), or
 * taken unless a correction says otherwise (making); either way it goes on from the token that was taken,
 * so one wrong prediction does not spoil the rest. */
#ifndef LS_DEFLATE_MODEL_H
#define LS_DEFLATE_MODEL_H

#include "deflate_impl.h"

typedef struct ls_span {
    const uint8_t *data; /* the span's first byte; `before` bytes lie in front, `after` behind */
    size_t
        before;  /* history of the same stream: all there is, or at least `history` of the model */
    size_t size; /* bytes to be tokenised */
    size_t
        after;   /* bytes of the same stream behind: at least `ahead` of the model, or all there are
                            up to where the encoder's input ended or was flushed (an empty stored block);
                            16 bytes more can be read, and must not matter */
    uint64_t at; /* content offset of the first byte from the start of the stream (member) */
    uint64_t
        flushed; /* content offset of the last flush before it, 0 if none: pieces begin there */
} ls_span;

/* A token that is another than the model's: the index counts the tokens of the span (not the segment's).
 * In making a literal is below 256 and no more: which byte, the content says. */
typedef struct ls_correction {
    uint32_t index;
    ls_token actual;
} ls_correction;

/* Both ways of asking, for one block. Analysis: `tokens` holds what is there, n of them, and each one that the model did
 * not predict is added to `corrections` (LS_ELIMIT when there is no room for it). Making: `tokens` is filled, and
 * `corrections` (sorted) overrule. */
typedef struct ls_asking {
    ls_token *tokens; /* of this block */
    size_t n;         /* analysis: how many there are; making: room, then how many there are */
    uint32_t index;   /* of tokens[0] in the span */
    ls_correction *corrections;
    size_t count;    /* analysis: so many are there; making: in all */
    size_t capacity; /* analysis: room */
    size_t next;     /* making: the first one that is not used up */
    int over;        /* making: the last token may reach over `until`; n tokens are enough */
} ls_asking;

/* Empty stored blocks do not end the input of this encoder (gzip --rsyncable): a span goes on over them,
 * `flushed` stays 0. Without it a span ends there, and the next begins. */
#define LS_MODEL_UNFLUSHED 1u
/* Behind a block that ends where its content says (`mark`) comes what fills up the byte: gzip's empty stored
 * block; pigz's empty fixed blocks, if they can, else an empty stored one. */
#define LS_MODEL_FILLS 4u
#define LS_MODEL_FILLS_FIXED 8u
/* Another does the same with fewer corrections: for recipes that are there. */
#define LS_MODEL_SUPERSEDED 16u
/* It takes a fixed block where that has no more bytes than a dynamic one; what fills up the byte behind a mark is
 * part of what a block has as usual. */
#define LS_MODEL_TYPES 32u
/* Its pieces know nothing of what was before their flush. */
#define LS_MODEL_ALONE 2u

typedef struct ls_model ls_model;
struct ls_model {
    uint32_t id; /* for ever: what a recipe names */
    const char *name;
    uint32_t history;       /* bytes wanted in front of a span (window and warm-up) */
    uint32_t ahead;         /* bytes wanted behind */
    uint32_t span;          /* content bytes of a span that suit it (1 to 4 MiB) */
    uint32_t block_tokens;  /* tokens of a full block, 0 if that does not end one */
    uint32_t block_content; /* blocks end at multiples of so many bytes since the flush, 0 if not */
    size_t state;           /* bytes of state, 64-byte aligned, not cleared */
    uint32_t flags;         /* LS_MODEL_* */

    /* Begins a span: reads the history. */
    void (*begin)(const ls_model *m, void *state, const ls_span *span);
    /* Analysis: takes a->n tokens, notes what was mispredicted. Returns LS_OK, LS_ELIMIT, or LS_EFORMAT when
     * the tokens do not stand for the content. */
    int (*verify)(const ls_model *m, void *state, ls_asking *a);
    /* Making: gives `count` tokens (count > 0), or as many as it takes to reach `until` bytes of the span
     * (count == 0). Returns LS_OK; LS_EFORMAT when they do not end there, or a correction does not fit. */
    int (*make)(const ls_model *m, void *state, ls_asking *a, size_t count, size_t until);
    /* A stored block of `size` bytes: the encoder looked for tokens there, too, and nobody knows which. */
    int (*skip)(const ls_model *m, void *state, size_t size);
    /* Codes of a dynamic block with these tokens. `variant` 0 is the likeliest, then others (klauspost: the
     * table of the block's first 65,535 bytes; an older table used again). Fills the lengths of `litlen`
     * and `dist` as they are transmitted, *hlit and *hdist (counts of symbols transmitted). Returns 0 when
     * there is no such variant. Asked behind the block's tokens, or not at all, or for one variant only:
     * the answer rests on the tokens and on what `begin`, `verify`, `make` and `skip` left. */
    int (*trees)(const ls_model *m, void *state, uint32_t variant, const ls_token *tokens, size_t n,
                 ls_code *litlen, ls_code *dist, uint32_t *hlit, uint32_t *hdist);
    /* How the lengths are written: which run-length symbols (their count), out of hlit + hdist lengths.
     * zlib: the two trees each for itself; Go: joined. And the code of those symbols. */
    uint32_t (*runs)(const uint8_t *lengths, uint32_t hlit, uint32_t hdist, uint8_t *symbols,
                     uint8_t *extra);
    void (*codelen)(const uint32_t *counts, ls_code *codelen);
    /* Where content ends a block by itself: behind how many bytes from `data` on, SIZE_MAX if not within `size`. The block
     * then has all tokens that begin before. NULL: content does not. `before`: bytes of the stream in front; `at`: offset of
     * `data` in it. */
    size_t (*mark)(const uint8_t *data, size_t before, uint64_t at, size_t size);
    const void *parameters; /* of the level */
};

/* Every model there is (registry.c), by id and by number; NULL: no such model. Each family's file gives
 * its part; id 0 is behind its last. */
const ls_model *ls_model_by_id(uint32_t id);
const ls_model *ls_model_number(uint32_t n);
extern const ls_model ls_models_none[];   /* id 1: literals only */
extern const ls_model ls_models_zlib[];   /* ids 100 to 199, 460 to 479: zlib 1-9, gzip, pigz */
extern const ls_model ls_models_golazy[]; /* ids 200 to 219: Go's compress/flate to 1.26, 2-9 */
extern const ls_model ls_models_gofast[]; /* ids 220 to 229: its level 1 */
extern const ls_model
    ls_models_kp[]; /* ids 300 to 369, 371 to 374, 377 to 379: klauspost/compress, Go 1.27 */
extern const ls_model ls_models_kpgreedy[]; /* ids 375, 376: its levels 5 and 6 up to 1.8 */

#endif
