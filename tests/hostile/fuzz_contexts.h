/* Part of fuzz_rans.c: contexts of all kinds, tiles coded with them, and codec/FORMAT.md's
 * "Contexts" written once more, plainly, to hold the kernel against. */

typedef struct {
    Argument arrays[10];
} Choice;

/* Contexts' arrays as Python hands them over, `bytes` of each; zeros where they are `computed`. */
static void grab_choice(Input *input, Choice *choice, const size_t *bytes, unsigned computed)
{
    Input none = {NULL, 0};
    size_t k;
    for (k = 0; k < 10; k++)
        choice->arrays[k].view = view_of(grab(computed >> k & 1 ? &none : input, bytes[k]), bytes[k]);
}

static void free_choice(Choice *choice)
{
    size_t k;
    for (k = 0; k < 10; k++)
        free(choice->arrays[k].view.buf);
}

static Contexts *prepared(Choice *choice)
{
    refused = 0;
    return (Contexts *)prepare_contexts(NULL, (PyObject *)(void *)choice->arrays);
}

static void sizes_of(size_t *bytes, size_t channels, size_t predicted)
{
    const size_t sizes[10] = {LEVELS,        2 * channels, channels,           NEIGHBOURS * channels,
                              RANK * channels, RANK * channels, 4 * channels, CLASSES * channels,
                              2 * predicted, NEIGHBOURS * predicted};
    memcpy(bytes, sizes, sizeof sizes);
}

/* Arrays of raw bytes, one of them perhaps too long or too short. */
static Contexts *raw_contexts(Input *input)
{
    size_t channels = take(input, 1) % 5, predicted = take(input, 1) % 4;
    size_t wrong = take(input, 1), bytes[10];
    Choice choice;
    Contexts *all;
    sizes_of(bytes, channels, predicted);
    if (wrong < 40)
        bytes[wrong % 10] += wrong < 20 ? 1 : bytes[wrong % 10] ? (size_t)-1 : 2;
    grab_choice(input, &choice, bytes, 0);
    all = prepared(&choice);
    free_choice(&choice);
    return all;
}

/* The first `count` of a permutation of 0 .. channels - 1. */
static void permute(Input *input, uint16_t *target, size_t count, size_t channels)
{
    uint16_t all[256], other;
    size_t k, with;
    for (k = 0; k < channels; k++)
        all[k] = (uint16_t)k;
    for (k = 0; k < count; k++) {
        with = k + take(input, 1) % (channels - k);
        other = all[with], all[with] = all[k], all[k] = other;
        target[k] = other;
    }
}

/* Contexts that can be coded with, of any integers. The longer arrays follow from few bytes. */
static Contexts *good_contexts(Input *input, size_t tables)
{
    static const uint8_t lengths[8] = {1, 2, 3, 4, 5, 8, 13, 200};
    uint32_t kind = take(input, 1), slope = take(input, 1), mix = take(input, 1), shift;
    size_t channels = lengths[kind % 8], predicted = take(input, 1) % 6, bytes[10], c, k;
    Choice choice;
    Contexts *all;
    uint8_t *levels, *map;
    int8_t *beside;
    int32_t *bias;
    if (predicted > channels)
        predicted = channels;
    shift = take(input, 1) % 20;
    sizes_of(bytes, channels, predicted);
    grab_choice(input, &choice, bytes, 1 << 0 | 1 << 7);
    levels = choice.arrays[0].view.buf, map = choice.arrays[7].view.buf;
    for (k = 0; k < LEVELS; k++)
        levels[k] = (uint8_t)(kind & 8 ? k * slope / 8 : k * slope < 2040 ? k * slope / 8 : 255);
    for (k = 0; k < channels * CLASSES; k++)
        map[k] = (uint8_t)((kind & 16 ? k % CLASSES * tables / CLASSES : k * mix / 7) % tables);
    permute(input, choice.arrays[1].view.buf, channels, channels);
    permute(input, choice.arrays[8].view.buf, predicted, channels);
    for (c = 0, beside = choice.arrays[3].view.buf; c < channels; c++) {
        int left = BESIDE_LIMIT;
        for (k = c * NEIGHBOURS; k < (c + 1) * NEIGHBOURS; k++) {
            if (abs(beside[k]) > left)
                beside[k] = (int8_t)(beside[k] < 0 ? -left : left > 127 ? 127 : left);
            left -= abs(beside[k]);
        }
    }
    if (kind & 32) { /* sums as large as they can be */
        memset(choice.arrays[2].view.buf, kind & 128 ? 0 : 255, channels);
        memset(choice.arrays[4].view.buf, kind & 64 ? 127 : -128, channels * RANK);
    }
    for (c = 0, bias = choice.arrays[6].view.buf; c < channels; c++) {
        bias[c] = (int32_t)((uint32_t)bias[c] % (2 * BIAS_LIMIT + 1)) - BIAS_LIMIT;
        bias[c] /= 1 << shift;
    }
    all = prepared(&choice);
    CHECK(all);
    free_choice(&choice);
    return all;
}

/* ---- the specification ---- */

typedef struct {
    const Latents *latents;
    size_t tile;
    const int16_t *symbols, *coded; /* of the tile: (C, h, w) in the latents' order, (h, w, C) */
} Tile;

static int64_t bounded(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

static int64_t value_at(const Tile *tile, size_t c, Py_ssize_t y, Py_ssize_t x)
{
    const Latents *all = tile->latents;
    const Py_ssize_t height = all->height[tile->tile], width = all->width[tile->tile];
    return tile->symbols[(all->contexts->order[c] * height + y) * width + x];
}

static int64_t guess_at(const Tile *tile, size_t k, Py_ssize_t y, Py_ssize_t x)
{
    const Contexts *all = tile->latents->contexts;
    const Py_ssize_t width = tile->latents->width[tile->tile];
    const int16_t *w = all->weights + k * NEIGHBOURS;
    size_t c = all->places[k];
    int64_t left = x ? value_at(tile, c, y, x - 1) : y ? value_at(tile, c, y - 1, 0) : 0;
    int64_t top = y ? value_at(tile, c, y - 1, x) : left;
    int64_t sum = 32 + w[0] * left + w[1] * top;
    sum += w[2] * (y && x ? value_at(tile, c, y - 1, x - 1) : top);
    sum += w[3] * (y && x + 1 < width ? value_at(tile, c, y - 1, x + 1) : top);
    sum += w[4] * (x > 1 ? value_at(tile, c, y, x - 2) : left);
    sum += w[5] * (y > 1 ? value_at(tile, c, y - 2, x) : top);
    return bounded(sum >> 6, -32768, 32767);
}

/* 0 outside the tile. */
static int64_t activity_at(const Tile *tile, size_t c, Py_ssize_t y, Py_ssize_t x)
{
    const Contexts *all = tile->latents->contexts;
    const Py_ssize_t width = tile->latents->width[tile->tile];
    int64_t residual;
    if (y < 0 || x < 0 || x >= width)
        return 0;
    residual = tile->coded[(y * width + x) * all->channels + (Py_ssize_t)c];
    return all->levels[bounded(residual < 0 ? -residual : residual, 0, 255)] - all->mean[c];
}

/* `sum` are those over all channels of the groups before. */
static uint16_t table_at(const Tile *tile, size_t c, Py_ssize_t y, Py_ssize_t x,
                         const int64_t *sum)
{
    static const int around[NEIGHBOURS][2] = {{0, -1}, {-1, 0}, {-1, -1}, {-1, 1}, {0, -2}, {-2, 0}};
    const Contexts *all = tile->latents->contexts;
    int64_t score = all->bias[c];
    size_t k;
    for (k = 0; k < NEIGHBOURS; k++)
        score += all->beside[k * (size_t)all->padded + c]
                 * activity_at(tile, c, y + around[k][0], x + around[k][1]);
    for (k = 0; k < RANK; k++)
        score += all->from[c / 4 * 16 + MATRIX(k, c % 4)] * bounded(sum[k] >> 6, -32768, 32767);
    return all->map[c * CLASSES + (size_t)bounded(score >> 9, 0, CLASSES - 1)];
}

static void check_position(const Tile *tile, const uint16_t *indexes, Py_ssize_t y, Py_ssize_t x)
{
    const Contexts *all = tile->latents->contexts;
    Py_ssize_t at = (y * tile->latents->width[tile->tile] + x) * all->channels;
    int64_t sum[RANK] = {0, 0, 0, 0}, before[RANK];
    size_t c, k;
    for (c = 0; c < (size_t)all->channels; c++, at++) {
        int64_t residual = value_at(tile, c, y, x);
        for (k = 0; k < (size_t)all->predicted; k++)
            if (all->places[k] == c)
                residual -= guess_at(tile, k, y, x);
        CHECK((uint16_t)tile->coded[at] == (uint16_t)residual);
        if (c % 4 == 0)
            memcpy(before, sum, sizeof before);
        CHECK(indexes[at] == table_at(tile, c, y, x, before));
        for (k = 0; k < RANK; k++)
            sum[k] += all->into[c / 4 * 16 + MATRIX(c % 4, k)] * activity_at(tile, c, y, x);
    }
}

static void check_tile(const Tile *tile, const uint16_t *indexes)
{
    const Latents *latents = tile->latents;
    Py_ssize_t y, x;
    for (y = 0; y < latents->height[tile->tile]; y++)
        for (x = 0; x < latents->width[tile->tile]; x++)
            check_position(tile, indexes, y, x);
}

/* ---- what is done with them ---- */

static void draw_symbols(Input *input, int16_t *symbols, size_t count)
{
    uint32_t large = take(input, 1);
    size_t k;
    for (k = 0; k < count; k++) {
        uint32_t near = take(input, 1);
        symbols[k] = near < large ? (int16_t)take(input, 2) : (int16_t)((int)(near % 32) - 16);
        if (near == 255 && large > 128)
            symbols[k] = symbols[k] & 1 ? INT16_MAX : INT16_MIN;
    }
}

static void tiles_round_trip(Input *input, const Tables *tables, const Contexts *contexts)
{
    Latents latents = {tables, contexts, 1 + take(input, 1) % MAX_TILES, {0}, {0}};
    size_t t, first, total;
    int16_t *symbols, *found, *coded;
    uint16_t *indexes;
    Streams streams, again;
    for (t = 0; t < latents.tiles; t++) {
        latents.height[t] = 1 + take(input, 1) % (contexts->channels > 64 ? 2 : 5);
        latents.width[t] = 1 + take(input, 1) % (contexts->channels > 64 ? 3 : 7);
    }
    total = symbols_of(&latents);
    symbols = room(2 * total), found = room(2 * total), coded = room(2 * total);
    indexes = room(2 * total);
    draw_symbols(input, symbols, total);
    streams = write_tiles(&latents, symbols, coded, indexes);
    for (t = 0, first = 0; t < latents.tiles; first += tile_size(&latents, t), t++) {
        Tile tile = {&latents, t, symbols + first, coded + first};
        check_tile(&tile, indexes + first);
    }
    CHECK(read_tiles(&latents, &streams, found));
    CHECK(!memcmp(symbols, found, 2 * total));
    damage(input, &streams);
    if (read_tiles(&latents, &streams, found)) {
        again = write_tiles(&latents, found, coded, indexes);
        CHECK(same(&streams, &again));
        free_streams(&again);
    }
    free_streams(&streams);
    free(symbols), free(found), free(coded), free(indexes);
}

/* Anything at all: states, positions and sizes that fit nothing, tables that are not there. */
static void any_tile(Input *input, const Tables *tables, const Contexts *contexts)
{
    uint32_t choice = take(input, 1);
    Py_ssize_t height = (int8_t)take(input, 1) % 8, width = (int8_t)take(input, 1) % 8;
    size_t word_bytes = take(input, 1), escape_bytes = take(input, 1) % 64, k;
    size_t bytes = take(input, 2), other = choice & 1 ? bytes : take(input, 2);
    uint8_t *words, *escapes, *symbols, *coded, *indexes;
    State state;
    if (choice & 2 && contexts && height > 0 && width > 0)
        bytes = other = (size_t)(2 * contexts->channels * height * width);
    if (choice & 4)
        height = (Py_ssize_t)((size_t)height << (choice & 8 ? 61 : 30));
    for (k = 0; k < LANES; k++)
        state.lane[k] = choice & 16 ? take(input, 4) : (uint64_t)take(input, 4) << 32 | LOWER;
    state.symbols = take(input, 4);
    state.word = choice & 32 ? 0 : take(input, 1), state.escape = choice & 32 ? 0 : take(input, 1);
    symbols = grab(input, bytes), coded = room(other), indexes = room(bytes);
    call_find(contexts, view_of(symbols, bytes), view_of(coded, other), view_of(indexes, bytes),
              height, width);
    escapes = grab(input, escape_bytes), words = grab(input, word_bytes);
    call_decode(tables, contexts, &state, view_of(words, word_bytes),
                view_of(escapes, escape_bytes), view_of(symbols, bytes), height, width);
    if (!refused) {
        CHECK(state.word <= word_bytes && state.escape <= escape_bytes);
        CHECK(returned >= DONE && returned <= BAD_ESCAPE);
    }
    free(symbols), free(coded), free(indexes), free(escapes), free(words);
}

static void fuzz_contexts(Input *input, const Tables *tables, uint32_t choice)
{
    size_t count = tables && tables->count ? (size_t)tables->count : 0;
    Contexts *contexts = choice & 8    ? raw_contexts(input)
                         : choice & 16 ? good_contexts(input, 256)
                                       : good_contexts(input, count ? count : 1);
    if (contexts && count >= (size_t)contexts->tables && choice & 2)
        tiles_round_trip(input, tables, contexts);
    else
        any_tile(input, tables, contexts);
    free_contexts(contexts);
}
