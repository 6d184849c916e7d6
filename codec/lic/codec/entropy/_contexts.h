/* Contexts: which table codes a symbol, from the magnitudes of symbols that are already known.
 *
 * Part of _rans.c. codec/FORMAT.md, "Contexts", is the specification and _contexts_py.py the same
 * thing in Python. All arithmetic is in integers that cannot overflow: `prepare_contexts` refuses
 * parameters outside the ranges that the comments below rely on.
 */

#define NEIGHBOURS 6   /* left, top, top left, top right, left but one, top but one */
#define RANK 4         /* sums over channels that are known at this position */
#define GROUP 4        /* channels that are coded together, one a lane */
#define CLASSES 64
#define CLASS_SHIFT 9
#define SUM_SHIFT 6
#define VALUE_SHIFT 6
#define LEVELS 256
#define MAX_CHANNELS 4096
#define MAX_PREDICTED 64
#define BIAS_LIMIT (1 << 24)
#define BESIDE_LIMIT 128 /* of a channel's weights, summed: with activities a sum fits 16 bits */
#define CONTEXTS_CAPSULE "lic.codec.entropy.contexts"

/* Where a 4 x 4 matrix holds the weight of `in` for `out`: in pairs, as `multiply` wants them. */
#define MATRIX(in, out) ((in) / 2 * 8 + (out)*2 + (in) % 2)

typedef struct {
    Py_ssize_t channels, groups, padded; /* padded = GROUP * groups */
    Py_ssize_t predicted;                /* channels whose values are predicted, too */
    Py_ssize_t tables;                   /* the largest table that the map names, plus 1 */
    uint8_t levels[LEVELS];              /* magnitude -> activity */
    uint16_t *order;                     /* (channels) of the latents, as they are coded */
    int16_t *mean;                       /* (padded) of the activity, 0 .. 255 */
    int16_t *beside;                     /* (NEIGHBOURS, padded) weights of activities around */
    int16_t *into;                       /* (groups, 16) of activities into the sums, MATRIX */
    int16_t *from;                       /* (groups, 16) of the sums, MATRIX */
    int32_t *bias;                       /* (padded) */
    uint8_t *map;                        /* (padded, CLASSES) -> table */
    uint16_t *places;                    /* (predicted) of the channels in the order of coding */
    int16_t *weights;                    /* (predicted, NEIGHBOURS) of values around */
} Contexts;

/* What a tile's rows need: activities less their means of three rows, with two columns of zeros to
 * both sides, and the values of predicted channels. */
typedef struct {
    Py_ssize_t width;
    int16_t *activity[3]; /* this row, the one above, the one above that */
    int16_t *value[3];
    int16_t *line;  /* (width, channels): one row of symbols, channels innermost */
    int16_t *score; /* (padded), of neighbours */
    int16_t *guess; /* (predicted) */
    void *memory;
} Rows;

static void free_contexts(Contexts *all)
{
    if (all) {
        free(all->order);
        free(all->mean);
        free(all->beside);
        free(all->into);
        free(all->from);
        free(all->bias);
        free(all->map);
        free(all->places);
        free(all->weights);
        free(all);
    }
}

static void destroy_contexts(PyObject *capsule)
{
    free_contexts(PyCapsule_GetPointer(capsule, CONTEXTS_CAPSULE));
}

static int allocate_contexts(Contexts *all)
{
    const size_t padded = (size_t)all->padded, predicted = (size_t)all->predicted;
    all->order = calloc(padded, sizeof *all->order);
    all->mean = calloc(padded, sizeof *all->mean);
    all->beside = calloc(padded * NEIGHBOURS, sizeof *all->beside);
    all->into = calloc(padded * RANK, sizeof *all->into);
    all->from = calloc(padded * RANK, sizeof *all->from);
    all->bias = calloc(padded, sizeof *all->bias);
    all->map = calloc(padded, CLASSES);
    all->places = calloc(predicted + 1, sizeof *all->places);
    all->weights = calloc(predicted + 1, NEIGHBOURS * sizeof *all->weights);
    return all->order && all->mean && all->beside && all->into && all->from && all->bias
           && all->map && all->places && all->weights;
}

/* The arrays as Python holds them; contexts.py tells what they are. */
typedef struct {
    Py_buffer levels, order, mean, beside, into, from, bias, map, predicted, weights;
} Arrays;

static const char *fill_contexts(Contexts *all, const Arrays *in)
{
    const Py_ssize_t channels = all->channels, padded = all->padded;
    const uint16_t *order = in->order.buf, *predicted = in->predicted.buf;
    const int8_t *beside = in->beside.buf, *into = in->into.buf, *from = in->from.buf;
    const int8_t *weights = in->weights.buf;
    const uint8_t *mean = in->mean.buf, *map = in->map.buf;
    const int32_t *bias = in->bias.buf;
    Py_ssize_t c, k;
    int32_t sum;
    memcpy(all->levels, in->levels.buf, LEVELS);
    for (c = 0; c < channels; c++) {
        /* Until they are filled in, means say which channels were named. */
        if (order[c] >= channels || all->mean[order[c]]++)
            return "the order names a channel that is not there, or one twice";
    }
    for (c = 0; c < channels; c++) {
        if (bias[c] < -BIAS_LIMIT || bias[c] > BIAS_LIMIT)
            return "a bias is out of range";
        all->order[c] = order[c];
        all->mean[c] = mean[c];
        all->bias[c] = bias[c];
        for (k = 0, sum = 0; k < NEIGHBOURS; k++) {
            all->beside[k * padded + c] = beside[c * NEIGHBOURS + k];
            sum += abs(beside[c * NEIGHBOURS + k]);
        }
        if (sum > BESIDE_LIMIT)
            return "the weights of a channel's neighbours are too large";
        for (k = 0; k < RANK; k++) {
            all->into[c / GROUP * 16 + MATRIX(c % GROUP, k)] = into[c * RANK + k];
            all->from[c / GROUP * 16 + MATRIX(k, c % GROUP)] = from[c * RANK + k];
        }
        memcpy(all->map + c * CLASSES, map + c * CLASSES, CLASSES);
        for (k = 0; k < CLASSES; k++)
            if (all->tables <= map[c * CLASSES + k])
                all->tables = map[c * CLASSES + k] + 1;
    }
    for (k = 0; k < all->predicted; k++) {
        if (predicted[k] >= channels)
            return "a predicted channel is not there";
        for (c = 0; c < k; c++)
            if (predicted[c] == predicted[k])
                return "a channel is predicted twice";
        all->places[k] = predicted[k];
        for (c = 0; c < NEIGHBOURS; c++)
            all->weights[k * NEIGHBOURS + c] = weights[k * NEIGHBOURS + c];
    }
    return NULL;
}

static PyObject *prepare_arrays(const Arrays *in)
{
    const Py_ssize_t channels = in->mean.len, predicted = in->predicted.len / 2;
    const char *problem;
    PyObject *capsule;
    Contexts *all;
    if (channels < 1 || channels > MAX_CHANNELS || predicted > MAX_PREDICTED
        || in->levels.len != LEVELS || in->order.len != channels * 2
        || in->beside.len != channels * NEIGHBOURS || in->into.len != channels * RANK
        || in->from.len != channels * RANK || in->bias.len != channels * 4
        || in->map.len != channels * CLASSES || in->weights.len != predicted * NEIGHBOURS
        || !is_aligned(&in->order, 2) || !is_aligned(&in->predicted, 2)
        || !is_aligned(&in->bias, 4))
        return PyErr_Format(PyExc_ValueError, "the contexts' arrays do not fit together");
    all = calloc(1, sizeof *all);
    if (!all)
        return PyErr_NoMemory();
    all->channels = channels;
    all->groups = (channels + GROUP - 1) / GROUP;
    all->padded = all->groups * GROUP;
    all->predicted = predicted;
    if (!allocate_contexts(all)) {
        free_contexts(all);
        return PyErr_NoMemory();
    }
    problem = fill_contexts(all, in);
    if (problem) {
        free_contexts(all);
        return PyErr_Format(PyExc_ValueError, "%s", problem);
    }
    capsule = PyCapsule_New(all, CONTEXTS_CAPSULE, destroy_contexts);
    if (!capsule)
        free_contexts(all);
    return capsule;
}

static PyObject *prepare_contexts(PyObject *self, PyObject *args)
{
    Arrays in;
    PyObject *capsule;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*y*y*y*y*", &in.levels, &in.order, &in.mean,
                          &in.beside, &in.into, &in.from, &in.bias, &in.map, &in.predicted,
                          &in.weights))
        return NULL;
    capsule = prepare_arrays(&in);
    PyBuffer_Release(&in.levels);
    PyBuffer_Release(&in.order);
    PyBuffer_Release(&in.mean);
    PyBuffer_Release(&in.beside);
    PyBuffer_Release(&in.into);
    PyBuffer_Release(&in.from);
    PyBuffer_Release(&in.bias);
    PyBuffer_Release(&in.map);
    PyBuffer_Release(&in.predicted);
    PyBuffer_Release(&in.weights);
    return capsule;
}

/* ---- rows ---- */

static int allocate_rows(Rows *rows, const Contexts *all, size_t width)
{
    const size_t activities = (width + 4) * (size_t)all->padded;
    const size_t values = width * (size_t)all->predicted + 1;
    const size_t line = width * (size_t)all->channels;
    const size_t score = (size_t)all->padded;
    const size_t shorts = 3 * (activities + values) + line + score + (size_t)all->predicted + 1;
    int16_t *next;
    int k;
    rows->width = (Py_ssize_t)width;
    rows->memory = next = calloc(shorts, sizeof *next);
    if (!next)
        return 0;
    for (k = 0; k < 3; k++, next += activities)
        rows->activity[k] = next;
    for (k = 0; k < 3; k++, next += values)
        rows->value[k] = next;
    rows->line = next;
    rows->score = rows->line + line;
    rows->guess = rows->score + score;
    return 1;
}

/* The row that is done becomes the one above; columns beside the picture stay zero. */
static void turn_rows(Rows *rows)
{
    int16_t *activity = rows->activity[2], *value = rows->value[2];
    rows->activity[2] = rows->activity[1];
    rows->activity[1] = rows->activity[0];
    rows->activity[0] = activity;
    rows->value[2] = rows->value[1];
    rows->value[1] = rows->value[0];
    rows->value[0] = value;
}

/* What neighbours say of every channel at column x. */
static void score_position(const Contexts *all, const Rows *rows, Py_ssize_t x)
{
    const Py_ssize_t padded = all->padded, at = (x + 2) * padded;
    const int16_t *w = all->beside;
    const int16_t *left = rows->activity[0] + at - padded, *left2 = left - padded;
    const int16_t *top = rows->activity[1] + at, *top2 = rows->activity[2] + at;
    const int16_t *top_left = top - padded, *top_right = top + padded;
    int16_t *score = rows->score;
    Py_ssize_t c;
    for (c = 0; c < padded; c++)
        score[c] = (int16_t)(
            w[c] * left[c] + w[padded + c] * top[c]
            + w[2 * padded + c] * top_left[c] + w[3 * padded + c] * top_right[c]
            + w[4 * padded + c] * left2[c] + w[5 * padded + c] * top2[c]);
}

static inline int32_t clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Predicted values at (y, x). A neighbour outside is the one left of it, or above it, that is not;
 * where there is none, 0. */
static void guess_position(const Contexts *all, const Rows *rows, Py_ssize_t y, Py_ssize_t x)
{
    const Py_ssize_t n = all->predicted, width = rows->width;
    Py_ssize_t k, i;
    for (k = 0; k < n; k++) {
        const int16_t *w = all->weights + k * NEIGHBOURS;
        const int16_t *row = rows->value[0] + k, *above = rows->value[1] + k;
        int32_t around[NEIGHBOURS], sum = 1 << (VALUE_SHIFT - 1);
        int32_t left = x > 0 ? row[(x - 1) * n] : y > 0 ? above[0] : 0;
        int32_t top = y > 0 ? above[x * n] : left;
        around[0] = left;
        around[1] = top;
        around[2] = y > 0 && x > 0 ? above[(x - 1) * n] : top;
        around[3] = y > 0 && x + 1 < width ? above[(x + 1) * n] : top;
        around[4] = x > 1 ? row[(x - 2) * n] : left;
        around[5] = y > 1 ? rows->value[2][x * n + k] : top;
        for (i = 0; i < NEIGHBOURS; i++)
            sum += w[i] * around[i];
        /* Compilers' shifts of negative numbers are arithmetic on all platforms of Python. */
        rows->guess[k] = (int16_t)clamp(sum >> VALUE_SHIFT, INT16_MIN, INT16_MAX);
    }
}

/* Four numbers of 32 bits at once: compilers do not find the processor's product of pairs. */
#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>

typedef __m128i Four;

static inline Four no_four(void)
{
    return _mm_setzero_si128();
}

static inline Four add_four(Four a, Four b)
{
    return _mm_add_epi32(a, b);
}

/* The product of a MATRIX and four numbers of 16 bits, which lie in the lower half. */
static inline Four multiply(const int16_t *matrix, Four narrow)
{
    const __m128i *pairs = (const __m128i *)matrix;
    return _mm_add_epi32(
        _mm_madd_epi16(_mm_loadu_si128(pairs), _mm_shuffle_epi32(narrow, 0x00)),
        _mm_madd_epi16(_mm_loadu_si128(pairs + 1), _mm_shuffle_epi32(narrow, 0x55)));
}

static inline Four load_narrow(const int16_t *from)
{
    return _mm_loadl_epi64((const __m128i *)from);
}

/* As load_narrow, of what has only just been stored: a load would wait for all four stores. */
static inline Four join_narrow(int16_t a, int16_t b, int16_t c, int16_t d)
{
    return _mm_set_epi16(0, 0, 0, 0, d, c, b, a);
}

/* Shifted and clamped to 16 bits. */
static inline Four narrow_sums(Four sums)
{
    __m128i shifted = _mm_srai_epi32(sums, SUM_SHIFT);
    return _mm_packs_epi32(shifted, shifted);
}

static inline void classes_of(Four told, const int16_t *score, const int32_t *bias, int *classes)
{
    __m128i beside = load_narrow(score), total;
    beside = _mm_srai_epi32(_mm_unpacklo_epi16(beside, beside), 16);
    total = _mm_add_epi32(_mm_add_epi32(told, beside), _mm_loadu_si128((const __m128i *)bias));
    total = _mm_srai_epi32(total, CLASS_SHIFT);
    total = _mm_packs_epi32(total, total);
    total = _mm_max_epi16(total, _mm_setzero_si128());
    total = _mm_min_epi16(total, _mm_set1_epi16(CLASSES - 1));
    classes[0] = _mm_extract_epi16(total, 0);
    classes[1] = _mm_extract_epi16(total, 1);
    classes[2] = _mm_extract_epi16(total, 2);
    classes[3] = _mm_extract_epi16(total, 3);
}
#else
typedef struct {
    int32_t at[4];
} Four;

static inline Four no_four(void)
{
    Four none = {{0, 0, 0, 0}};
    return none;
}

static inline Four add_four(Four a, Four b)
{
    int k;
    for (k = 0; k < 4; k++)
        a.at[k] += b.at[k];
    return a;
}

static inline Four multiply(const int16_t *matrix, Four narrow)
{
    Four product = no_four();
    int in, out;
    for (in = 0; in < 4; in++)
        for (out = 0; out < 4; out++)
            product.at[out] += matrix[MATRIX(in, out)] * narrow.at[in];
    return product;
}

static inline Four load_narrow(const int16_t *from)
{
    Four loaded = {{from[0], from[1], from[2], from[3]}};
    return loaded;
}

static inline Four join_narrow(int16_t a, int16_t b, int16_t c, int16_t d)
{
    Four joined = {{a, b, c, d}};
    return joined;
}

static inline Four narrow_sums(Four sums)
{
    int k;
    for (k = 0; k < 4; k++)
        sums.at[k] = clamp(sums.at[k] >> SUM_SHIFT, INT16_MIN, INT16_MAX);
    return sums;
}

static inline void classes_of(Four told, const int16_t *score, const int32_t *bias, int *classes)
{
    int k;
    for (k = 0; k < 4; k++)
        classes[k] = clamp((told.at[k] + score[k] + bias[k]) >> CLASS_SHIFT, 0, CLASSES - 1);
}
#endif

/* The tables of a group's channels, from its neighbours' score and the sums over those before. */
static inline void select_tables(const Contexts *all, const int16_t *score, Py_ssize_t g,
                                 Four sums, uint8_t *table)
{
    const uint8_t *map = all->map + g * GROUP * CLASSES;
    int classes[GROUP], j;
    Four told = multiply(all->from + g * 16, narrow_sums(sums));
    classes_of(told, score + g * GROUP, all->bias + g * GROUP, classes);
    for (j = 0; j < GROUP; j++)
        table[j] = map[j * CLASSES + classes[j]];
}

static inline Four add_activities(const Contexts *all, Py_ssize_t g, Four activities, Four sums)
{
    return add_four(sums, multiply(all->into + g * 16, activities));
}

static inline int16_t activity_of(const Contexts *all, Py_ssize_t c, int32_t symbol)
{
    uint32_t magnitude = (uint32_t)(symbol < 0 ? -symbol : symbol);
    return (int16_t)(all->levels[magnitude < LEVELS ? magnitude : LEVELS - 1] - all->mean[c]);
}

/* ---- encoder: residuals and tables, both (positions, channels), for the plain coder ---- */

static void encode_position(const Contexts *all, Rows *rows, Py_ssize_t y, Py_ssize_t x,
                            int16_t *coded, uint16_t *indexes)
{
    const Py_ssize_t channels = all->channels;
    const int16_t *symbols = rows->line + x * channels;
    int16_t *activity = rows->activity[0] + (x + 2) * all->padded;
    Four sums = no_four();
    Py_ssize_t c, g, k;
    memcpy(coded, symbols, (size_t)channels * sizeof *coded);
    guess_position(all, rows, y, x);
    for (k = 0; k < all->predicted; k++) {
        c = all->places[k];
        rows->value[0][x * all->predicted + k] = symbols[c];
        /* Modulo 2^16, so that the decoder's sum gives back any symbol. */
        coded[c] = (int16_t)(uint16_t)((uint16_t)symbols[c] - (uint16_t)rows->guess[k]);
    }
    for (c = 0; c < channels; c++)
        activity[c] = activity_of(all, c, coded[c]);
    score_position(all, rows, x);
    for (g = 0; g < all->groups; g++) {
        uint8_t table[GROUP];
        Py_ssize_t j, rest = channels - g * GROUP;
        select_tables(all, rows->score, g, sums, table);
        for (j = 0; j < GROUP && j < rest; j++)
            indexes[g * GROUP + j] = table[j];
        sums = add_activities(all, g, load_narrow(activity + g * GROUP), sums);
    }
}

static void contexts_of(const Contexts *all, Rows *rows, const int16_t *symbols, Py_ssize_t height,
                        int16_t *coded, uint16_t *indexes)
{
    const Py_ssize_t channels = all->channels, width = rows->width;
    Py_ssize_t y, x, c;
    for (y = 0; y < height; y++) {
        for (c = 0; c < channels; c++) {
            const int16_t *source = symbols + (all->order[c] * height + y) * width;
            for (x = 0; x < width; x++)
                rows->line[x * channels + c] = source[x];
        }
        for (x = 0; x < width; x++, coded += channels, indexes += channels)
            encode_position(all, rows, y, x, coded, indexes);
        turn_rows(rows);
    }
}

/* ---- decoder ---- */

/* The symbols of one group, each from its lane; there may be fewer words than symbols. */
static int decode_group(const Tables *all, const uint8_t *table, int16_t *coded, Py_ssize_t count,
                        uint32_t *lane, size_t first, Words *words, Escapes *escapes)
{
    Py_ssize_t j;
    for (j = 0; j < count; j++) {
        size_t l = (first + (size_t)j) % LANES;
        lane[l] = decode_slot(all->tables + table[j], lane[l], escapes, coded + j);
        if (escapes->status != DONE)
            return escapes->status;
        if (lane[l] < LOWER) {
            if (words->end - words->next < 2)
                return OUT_OF_WORDS;
            lane[l] = refill(lane[l], words);
        }
    }
    return DONE;
}

static int decode_position(const Tables *tables, const Contexts *all, Rows *rows, Py_ssize_t x,
                           uint32_t *lanes, size_t first, Words *source, Escapes *escapes)
{
    const Py_ssize_t channels = all->channels;
    const Table *t = tables->tables;
    int16_t *symbols = rows->line + x * channels;
    int16_t *activity = rows->activity[0] + (x + 2) * all->padded;
    uint32_t lane[LANES] = {lanes[0], lanes[1], lanes[2], lanes[3]};
    Words words = *source;
    Four sums = no_four();
    Py_ssize_t k, g, j;
    score_position(all, rows, x);
    for (g = 0; g < all->groups; g++) {
        const Py_ssize_t rest = channels - g * GROUP, count = rest < GROUP ? rest : GROUP;
        int16_t coded[GROUP] = {0, 0, 0, 0}, active[GROUP];
        uint8_t table[GROUP];
        select_tables(all, rows->score, g, sums, table);
        if (count == GROUP && first % LANES == 0 && words.end - words.next >= 2 * LANES) {
            lane[0] = refill(decode_slot(t + table[0], lane[0], escapes, coded), &words);
            lane[1] = refill(decode_slot(t + table[1], lane[1], escapes, coded + 1), &words);
            lane[2] = refill(decode_slot(t + table[2], lane[2], escapes, coded + 2), &words);
            lane[3] = refill(decode_slot(t + table[3], lane[3], escapes, coded + 3), &words);
            if (escapes->status != DONE)
                return escapes->status;
        } else {
            int status = decode_group(tables, table, coded, count, lane, first, &words, escapes);
            if (status != DONE)
                return status;
        }
        first += (size_t)count;
        for (j = 0; j < GROUP; j++)
            active[j] = activity_of(all, g * GROUP + j, coded[j]);
        sums = add_activities(
            all, g, join_narrow(active[0], active[1], active[2], active[3]), sums);
        for (j = 0; j < count; j++) {
            symbols[g * GROUP + j] = coded[j];
            activity[g * GROUP + j] = active[j];
        }
    }
    for (k = 0; k < all->predicted; k++) {
        int16_t *symbol = symbols + all->places[k];
        *symbol = (int16_t)(uint16_t)((uint16_t)*symbol + (uint16_t)rows->guess[k]);
        rows->value[0][x * all->predicted + k] = *symbol;
    }
    memcpy(lanes, lane, sizeof lane);
    *source = words;
    return DONE;
}

static int decode_rows(const Tables *tables, const Contexts *all, Rows *rows, int16_t *symbols,
                       Py_ssize_t height, uint32_t *lane, size_t *first, Words *words,
                       Escapes *escapes)
{
    const Py_ssize_t channels = all->channels, width = rows->width;
    Py_ssize_t y, x, c;
    for (y = 0; y < height; y++) {
        for (x = 0; x < width; x++, *first += (size_t)channels) {
            int status;
            guess_position(all, rows, y, x);
            status = decode_position(tables, all, rows, x, lane, *first, words, escapes);
            if (status != DONE)
                return status;
        }
        for (c = 0; c < channels; c++) {
            int16_t *target = symbols + (all->order[c] * height + y) * width;
            for (x = 0; x < width; x++)
                target[x] = rows->line[x * channels + c];
        }
        turn_rows(rows);
    }
    return DONE;
}

/* ---- Python's side ---- */

static const char *check_shape(const Contexts *all, Py_ssize_t height, Py_ssize_t width,
                               Py_ssize_t count)
{
    if (!all)
        return "the contexts must come from prepare_contexts";
    if (height < 1 || width < 1 || height > PY_SSIZE_T_MAX / 16 / MAX_CHANNELS / width
        || count != height * width * all->channels)
        return "the symbols are not (channels, height, width)";
    return NULL;
}

static const Contexts *contexts_from(PyObject *capsule)
{
    return PyCapsule_IsValid(capsule, CONTEXTS_CAPSULE)
               ? PyCapsule_GetPointer(capsule, CONTEXTS_CAPSULE)
               : NULL;
}

static PyObject *find_contexts(PyObject *self, PyObject *args)
{
    Py_buffer symbols, coded, indexes;
    Py_ssize_t height, width;
    PyObject *capsule;
    const Contexts *all;
    const char *problem;
    Rows rows;
    (void)self;
    if (!PyArg_ParseTuple(args, "Oy*w*w*nn", &capsule, &symbols, &coded, &indexes, &height,
                          &width))
        return NULL;
    all = contexts_from(capsule);
    problem = check_shape(all, height, width, symbols.len / 2);
    if (!problem && (!is_aligned(&symbols, 2) || !is_aligned(&coded, 2) || !is_aligned(&indexes, 2)
                     || coded.len != symbols.len || indexes.len != symbols.len))
        problem = "symbols, residuals and indexes must be aligned 16-bit arrays of one length";
    if (!problem && !allocate_rows(&rows, all, (size_t)width))
        problem = "there is not enough memory";
    if (!problem) {
        Py_BEGIN_ALLOW_THREADS
        contexts_of(all, &rows, symbols.buf, height, coded.buf, indexes.buf);
        free(rows.memory);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&symbols);
    PyBuffer_Release(&coded);
    PyBuffer_Release(&indexes);
    if (problem)
        return PyErr_Format(PyExc_ValueError, "%s", problem);
    Py_RETURN_NONE;
}

static int decode_tile(const Call *call, const Contexts *all, Rows *rows, Py_ssize_t height,
                       State *state)
{
    const uint8_t *words = call->words.buf, *escapes = call->escapes.buf;
    Words in = {words + state->word, words + call->words.len};
    Escapes side = {escapes + state->escape, escapes + call->escapes.len, DONE};
    size_t first = (size_t)state->symbols;
    uint32_t lane[LANES];
    int status, l;
    for (l = 0; l < LANES; l++)
        lane[l] = (uint32_t)state->lane[l];
    status = decode_rows(call->tables, all, rows, call->symbols.buf, height, lane, &first, &in,
                         &side);
    for (l = 0; l < LANES; l++)
        state->lane[l] = lane[l];
    state->symbols = first;
    state->word = (uint64_t)(in.next - words);
    state->escape = (uint64_t)(side.next - escapes);
    return status;
}

static PyObject *decode_contexts(PyObject *self, PyObject *args)
{
    Call call;
    State state;
    Py_ssize_t height, width;
    PyObject *tables, *capsule;
    const Contexts *all;
    const char *problem;
    Rows rows;
    int status = DONE;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOw*y*y*w*nn", &tables, &capsule, &call.state, &call.words,
                          &call.escapes, &call.symbols, &height, &width))
        return NULL;
    call.tables = tables_from(tables);
    all = contexts_from(capsule);
    problem = check_streams(&call, &state);
    if (!problem)
        problem = check_shape(all, height, width, call.symbols.len / 2);
    if (!problem && all->tables > call.tables->count)
        problem = "the contexts name a table that is not there";
    if (!problem && !allocate_rows(&rows, all, (size_t)width))
        problem = "there is not enough memory";
    if (!problem) {
        Py_BEGIN_ALLOW_THREADS
        status = decode_tile(&call, all, &rows, height, &state);
        free(rows.memory);
        Py_END_ALLOW_THREADS
        memcpy(call.state.buf, &state, sizeof state);
    }
    PyBuffer_Release(&call.state);
    PyBuffer_Release(&call.words);
    PyBuffer_Release(&call.escapes);
    PyBuffer_Release(&call.symbols);
    return problem ? PyErr_Format(PyExc_ValueError, "%s", problem) : PyLong_FromLong(status);
}
