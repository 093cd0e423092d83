/* tar_pax.c: pax extended header records, "length key=value\n" (POSIX.1-2017 pax, "pax Extended
 * Header"; the GNU.sparse keys: GNU tar's manual, "Storing Sparse Files"). */
#include <string.h>

#include "tar_impl.h"

/* No longer global value is applied: each entry that follows would carry it. */
#define GLOBAL_VALUE_MAX 256

typedef struct record {
    const uint8_t *key, *value;
    size_t key_len, value_len;
} record;

int ls_tar_decimal(const uint8_t *p, size_t n, uint64_t *value) {
    uint64_t v = 0;
    if (n == 0 || n > 20)
        return 0;
    for (size_t i = 0; i < n; i++) {
        if (p[i] < '0' || p[i] > '9' || v > (INT64_MAX - 9) / 10)
            return 0;
        v = v * 10 + (uint64_t)(p[i] - '0');
    }
    *value = v;
    return 1;
}

/* The record at p[*pos]: 1 and *pos behind it; 0 at the end; -1 if it is malformed. */
static int next_record(const uint8_t *p, size_t n, size_t *pos, record *r) {
    size_t at = *pos, i = at;
    uint64_t len;
    if (at == n)
        return 0;
    while (i < n && i - at < 10 && p[i] != ' ')
        i++;
    if (i == n || p[i] != ' ' || !ls_tar_decimal(p + at, i - at, &len) || len > n - at)
        return -1;
    const uint8_t *end = p + at + len, *key = p + i + 1;
    if (len < i - at + 4 || end[-1] != '\n') /* at least "k=\n" after the blank */
        return -1;
    const uint8_t *eq = memchr(key, '=', (size_t)(end - 1 - key));
    if (eq == NULL || eq == key)
        return -1;
    *r = (record){key, eq + 1, (size_t)(eq - key), (size_t)(end - 1 - (eq + 1))};
    *pos = at + (size_t)len;
    return 1;
}

static int is(const record *r, const char *key) {
    size_t n = strlen(key);
    return r->key_len == n && memcmp(r->key, key, n) == 0;
}

/* Seconds with an optional sign and fraction; digits past nanoseconds are dropped (towards the
 * number before, as Go does). */
static int parse_time(const uint8_t *p, size_t n, int64_t *sec, uint32_t *nsec) {
    int negative = n > 0 && p[0] == '-';
    size_t i = negative ? 1 : 0, whole = i;
    uint64_t s;
    uint32_t ns = 0, unit = 100000000;
    while (i < n && p[i] != '.')
        i++;
    if (!ls_tar_decimal(p + whole, i - whole, &s))
        return 0;
    for (i++; i < n; i++) {
        if (p[i] < '0' || p[i] > '9')
            return 0;
        ns += unit * (uint32_t)(p[i] - '0');
        unit /= 10;
    }
    *sec = negative ? -(int64_t)s : (int64_t)s;
    if (negative && ns != 0) {
        *sec -= 1;
        ns = 1000000000 - ns;
    }
    *nsec = ns;
    return 1;
}

/* Sets or clears (an empty value takes the record back) a bit; 1 if there is a value to read. */
static int present(tar_pax *x, const record *r, uint32_t bit) {
    if (r->value_len == 0)
        x->have &= ~bit;
    else
        x->have |= bit;
    return r->value_len != 0;
}

static void set_text(const ls_tar *t, tar_pax *x, const record *r, uint32_t bit, tar_span *s) {
    if (!present(x, r, bit))
        return;
    if (memchr(r->value, 0, r->value_len) != NULL)
        x->problem = 1;
    s->at = (uint32_t)(r->value - t->scratch);
    s->len = (uint32_t)r->value_len;
}

static void set_number(tar_pax *x, const record *r, uint32_t bit, uint64_t *value) {
    if (present(x, r, bit) && !ls_tar_decimal(r->value, r->value_len, value)) {
        x->have &= ~bit;
        x->problem = 1;
    }
}

static void sparse_map(ls_tar *t, tar_pax *x, const record *r) {
    const uint8_t *p = r->value, *end = p + r->value_len;
    uint64_t v[2];
    t->map_n = 0;
    for (int i = 0; p < end; i ^= 1) {
        const uint8_t *comma = memchr(p, ',', (size_t)(end - p));
        const uint8_t *stop = comma != NULL ? comma : end;
        if (!ls_tar_decimal(p, (size_t)(stop - p), &v[i]) || (stop == end && i == 0)) {
            x->problem = 1;
            return;
        }
        if (i == 1)
            ls_tar_map_add(t, v[0], v[1]);
        p = stop == end ? end : stop + 1;
    }
}

/* Records GNU.sparse.*; what framing needs is read always, the map only for entries. */
static void sparse_record(ls_tar *t, tar_pax *x, const record *r) {
    uint64_t length = 0;
    if (is(r, "GNU.sparse.major")) {
        set_number(x, r, PAX_SPARSE_MAJOR, &x->major);
    } else if (is(r, "GNU.sparse.minor")) {
        set_number(x, r, PAX_SPARSE_MINOR, &x->minor);
    } else if (is(r, "GNU.sparse.name")) {
        set_text(t, x, r, PAX_SPARSE_NAME, &x->sparse_name);
    } else if (is(r, "GNU.sparse.size") || is(r, "GNU.sparse.realsize")) {
        set_number(x, r, PAX_SPARSE_SIZE, &x->sparse_size);
    } else if (is(r, "GNU.sparse.map")) {
        if (present(x, r, PAX_SPARSE_MAP) && t->keep)
            sparse_map(t, x, r);
    } else if (is(r, "GNU.sparse.numblocks")) {
        present(x, r, PAX_SPARSE_BLOCKS);
    } else if (is(r, "GNU.sparse.offset")) {
        if (x->have & PAX_SPARSE_OPEN)
            x->problem = 1;
        set_number(x, r, PAX_SPARSE_OPEN, &x->sparse_open);
        x->have |= PAX_SPARSE_BLOCKS;
    } else if (is(r, "GNU.sparse.numbytes")) {
        if ((x->have & PAX_SPARSE_OPEN) && ls_tar_decimal(r->value, r->value_len, &length)) {
            if (t->keep)
                ls_tar_map_add(t, x->sparse_open, length);
        } else {
            x->problem = 1;
        }
        x->have = (x->have & ~PAX_SPARSE_OPEN) | PAX_SPARSE_BLOCKS;
    }
}

/* Records that only entries need. */
static void plain_record(ls_tar *t, tar_pax *x, const record *r) {
    if (is(r, "uid")) {
        set_number(x, r, PAX_UID, &x->uid);
    } else if (is(r, "gid")) {
        set_number(x, r, PAX_GID, &x->gid);
    } else if (is(r, "uname")) {
        set_text(t, x, r, PAX_UNAME, &x->uname);
    } else if (is(r, "gname")) {
        set_text(t, x, r, PAX_GNAME, &x->gname);
    } else if (is(r, "mtime")) {
        if (present(x, r, PAX_MTIME) &&
            !parse_time(r->value, r->value_len, &x->mtime_sec, &x->mtime_nsec)) {
            x->have &= ~PAX_MTIME;
            x->problem = 1;
        }
    }
}

void ls_tar_pax_apply(ls_tar *t, tar_pax *x, uint32_t at, uint32_t len, int global) {
    const uint8_t *p = t->scratch + at;
    size_t pos = 0;
    record r;
    uint32_t seen = 0; /* sizes and paths twice in one header: readers may take either */
    int got;
    while ((got = next_record(p, len, &pos, &r)) > 0) {
        uint32_t bit = is(&r, "size")       ? PAX_SIZE
                       : is(&r, "path")     ? PAX_PATH
                       : is(&r, "linkpath") ? PAX_LINK
                                            : 0;
        int sparse = r.key_len > 11 && memcmp(r.key, "GNU.sparse.", 11) == 0;
        if (global && (bit || sparse || r.value_len > GLOBAL_VALUE_MAX)) {
            if (bit || sparse || is(&r, "uname") || is(&r, "gname"))
                x->problem = 1; /* Go does not apply them, Python and GNU tar do */
        } else if (bit) {
            if (seen & bit)
                x->problem = 1;
            seen |= bit;
            if (bit == PAX_SIZE)
                set_number(x, &r, PAX_SIZE, &x->size);
            else
                set_text(t, x, &r, bit, bit == PAX_PATH ? &x->path : &x->link);
        } else if (sparse) {
            sparse_record(t, x, &r);
        } else if (t->keep) {
            plain_record(t, x, &r);
        }
    }
    if (got < 0)
        x->problem = 1;
}
