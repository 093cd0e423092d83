/* registry.c: every model there is, and the one that needs no encoder: literals only.
 *
 * `none` (id 1) predicts a literal everywhere, and codes as encoder.c would make them. Whatever is valid can be
 * said in corrections to it: what no family knows, and tests. */
#include "respan_impl.h"

static const ls_model *const families[] = {
    ls_models_none,   ls_models_zlib, ls_models_golazy,
    ls_models_gofast, ls_models_kp,   ls_models_kpgreedy,
};

typedef struct none {
    const uint8_t *data;
    size_t size, at;
} none;

static void none_begin(const ls_model *m, void *state, const ls_span *span) {
    none *s = state;
    (void)m;
    s->data = span->data;
    s->size = span->size;
    s->at = 0;
}

static int none_verify(const ls_model *m, void *state, ls_asking *a) {
    none *s = state;
    (void)m;
    for (size_t i = 0; i < a->n; i++) {
        ls_token t = a->tokens[i];
        size_t length = t < 256 ? 1 : t & 0xffff;
        if (length > s->size - s->at)
            return LS_EFORMAT;
        if (t >= 256) {
            if (a->count == a->capacity)
                return LS_ELIMIT;
            a->corrections[a->count].index = a->index + (uint32_t)i;
            a->corrections[a->count++].actual = t;
        }
        s->at += length;
    }
    return LS_OK;
}

static int none_make(const ls_model *m, void *state, ls_asking *a, size_t count, size_t until) {
    none *s = state;
    size_t n = 0, room = count ? count : a->n, end = count ? s->size : until;
    (void)m;
    if (room > a->n || end > s->size)
        return LS_EFORMAT;
    while (n < room && s->at < end) {
        ls_token t = s->data[s->at];
        size_t length = 1;
        if (a->next < a->count && a->corrections[a->next].index == a->index + n) {
            ls_token actual = a->corrections[a->next++].actual;
            if (actual >= 256) {
                t = actual;
                length = t & 0xffff;
            }
        }
        if (length > end - s->at)
            return LS_EFORMAT;
        s->at += length;
        a->tokens[n++] = t;
    }
    a->n = n;
    return (count ? n == count : s->at == end) ? LS_OK : LS_EFORMAT;
}

static int none_skip(const ls_model *m, void *state, size_t size) {
    none *s = state;
    (void)m;
    if (size > s->size - s->at)
        return LS_EFORMAT;
    s->at += size;
    return LS_OK;
}

const ls_model ls_models_none[] = {
    {
        .id = 1,
        .name = "none",
        .span = 1u << 20,
        .state = sizeof(none),
        .begin = none_begin,
        .verify = none_verify,
        .make = none_make,
        .skip = none_skip,
    },
    {.id = 0},
};

const ls_model *ls_model_number(uint32_t n) {
    for (size_t f = 0; f < sizeof families / sizeof *families; f++)
        for (const ls_model *m = families[f]; m->id; m++)
            if (!n--)
                return m;
    return NULL;
}

const ls_model *ls_model_by_id(uint32_t id) {
    const ls_model *m;
    for (uint32_t n = 0; (m = ls_model_number(n)) != NULL; n++)
        if (m->id == id)
            return m;
    return NULL;
}
