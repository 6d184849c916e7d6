/* The rANS kernel without Python: its source, and what rans.py and context_coder.py do with it.
 *
 * The kernel is called as Python calls it, with buffers on the heap that have exactly the size they
 * claim, so that a sanitizer sees the first byte outside them. Whoever includes this may name
 * another KERNEL.
 */
#ifndef KERNEL
#define KERNEL "../../../codec/lic/codec/entropy/_rans.c"
#endif
#include KERNEL

#if defined(__SSE2__) || defined(_M_X64)
#define PATH "SSE2"
#else
#define PATH "plain"
#endif

#define CHECK(condition)                                                                \
    do {                                                                                \
        if (!(condition)) {                                                             \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);     \
            abort();                                                                    \
        }                                                                               \
    } while (0)

/* Of no bytes at all not even one may be touched. */
static void *room(size_t size)
{
    void *memory = malloc(size);
    CHECK(memory || !size);
    return memory;
}

static void *copied(const void *source, size_t size)
{
    void *memory = room(size);
    if (size)
        memcpy(memory, source, size);
    return memory;
}

static Py_buffer view_of(void *memory, size_t size)
{
    Py_buffer view = {memory, (Py_ssize_t)size};
    return view;
}

/* A function that Python calls, with its arguments; returns its status, or -1 if it refused. */
static long called(PyCFunction function, Argument *arguments)
{
    refused = 0;
    return function(NULL, (PyObject *)(void *)arguments) ? returned : -1;
}

/* The plain coder: `work` is encode or decode. */
static long call(PyCFunction work, const Tables *tables, State *state, Py_buffer words,
                 Py_buffer escapes, Py_buffer symbols, Py_buffer indexes, Py_ssize_t run)
{
    Argument arguments[7];
    arguments[0].object = (PyObject *)(uintptr_t)tables;
    arguments[1].view = view_of(state, sizeof *state);
    arguments[2].view = words, arguments[3].view = escapes;
    arguments[4].view = symbols, arguments[5].view = indexes;
    arguments[6].number = run;
    return called(work, arguments);
}

static long call_find(const Contexts *contexts, Py_buffer symbols, Py_buffer coded,
                      Py_buffer indexes, Py_ssize_t height, Py_ssize_t width)
{
    Argument arguments[6];
    arguments[0].object = (PyObject *)(uintptr_t)contexts;
    arguments[1].view = symbols, arguments[2].view = coded, arguments[3].view = indexes;
    arguments[4].number = height, arguments[5].number = width;
    return called(find_contexts, arguments);
}

static long call_decode(const Tables *tables, const Contexts *contexts, State *state,
                        Py_buffer words, Py_buffer escapes, Py_buffer symbols, Py_ssize_t height,
                        Py_ssize_t width)
{
    Argument arguments[8];
    arguments[0].object = (PyObject *)(uintptr_t)tables;
    arguments[1].object = (PyObject *)(uintptr_t)contexts;
    arguments[2].view = view_of(state, sizeof *state);
    arguments[3].view = words, arguments[4].view = escapes, arguments[5].view = symbols;
    arguments[6].number = height, arguments[7].number = width;
    return called(decode_contexts, arguments);
}

/* ---- groups of symbols, as Writer and Reader have them ---- */

typedef struct {
    const Tables *tables;
    uint16_t *indexes;
    size_t count, run, cut; /* two groups, the first of `cut` indexes */
} Work;

typedef struct {
    uint8_t *words, *escapes;
    size_t word_bytes, escape_bytes;
    uint32_t lane[LANES];
} Streams;

/* As Writer.finish does: the second group first. */
static Streams write_streams(const Work *work, const int16_t *symbols)
{
    size_t total = work->count * work->run, part;
    size_t word_room = 2 * total + 2, escape_room = 3 * total;
    uint8_t *words = room(word_room), *escapes = room(escape_room);
    State state = {{LOWER, LOWER, LOWER, LOWER}, total, word_room, escape_room};
    Streams out;
    for (part = 2; part-- > 0;) {
        size_t begin = part ? work->cut : 0, end = part ? work->count : work->cut;
        size_t bytes = (end - begin) * work->run * 2;
        int16_t *group = copied(symbols + begin * work->run, bytes);
        uint16_t *indexes = copied(work->indexes + begin, (end - begin) * 2);
        CHECK(call(encode, work->tables, &state, view_of(words, word_room),
                   view_of(escapes, escape_room), view_of(group, bytes),
                   view_of(indexes, (end - begin) * 2), (Py_ssize_t)work->run)
              == DONE);
        free(group), free(indexes);
    }
    CHECK(state.symbols == 0);
    out.word_bytes = word_room - state.word, out.escape_bytes = escape_room - state.escape;
    out.words = copied(words + state.word, out.word_bytes);
    out.escapes = copied(escapes + state.escape, out.escape_bytes);
    for (part = 0; part < LANES; part++) {
        CHECK(state.lane[part] >= LOWER && state.lane[part] <= UINT32_MAX);
        out.lane[part] = (uint32_t)state.lane[part];
    }
    free(words), free(escapes);
    return out;
}

static State state_of(const Streams *in)
{
    State state = {{in->lane[0], in->lane[1], in->lane[2], in->lane[3]}, 0, 0, 0};
    return state;
}

/* Whether a call of a decoder left what it may leave; and then, whether it found nothing wrong. */
static int decoded(long status, const State *state, const Streams *in)
{
    CHECK(status >= DONE && status <= BAD_ESCAPE);
    CHECK(state->word <= in->word_bytes && state->escape <= in->escape_bytes);
    return status == DONE;
}

static int at_end(const State *state, const Streams *in)
{
    size_t k;
    for (k = 0; k < LANES; k++)
        if (state->lane[k] != LOWER)
            return 0;
    return state->word == in->word_bytes && state->escape == in->escape_bytes;
}

/* As Reader does; returns whether it found nothing wrong. `symbols` gets what came out. */
static int read_streams(const Work *work, const Streams *in, int16_t *symbols)
{
    State state = state_of(in);
    size_t part;
    int good = 1;
    for (part = 0; part < 2 && good; part++) {
        size_t begin = part ? work->cut : 0, end = part ? work->count : work->cut;
        size_t bytes = (end - begin) * work->run * 2;
        int16_t *group = room(bytes);
        uint16_t *indexes = copied(work->indexes + begin, (end - begin) * 2);
        good = decoded(call(decode, work->tables, &state, view_of(in->words, in->word_bytes),
                            view_of(in->escapes, in->escape_bytes), view_of(group, bytes),
                            view_of(indexes, (end - begin) * 2), (Py_ssize_t)work->run),
                       &state, in);
        if (good && bytes)
            memcpy(symbols + begin * work->run, group, bytes);
        free(group), free(indexes);
    }
    return good && at_end(&state, in);
}

static void free_streams(Streams *streams)
{
    free(streams->words);
    free(streams->escapes);
}

/* ---- tiles, as ContextWriter and ContextReader have them ---- */

#define MAX_TILES 3

typedef struct {
    const Tables *tables;
    const Contexts *contexts;
    size_t tiles;
    Py_ssize_t height[MAX_TILES], width[MAX_TILES];
} Latents;

static size_t tile_size(const Latents *latents, size_t t)
{
    return (size_t)(latents->contexts->channels * latents->height[t] * latents->width[t]);
}

static size_t symbols_of(const Latents *latents)
{
    size_t t, total = 0;
    for (t = 0; t < latents->tiles; t++)
        total += tile_size(latents, t);
    return total;
}

/* `coded` and `indexes` get what is coded of all tiles' symbols, and by which tables. */
static Streams write_tiles(const Latents *latents, const int16_t *symbols, int16_t *coded,
                           uint16_t *indexes)
{
    size_t t, first = 0;
    Work work;
    for (t = 0; t < latents->tiles; first += tile_size(latents, t), t++) {
        size_t bytes = 2 * tile_size(latents, t);
        int16_t *tile = copied(symbols + first, bytes), *residuals = room(bytes);
        uint16_t *chosen = room(bytes);
        CHECK(call_find(latents->contexts, view_of(tile, bytes), view_of(residuals, bytes),
                        view_of(chosen, bytes), latents->height[t], latents->width[t])
              == DONE);
        CHECK(!memcmp(tile, symbols + first, bytes));
        memcpy(coded + first, residuals, bytes);
        memcpy(indexes + first, chosen, bytes);
        free(tile), free(residuals), free(chosen);
    }
    work.tables = latents->tables, work.indexes = indexes;
    work.count = work.cut = first, work.run = 1;
    return write_streams(&work, coded);
}

/* Returns whether nothing was wrong. `symbols` gets what came out. */
static int read_tiles(const Latents *latents, const Streams *in, int16_t *symbols)
{
    State state = state_of(in);
    size_t t, first = 0;
    int good = 1;
    for (t = 0; t < latents->tiles && good; first += tile_size(latents, t), t++) {
        size_t bytes = 2 * tile_size(latents, t);
        int16_t *tile = room(bytes);
        good = decoded(call_decode(latents->tables, latents->contexts, &state,
                                   view_of(in->words, in->word_bytes),
                                   view_of(in->escapes, in->escape_bytes), view_of(tile, bytes),
                                   latents->height[t], latents->width[t]),
                       &state, in);
        if (good)
            memcpy(symbols + first, tile, bytes);
        free(tile);
    }
    return good && at_end(&state, in);
}
