/* Fuzzes the rANS kernel: table building, contexts, encoding, decoding, with whatever the bytes say.
 *
 * See kernel/calls.h. Compile with -Ikernel, so that the Python.h there is found; with -U__SSE2__
 * the kernel takes the path of machines without it.
 *
 * With clang -fsanitize=fuzzer this is a libFuzzer target; with -DSTANDALONE a program that makes
 * its own inputs: fuzz_rans SECONDS [SEED], or decodes the files it is given.
 */
#include "kernel/calls.h"

#include <time.h>

/* ---- what the bytes say ---- */

typedef struct {
    const uint8_t *next;
    size_t left;
} Input;

static uint32_t take(Input *input, size_t bytes)
{
    uint32_t value = 0;
    for (; bytes && input->left; bytes--, input->left--)
        value = value << 8 | *input->next++;
    return value;
}

/* A buffer on the heap of exactly `size` bytes, filled from the input as far as that goes. */
static uint8_t *grab(Input *input, size_t size)
{
    uint8_t *memory = room(size);
    size_t known = size < input->left ? size : input->left;
    if (size)
        memset(memory, 0, size);
    if (known) {
        memcpy(memory, input->next, known);
        input->next += known, input->left -= known;
    }
    return memory;
}

/* Three arrays of raw bytes: nearly all are refused, which is what is tried. */
static Tables *raw_tables(Input *input)
{
    size_t count = take(input, 1) % 8, width = take(input, 1) % 12;
    size_t odd = take(input, 1) % 16 ? 0 : 1;
    uint8_t *cdf = grab(input, 2 * count * width + odd), *length = grab(input, 2 * count);
    uint8_t *offset = grab(input, 4 * count);
    Py_buffer views[3];
    PyObject *capsule;
    views[0] = view_of(cdf, 2 * count * width + odd), views[1] = view_of(length, 2 * count);
    views[2] = view_of(offset, 4 * count);
    capsule = prepare_views(views, views + 1, views + 2);
    free(cdf), free(length), free(offset);
    return (Tables *)capsule;
}

/* Tables that can be coded with, of any number of slots and any frequencies. */
static Tables *good_tables(Input *input)
{
    enum { WIDTH = MAX_SLOTS + 1 };
    size_t count = 1 + take(input, 1) % 5, t;
    uint16_t *cdf = calloc(count * WIDTH, sizeof *cdf), *length = calloc(count, sizeof *length);
    int32_t *offset = calloc(count, sizeof *offset);
    Py_buffer views[3];
    PyObject *capsule;
    CHECK(cdf && length && offset);
    for (t = 0; t < count; t++) {
        uint32_t slots = 1 + take(input, 1), k, left = TOTAL, at = 0;
        uint32_t skew = take(input, 1) % 8;
        uint16_t *row = cdf + t * WIDTH;
        for (k = 0; k + 1 < slots; k++) {
            uint32_t most = left - (slots - 1 - k);
            uint32_t wanted = 1 + (take(input, 2) >> 2 * skew) % (most ? most : 1);
            at += wanted, left -= wanted;
            row[k + 1] = (uint16_t)at;
        }
        row[slots] = TOTAL;
        length[t] = (uint16_t)(slots + 1);
        offset[t] = (int16_t)take(input, 2);
        if (offset[t] + (int32_t)slots - 2 > INT16_MAX)
            offset[t] = INT16_MAX - (int32_t)slots + 2;
    }
    views[0] = view_of(cdf, count * WIDTH * 2), views[1] = view_of(length, count * 2);
    views[2] = view_of(offset, count * 4);
    capsule = prepare_views(views, views + 1, views + 2);
    CHECK(capsule);
    free(cdf), free(length), free(offset);
    return (Tables *)capsule;
}

/* Anything at all: states, positions, indexes, runs that fit nothing. */
static void any_call(Input *input, const Tables *tables)
{
    uint32_t choice = take(input, 1);
    size_t word_bytes = take(input, 1), escape_bytes = take(input, 1) % 64;
    size_t count = take(input, 1) % 64, run = choice & 1 ? 1 : take(input, 1) % 9, k;
    size_t symbol_bytes = 2 * count * run;
    PyCFunction work = choice & 2 ? encode : decode;
    State state;
    uint8_t *words, *escapes, *symbols, *indexes;
    uint16_t *index;
    for (k = 0; k < LANES; k++)
        state.lane[k] = choice & 4 ? take(input, 4) : (uint64_t)take(input, 4) << 32 | LOWER;
    state.symbols = choice & 8 ? count * run : take(input, 4);
    state.word = choice & 16 ? (choice & 2 ? word_bytes : 0) : take(input, 1);
    state.escape = choice & 16 ? (choice & 2 ? escape_bytes : 0) : take(input, 1);
    if (choice & 32)
        symbol_bytes = take(input, 1);
    indexes = grab(input, 2 * count);
    for (k = 0, index = (uint16_t *)(void *)indexes; k < count && choice & 64; k++)
        index[k] = (uint16_t)(tables && tables->count ? index[k] % tables->count : 0);
    symbols = grab(input, symbol_bytes);
    escapes = grab(input, escape_bytes);
    words = grab(input, word_bytes);
    call(work, tables, &state, view_of(words, word_bytes), view_of(escapes, escape_bytes),
         view_of(symbols, symbol_bytes), view_of(indexes, 2 * count), (Py_ssize_t)run);
    if (!refused) {
        CHECK(state.word <= word_bytes && state.escape <= escape_bytes);
        CHECK(returned >= DONE && returned <= BAD_ESCAPE);
    }
    free(indexes), free(symbols), free(escapes), free(words);
}

static int same(const Streams *a, const Streams *b)
{
    return a->word_bytes == b->word_bytes && a->escape_bytes == b->escape_bytes
           && !memcmp(a->words, b->words, a->word_bytes)
           && !memcmp(a->escapes, b->escapes, a->escape_bytes)
           && !memcmp(a->lane, b->lane, sizeof a->lane);
}

/* Changes streams: bits, ends, states. What then passes must be what a writer writes. */
static void damage(Input *input, Streams *streams)
{
    uint32_t turns = 1 + take(input, 1) % 4;
    while (turns--) {
        uint32_t what = take(input, 1) % 6, where = take(input, 2), value = take(input, 1);
        if (what < 2 && streams->word_bytes)
            streams->words[where % streams->word_bytes] ^= (uint8_t)(value ? value : 1);
        else if (what == 2 && streams->escape_bytes)
            streams->escapes[where % streams->escape_bytes] ^= (uint8_t)(value ? value : 1);
        else if (what == 3)
            streams->word_bytes -= streams->word_bytes ? value % streams->word_bytes & ~1u : 0;
        else if (what == 4)
            streams->escape_bytes -= streams->escape_bytes ? value % streams->escape_bytes : 0;
        else if (what == 5)
            streams->lane[where % LANES] = take(input, 4) | LOWER;
    }
}

static void round_trip(Input *input, const Tables *tables)
{
    uint32_t choice = take(input, 1);
    size_t total, k;
    int16_t *symbols, *found;
    Streams streams, again;
    Work work;
    work.tables = tables;
    work.run = choice & 1 ? 1 : 1 + take(input, 1) % 40;
    work.count = take(input, 1) % (choice & 2 ? 200 : 9);
    work.cut = work.count ? take(input, 1) % (work.count + 1) : 0;
    total = work.count * work.run;
    work.indexes = room(2 * work.count), symbols = room(2 * total), found = room(2 * total);
    for (k = 0; k < work.count; k++)
        work.indexes[k] = (uint16_t)(take(input, 1) % (size_t)tables->count);
    for (k = 0; k < total; k++) {
        const Table *table = tables->tables + work.indexes[k / work.run];
        uint32_t near = take(input, 1);
        int32_t symbol = near < 250 ? table->offset - 2 + (int32_t)(near % (table->escape + 4))
                                    : (int32_t)take(input, 2) - 32768;
        symbols[k] = (int16_t)(symbol < INT16_MIN   ? INT16_MIN
                               : symbol > INT16_MAX ? INT16_MAX
                                                    : symbol);
    }
    streams = write_streams(&work, symbols);
    CHECK(read_streams(&work, &streams, found));
    CHECK(!total || !memcmp(symbols, found, 2 * total));
    damage(input, &streams);
    if (read_streams(&work, &streams, found)) {
        again = write_streams(&work, found);
        CHECK(same(&streams, &again));
        free_streams(&again);
    }
    free_streams(&streams);
    free(work.indexes), free(symbols), free(found);
}

#include "fuzz_contexts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Input input = {data, size};
    uint32_t choice = take(&input, 1);
    Tables *tables = choice & 1 ? raw_tables(&input) : good_tables(&input);
    if (choice & 4)
        fuzz_contexts(&input, tables, choice);
    else if (tables && tables->count && choice & 2)
        round_trip(&input, tables);
    else
        any_call(&input, tables);
    free_tables(tables);
    return 0;
}

#ifdef STANDALONE

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return *state;
}

static int run_file(const char *path)
{
    static uint8_t data[1 << 20];
    FILE *file = fopen(path, "rb");
    size_t size;
    if (!file)
        return 0;
    size = fread(data, 1, sizeof data, file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, size);
    printf("%s: %zu bytes, nothing wrong\n", path, size);
    return 1;
}

int main(int count, char **arguments)
{
    uint8_t data[4096];
    double seconds = count > 1 ? atof(arguments[1]) : 10;
    uint64_t random = count > 2 ? strtoull(arguments[2], NULL, 10) * 2 + 1 : 88172645463325252u;
    uint64_t runs = 0;
    clock_t start = clock();
    if (count > 1 && run_file(arguments[1]))
        return 0;
    for (; (double)(clock() - start) < seconds * CLOCKS_PER_SEC; runs++) {
        size_t size = next_random(&random) % sizeof data, k, sparse = next_random(&random) % 4;
        for (k = 0; k < size; k++)
            data[k] = (uint8_t)(sparse && next_random(&random) % 4 < sparse
                                    ? next_random(&random) % 3
                                    : next_random(&random));
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%llu inputs on the path " PATH ", nothing wrong\n", (unsigned long long)runs);
    return 0;
}

#endif
