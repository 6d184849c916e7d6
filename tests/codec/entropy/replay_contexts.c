/* Codes cases with contexts by the kernel alone, without Python, on whatever machine this is
 * compiled for: `replay < cases`. context_cases.py writes them.
 *
 * Prints which path the kernel takes, then of each case the CRC-32 of residuals, tables and streams.
 * What is decoded must be what was coded. Machines are little-endian, as all that lic runs on are.
 */
#include "../../hostile/kernel/calls.h"

static size_t read_numbers(uint32_t *numbers, size_t count)
{
    return fread(numbers, sizeof *numbers, count, stdin);
}

/* The next array, on the heap. */
static Py_buffer read_array(size_t size)
{
    void *memory = room(size);
    CHECK(fread(memory, 1, size, stdin) == size);
    return view_of(memory, size);
}

static Tables *read_tables(void)
{
    uint32_t shape[2];
    Py_buffer cdf, length, offset;
    PyObject *capsule;
    CHECK(read_numbers(shape, 2) == 2);
    cdf = read_array((size_t)shape[0] * shape[1] * 2), length = read_array(shape[0] * 2);
    offset = read_array(shape[0] * 4);
    capsule = prepare_views(&cdf, &length, &offset);
    CHECK(capsule);
    free(cdf.buf), free(length.buf), free(offset.buf);
    return (Tables *)capsule;
}

static Contexts *read_contexts(size_t channels, size_t predicted)
{
    const size_t bytes[10] = {
        LEVELS,          2 * channels, channels,           NEIGHBOURS * channels, RANK * channels,
        RANK * channels, 4 * channels, CLASSES * channels, 2 * predicted, NEIGHBOURS * predicted,
    };
    Argument arrays[10];
    Contexts *all;
    size_t k;
    for (k = 0; k < 10; k++)
        arrays[k].view = read_array(bytes[k]);
    all = (Contexts *)prepare_contexts(NULL, (PyObject *)(void *)arrays);
    CHECK(all);
    for (k = 0; k < 10; k++)
        free(arrays[k].view.buf);
    return all;
}

static uint32_t crc32(uint32_t crc, const void *memory, size_t size)
{
    static uint32_t table[256];
    const uint8_t *next = memory;
    uint32_t k, bit;
    for (k = 0; !table[255] && k < 256; k++)
        for (table[k] = k, bit = 0; bit < 8; bit++)
            table[k] = table[k] >> 1 ^ (table[k] & 1 ? 0xedb88320 : 0);
    for (crc = ~crc; size; size--)
        crc = crc >> 8 ^ table[(crc ^ *next++) & 255];
    return ~crc;
}

static uint32_t replayed(const Latents *latents, const int16_t *symbols)
{
    const size_t total = symbols_of(latents);
    int16_t *coded = room(2 * total), *found = room(2 * total);
    uint16_t *indexes = room(2 * total);
    Streams streams = write_tiles(latents, symbols, coded, indexes);
    uint32_t crc;
    CHECK(read_tiles(latents, &streams, found));
    CHECK(!memcmp(found, symbols, 2 * total));
    crc = crc32(crc32(0, coded, 2 * total), indexes, 2 * total);
    crc = crc32(crc, streams.lane, sizeof streams.lane);
    crc = crc32(crc32(crc, streams.words, streams.word_bytes), streams.escapes,
                streams.escape_bytes);
    free_streams(&streams);
    free(coded), free(found), free(indexes);
    return crc;
}

static void replay_case(const Tables *tables)
{
    uint32_t numbers[3], shape[2];
    int16_t *symbols = NULL;
    size_t t, first = 0;
    Contexts *contexts;
    Latents latents = {tables, NULL, 0, {0}, {0}};
    CHECK(tables && read_numbers(numbers, 3) == 3 && numbers[2] >= 1 && numbers[2] <= MAX_TILES);
    latents.contexts = contexts = read_contexts(numbers[0], numbers[1]);
    latents.tiles = numbers[2];
    for (t = 0; t < latents.tiles; t++) {
        Py_buffer tile;
        CHECK(read_numbers(shape, 2) == 2);
        latents.height[t] = (Py_ssize_t)shape[0], latents.width[t] = (Py_ssize_t)shape[1];
        tile = read_array(2 * tile_size(&latents, t));
        symbols = realloc(symbols, 2 * (first + tile_size(&latents, t)));
        CHECK(symbols);
        memcpy(symbols + first, tile.buf, 2 * tile_size(&latents, t));
        free(tile.buf);
        first += tile_size(&latents, t);
    }
    printf("%08x\n", (unsigned)replayed(&latents, symbols));
    free(symbols);
    free_contexts(contexts);
}

int main(void)
{
    Tables *tables = NULL;
    uint32_t kind;
    printf(PATH "\n");
    while (read_numbers(&kind, 1)) {
        if (kind == 0) {
            free_tables(tables);
            tables = read_tables();
        } else {
            replay_case(tables);
        }
    }
    free_tables(tables);
    return 0;
}
