/* tree_acl.c: access control lists of pax headers, in words, as the kernel wants them.
 *
 * SCHILY.acl.access and .default (star, GNU tar, libarchive): entries with commas or line ends between
 * them, `tag:who:rwx` and maybe `:number`. The result is the value of system.posix_acl_* (linux/
 * posix_acl_xattr.h): u32 version 2, then u16 tag, u16 permissions, u32 id each, little endian.
 * Whom a name without a number means only the image's own users could tell: such a list is not taken.
 */
#include <string.h>

#include "tree_impl.h"

#define ACL_VERSION 2
#define NOBODY UINT32_MAX

typedef struct part {
    const uint8_t *p;
    size_t n;
} part;

static int is_word(part w, const char *word) {
    size_t n = strlen(word);
    return (w.n == n && memcmp(w.p, word, n) == 0) || (w.n == 1 && w.p[0] == (uint8_t)word[0]);
}

/* The part before the next colon; `rest` goes behind it. */
static part next_part(part *rest) {
    const uint8_t *colon = rest->n ? memchr(rest->p, ':', rest->n) : NULL;
    size_t n = colon == NULL ? rest->n : (size_t)(colon - rest->p);
    part out = {rest->p, n};
    size_t skip = colon == NULL ? n : n + 1;
    rest->p += skip;
    rest->n -= skip;
    return out;
}

static int number(part w, uint32_t *out) {
    uint64_t v = 0;
    if (w.n == 0 || w.n > 10)
        return 0;
    for (size_t i = 0; i < w.n; i++) {
        if (w.p[i] < '0' || w.p[i] > '9')
            return 0;
        v = v * 10 + (uint64_t)(w.p[i] - '0');
    }
    *out = (uint32_t)v;
    return v < NOBODY;
}

static int permissions(part w, uint32_t *out) {
    static const char letters[] = "rwx";
    *out = 0;
    if (w.n != 3)
        return 0;
    for (unsigned i = 0; i < 3; i++) {
        if (w.p[i] == (uint8_t)letters[i])
            *out |= 4u >> i;
        else if (w.p[i] != '-')
            return 0;
    }
    return 1;
}

/* One entry: its place in the kernel's order, or -1. */
static int entry(part text, uint8_t *out) {
    static const uint16_t tags[] = {TREE_ACL_USER_OBJ, TREE_ACL_USER, TREE_ACL_GROUP_OBJ,
                                    TREE_ACL_GROUP,    TREE_ACL_MASK, TREE_ACL_OTHER};
    part tag = next_part(&text), who = next_part(&text), what = next_part(&text), id = text;
    uint32_t perm = 0, name = NOBODY;
    int kind = is_word(tag, "user") ? 0 : is_word(tag, "group") ? 2 : is_word(tag, "mask") ? 4 : 5;
    if ((kind == 5 && !is_word(tag, "other")) || !permissions(what, &perm))
        return -1;
    if (who.n > 0) {
        if (kind > 2 || !(number(id, &name) || number(who, &name)))
            return -1;
        kind++;
    }
    out[0] = (uint8_t)tags[kind];
    out[1] = 0;
    out[2] = (uint8_t)perm;
    out[3] = 0;
    tree_put32(out + 4, name);
    return kind;
}

size_t ls_tree_acl(const uint8_t *text, size_t n, uint8_t *out, uint32_t *group) {
    size_t used = 4, ends[6] = {4, 4, 4, 4, 4, 4}, count[6] = {0};
    *group = 7;
    int sound = 1;
    tree_put32(out, ACL_VERSION);
    while (n > 0) {
        size_t len = 0;
        uint8_t one[8];
        while (len < n && text[len] != ',' && text[len] != '\n')
            len++;
        part whole = {text, len};
        text += len < n ? len + 1 : len;
        n -= len < n ? len + 1 : len;
        if (len == 0)
            continue;
        int kind = entry(whole, one);
        if (kind < 0) {
            sound = 0;
            continue;
        }
        if (kind == 2)
            *group = one[2];
        count[kind]++;
        /* In the kernel's order: behind those of its kind. */
        size_t at = ends[kind];
        memmove(out + at + 8, out + at, used - at);
        memcpy(out + at, one, 8);
        used += 8;
        for (int i = kind; i < 6; i++)
            ends[i] += 8;
    }
    /* The kernel takes no other: the three of the mode, and a mask if anybody is named. */
    size_t masks = count[1] + count[3] > 0;
    if (count[0] != 1 || count[2] != 1 || count[5] != 1 || count[4] > 1 || count[4] < masks)
        return 0;
    return sound ? used : 0;
}
