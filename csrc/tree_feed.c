/* tree_feed.c: headers of a layer become pending nodes.
 *
 * Runs the scanner; for a split layer over the header stream, in which payloads are only announced
 * (as join.c does). Refuses what cannot be extracted in one way only: contradicting headers, names
 * with NUL, owners that no system has, a tar that is cut off or not understood.
 */
#include <string.h>

#include "tree_impl.h"

size_t ls_tree_sizeof(void) {
    return sizeof(ls_tree);
}

int ls_tree_refuse(ls_tree *t, ls_error *err, uint64_t header, const uint8_t *path, size_t len,
                   const char *why) {
    t->bad_len = (uint32_t)(len < LS_TREE_PATH ? len : LS_TREE_PATH);
    memmove(t->work[0], path, t->bad_len);
    return ls_tar_fail(err, LS_EINVALID, header, why);
}

int ls_tree_more(ls_tree_out *out, uint64_t nodes, uint64_t arena, ls_error *err) {
    out->need_nodes = nodes;
    out->need_arena = arena;
    return ls_tar_fail(err, LS_ESPACE, 0, "more memory is needed for the tree");
}

size_t ls_tree_bad(const ls_tree *t, uint8_t *out, size_t size) {
    size_t n = t->bad_len < size ? t->bad_len : size;
    memcpy(out, t->work[0], n);
    return n;
}

int ls_tree_layer(ls_tree *t, int split, const uint8_t *marks, size_t marks_size, uint64_t content,
                  ls_error *err) {
    if (t->stage != TREE_IDLE && t->stage != TREE_PLANNED)
        return ls_tar_fail(err, LS_ESTATE, 0, "a layer is not applied yet");
    if (t->layer == TREE_MAX_LAYERS)
        return ls_tar_fail(err, LS_ELIMIT, 0, "more than 4096 layers");
    ls_tar_init(&t->tar, t->tar.scratch, t->tar.scratch_size);
    t->tar.keep = 1;
    t->layer++;
    t->split = split != 0;
    t->marks = marks;
    t->marks_size = marks_size;
    t->marks_used = 0;
    t->have_mark = t->asked = t->ended = 0;
    t->content = content;
    t->content_at = 0;
    t->inline_left = 0;
    t->first = t->last = t->n;
    t->compact = t->arena_used;
    t->bad_len = 0;
    t->stage = TREE_FEEDING;
    return LS_OK;
}

static int varint(const ls_tree *t, size_t *at, uint64_t *value) {
    uint64_t v = 0;
    size_t i = *at;
    for (unsigned shift = 0; i < t->marks_size && shift < 64; i++, shift += 7) {
        v |= (uint64_t)(t->marks[i] & 0x7f) << shift;
        if (t->marks[i] < 0x80) {
            *at = i + 1;
            *value = v;
            return 1;
        }
    }
    return 0;
}

/* How many bytes of the payload to come lie in the header stream. */
static int ask_marks(ls_tree *t, ls_error *err) {
    t->asked = 1;
    t->inline_left = 0;
    if (!t->have_mark) {
        if (t->marks_used == t->marks_size)
            return LS_OK;
        if (!varint(t, &t->marks_used, &t->mark_gap) || !varint(t, &t->marks_used, &t->mark_bytes))
            return ls_tar_fail(err, LS_EINVALID, t->tar.pos, "the marks are damaged");
        t->have_mark = 1;
    }
    if (t->mark_gap > 0) {
        t->mark_gap--;
        return LS_OK;
    }
    if (t->mark_bytes > t->tar.stored || t->mark_bytes > TREE_INLINE_MAX)
        return ls_tar_fail(err, LS_EINVALID, t->tar.pos, "a mark claims more than its payload");
    t->have_mark = 0;
    t->inline_left = t->mark_bytes;
    return LS_OK;
}

/* One pax record: its key and value; 0 at the end or at what is malformed. */
static int next_record(const uint8_t **p, size_t *n, const uint8_t **key, size_t *key_len,
                       const uint8_t **value, size_t *value_len) {
    size_t length = 0, i = 0;
    while (i < *n && i < 10 && (*p)[i] >= '0' && (*p)[i] <= '9')
        length = length * 10 + (size_t)((*p)[i++] - '0');
    if (i == 0 || i >= *n || (*p)[i] != ' ' || length > *n || length < i + 2 ||
        (*p)[length - 1] != '\n')
        return 0;
    const uint8_t *start = *p + i + 1, *end = *p + length - 1;
    if (start >= end)
        return 0;
    const uint8_t *equals = memchr(start, '=', (size_t)(end - start));
    if (equals == NULL)
        return 0;
    *key = start;
    *key_len = (size_t)(equals - start);
    *value = equals + 1;
    *value_len = (size_t)(end - equals - 1);
    *p += length;
    *n -= length;
    return 1;
}

static int hex(uint8_t c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static size_t percent(const uint8_t *p, size_t n, uint8_t *out) {
    size_t m = 0;
    for (size_t i = 0; i < n; i++) {
        if (p[i] == '%' && i + 2 < n && hex(p[i + 1]) >= 0 && hex(p[i + 2]) >= 0) {
            out[m++] = (uint8_t)(hex(p[i + 1]) << 4 | hex(p[i + 2]));
            i += 2;
        } else {
            out[m++] = p[i];
        }
    }
    return m;
}

/* Base64 without or with its padding; SIZE_MAX for what is none. */
static size_t base64(const uint8_t *p, size_t n, uint8_t *out) {
    uint32_t bits = 0;
    unsigned have = 0;
    size_t m = 0;
    while (n > 0 && p[n - 1] == '=')
        n--;
    for (size_t i = 0; i < n; i++) {
        uint8_t c = p[i];
        uint32_t v;
        if (c >= 'A' && c <= 'Z')
            v = (uint32_t)(c - 'A');
        else if (c >= 'a' && c <= 'z')
            v = (uint32_t)(c - 'a' + 26);
        else if (c >= '0' && c <= '9')
            v = (uint32_t)(c - '0' + 52);
        else if (c == '+' || c == '/')
            v = c == '+' ? 62 : 63;
        else
            return SIZE_MAX;
        bits = bits << 6 | v;
        have += 6;
        if (have >= 8) {
            have -= 8;
            out[m++] = (uint8_t)(bits >> have);
        }
    }
    return m;
}

static const char acl_access[] = "SCHILY.acl.access";
static const char acl_default[] = "SCHILY.acl.default";
static const char schily[] = "SCHILY.xattr.";
static const char libarchive[] = "LIBARCHIVE.xattr.";

static void extra_head(uint8_t *p, uint8_t tag, size_t len) {
    p[0] = tag;
    tree_put32(p + 1, (uint32_t)len);
}

/* A list in words as an xattr, or the mark that it was lost. Then the file's group keeps no more than
 * the list gave it: the mode may show the mask there. */
static size_t put_acl(ls_tree_node *node, const char *name, const uint8_t *value, size_t len,
                      uint8_t *out) {
    size_t name_len = strlen(name);
    uint8_t *at = out + EXTRA_HEAD + 2;
    uint32_t group;
    memcpy(at, name, name_len);
    size_t got = ls_tree_acl(value, len, at + name_len, &group);
    if (got == 0) {
        if (strcmp(name, TREE_XATTR_ACCESS) == 0)
            node->mode &= (uint16_t)~((~group & 7) << 3);
        extra_head(out, EXTRA_LOST, 0);
        return EXTRA_HEAD;
    }
    out[EXTRA_HEAD] = (uint8_t)name_len;
    out[EXTRA_HEAD + 1] = 0;
    extra_head(out, EXTRA_XATTR, 2 + name_len + got);
    return EXTRA_HEAD + 2 + name_len + got;
}

static size_t put_acls(ls_tree_node *node, const uint8_t *pax, size_t pax_len, uint8_t *out) {
    const uint8_t *key, *value, *found[2] = {NULL, NULL};
    size_t key_len, value_len, len[2] = {0, 0}, used = 0;
    while (next_record(&pax, &pax_len, &key, &key_len, &value, &value_len)) {
        int which = -1;
        if (key_len == sizeof acl_access - 1 && memcmp(key, acl_access, key_len) == 0)
            which = 0;
        else if (key_len == sizeof acl_default - 1 && memcmp(key, acl_default, key_len) == 0)
            which = 1;
        if (which < 0)
            continue;
        found[which] = value; /* the last one counts */
        len[which] = value_len;
    }
    if (len[0] > 0)
        used += put_acl(node, TREE_XATTR_ACCESS, found[0], len[0], out + used);
    if (len[1] > 0 && node->type == '5')
        used += put_acl(node, TREE_XATTR_DEFAULT, found[1], len[1], out + used);
    return used;
}

/* Extended attributes as extras at `out`; SCHILY's come last, so that they win. Never longer than
 * the records are, and a few bytes each: the name alone was longer by more. */
static size_t put_xattrs(const uint8_t *pax, size_t pax_len, uint8_t *out) {
    size_t used = 0;
    for (int pass = 0; pass < 2; pass++) {
        const uint8_t *p = pax, *key, *value;
        size_t n = pax_len, key_len, value_len;
        const char *prefix = pass ? schily : libarchive;
        size_t skip = pass ? sizeof schily - 1 : sizeof libarchive - 1;
        while (next_record(&p, &n, &key, &key_len, &value, &value_len)) {
            if (key_len <= skip || memcmp(key, prefix, skip) != 0 || key_len - skip > 1024)
                continue;
            uint8_t *at = out + used;
            uint8_t *name = at + EXTRA_HEAD + 2;
            size_t name_len = key_len - skip, got = value_len;
            if (pass) {
                memcpy(name, key + skip, name_len);
                memcpy(name + name_len, value, value_len);
            } else {
                name_len = percent(key + skip, name_len, name);
                got = base64(value, value_len, name + name_len);
                if (got == SIZE_MAX)
                    continue;
            }
            at[EXTRA_HEAD] = (uint8_t)name_len;
            at[EXTRA_HEAD + 1] = (uint8_t)(name_len >> 8);
            extra_head(at, EXTRA_XATTR, 2 + name_len + got);
            used += EXTRA_HEAD + 2 + name_len + got;
        }
    }
    return used;
}

static int has_nul(const uint8_t *p, size_t n) {
    return n > 0 && memchr(p, 0, n) != NULL;
}

static int is_whiteout(const uint8_t *p, size_t n) {
    while (n > 0 && p[n - 1] == '/')
        n--;
    size_t start = n;
    while (start > 0 && p[start - 1] != '/')
        start--;
    return n - start >= 4 && memcmp(p + start, ".wh.", 4) == 0;
}

/* What makes an entry impossible to extract, or NULL. */
static const char *objection(const ls_tar_entry *e, const uint8_t *name, const uint8_t *link) {
    if (e->problem)
        return "its headers contradict each other";
    if (e->name_len > LS_TREE_PATH)
        return "a name of more than 16384 bytes";
    if (has_nul(name, e->name_len) || has_nul(link, e->link_len))
        return "a NUL in a name";
    if (e->uid >= UINT32_MAX || e->gid >= UINT32_MAX)
        return "an owner that no system has";
    if (e->type == '2' && (e->link_len == 0 || e->link_len > TREE_TARGET))
        return "a symbolic link whose target is empty or too long";
    if (e->type == '1' && (e->link_len == 0 || e->link_len > LS_TREE_PATH))
        return "a hard link whose target is empty or too long";
    if ((e->type == '3' || e->type == '4') && (e->devmajor > 0xfff || e->devminor > 0xfffff))
        return "a device number that does not exist";
    if (e->size > INT64_MAX)
        return "a size that does not exist";
    return NULL;
}

static int make_node(ls_tree *t, const ls_tree_mem *mem, ls_tree_out *out, ls_error *err) {
    ls_tar_entry e;
    size_t used = 0;
    if (!ls_tar_emit(&t->tar, &e, t->emit, TREE_EMIT_SIZE, &used))
        return ls_tar_fail(err, LS_EINVALID, t->tar.pos, "the scratch memory is too small");
    if (e.after_end) {
        t->ended = 1;
        return LS_OK;
    }
    const uint8_t *name = t->emit + e.name_off, *link = t->emit + e.link_off;
    const char *why = objection(&e, name, link);
    if (why != NULL)
        return ls_tree_refuse(t, err, e.header_offset, name, e.name_len, why);

    uint8_t type = e.type == '7' ? '0' : e.type;
    if (is_whiteout(name, e.name_len))
        type = 'w';
    else if (type < '0' || type > '6')
        type = '?';
    int file = type == '0';
    int linked = type == '1' || type == '2';
    if (t->n == UINT32_MAX - 1)
        return ls_tar_fail(err, LS_ELIMIT, e.header_offset, "more entries than can be counted");
    /* A record's key is longer than the head of its extra, but for access control lists. */
    uint64_t need = t->arena_used + e.name_len + e.link_len + t->inline_left + e.sparse_len +
                    2 * (uint64_t)e.pax_len + 4 * EXTRA_HEAD + TREE_ACL_ROOM;
    if (need > UINT32_MAX)
        return ls_tar_fail(err, LS_ELIMIT, e.header_offset, "more than 4 GiB of names");
    if (t->n >= mem->max_nodes || need > mem->arena_size)
        return ls_tree_more(out, (uint64_t)t->n + 1, need, err);

    ls_tree_node *node = &mem->nodes[t->n];
    uint8_t *arena = mem->arena;
    uint64_t at = t->arena_used;
    memset(node, 0, sizeof *node);
    node->header = e.header_offset;
    node->mtime_sec = e.mtime_sec;
    node->mtime_nsec = e.mtime_nsec;
    node->uid = (uint32_t)e.uid;
    node->gid = (uint32_t)e.gid;
    node->at = (uint64_t)e.devmajor << 32 | e.devminor;
    node->parent = node->next = node->link = node->names = NONE;
    node->mode = (uint16_t)(e.mode & 07777);
    node->layer = node->born = t->layer;
    node->type = type;
    node->name_off = (uint32_t)at;
    node->name_len = (uint16_t)e.name_len;
    memcpy(arena + at, name, e.name_len);
    at += e.name_len;
    node->extra_off = (uint32_t)at;
    if (linked) {
        extra_head(arena + at, EXTRA_LINK, e.link_len);
        memcpy(arena + at + EXTRA_HEAD, link, e.link_len);
        at += EXTRA_HEAD + e.link_len;
    }
    t->inline_at = UINT64_MAX;
    if (file) {
        node->size = e.size;
        node->at = t->split ? t->content_at : e.data_offset;
        if (t->inline_left) {
            extra_head(arena + at, EXTRA_INLINE, t->inline_left);
            t->inline_at = at + EXTRA_HEAD;
            at += EXTRA_HEAD + t->inline_left;
        }
        if (e.sparse) {
            extra_head(arena + at, EXTRA_MAP, e.sparse_len);
            memcpy(arena + at + EXTRA_HEAD, t->emit + e.sparse_off, e.sparse_len);
            at += EXTRA_HEAD + e.sparse_len;
        }
    }
    if (e.pax_len && (type == '0' || type == '5'))
        at += put_acls(node, t->emit + e.pax_off, e.pax_len, arena + at);
    if (e.pax_len && type != '1' && type != 'w' && type != '?')
        at += put_xattrs(t->emit + e.pax_off, e.pax_len, arena + at);
    node->extra_len = (uint32_t)(at - node->extra_off);
    t->arena_used = at;
    t->n++;
    return LS_OK;
}

/* Bytes of a split layer's payload: those in the header stream are kept, the others only counted. */
static size_t payload(ls_tree *t, const ls_tree_mem *mem, const uint8_t *p, size_t n) {
    size_t c = 0;
    if (!t->split) {
        c = t->tar.left < n ? (size_t)t->tar.left : n;
        ls_tar_skip(&t->tar, c);
        return c;
    }
    if (t->inline_left) {
        c = t->inline_left < n ? (size_t)t->inline_left : n;
        if (t->inline_at != UINT64_MAX) {
            memcpy(mem->arena + t->inline_at, p, c);
            t->inline_at += c;
        }
        t->inline_left -= c;
        ls_tar_skip(&t->tar, c);
    }
    if (t->inline_left == 0 && t->tar.state == TAR_DATA) {
        t->content_at += t->tar.left;
        ls_tar_skip(&t->tar, t->tar.left);
    }
    return c;
}

int ls_tree_feed(ls_tree *t, const ls_tree_mem *mem, const uint8_t *data, size_t size, int final,
                 ls_tree_out *out, ls_error *err) {
    memset(out, 0, sizeof *out);
    if (t->stage != TREE_FEEDING)
        return ls_tar_fail(err, LS_ESTATE, t->tar.pos, "no layer was begun");
    int code = LS_OK;
    while (code == LS_OK) {
        if (t->tar.state == TAR_READY) {
            if (t->split && t->tar.stored != 0 && !t->asked)
                code = ask_marks(t, err);
            if (code == LS_OK && !t->ended)
                code = make_node(t, mem, out, err);
            if (code == LS_OK) {
                t->asked = 0;
                ls_tar_begin(&t->tar);
                /* A payload of which nothing is in the header stream takes no byte of it. */
                if (t->split && t->tar.state == TAR_DATA && t->inline_left == 0)
                    payload(t, mem, data, 0);
            }
            continue;
        }
        if (out->used == size)
            break;
        if (t->tar.state == TAR_DATA)
            out->used += payload(t, mem, data + out->used, size - out->used);
        else
            out->used += ls_tar_take(&t->tar, data + out->used, size - out->used);
    }
    out->n_nodes = t->n;
    if (code != LS_OK || !final)
        return code;
    ls_tar_end(&t->tar);
    if (!t->ended && ls_tar_lost(&t->tar, err))
        return LS_EINVALID;
    if (!ls_tar_complete(&t->tar) || (t->split && t->content_at > t->content))
        return ls_tar_fail(err, LS_EINVALID, t->tar.pos, "the tar is cut off");
    ls_tree_unplan(t, mem);
    t->n_seen = 0;
    t->last = t->n;
    t->cursor = t->first;
    t->step = STEP_WHITEOUTS;
    t->deferred = 0;
    t->rounds = 0;
    t->stage = TREE_FED;
    return LS_OK;
}
