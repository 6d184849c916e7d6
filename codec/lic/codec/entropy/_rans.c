/* The rANS kernel: symbols <-> 16-bit words through 14-bit tables, four interleaved lanes.
 *
 * codec/FORMAT.md, "Entropy stream", is the specification and _rans_py.py the same thing in Python.
 * No function here trusts its caller: tables are checked when they are prepared, every index before
 * it selects a table, and every read and write against the end of its buffer, so that no bytes,
 * tables, indexes or states can make the kernel leave its memory.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PRECISION 14
#define TOTAL (1u << PRECISION)
#define LANES 4
#define LOWER (1u << 16)
#define MAX_SLOTS 256
#define BUCKETS 256
#define BUCKET_SHIFT (PRECISION - 8)
/* rcp = ceil(2^46 / f) makes (x * rcp) >> 46 == x / f for all x < f * 2^18, and x * rcp < 2^64. */
#define RECIPROCAL_SHIFT 46
#define CAPSULE "lic.codec.entropy.tables"

/* Outcomes of decode; rans.py turns them into messages. */
enum { DONE = 0, OUT_OF_WORDS = 1, OUT_OF_ESCAPES = 2, BAD_ESCAPE = 3 };
enum { BAD_INDEX = -1, NO_ROOM = -2 };

typedef struct {
    uint64_t reciprocal;
    uint16_t start, freq, complement; /* complement = TOTAL - freq */
} Slot;

typedef struct {
    uint8_t bucket[BUCKETS]; /* the slot of position 64 * b, where the search for b's begins */
    const uint16_t *cdf;     /* escape + 2 entries, 0 .. TOTAL */
    const Slot *slots;       /* escape + 1 entries */
    int32_t offset;          /* symbol of slot 0 */
    uint32_t escape;         /* the last slot = number of symbols that have one of their own */
} Table;

typedef struct {
    Py_ssize_t count;
    Table *tables;
    uint16_t *cdf;
    Slot *slots;
} Tables;

/* What lives on between calls. The owner keeps it in a plain buffer of seven uint64. */
typedef struct {
    uint64_t lane[LANES];
    uint64_t symbols; /* decoded so far; for the encoder those still to come */
    uint64_t word;    /* byte position in the words; the encoder's goes down */
    uint64_t escape;  /* byte position in the escapes; the encoder's goes down */
} State;

typedef struct {
    Py_buffer state, words, escapes, symbols, indexes;
    Py_ssize_t run;
    const Tables *tables;
} Call;

/* ---- tables ---- */

static void free_tables(Tables *all)
{
    if (all) {
        free(all->tables);
        free(all->cdf);
        free(all->slots);
        free(all);
    }
}

static void destroy_capsule(PyObject *capsule)
{
    free_tables(PyCapsule_GetPointer(capsule, CAPSULE));
}

static void fill_table(Table *table, uint16_t *cdf, Slot *slots, const uint16_t *row,
                       uint32_t entries, int32_t offset)
{
    uint32_t k = 0, b;
    memcpy(cdf, row, entries * sizeof *cdf);
    for (b = 0; b < BUCKETS; b++) {
        while (cdf[k + 1] <= b << BUCKET_SHIFT)
            k++;
        table->bucket[b] = (uint8_t)k;
    }
    for (k = 0; k + 1 < entries; k++) {
        uint32_t freq = cdf[k + 1] - cdf[k];
        slots[k].reciprocal = (((uint64_t)1 << RECIPROCAL_SHIFT) + freq - 1) / freq;
        slots[k].start = cdf[k];
        slots[k].freq = (uint16_t)freq;
        slots[k].complement = (uint16_t)(TOTAL - freq);
    }
    table->cdf = cdf;
    table->slots = slots;
    table->offset = offset;
    table->escape = entries - 2;
}

static int row_is_valid(const uint16_t *row, uint32_t entries, Py_ssize_t width, int32_t offset)
{
    uint32_t k;
    if (entries < 2 || entries > MAX_SLOTS + 1 || (Py_ssize_t)entries > width)
        return 0;
    if (offset < INT16_MIN || offset > INT16_MAX || offset + (int32_t)entries - 3 > INT16_MAX)
        return 0;
    for (k = 1; k < entries; k++)
        if (row[k] <= row[k - 1])
            return 0;
    return row[0] == 0 && row[entries - 1] == TOTAL;
}

static Tables *build_tables(const uint16_t *cdf, const uint16_t *length, const int32_t *offset,
                            Py_ssize_t count, Py_ssize_t width)
{
    Py_ssize_t t;
    size_t used = 0;
    Tables *all = calloc(1, sizeof *all);
    for (t = 0; t < count; t++)
        used += length[t];
    if (!all)
        return NULL;
    all->count = count;
    all->tables = calloc((size_t)count + 1, sizeof *all->tables);
    all->cdf = calloc(used + 1, sizeof *all->cdf);
    all->slots = calloc(used + 1, sizeof *all->slots);
    if (!all->tables || !all->cdf || !all->slots) {
        free_tables(all);
        return NULL;
    }
    for (t = 0, used = 0; t < count; used += length[t], t++)
        fill_table(all->tables + t, all->cdf + used, all->slots + used, cdf + t * width, length[t],
                   offset[t]);
    return all;
}

static int is_aligned(const Py_buffer *view, size_t size)
{
    return (uintptr_t)view->buf % size == 0 && view->len % (Py_ssize_t)size == 0;
}

static PyObject *prepare_views(const Py_buffer *cdf, const Py_buffer *length,
                               const Py_buffer *offset)
{
    Py_ssize_t t, count = length->len / 2, width = count ? cdf->len / 2 / count : 0;
    const uint16_t *rows = cdf->buf, *lengths = length->buf;
    const int32_t *offsets = offset->buf;
    PyObject *capsule;
    Tables *all;
    if (!is_aligned(cdf, 2) || !is_aligned(length, 2) || !is_aligned(offset, 4)
        || cdf->len != count * width * 2 || offset->len != count * 4)
        return PyErr_Format(PyExc_ValueError, "table buffers do not fit together");
    for (t = 0; t < count; t++)
        if (!row_is_valid(rows + t * width, lengths[t], width, offsets[t]))
            return PyErr_Format(PyExc_ValueError, "table %zd is not valid", t);
    all = build_tables(rows, lengths, offsets, count, width);
    if (!all)
        return PyErr_NoMemory();
    capsule = PyCapsule_New(all, CAPSULE, destroy_capsule);
    if (!capsule)
        free_tables(all);
    return capsule;
}

static PyObject *prepare(PyObject *self, PyObject *args)
{
    Py_buffer cdf, length, offset;
    PyObject *capsule;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*", &cdf, &length, &offset))
        return NULL;
    capsule = prepare_views(&cdf, &length, &offset);
    PyBuffer_Release(&cdf);
    PyBuffer_Release(&length);
    PyBuffer_Release(&offset);
    return capsule;
}

/* ---- decoder ---- */

/* Words and escapes live in two structures: only then do compilers keep the words' position in a
 * register, since the escapes' address is handed to a function. */
typedef struct {
    const uint8_t *next, *end;
} Words;

typedef struct {
    const uint8_t *next, *end;
    int status;
} Escapes;

static inline uint32_t load_word(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8;
}

/* Zigzag LEB128 of the distance to the table's range, in its shortest form only. */
static int16_t get_escape(Escapes *in, const Table *table)
{
    uint32_t value = 0, shift = 0, byte;
    int32_t symbol;
    if (in->status != DONE) /* the first problem is the one to report */
        return 0;
    do {
        if (in->next == in->end) {
            in->status = OUT_OF_ESCAPES;
            return 0;
        }
        byte = *in->next++;
        value |= (byte & 127) << shift;
        shift += 7;
    } while (byte & 128 && shift < 21);
    symbol = value & 1 ? table->offset - 1 - (int32_t)(value >> 1)
                       : table->offset + (int32_t)table->escape + (int32_t)(value >> 1);
    if (byte & 128 || (byte == 0 && shift > 7) || symbol < INT16_MIN || symbol > INT16_MAX)
        in->status = BAD_ESCAPE;
    return (int16_t)symbol;
}

static inline uint32_t decode_slot(const Table *table, uint32_t x, Escapes *escapes,
                                   int16_t *symbol)
{
    uint32_t position = x & (TOTAL - 1);
    uint32_t k = table->bucket[position >> BUCKET_SHIFT], start, end;
    /* Without a branch where most searches end: whether they do so here cannot be predicted. */
    k += position >= table->cdf[k + 1];
    while (position >= table->cdf[k + 1])
        k++;
    start = table->cdf[k];
    end = table->cdf[k + 1];
    *symbol = (int16_t)(table->offset + (int32_t)k);
    if (k == table->escape)
        *symbol = get_escape(escapes, table);
    return (end - start) * (x >> PRECISION) + position - start;
}

/* Takes a word if the state wants one; there must be one to look at in any case. */
static inline uint32_t refill(uint32_t x, Words *words)
{
    uint32_t take = x < LOWER, refilled = x << 16 | load_word(words->next);
    words->next += 2 * take;
    /* As a condition, compilers make this a branch that is mispredicted at every other word. */
    return x ^ ((x ^ refilled) & (0u - take));
}

/* The table of symbol i: one for all of them (step 0) or indexes[i] (step 1). */
#define TABLE(i) (tables + indexes[(i)*step])

static inline int decode_span(const Tables *all, const uint16_t *indexes, const size_t step,
                              int16_t *symbols, size_t count, uint32_t *lane, size_t first,
                              Words *source, Escapes *escapes)
{
    const Table *tables = all->tables;
    const size_t limit = (size_t)all->count;
    Words words = *source;
    size_t i = 0;
    if (!step && *indexes >= limit)
        return BAD_INDEX;
    while (i < count && escapes->status == DONE) {
        size_t l = (first + i) % LANES;
        if (l == 0 && count - i >= LANES && words.end - words.next >= 2 * LANES) {
            uint32_t a = lane[0], b = lane[1], c = lane[2], d = lane[3];
            do {
                if (step && (indexes[i] >= limit || indexes[i + 1] >= limit
                             || indexes[i + 2] >= limit || indexes[i + 3] >= limit))
                    return BAD_INDEX;
                a = refill(decode_slot(TABLE(i), a, escapes, symbols + i), &words);
                b = refill(decode_slot(TABLE(i + 1), b, escapes, symbols + i + 1), &words);
                c = refill(decode_slot(TABLE(i + 2), c, escapes, symbols + i + 2), &words);
                d = refill(decode_slot(TABLE(i + 3), d, escapes, symbols + i + 3), &words);
                i += LANES;
            } while (count - i >= LANES && words.end - words.next >= 2 * LANES);
            lane[0] = a, lane[1] = b, lane[2] = c, lane[3] = d;
            continue;
        }
        if (indexes[i * step] >= limit)
            return BAD_INDEX;
        lane[l] = decode_slot(TABLE(i), lane[l], escapes, symbols + i);
        if (lane[l] < LOWER && escapes->status == DONE) {
            if (words.end - words.next < 2)
                return OUT_OF_WORDS;
            lane[l] = refill(lane[l], &words);
        }
        i++;
    }
    *source = words;
    return escapes->status;
}

static int decode_call(const Call *call, State *state)
{
    const uint16_t *indexes = call->indexes.buf;
    const uint8_t *words = call->words.buf, *escapes = call->escapes.buf;
    int16_t *symbols = call->symbols.buf;
    size_t g, run = (size_t)call->run, count = (size_t)call->indexes.len / 2;
    size_t first = (size_t)state->symbols;
    uint32_t lane[LANES];
    Words in = {words + state->word, words + call->words.len};
    Escapes side = {escapes + state->escape, escapes + call->escapes.len, DONE};
    int status = DONE;
    for (g = 0; g < LANES; g++)
        lane[g] = (uint32_t)state->lane[g];
    if (run == 1)
        status = decode_span(call->tables, indexes, 1, symbols, count, lane, first, &in,
                             &side);
    else
        for (g = 0; g < count && status == DONE; g++)
            status = decode_span(call->tables, indexes + g, 0, symbols + g * run, run, lane,
                                 first + g * run, &in, &side);
    for (g = 0; g < LANES; g++)
        state->lane[g] = lane[g];
    state->symbols += count * run;
    state->word = (uint64_t)(in.next - words);
    state->escape = (uint64_t)(side.next - escapes);
    return status;
}

/* ---- encoder: everything backwards, so that the decoder reads forwards ---- */

static void put_escape(uint8_t **out, const Table *table, int32_t symbol)
{
    uint32_t value = symbol < table->offset
                         ? (uint32_t)(table->offset - 1 - symbol) << 1 | 1
                         : (uint32_t)(symbol - table->offset - (int32_t)table->escape) << 1;
    uint32_t size = value < 1u << 7 ? 1 : value < 1u << 14 ? 2 : 3, k;
    *out -= size;
    for (k = 0; k < size; k++)
        (*out)[k] = (uint8_t)((value >> 7 * k & 127) | (k + 1 < size ? 128 : 0));
}

static inline uint32_t encode_symbol(const Table *table, uint32_t x, int32_t symbol,
                                     uint8_t **words, uint8_t **escapes)
{
    uint32_t k = (uint32_t)(symbol - table->offset), emit;
    const Slot *slot;
    if (k >= table->escape) {
        put_escape(escapes, table, symbol);
        k = table->escape;
    }
    slot = table->slots + k;
    emit = x >> (32 - PRECISION) >= slot->freq;
    (*words)[-2] = (uint8_t)x;
    (*words)[-1] = (uint8_t)(x >> 8);
    *words -= 2 * emit;
    x >>= 16 * emit;
    return x + slot->start
           + (uint32_t)(x * slot->reciprocal >> RECIPROCAL_SHIFT) * slot->complement;
}

static inline int encode_span(const Tables *all, const uint16_t *indexes, const size_t step,
                              const int16_t *symbols, size_t count, uint32_t *lane, size_t first,
                              uint8_t **words, uint8_t **escapes)
{
    const Table *tables = all->tables;
    const size_t limit = (size_t)all->count;
    uint8_t *out = *words;
    size_t i = count;
    if (!step && *indexes >= limit)
        return BAD_INDEX;
    while (i > 0) {
        if ((first + i) % LANES == 0 && i >= LANES) {
            uint32_t a = lane[0], b = lane[1], c = lane[2], d = lane[3];
            do {
                i -= LANES;
                if (step && (indexes[i] >= limit || indexes[i + 1] >= limit
                             || indexes[i + 2] >= limit || indexes[i + 3] >= limit))
                    return BAD_INDEX;
                d = encode_symbol(TABLE(i + 3), d, symbols[i + 3], &out, escapes);
                c = encode_symbol(TABLE(i + 2), c, symbols[i + 2], &out, escapes);
                b = encode_symbol(TABLE(i + 1), b, symbols[i + 1], &out, escapes);
                a = encode_symbol(TABLE(i), a, symbols[i], &out, escapes);
            } while (i >= LANES);
            lane[0] = a, lane[1] = b, lane[2] = c, lane[3] = d;
            continue;
        }
        i--;
        if (indexes[i * step] >= limit)
            return BAD_INDEX;
        lane[(first + i) % LANES] =
            encode_symbol(TABLE(i), lane[(first + i) % LANES], symbols[i], &out, escapes);
    }
    *words = out;
    return DONE;
}

static int encode_call(const Call *call, State *state)
{
    const uint16_t *indexes = call->indexes.buf;
    uint8_t *words = call->words.buf, *escapes = call->escapes.buf;
    const int16_t *symbols = call->symbols.buf;
    size_t g, run = (size_t)call->run, count = (size_t)call->indexes.len / 2, first;
    uint32_t lane[LANES];
    uint8_t *out = words + state->word, *side = escapes + state->escape;
    int status = DONE;
    /* A symbol writes at most one word (and one more that it does not keep) and a 3-byte escape. */
    if (state->symbols < count * run || state->word / 2 < count * run + 1
        || state->escape / 3 < count * run)
        return NO_ROOM;
    first = (size_t)state->symbols - count * run;
    for (g = 0; g < LANES; g++)
        lane[g] = (uint32_t)state->lane[g];
    if (run == 1)
        status = encode_span(call->tables, indexes, 1, symbols, count, lane, first, &out,
                             &side);
    else
        for (g = count; g-- > 0 && status == DONE;)
            status = encode_span(call->tables, indexes + g, 0, symbols + g * run, run, lane,
                                 first + g * run, &out, &side);
    for (g = 0; g < LANES; g++)
        state->lane[g] = lane[g];
    state->symbols = first;
    state->word = (uint64_t)(out - words);
    state->escape = (uint64_t)(side - escapes);
    return status;
}

/* ---- Python's side ---- */

static const Tables *tables_from(PyObject *capsule)
{
    return PyCapsule_IsValid(capsule, CAPSULE) ? PyCapsule_GetPointer(capsule, CAPSULE) : NULL;
}

static const char *check_streams(const Call *call, State *state)
{
    if (!call->tables)
        return "the tables must come from prepare";
    if (call->state.len != (Py_ssize_t)sizeof *state)
        return "the state must be seven uint64";
    if (!is_aligned(&call->symbols, 2))
        return "symbols must be an aligned array of 16-bit integers";
    memcpy(state, call->state.buf, sizeof *state);
    if (state->word > (uint64_t)call->words.len || state->escape > (uint64_t)call->escapes.len)
        return "the state points outside its streams";
    return NULL;
}

static const char *check_call(const Call *call, State *state)
{
    Py_ssize_t count = call->indexes.len / 2;
    const char *problem = check_streams(call, state);
    if (problem)
        return problem;
    if (!is_aligned(&call->indexes, 2))
        return "indexes must be an aligned array of 16-bit integers";
    if (call->run < 1 || (count && call->run > PY_SSIZE_T_MAX / 4 / count)
        || call->symbols.len != count * call->run * 2)
        return "there must be one index for each run of symbols";
    return NULL;
}

static PyObject *finish_call(Call *call, int (*work)(const Call *, State *))
{
    State state;
    int status = DONE;
    const char *problem = check_call(call, &state);
    if (!problem) {
        Py_BEGIN_ALLOW_THREADS
        status = work(call, &state);
        Py_END_ALLOW_THREADS
        memcpy(call->state.buf, &state, sizeof state);
        problem = status == BAD_INDEX ? "an index has no table"
                  : status == NO_ROOM ? "the output buffers are too small"
                                      : NULL;
    }
    PyBuffer_Release(&call->state);
    PyBuffer_Release(&call->words);
    PyBuffer_Release(&call->escapes);
    PyBuffer_Release(&call->symbols);
    PyBuffer_Release(&call->indexes);
    return problem ? PyErr_Format(PyExc_ValueError, "%s", problem) : PyLong_FromLong(status);
}

static PyObject *call_kernel(PyObject *args, const char *format,
                             int (*work)(const Call *, State *))
{
    PyObject *capsule;
    Call call;
    if (!PyArg_ParseTuple(args, format, &capsule, &call.state, &call.words, &call.escapes,
                          &call.symbols, &call.indexes, &call.run))
        return NULL;
    call.tables = tables_from(capsule);
    return finish_call(&call, work);
}

static PyObject *encode(PyObject *self, PyObject *args)
{
    (void)self;
    return call_kernel(args, "Ow*w*w*y*y*n", encode_call);
}

static PyObject *decode(PyObject *self, PyObject *args)
{
    (void)self;
    return call_kernel(args, "Ow*y*y*w*y*n", decode_call);
}

#include "_contexts.h"

static PyMethodDef methods[] = {
    {"prepare", prepare, METH_VARARGS, "prepare(quantized_cdf, cdf_length, offset) -> tables"},
    {"encode", encode, METH_VARARGS,
     "encode(tables, state, words, escapes, symbols, indexes, run) -> 0"},
    {"decode", decode, METH_VARARGS,
     "decode(tables, state, words, escapes, symbols, indexes, run) -> status"},
    {"prepare_contexts", prepare_contexts, METH_VARARGS,
     "prepare_contexts(levels, order, mean, beside, into, from, bias, map, predicted, weights)"},
    {"find_contexts", find_contexts, METH_VARARGS,
     "find_contexts(contexts, symbols, residuals, indexes, height, width)"},
    {"decode_contexts", decode_contexts, METH_VARARGS,
     "decode_contexts(tables, contexts, state, words, escapes, symbols, height, width) -> status"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef_Slot module_slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_rans", "The rANS kernel; see codec/FORMAT.md.", 0,
    methods, module_slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__rans(void)
{
    return PyModuleDef_Init(&module);
}
