/* respan.c: libFuzzer target. Bytes as a gzip blob: the decoder refuses them or gives spans, which come back
 * bit for bit from what any model mispredicts of them. Bytes as corrections: whatever they are, making ends in an
 * error or in as many bits as asked for. (Checksums of members are not compared in a build for fuzzing.)
 *
 * The first three bytes choose: which of the two and the model, size of feeds, size of spans. */
#include "respan_world.h"

static int choose_model(unsigned n, ls_model_facts *m) {
    unsigned count = 0;
    while (ls_respan_model(count, m))
        count++;
    return ls_respan_model(n % count, m);
}

static void hostile(world *w, const ls_model_facts *m, const uint8_t *data, size_t size,
                    unsigned how) {
    if (size < 8)
        return;
    size_t n = data[0] % (size - 1), times = 1 + data[1] % 40u, made;
    size_t before = data[2] * 7u, after = data[3] * 5u, length = 0,
           given = size - 4 - n % (size - 3);
    const uint8_t *text = data + 4, *corrections = data + size - given;
    size_t n_text = size - 4 - given;
    uint8_t *content = block(before + after + times * n_text + LS_TOKENS_SLACK),
            *exact = block(given);
    memset(content, 'x', before + after + times * n_text + LS_TOKENS_SLACK);
    for (size_t i = 0; i < times; i++, length += n_text)
        memcpy(content + before + length, text, n_text);
    memcpy(exact, corrections, given);
    if (before > m->history)
        before = m->history;
    if (after > m->ahead)
        after = m->ahead;
    ls_respan r = {.content = content + data[2] * 7u,
                   .before = before,
                   .size = length,
                   .after = after,
                   .offset = before + how % 3 * 100,
                   .bit = how % 8,
                   .end_bit = how % 8 + 8 * (length / (1 + how % 9)),
                   .corrections = exact,
                   .corrections_size = given};
    size_t room = (size_t)(r.end_bit / 8 - r.bit / 8) + LS_RESPAN_ROOM;
    uint8_t *out = block(room);
    void *work = work_of(m);
    ls_error err;
    int result = ls_respan_make(work, 1 + how / 9 % LS_RECIPE_VERSION, m->id, &r, w->tokens,
                                w->scratch, out, room, &made, &err);
    CHECK(result == LS_EFORMAT || result == LS_EINVALID || result == LS_OK);
    if (!result)
        CHECK(made == r.end_bit / 8 - r.bit / 8);
    free(work);
    free(out);
    free(exact);
    free(content);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    world *w = the_world();
    ls_model_facts m;
    if (size < 3)
        return 0;
    choose_model(data[0] >> 1, &m);
    if (data[0] & 1)
        hostile(w, &m, data + 3, size - 3, data[1] | (unsigned)data[2] << 8);
    else
        decode(w, data + 3, size - 3, data[1] ? data[1] : 1 << 16, 1 + (size_t)data[2] * 64, &m);
    return 0;
}
