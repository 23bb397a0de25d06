/* Parts of the generated program, each after a line "//@ name"; source.py takes those that a network needs. */

//@ word64
typedef uint64_t word;
enum { WORD = 64 };

#if defined(__GNUC__)
static inline word popcount(word x) { return (word)__builtin_popcountll(x); }
#else
static inline word popcount(word x) {
  x = x - ((x >> 1) & 0x5555555555555555U);
  x = (x & 0x3333333333333333U) + ((x >> 2) & 0x3333333333333333U);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fU;
  x = x + (x >> 8);
  x = x + (x >> 16);
  return (x + (x >> 32)) & 0x7fU;
}
#endif

static inline word load(const uint8_t *p) {
  return (word)p[0] | (word)p[1] << 8 | (word)p[2] << 16 | (word)p[3] << 24 | (word)p[4] << 32 | (word)p[5] << 40 |
         (word)p[6] << 48 | (word)p[7] << 56;
}

//@ word32
typedef uint32_t word;
enum { WORD = 32 };

static inline word popcount(word x) {
  x = x - ((x >> 1) & 0x55555555U);
  x = (x & 0x33333333U) + ((x >> 2) & 0x33333333U);
  x = (x + (x >> 4)) & 0x0f0f0f0fU;
  x = x + (x >> 8);
  return (x + (x >> 16)) & 0x3fU;
}

static inline word load(const uint8_t *p) {
  return (word)p[0] | (word)p[1] << 8 | (word)p[2] << 16 | (word)p[3] << 24;
}

//@ lanes8
/* Outputs are computed 8 at a time; GCC makes one vector operation of them if it unrolls them first. */
enum { LANES = 8 };
#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 8")
#else
#define UNROLL
#endif

/* Stores bit l of lane l. */
static inline void store(uint8_t *to, int32_t *lanes) {
  for (int l = 0; l < 4; l++) lanes[l] |= lanes[l + 4];
  for (int l = 0; l < 2; l++) lanes[l] |= lanes[l + 2];
  *to = (uint8_t)(lanes[0] | lanes[1]);
}

static inline int32_t stored(const uint8_t *from) { return *from; }

//@ lanes16
/* Outputs are computed 16 at a time; GCC makes one vector operation of them if it unrolls them first. */
enum { LANES = 16 };
#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

/* Stores bit l of lane l. */
static inline void store(uint8_t *to, int32_t *lanes) {
  for (int l = 0; l < 8; l++) lanes[l] |= lanes[l + 8];
  for (int l = 0; l < 4; l++) lanes[l] |= lanes[l + 4];
  for (int l = 0; l < 2; l++) lanes[l] |= lanes[l + 2];
  lanes[0] |= lanes[1];
  to[0] = (uint8_t)lanes[0];
  to[1] = (uint8_t)(lanes[0] >> 8);
}

static inline int32_t stored(const uint8_t *from) { return from[0] | from[1] << 8; }

//@ maps
/* What the program takes for granted: an int of 32 bits, and a right shift that keeps the sign. */
typedef char int_has_32_bits[sizeof(int) >= 4 ? 1 : -1];
typedef char shifts_keep_the_sign[-2 >> 1 == -1 ? 1 : -1];

/* A call runs `steps` steps: all of them from rest, or one with the membranes in `state`, which is null otherwise. */

/* Bits of a map lie as [step][row][column][plane][channel], channels filled up to whole blocks; `at` is its place. */
typedef struct {
  int height, width, channels, planes, at;
} map;

static inline int blocks_of(const map *m) { return (m->channels + LANES - 1) / LANES; }

static inline int plane_bytes(const map *m) { return blocks_of(m) * (LANES / 8); }

static inline int pixel_bytes(const map *m) { return m->planes * plane_bytes(m); }

static inline uint8_t *pixel(const map *m, int step, int y, int x) {
  return memory + m->at + ((step * m->height + y) * m->width + x) * pixel_bytes(m);
}

static inline int32_t shifted(int32_t value, int by) { return (int32_t)((uint32_t)value << by); }

/* Membranes of a block from a state, or at rest, and back. */
static inline void restore(int32_t *membranes, const int32_t *state, int lanes) {
  for (int l = 0; l < LANES; l++) membranes[l] = 0;
  for (int l = 0; state && l < lanes; l++) membranes[l] = state[l];
}

static inline void keep(const int32_t *membranes, int32_t *state, int lanes) {
  for (int l = 0; state && l < lanes; l++) state[l] = membranes[l];
}

static inline int lanes_of(const map *m, int first) {
  return m->channels - first < LANES ? m->channels - first : LANES;
}

/* Where a state has the membranes of a position: `kept` is the place of the map's, [row][column][channel]. */
static inline int32_t *state_of(const map *out, int kept, int y, int x, int32_t *state) {
  return state ? state + kept + (y * out->width + x) * out->channels : 0;
}

/* One step of the membranes of a block: leak, charge, fire, reset; stores the spikes. Its loops are such that compilers
   make vector operations of them. */
static inline void fire(int32_t *restrict v, const int32_t *restrict current, const int32_t *restrict threshold,
                        uint8_t *out) {
  int32_t spikes[LANES];
  for (int l = 0; l < LANES; l++) {
    v[l] = (v[l] >> 1) + current[l];
    spikes[l] = -(v[l] >= threshold[l]);
    v[l] &= ~spikes[l];
    spikes[l] &= 1 << l;
  }
  store(out, spikes);
}

/* Leak and reset of neurons that do not leak to half and return to zero. A membrane v leaks to v >> leak, or where
   `rest` is -1 to v - (v >> leak); a spike takes off `taken`, at its step or (delayed) at the next. A membrane saturates
   at ±2^30, which without a leak it reaches after more steps than STEPS. */
enum { HARD, SOFT, DELAYED, LIMIT = 1 << 30 };

typedef struct {
  const int8_t *leak, *rest;
  const int32_t *taken;
  int reset;
} cell;

static inline void fire_cell(const cell *c, int first, int32_t *restrict v, const int32_t *restrict current,
                             const int32_t *restrict threshold, uint8_t *out) {
  const int8_t *restrict leak = c->leak + first, *restrict rest = c->rest + first;
  int32_t spikes[LANES], late[LANES] = {0};
  for (int l = 0; c->reset == DELAYED && l < LANES; l++) late[l] = c->taken[first + l] & -(v[l] >= threshold[l]);
  for (int l = 0; l < LANES; l++) {
    const int32_t shifted_v = v[l] >> leak[l];
    v[l] = (rest[l] ? v[l] - shifted_v : shifted_v) - late[l] + current[l];
    v[l] = v[l] > LIMIT ? LIMIT : v[l] < -LIMIT ? -LIMIT : v[l];
    spikes[l] = -(v[l] >= threshold[l]);
  }
  for (int l = 0; c->reset == HARD && l < LANES; l++) v[l] &= ~spikes[l];
  for (int l = 0; c->reset == SOFT && l < LANES; l++) v[l] -= c->taken[first + l] & spikes[l];
  for (int l = 0; l < LANES; l++) spikes[l] &= 1 << l;
  store(out, spikes);
}

/* A step of neurons of either kind, of which `first` is the first channel. */
static inline void advance(const cell *c, int first, int32_t *restrict v, const int32_t *restrict current,
                           const int32_t *restrict threshold, uint8_t *out) {
  if (CELLS && c) {
    fire_cell(c, first, v, current, threshold, out);
  } else {
    fire(v, current, threshold, out);
  }
}

//@ on_spikes
typedef void dot_products(const word *restrict, const uint16_t *restrict, int, int, const word *restrict,
                          int32_t *restrict);

/* Spiking neurons on spikes. Weights lie as [block][word of the patch][bit plane][output]; `dot` takes a block and `group`
   patches at once and `rest` what is left over. Codes c stand for 2c - (2^bits - 1), or with `ternary` 1 for 2c - 2. A mask
   is the last plane and counts in `bits`; `dot` then gives the sums of these, and `ternary` equals `bits`; a call of one
   step takes patches one by one with `single`. `live` is 0 for outputs whose synapses have no effect, else -1. With a
   residual, `added` is what one of its spikes adds, and `from` its channel for each output, or 0 for the same. `kept` is
   the place of the membranes in a state. */
typedef struct {
  map in, out, residual;
  int kernel_h, kernel_w, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x, bits, words, group, ternary;
  dot_products *dot, *rest, *single;
  const word *weights;
  const int32_t *bias, *threshold;
  const int8_t *live;
  const uint8_t *shift;
  const cell *cell;
  const int32_t *added;
  const int16_t *from;
  int residual_stride, kept;
} neurons;

/* The residual's spikes for each output, [step][plane][output]. */
static void carry(const neurons *n, int y, int x, int steps) {
  const map *m = &n->residual;
  const int bytes = plane_bytes(m), wanted = plane_bytes(&n->out), channels = n->out.channels;
  uint8_t *to = residuals;
  for (int t = 0; t < steps; t++) {
    const uint8_t *p = pixel(m, t, y * n->residual_stride, x * n->residual_stride);
    for (int plane = 0; plane < m->planes; plane++, p += bytes) {
      for (int b = 0; b < wanted; b++) {
        const int lanes = channels - 8 * b < 8 ? channels - 8 * b : 8;
        int bits = n->from ? 0 : p[b];
        for (int l = 0; n->from && l < lanes; l++) {
          const int c = n->from[8 * b + l];
          if (c >= 0) bits |= (p[c >> 3] >> (c & 7) & 1) << l;
        }
        *to++ = (uint8_t)bits;
      }
    }
  }
}

/* A block of neurons through all steps at one position. `sums` lie [step][plane][output], twice what was counted; from
   each `offsets` is taken; `out` is where the spikes go, steps `step` apart; `state` is that of the position. */
static void run_block(const neurons *n, int block, int32_t *restrict sums, const int32_t *restrict offsets, uint8_t *out,
                      int step, int steps, int32_t *state) {
  const int first = block * LANES, planes = n->in.planes, bytes = plane_bytes(&n->out);
  const int8_t *restrict live = n->live + first;
  const uint8_t *restrict shift = n->shift + first;
  const int32_t *restrict bias = n->bias + first, *restrict threshold = n->threshold + first;
  const uint8_t *carried = residuals + block * (LANES / 8);
  int32_t membrane[LANES], *const kept = state ? state + first : 0;
  restore(membrane, kept, lanes_of(&n->out, first));
  for (int t = 0; t < steps; t++, sums += planes * LANES, out += step) {
    for (int p = 1; p < planes; p++) {
      for (int l = 0; l < LANES; l++) sums[l] += shifted(sums[p * LANES + l], p);
    }
    int32_t current[LANES];
    for (int l = 0; l < LANES; l++) current[l] = shifted((sums[l] - offsets[t]) & live[l], shift[l]) + bias[l];
    for (int p = 0; n->added && p < n->residual.planes; p++, carried += bytes) {
      const int32_t *restrict added = n->added + first, bits = stored(carried);
      for (int l = 0; l < LANES; l++) current[l] += shifted(added[l], p) & -(bits >> l & 1);
    }
    advance(n->cell, first, membrane, current, threshold, out);
  }
  keep(membrane, kept, lanes_of(&n->out, first));
}

//@ neurons
/* Copies the bits under a window, one after the other, into words `step` apart; returns how many are set. */
static int32_t gather(const neurons *n, int t, int plane, int y0, int x0, word *to, int step) {
  const map *in = &n->in;
  const int channels = in->channels, bytes = pixel_bytes(in);
  word current = 0, ones = 0;
  int fill = 0;
  for (int ky = 0, y = y0; ky < n->kernel_h; ky++, y += n->dilation_y) {
    const uint8_t *row = pixel(in, t, y < 0 || y >= in->height ? 0 : y, 0) + plane * plane_bytes(in);
    for (int kx = 0, x = x0; kx < n->kernel_w; kx++, x += n->dilation_x) {
      const int inside = y >= 0 && y < in->height && x >= 0 && x < in->width;
      const uint8_t *p = inside ? row + x * bytes : memory;
      for (int c = 0; c < channels; c += WORD, p += WORD / 8) {
        const int size = channels - c < WORD ? channels - c : WORD;
        const word bits = inside ? load(p) & ((word)-1 >> (WORD - size)) : 0;
        ones += popcount(bits);
        current |= bits << fill;
        fill += size;
        if (fill >= WORD) {
          fill -= WORD;
          *to = current;
          to += step;
          current = fill ? bits >> (size - fill) : 0;
        }
      }
    }
  }
  if (fill) *to = current;
  return (int32_t)ones;
}

/* Lists the words that are not zero in every one of `group` patches. */
static int listed(const word *x, int words, int step, int group, uint16_t *list) {
  int count = 0;
  for (int k = 0; k < words; k++) {
    word any = 0;
    for (int v = 0; v < group; v++) any |= x[k * step + v];
    list[count] = (uint16_t)k;
    count += any != 0;
  }
  return count;
}

static void run_neurons(const neurons *n, int steps, int32_t *state) {
  const int planes = n->in.planes, patches = steps * planes, most = steps == STEPS ? n->group : 1;
  dot_products *const full = steps == STEPS ? n->dot : n->single;
  const int step = n->out.height * n->out.width * plane_bytes(&n->out);
  int counts[PATCHES];
  int32_t offsets[STEPS], sums[PATCHES * LANES];
  for (int y = 0; y < n->out.height; y++) {
    for (int x = 0; x < n->out.width; x++) {
      const int y0 = y * n->stride_y - n->pad_y, x0 = x * n->stride_x - n->pad_x;
      for (int t = 0, v = 0; t < steps; t++) {
        offsets[t] = 0;
        for (int p = 0; p < planes; p++, v++) {
          const int32_t ones = gather(n, t, p, y0, x0, patch + v, patches);
          offsets[t] += shifted(shifted(ones, n->bits) - shifted(ones, n->ternary), p);
        }
      }
      for (int v = 0, g = 0; v < patches; v += most, g++) {
        const int group = patches - v < most ? patches - v : most;
        counts[g] = listed(patch + v, n->words, patches, group, lists + g * n->words);
      }
      if (n->added) carry(n, y, x, steps);
      int32_t *const kept = state_of(&n->out, n->kept, y, x, state);
      uint8_t *out = pixel(&n->out, 0, y, x);
      for (int b = 0; b < blocks_of(&n->out); b++, out += LANES / 8) {
        const word *weights = n->weights + b * n->words * n->bits * LANES;
        for (int v = 0, g = 0; v < patches; v += most, g++) {
          dot_products *dot = patches - v < most ? n->rest : full;
          dot(patch + v, lists + g * n->words, counts[g], patches, weights, sums + v * LANES);
        }
        run_block(n, b, sums, offsets, out, step, steps, kept);
      }
    }
  }
}

//@ grouped
/* Spiking neurons that read the channels of their group alone: `first` and those that follow, `inputs` of them. Weights
   lie as [tap][channel of the group][output], in 8 or in 16 bits. */
typedef struct {
  neurons of;
  const int8_t *narrow;
  const int16_t *wide, *first;
  int inputs;
} grouped;

/* Adds the weights of every spike in one plane of a patch to the sums of a block. */
static void add_weights(const grouped *g, int t, int plane, int y0, int x0, int block, int32_t *restrict sums) {
  const neurons *n = &g->of;
  const map *in = &n->in;
  const int outputs = blocks_of(&n->out) * LANES, begin = block * LANES;
  const int lanes = lanes_of(&n->out, begin);
  for (int l = 0; l < LANES; l++) sums[l] = 0;
  for (int tap = 0; tap < n->kernel_h * n->kernel_w; tap++) {
    const int y = y0 + tap / n->kernel_w * n->dilation_y, x = x0 + tap % n->kernel_w * n->dilation_x;
    if (y < 0 || y >= in->height || x < 0 || x >= in->width) continue;
    const uint8_t *bits = pixel(in, t, y, x) + plane * plane_bytes(in);
    for (int i = 0; i < g->inputs; i++) {
      const int at = (tap * g->inputs + i) * outputs + begin;
      for (int l = 0; l < lanes; l++) {
        const int c = g->first[begin + l] + i;
        const int32_t weight = g->narrow ? g->narrow[at + l] : g->wide[at + l];
        sums[l] += weight & -(bits[c >> 3] >> (c & 7) & 1);
      }
    }
  }
}

static void run_grouped(const grouped *g, int steps, int32_t *state) {
  const neurons *n = &g->of;
  const int planes = n->in.planes, step = n->out.height * n->out.width * plane_bytes(&n->out);
  int32_t offsets[STEPS] = {0}, sums[PATCHES * LANES];
  for (int y = 0; y < n->out.height; y++) {
    for (int x = 0; x < n->out.width; x++) {
      const int y0 = y * n->stride_y - n->pad_y, x0 = x * n->stride_x - n->pad_x;
      if (n->added) carry(n, y, x, steps);
      int32_t *const kept = state_of(&n->out, n->kept, y, x, state);
      uint8_t *out = pixel(&n->out, 0, y, x);
      for (int b = 0; b < blocks_of(&n->out); b++, out += LANES / 8) {
        for (int v = 0; v < steps * planes; v++) add_weights(g, v / planes, v % planes, y0, x0, b, sums + v * LANES);
        run_block(n, b, sums, offsets, out, step, steps, kept);
      }
    }
  }
}

//@ stem
/* Spiking neurons on pixels. Weights lie as [tap][channel][output], zeros for outputs whose synapses have no effect;
   `fine` are 256ths of a weight; a tap outside the image adds `pads`, what a pixel of mean colour would. */
typedef struct {
  int height, width, channels;
  map out;
  int kernel_h, kernel_w, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
  const int16_t *weights;
  const uint8_t *fine;
  const int32_t *pads, *bias, *threshold;
  const uint8_t *shift;
  const cell *cell;
  int kept;
} stem;

/* An int32_t holds the sum of so many pixel values times 256ths; the channels of a pixel are fewer. */
enum { MOST_PARTS = INT32_MAX / (255 * 255) };

/* Takes the whole weights out of the sums of 256ths. */
static void carry_parts(int outputs) {
  for (int o = 0; o < outputs; o++) whole[o] += parts[o] >> 8;
  for (int o = 0; o < outputs; o++) parts[o] &= 255;
}

static void look(const stem *n, const uint8_t *image, int y0, int x0, int outputs) {
  const int many = n->kernel_h * n->kernel_w * n->channels > MOST_PARTS;
  for (int o = 0; o < outputs; o++) whole[o] = parts[o] = outside[o] = 0;
  for (int ky = 0; ky < n->kernel_h; ky++) {
    for (int kx = 0; kx < n->kernel_w; kx++) {
      const int y = y0 + ky * n->dilation_y, x = x0 + kx * n->dilation_x, tap = ky * n->kernel_w + kx;
      if (y < 0 || y >= n->height || x < 0 || x >= n->width) {
        const int32_t *pads = n->pads + tap * outputs;
        for (int o = 0; o < outputs; o++) outside[o] += pads[o];
        continue;
      }
      for (int c = 0; c < n->channels; c++) {
        const int32_t value = image[(y * n->width + x) * n->channels + c];
        const int16_t *weights = n->weights + (tap * n->channels + c) * outputs;
        for (int o = 0; o < outputs; o++) whole[o] += value * weights[o];
        if (n->fine) {
          const uint8_t *fine = n->fine + (tap * n->channels + c) * outputs;
          for (int o = 0; o < outputs; o++) parts[o] += value * fine[o];
        }
      }
      if (many) carry_parts(outputs);
    }
  }
  carry_parts(outputs);
  for (int o = 0; o < outputs; o++) {
    const int32_t sum = shifted(whole[o], n->shift[o]) + (shifted(parts[o], n->shift[o]) >> 8);
    whole[o] = sum + outside[o] + n->bias[o];
  }
}

static void run_stem(const stem *n, const uint8_t *image, int steps, int32_t *state) {
  const int outputs = blocks_of(&n->out) * LANES;
  for (int y = 0; y < n->out.height; y++) {
    for (int x = 0; x < n->out.width; x++) {
      const int y0 = y * n->stride_y - n->pad_y, x0 = x * n->stride_x - n->pad_x;
      int32_t *const kept = state_of(&n->out, n->kept, y, x, state);
      for (int o = 0; o < outputs; o += LANES) restore(membranes + o, kept ? kept + o : 0, lanes_of(&n->out, o));
      for (int t = 0; t < steps; t++) {
        if (FRAMES || t == 0) look(n, image + FRAMES * t * n->height * n->width * n->channels, y0, x0, outputs);
        uint8_t *out = pixel(&n->out, t, y, x);
        for (int o = 0; o < outputs; o += LANES) {
          advance(n->cell, o, membranes + o, whole + o, n->threshold + o, out + (o >> 3));
        }
      }
      for (int o = 0; o < outputs; o += LANES) keep(membranes + o, kept ? kept + o : 0, lanes_of(&n->out, o));
    }
  }
}

//@ max_pool
/* OR of the spikes in each window. */
static void max_pool(map in, map out, int window_h, int window_w, int stride_y, int stride_x, int pad_y, int pad_x,
                     int steps) {
  for (int t = 0; t < steps; t++) {
    for (int y = 0; y < out.height; y++) {
      for (int x = 0; x < out.width; x++) {
        uint8_t *to = pixel(&out, t, y, x);
        for (int b = 0; b < plane_bytes(&out); b++) to[b] = 0;
        for (int wy = 0; wy < window_h; wy++) {
          for (int wx = 0; wx < window_w; wx++) {
            const int iy = y * stride_y - pad_y + wy, ix = x * stride_x - pad_x + wx;
            if (iy < 0 || iy >= in.height || ix < 0 || ix >= in.width) continue;
            const uint8_t *p = pixel(&in, t, iy, ix);
            for (int b = 0; b < plane_bytes(&out); b++) to[b] |= p[b];
          }
        }
      }
    }
  }
}

//@ sum
/* Sum of two maps by a ripple-carry adder on bit planes. */
static void add_maps(map first, map second, map out, int steps) {
  const int bytes = plane_bytes(&out);
  for (int t = 0; t < steps; t++) {
    for (int y = 0; y < out.height; y++) {
      for (int x = 0; x < out.width; x++) {
        for (int b = 0; b < bytes; b++) {
          int over = 0;
          for (int p = 0; p < out.planes; p++) {
            const int u = p < first.planes ? pixel(&first, t, y, x)[p * bytes + b] : 0;
            const int v = p < second.planes ? pixel(&second, t, y, x)[p * bytes + b] : 0;
            pixel(&out, t, y, x)[p * bytes + b] = (uint8_t)(u ^ v ^ over);
            over = (u & v) | (over & (u ^ v));
          }
        }
      }
    }
  }
}

//@ concatenation
static void clear_map(map out, int steps) {
  for (int i = 0; i < steps * out.height * out.width * pixel_bytes(&out); i++) memory[out.at + i] = 0;
}

/* Copies a map to the channels of another from `first` on, where there are zeros. */
static void copy_channels(map in, map out, int first, int steps) {
  for (int t = 0; t < steps; t++) {
    for (int y = 0; y < out.height; y++) {
      for (int x = 0; x < out.width; x++) {
        for (int p = 0; p < in.planes; p++) {
          const uint8_t *from = pixel(&in, t, y, x) + p * plane_bytes(&in);
          uint8_t *to = pixel(&out, t, y, x) + p * plane_bytes(&out) + (first >> 3);
          for (int b = 0; 8 * b < in.channels; b++) {
            const int bits = from[b] << (first & 7);
            to[b] |= (uint8_t)bits;
            if (bits >> 8) to[b + 1] |= (uint8_t)(bits >> 8);
          }
        }
      }
    }
  }
}

//@ readout
/* The share of a bias that so many steps have, rounded towards zero. */
static inline int32_t share(int32_t bias, int steps) { return bias / STEPS * steps + bias % STEPS * steps / STEPS; }

/* Adds the weights of every spike, [window][channel][class], to the logits, which `before` steps have added to; returns
   the largest's class. */
static int run_readout(map in, int window_h, int window_w, int stride_y, int stride_x, int rows, int columns,
                       const weight *weights, const int32_t *bias, int before, int steps, int32_t *logits) {
  for (int k = 0; k < CLASSES; k++) logits[k] += share(bias[k], before + steps) - share(bias[k], before);
  for (int r = 0; r < rows * columns; r++) {
    for (int w = 0; w < window_h * window_w; w++) {
      const int y = r / columns * stride_y + w / window_w, x = r % columns * stride_x + w % window_w;
      for (int t = 0; t < steps; t++) {
        for (int p = 0; p < in.planes; p++) {
          const uint8_t *bits = pixel(&in, t, y, x) + p * plane_bytes(&in);
          for (int c = 0; c < in.channels; c++) {
            if (!(bits[c >> 3] >> (c & 7) & 1)) continue;
            const weight *row = weights + (r * in.channels + c) * CLASSES;
            for (int k = 0; k < CLASSES; k++) logits[k] += shifted(row[k], p);
          }
        }
      }
    }
  }
  int best = 0;
  for (int k = 1; k < CLASSES; k++) best = logits[k] > logits[best] ? k : best;
  return best;
}


//@ rates
/* Adds every value of a map to its logit; returns the largest's class. */
static int run_rates(map in, int steps, int32_t *logits) {
  int best = 0;
  for (int k = 0; k < CLASSES; k++) {
    const int place = k / in.channels, c = k % in.channels;
    for (int t = 0; t < steps; t++) {
      const uint8_t *bits = pixel(&in, t, place / in.width, place % in.width);
      for (int p = 0; p < in.planes; p++, bits += plane_bytes(&in)) logits[k] += (bits[c >> 3] >> (c & 7) & 1) << p;
    }
    best = logits[k] > logits[best] ? k : best;
  }
  return best;
}

//@ step
void NAME_reset(NAME_state *state) {
  state->steps = 0;
  for (int k = 0; k < CLASSES; k++) state->logits[k] = 0;
  for (int i = 0; i < (int)(sizeof state->membranes / sizeof *state->membranes); i++) state->membranes[i] = 0;
}

int NAME_step(NAME_state *state, const uint8_t *pixels) {
  const int before = state->steps < STEPS ? state->steps : 0;
  for (int k = 0; before == 0 && k < CLASSES; k++) state->logits[k] = 0;
  state->steps = before + 1;
  return run_layers(pixels, before, 1, state->membranes, state->logits);
}

//@ margin
uint32_t NAME_margin(const int32_t *logits) {
  int32_t best = logits[0], second = INT32_MIN;
  for (int k = 1; k < CLASSES; k++) {
    second = logits[k] > best ? best : logits[k] > second ? logits[k] : second;
    best = logits[k] > best ? logits[k] : best;
  }
  return (uint32_t)best - (uint32_t)second;
}
