/* corrections.c: the adaptive binary range coder in which recipes keep what a model mispredicts.
 *
 * Part of the format (FORMAT.md, section 16.4). A bit in a context has a probability that goes towards
 * what came, in half steps first, then by a thirty-second. Range and code are those of a carrying range
 * coder of 32 bits. The end is the shortest string of bytes that decodes right with zeros behind it, so
 * a handful of likely bits are one byte, or none.
 *
 * Reading never fails: behind the end there are zeros, and any bytes mean something. Who reads bounds
 * what he takes. Cost: about 5 ns a bit. */
#include "respan_impl.h"

#define TOP ((uint32_t)1 << 24)

void ls_corr_write(ls_corr *c, uint8_t *out, size_t room) {
    memset(c, 0, sizeof *c);
    c->range = 0xffffffff;
    c->out = out;
    c->room = room;
}

void ls_corr_read(ls_corr *c, const uint8_t *in, size_t size) {
    memset(c, 0, sizeof *c);
    c->reading = 1;
    c->range = 0xffffffff;
    c->in = in;
    c->size = size;
    for (int i = 0; i < 4; i++)
        c->code = c->code << 8 | (c->at < size ? in[c->at] : 0), c->at++;
}

static void emit(ls_corr *c, uint8_t byte) {
    if (c->n < c->room)
        c->out[c->n++] = byte;
    else
        c->full = 1;
}

/* The highest byte of `low` goes out, or waits for a carry. */
static void shift(ls_corr *c) {
    if (c->low < 0xff000000u || c->low >> 32) {
        uint8_t carry = (uint8_t)(c->low >> 32);
        if (c->started)
            emit(c, (uint8_t)(c->held + carry));
        for (; c->pending; c->pending--)
            emit(c, (uint8_t)(0xff + carry));
        c->held = (uint8_t)(c->low >> 24);
        c->started = 1;
    } else {
        c->pending++;
    }
    c->low = (c->low & 0x00ffffff) << 8;
}

static void renew(ls_corr *c) {
    while (c->range < TOP) {
        c->range <<= 8;
        if (c->reading)
            c->code = c->code << 8 | (c->at < c->size ? c->in[c->at] : 0), c->at++;
        else
            shift(c);
    }
}

size_t ls_corr_finish(ls_corr *c) {
    /* Of all numbers in [low, low + range) the one with the most zeros at its end. */
    uint64_t last = c->low + c->range - 1;
    for (uint32_t bits = 32; bits; bits--) {
        uint64_t v = last >> bits << bits;
        if (v >= c->low) {
            c->low = v;
            break;
        }
    }
    for (int i = 0; i < 5; i++)
        shift(c);
    while (c->n && !c->full && !c->out[c->n - 1])
        c->n--;
    return c->n;
}

void ls_corr_expect(ls_corr_bit *bits, size_t n, uint32_t likely) {
    for (size_t i = 0; i < n; i++) {
        bits[i].p = (uint16_t)likely;
        bits[i].seen = 0;
    }
}

uint32_t ls_corr_code(ls_corr *c, ls_corr_bit *context, uint32_t bit) {
    static const uint8_t steps[] = {2, 2, 3, 3, 4, 4, 5};
    uint32_t bound = (c->range >> 16) * context->p, step = steps[context->seen];
    if (c->reading)
        bit = c->code >= bound;
    if (!bit) {
        c->range = bound;
        context->p = (uint16_t)(context->p + ((65504u - context->p) >> step));
    } else {
        if (c->reading)
            c->code -= bound;
        else
            c->low += bound;
        c->range -= bound;
        context->p = (uint16_t)(context->p - ((context->p - 32u) >> step));
    }
    if (context->seen < sizeof steps - 1)
        context->seen++;
    renew(c);
    return bit;
}

uint32_t ls_corr_raw(ls_corr *c, uint32_t value, uint32_t n) {
    uint32_t out = 0;
    while (n--) {
        uint32_t half = c->range >> 1, bit = value >> n & 1;
        if (c->reading)
            bit = c->code >= half;
        if (bit) {
            if (c->reading)
                c->code -= half;
            else
                c->low += half;
            c->range -= half;
        } else {
            c->range = half;
        }
        renew(c);
        out = out << 1 | bit;
    }
    return out;
}

uint32_t ls_corr_tree(ls_corr *c, ls_corr_bit *contexts, uint32_t value, uint32_t n) {
    uint32_t node = 1;
    for (uint32_t i = n; i-- > 0;)
        node = node << 1 | ls_corr_code(c, &contexts[node], value >> i & 1);
    return node - (1u << n);
}

uint32_t ls_corr_number_code(ls_corr *c, ls_corr_number *contexts, uint32_t value) {
    uint32_t width = value ? 1 + ls_log2_floor(value) : 0;
    width = ls_corr_tree(c, contexts->width, width, 6);
    if (width > 32)
        width = 32;
    if (width < 2)
        return width;
    uint32_t out = 1;
    for (uint32_t i = width - 1; i-- > 0;)
        out = out << 1 | ls_corr_code(c, &contexts->bits[width][i], value >> i & 1);
    return out;
}
