/* walk.h: one span on its way into corrections or out of them; shared by respan.c and block_tree.c. */
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
    ls_corr_bit same_header, computed, byte[256];
    ls_corr_number numbers, sizes, counts, corrections, gaps, steps, bytes;
} ls_contexts;

typedef struct ls_walk {
    ls_corr c;
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

#endif
