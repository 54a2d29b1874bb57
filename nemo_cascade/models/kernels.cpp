// What torch has no single operation for, in one pass each: Mamba-2's convolution and scan, RMSNorm, packed attention.
//
// Plain functions for ctypes, on contiguous float32 unless a stride says otherwise. Everything works on pieces that stay in a
// core's first caches, in vectors of a register's width, and writes each number from one thread in an order that does not depend
// on how many there are: the same inputs give the same bits. No -ffast-math: what is not finite stays so.

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 8;
#else
constexpr int LANES = 8, ROWS = 4;
#endif
constexpr int CHUNK = 32;   // tokens whose products are done at once
constexpr int BLOCK = 128;  // rows that one thread takes, and whose parts of a parameter's gradient are summed first
typedef float V __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int I __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// Zeroed memory of a task, aligned to cache lines: a register whose numbers lie in two takes twice as long to read.
struct Scratch {
  std::deque<std::vector<float>> all;
  float* take(long size) {
    all.emplace_back(size + 16);
    return (float*)(((uintptr_t)all.back().data() + 63) / 64 * 64);
  }
  template <int N>
  std::array<float*, N> take(long size) {
    std::array<float*, N> pieces;
    for (auto& piece : pieces) piece = take(size);
    return pieces;
  }
};

static inline V load(const float* from) { return *(const V*)from; }
static inline void store(float* to, V v) { *(V*)to = v; }

static inline I count() {
  I at = {};
  for (int j = 0; j < LANES; j++) at[j] = j;
  return at;
}

static inline float sum(V v) {
  const I at = count();
#pragma GCC unroll 4
  for (int half = LANES / 2; half; half /= 2) v += __builtin_shuffle(v, at ^ half);
  return v[0];
}

// Within 2 units in the last place between -87.3 and 88.3, beyond those what it is there; NaN for NaN.
static inline V exp(V x) {
  x = x < -87.3f ? -87.3f - V{} : x;
  x = x > 88.3f ? 88.3f - V{} : x;
  const float round = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the last bits
  V shifted = x * 1.44269504f + round, whole = shifted - round;
  V f = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  V p = 1.98756915e-4f * f + 1.39819995e-3f;
  for (float c : {8.33345191e-3f, 4.16657959e-2f, 1.66666657e-1f, 5.00000012e-1f}) p = p * f + c;
  p = p * f * f + f + 1.f;
  I exponent = ((I)shifted - 0x4B400000 + 127) << 23;
  return p * (V)exponent;
}

static inline V sigmoid(V x) { return 1.f / (1.f + exp(-x)); }

// work(task) for every task; threads take them as they come, each with its own copy of what work captured, in registers.
template <class Work>
static void parallel(long tasks, int threads, Work work) {
  std::atomic<long> next{0};
  auto run = [&] {
    Work mine = work;
    for (long task; (task = next++) < tasks;) mine(task);
  };
  std::vector<std::thread> others;
  for (long i = std::min<long>(threads, tasks); i > 1; i--) others.emplace_back(run);
  run();
  for (auto& other : others) other.join();
}

// out [R, W vectors] (+)= a b over k of [from, to), where a[i, k] lies at a[i * ai + k * ak].
template <int R, int W>
static inline void tile(const float* a, long ai, long ak, const float* b, long bk, float* out, long oi, long from, long to, bool add) {
  V acc[R][W];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int w = 0; w < W; w++) acc[r][w] = add ? load(out + r * oi + w * LANES) : V{};
  for (long k = from; k < to; k++) {
    V row[W];
#pragma GCC unroll 2
    for (int w = 0; w < W; w++) row[w] = load(b + k * bk + w * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int w = 0; w < W; w++) acc[r][w] += a[r * ai + k * ak] * row[w];
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int w = 0; w < W; w++) store(out + r * oi + w * LANES, acc[r][w]);
}

enum Shape { FULL, LOWER, UPPER };  // LOWER: a[i, k] is 0 for k > i; UPPER: for k < i

// out [rows, columns] (+)= a [rows, depth] b [depth, columns]; rows divide by ROWS, columns by LANES.
[[gnu::noinline]] static void product(Shape shape, long rows, long columns, long depth, const float* a, long ai, long ak, const float* b, long bk,
                    float* out, long oi, bool add = false) {
  for (long i = 0; i < rows; i += ROWS) {
    const long from = shape == UPPER ? i : 0, to = shape == LOWER ? std::min(depth, i + ROWS) : depth;
    long j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES) tile<ROWS, 2>(a + i * ai, ai, ak, b + j, bk, out + i * oi + j, oi, from, to, add);
    if (j < columns) tile<ROWS, 1>(a + i * ai, ai, ak, b + j, bk, out + i * oi + j, oi, from, to, add);
  }
}

// to [columns, rows] = from [rows, columns], both divide by LANES.
[[gnu::noinline]] static void transpose(const float* from, long rows, long columns, float* to) {
  const I at = count();
  for (long i = 0; i < rows; i += LANES)
    for (long j = 0; j < columns; j += LANES) {
      V v[LANES];
#pragma GCC unroll 16
      for (int r = 0; r < LANES; r++) v[r] = load(from + (i + r) * columns + j);
#pragma GCC unroll 4
      for (int s = 1; s < LANES; s *= 2)
#pragma GCC unroll 16
        for (int r = 0; r < LANES; r++)
          if (!(r & s)) {
            V one = v[r], other = v[r + s];
            v[r] = __builtin_shuffle(one, other, (at & s) ? at - s + LANES : at);
            v[r + s] = __builtin_shuffle(one, other, (at & s) ? at + LANES : at + s);
          }
#pragma GCC unroll 16
      for (int r = 0; r < LANES; r++) store(to + (j + r) * rows + i, v[r]);
    }
}

// to [CHUNK, width] = from's rows [given, width], each times its scale where there are scales; zeros after them.
static void take(const float* from, long stride, long given, long width, const float* scale, long scale_stride, float* to) {
  for (long l = 0; l < given; l++)
    for (long j = 0; j < width; j += LANES)
      store(to + l * width + j, (scale ? scale[l * scale_stride] : 1.f) * load(from + l * stride + j));
  std::fill(to + given * width, to + CHUNK * width, 0.f);
}

// each(row l, place in the row, place in [heads, CHUNK, p], head) for rows [heads * p] of a chunk: memory is read and written in
// long runs, which is faster by far than head by head.
template <class Each>
static inline void by_rows(long given, long heads, long p, Each each) {
  for (long l = 0; l < given; l++)
    for (long r = 0; r < heads; r++)
      for (long j = 0; j < p; j += LANES) each(l, r * p + j, (r * CHUNK + l) * p + j, r);
}

static void copy_rows(const float* from, long stride, long rows, long width, float* to, long to_stride) {
  for (long l = 0; l < rows; l++) std::copy(from + l * stride, from + l * stride + width, to + l * to_stride);
}

static float dot(const float* one, const float* other, long width) {
  V v = {};
  for (long j = 0; j < width; j += LANES) v += load(one + j) * load(other + j);
  return sum(v);
}

// passes [l, s]: the part of token s that is left at token l, a product of decays; reach [l]: of the state before the chunk.
static void decays(const float* decay, long stride, long given, float* passes, float* reach) {
  const I at = count();
  V row[CHUNK / LANES] = {};
  float product = 1;
  for (int l = 0; l < CHUNK; l++) {
    const float by = l < given ? decay[l * stride] : 1.f;
    reach[l] = product *= by;
    for (int w = 0; w < CHUNK / LANES; w++) {
      row[w] = row[w] * by + (at + w * LANES == l ? 1.f - V{} : V{});
      store(passes + l * CHUNK + w * LANES, row[w]);
    }
  }
}

// Blocks of rows, each with its own part of parameters' gradients [size]; to [size] is their sum.
template <class Work>
static void in_blocks(long rows, int threads, long size, float* to, Work work) {
  const long blocks = (rows + BLOCK - 1) / BLOCK;
  Scratch scratch;
  float* parts = scratch.take(blocks * size);
  parallel(blocks, threads, [=](long block) { work(block * BLOCK, std::min(rows, (block + 1) * BLOCK), &parts[block * size]); });
  std::fill(to, to + size, 0.f);
  for (long block = 0; block < blocks; block++)
    for (long j = 0; j < size; j++) to[j] += parts[block * size + j];
}

// One vector of the convolution at x, which hears `reach` tokens before it.
template <class Reach>
static inline V convolved(const float* x, long stride, const float* taps, long channels, long width, V bias, Reach reach) {
  V out = bias;
  for (long k = 0; k <= reach; k++) out += load(x - k * stride) * load(taps + (width - 1 - k) * channels);
  return out;
}

// row(reach), with the usual one as a constant, so that loops over it are unrolled.
template <class Row>
static inline void for_reach(int reach, Row row) {
  if (reach == 3) row(std::integral_constant<int, 3>());
  else row(reach);
}

// One head's share of attention: CHUNK queries of a document against its keys [keys, CHUNK], queries side by side.
struct Queries {
  static constexpr int W = CHUNK / LANES;
  long first, given, keys, d;  // place of the first in its document; how many; keys to look at, a multiple of ROWS; width of a head
  float *rows, *turned, *scores;

  Queries(Scratch& scratch, long longest, long d)
      : d(d), rows(scratch.take(CHUNK * d)), turned(scratch.take(CHUNK * d)), scores(scratch.take(longest * CHUNK)) {}

  // scores = q k^T, times scale.
  void score(const float* q, long stride, const float* K, float scale) {
    take(q, stride, given, d, &scale, 0, rows);
    transpose(rows, CHUNK, d, turned);
    product(FULL, keys, CHUNK, d, K, d, 1, turned, CHUNK, scores, CHUNK);
  }

  // The scores of key j, with `hidden` for queries before it.
  V at(long j, int w, float hidden) {
    V v = load(&scores[j * CHUNK + w * LANES]);
    return count() + (int)(first + w * LANES - j) < 0 ? hidden - V{} : v;
  }
};

extern "C" {

// out [rows, channels] = silu(depthwise causal convolution) of x, whose rows lie stride apart; taps [width, channels]; reach [rows]:
// how many tokens before it (less than width) a token hears.
void conv_forward(long rows, long channels, long width, const float* x, long stride, const float* taps, const float* bias,
                  const int* reach, float* out, int threads) {
  parallel((rows + BLOCK - 1) / BLOCK, threads, [=](long block) {
    for (long l = block * BLOCK; l < std::min(rows, (block + 1) * BLOCK); l++)
      for_reach(reach[l], [=](auto heard) {
        for (long j = 0; j < channels; j += LANES) {
          V v = convolved(x + l * stride + j, stride, taps + j, channels, width, load(bias + j), heard);
          store(out + l * channels + j, v * sigmoid(v));
        }
      });
  });
}

// grad_x has x's stride; grad_parameters [width + 1, channels]: of the taps, then of the bias.
void conv_backward(long rows, long channels, long width, const float* x, long stride, const float* taps, const float* bias,
                   const int* reach, const float* grad, float* grad_x, float* grad_parameters, int threads) {
  in_blocks(rows, threads, (width + 1) * channels, grad_parameters, [&](long first, long last, float* sums) {
    Scratch scratch;
    float* ring = scratch.take(width * channels);  // gradients before silu, of the newest rows
    for (long l = std::min(rows, last + width - 1) - 1; l >= first; l--) {
      // Of the tokens after this one, those that hear it are the next ones.
      int hearers = 0;
      while (hearers + 1 < width && l + hearers + 1 < rows && reach[l + hearers + 1] > hearers) hearers++;
      for_reach(reach[l], [=](auto heard) {
        for (long j = 0; j < channels; j += LANES) {
          V v = convolved(x + l * stride + j, stride, taps + j, channels, width, load(bias + j), heard), s = sigmoid(v);
          V d = load(grad + l * channels + j) * s * (1.f + v * (1.f - s));
          store(&ring[l % width * channels + j], d);
          if (l >= last) continue;
          for (long k = 0; k <= heard; k++) {
            float* tap = sums + (width - 1 - k) * channels + j;
            store(tap, load(tap) + d * load(x + (l - k) * stride + j));
          }
          store(sums + width * channels + j, load(sums + width * channels + j) + d);
        }
      });
      if (l >= last) continue;
      for_reach(hearers, [=](auto hear) {
        for (long j = 0; j < channels; j += LANES) {
          V to_x = {};
          for (long k = 0; k <= hear; k++)
            to_x += load(&ring[(l + k) % width * channels + j]) * load(taps + (width - 1 - k) * channels + j);
          store(grad_x + l * stride + j, to_x);
        }
      });
    }
  });
}

// One token a row, x [rows, channels] with rows x_stride apart, into the inputs before it, state [rows, width, channels], which move
// up by one; out [rows, channels] as in conv_forward.
void conv_step(long rows, long channels, long width, const float* x, long x_stride, float* state, const float* taps, const float* bias,
               float* out, int) {
  for (long i = 0; i < rows; i++) {
    float *held = state + i * width * channels, *newest = held + (width - 1) * channels;
    std::memmove(held, held + channels, (width - 1) * channels * sizeof(float));
    std::memcpy(newest, x + i * x_stride, channels * sizeof(float));
    for (long j = 0; j < channels; j += LANES) {
      V v = convolved(newest + j, channels, taps + j, channels, width, load(bias + j), width - 1);
      store(out + i * channels + j, v * sigmoid(v));
    }
  }
}

// One token a row: state [rows, heads, p, n] = decay state + step x B^T; out [rows, heads, p] = state C + D x. step, decay [rows, heads],
// D [heads]; rows of x [heads, p], B and C [groups, n] lie stride apart.
void state_step(long rows, long heads, long groups, long p, long n, float* state, const float* x, long x_stride, const float* B,
                long B_stride, const float* C, long C_stride, const float* step, const float* decay, const float* D, float* out,
                int threads) {
  // A thread that does less takes longer to come than the work does.
  const long each = std::max<long>(1, (1 << 18) / (heads * p * n));
  parallel((rows + each - 1) / each, threads, [=](long block) {
    for (long i = block * each; i < std::min(rows, (block + 1) * each); i++)
      for (long h = 0; h < heads; h++) {
        const long g = h / (heads / groups), at = i * heads + h;
        const float *from = x + i * x_stride + h * p, *b = B + i * B_stride + g * n, *c = C + i * C_stride + g * n;
        for (long j = 0; j < p; j++) {
          float* held = state + (at * p + j) * n;
          V along = {};
          for (long k = 0; k < n; k += LANES) {
            V v = load(held + k) * decay[at] + load(b + k) * (from[j] * step[at]);
            store(held + k, v);
            along += v * load(c + k);
          }
          out[at * p + j] = sum(along) + from[j] * D[h];
        }
      }
  });
}

// out = x * scale * weight with scale [rows, groups] = 1 / sqrt(mean(x^2) + eps); x [rows, groups, width], weight [groups, width].
void norm_forward(long rows, long groups, long width, const float* x, const float* weight, float eps, float* scale, float* out,
                  int threads) {
  parallel((rows + BLOCK - 1) / BLOCK, threads, [=](long block) {
    for (long i = block * BLOCK * groups; i < std::min(rows, (block + 1) * BLOCK) * groups; i++) {
      const float *from = x + i * width, *by = weight + i % groups * width;
      scale[i] = 1.f / std::sqrt(dot(from, from, width) / width + eps);
      for (long j = 0; j < width; j += LANES) store(out + i * width + j, load(from + j) * scale[i] * load(by + j));
    }
  });
}

void norm_backward(long rows, long groups, long width, const float* x, const float* weight, const float* scale, const float* grad,
                   float* grad_x, float* grad_weight, int threads) {
  in_blocks(rows, threads, groups * width, grad_weight, [&](long first, long last, float* sums) {
    for (long i = first * groups; i < last * groups; i++) {
      const float *in = x + i * width, *by = weight + i % groups * width, *d = grad + i * width;
      float* part = sums + i % groups * width;
      V along = {};
      for (long j = 0; j < width; j += LANES) {
        V product = load(d + j) * (load(in + j) * scale[i]);
        store(part + j, load(part + j) + product);
        along += product * load(by + j);
      }
      const float mean = sum(along) / width;
      for (long j = 0; j < width; j += LANES)
        store(grad_x + i * width + j, (load(d + j) * load(by + j) - load(in + j) * scale[i] * mean) * scale[i]);
    }
  });
}

// out = prob relu(x)^2 for rows [width] of x; prob 1 without any.
void relu2_forward(long rows, long width, const float* x, const float* prob, float* out, int threads) {
  parallel((rows + BLOCK - 1) / BLOCK, threads, [=](long block) {
    for (long i = block * BLOCK; i < std::min(rows, (block + 1) * BLOCK); i++)
      for (long j = 0; j < width; j += LANES) {
        V v = load(x + i * width + j), positive = v < 0.f ? V{} : v;
        store(out + i * width + j, positive * positive * (prob ? prob[i] : 1.f));
      }
  });
}

// grad_x may be grad; grad_prob [rows] is left out without probs.
void relu2_backward(long rows, long width, const float* x, const float* prob, const float* grad, float* grad_x, float* grad_prob,
                    int threads) {
  parallel((rows + BLOCK - 1) / BLOCK, threads, [=](long block) {
    for (long i = block * BLOCK; i < std::min(rows, (block + 1) * BLOCK); i++) {
      V along = {};
      for (long j = 0; j < width; j += LANES) {
        V v = load(x + i * width + j), positive = v < 0.f ? V{} : v, slope = load(grad + i * width + j) * positive;
        along += slope * positive;
        store(grad_x + i * width + j, slope * (2.f * (prob ? prob[i] : 1.f)));
      }
      if (prob) grad_prob[i] = sum(along);
    }
  });
}

// y, gated [b, l, heads * p] and states [b, heads, chunks, n, p] of xBC [b, l, heads * p + 2 * groups * n], step and decay
// [b, l, heads], z [b, l, heads * p] with rows z_stride apart. decay 0 starts a document.
void scan_forward(long batch, long length, long heads, long groups, long p, long n, const float* xBC, const float* step,
                  const float* decay, const float* D, const float* z, long z_stride, float* y, float* gated, float* states,
                  int threads) {
  const long inner = heads * p, width = inner + 2 * groups * n, each = heads / groups, chunks = (length + CHUNK - 1) / CHUNK;
  parallel(batch * groups, threads, [=](long task) {
    const long b = task / groups, g = task % groups;
    Scratch scratch;
    auto [B, Bt, C, Cd] = scratch.take<4>(CHUNK * n);
    auto [CB, M] = scratch.take<2>(CHUNK * CHUNK);
    auto [x, Y] = scratch.take<2>(each * CHUNK * p);
    float *X = scratch.take(CHUNK * p), *H = scratch.take(each * n * p), reach[CHUNK], last[CHUNK];
    for (long c = 0; c < chunks; c++) {
      const long first = b * length + c * CHUNK, given = std::min<long>(CHUNK, length - c * CHUNK);
      const float* row = xBC + first * width;
      take(row + inner + g * n, width, given, n, nullptr, 0, B);
      take(row + inner + (groups + g) * n, width, given, n, nullptr, 0, C);
      transpose(B, CHUNK, n, Bt);
      product(FULL, CHUNK, CHUNK, n, C, n, 1, Bt, CHUNK, CB, CHUNK);
      by_rows(given, each, p, [&](long l, long j, long at, long) { store(&x[at], load(row + l * width + g * each * p + j)); });
      for (long r = 0; r < each; r++) {
        const long h = g * each + r;
        float *state = &H[r * n * p], *out = &Y[r * CHUNK * p];
        memcpy(states + ((b * heads + h) * chunks + c) * n * p, state, n * p * sizeof(float));
        decays(decay + first * heads + h, heads, given, M, reach);
        std::copy(&M[(CHUNK - 1) * CHUNK], &M[(CHUNK - 1) * CHUNK] + CHUNK, last);
        for (int i = 0; i < CHUNK * CHUNK; i += LANES) store(&M[i], load(&M[i]) * load(&CB[i]));
        take(&x[r * CHUNK * p], p, given, p, step + first * heads + h, heads, X);
        product(LOWER, CHUNK, p, CHUNK, M, CHUNK, 1, X, p, out, p);
        take(C, n, CHUNK, n, reach, 1, Cd);
        product(FULL, CHUNK, p, n, Cd, n, 1, state, p, out, p, true);
        take(X, p, CHUNK, p, last, 1, X);
        for (long i = 0; i < n * p; i += LANES) store(state + i, load(state + i) * reach[CHUNK - 1]);
        product(FULL, n, p, CHUNK, B, 1, n, X, p, state, p, true);
      }
      const float* gates = z + first * z_stride + g * each * p;
      const long to = first * inner + g * each * p;
      by_rows(given, each, p, [&](long l, long j, long at, long r) {
        V gate = load(gates + l * z_stride + j), out = load(&Y[at]) + D[g * each + r] * load(&x[at]);
        store(y + to + l * inner + j, out);
        store(gated + to + l * inner + j, out * gate * sigmoid(gate));
      });
    }
  });
}

// The gradients of scan_forward's xBC and z, of step as it stands before x, of the exponents of decay [b, l, heads], and D's
// [b, heads]. An exponent's is the sum over all that passes its token: what does not is never added, so nothing cancels.
void scan_backward(long batch, long length, long heads, long groups, long p, long n, const float* xBC, const float* step,
                   const float* decay, const float* D, const float* z, long z_stride, const float* y, const float* states,
                   const float* grad, float* grad_xBC, float* grad_z, float* grad_step, float* grad_exponent, float* grad_D,
                   int threads) {
  const long inner = heads * p, width = inner + 2 * groups * n, each = heads / groups, chunks = (length + CHUNK - 1) / CHUNK;
  parallel(batch * groups, threads, [=](long task) {
    const long b = task / groups, g = task % groups;
    Scratch scratch;
    auto [B, Bt, C, dB, dC, part] = scratch.take<6>(CHUNK * n);
    auto [CB, dCB, M, dM] = scratch.take<4>(CHUNK * CHUNK);
    auto [x, grads, dXs] = scratch.take<3>(each * CHUNK * p);
    auto [X, Xt] = scratch.take<2>(CHUNK * p);
    float *dH = scratch.take(each * n * p), *turned = scratch.take(n * p), reach[CHUNK], last[CHUNK], across[CHUNK];
    const I at = count();
    std::fill(grad_D + b * heads + g * each, grad_D + b * heads + (g + 1) * each, 0.f);
    for (long c = chunks - 1; c >= 0; c--) {
      const long first = b * length + c * CHUNK, given = std::min<long>(CHUNK, length - c * CHUNK);
      const float* row = xBC + first * width;
      take(row + inner + g * n, width, given, n, nullptr, 0, B);
      take(row + inner + (groups + g) * n, width, given, n, nullptr, 0, C);
      transpose(B, CHUNK, n, Bt);
      product(FULL, CHUNK, CHUNK, n, C, n, 1, Bt, CHUNK, CB, CHUNK);
      for (float* zeroed : {dB, dC}) std::fill(zeroed, zeroed + CHUNK * n, 0.f);
      std::fill(dCB, dCB + CHUNK * CHUNK, 0.f);
      const long columns = g * each * p;
      if (given < CHUNK) std::fill(grads, grads + each * CHUNK * p, 0.f);
      by_rows(given, each, p, [&](long l, long j, long at, long) {
        const long place = (first + l) * inner + columns + j, gate_place = (first + l) * z_stride + columns + j;
        V gate = load(z + gate_place), s = sigmoid(gate), d = load(grad + place);
        store(&x[at], load(row + l * width + columns + j));
        store(&grads[at], d * gate * s);
        store(grad_z + gate_place, d * load(y + place) * s * (1.f + gate * (1.f - s)));
      });
      for (long r = 0; r < each; r++) {
        const long h = g * each + r;
        const float *E = states + ((b * heads + h) * chunks + c) * n * p, *steps = step + first * heads + h;
        float *dstate = &dH[r * n * p], *G = &grads[r * CHUNK * p], *dX = &dXs[r * CHUNK * p];
        decays(decay + first * heads + h, heads, given, M, reach);
        std::copy(&M[(CHUNK - 1) * CHUNK], &M[(CHUNK - 1) * CHUNK] + CHUNK, last);
        take(&x[r * CHUNK * p], p, given, p, steps, heads, X);
        transpose(X, CHUNK, p, Xt);
        product(FULL, CHUNK, CHUNK, p, G, p, 1, Xt, CHUNK, dM, CHUNK);
        for (int i = 0; i < CHUNK * CHUNK; i += LANES) {
          V passes = load(&M[i]), d = load(&dM[i]), m = passes * load(&CB[i]);
          store(&dCB[i], load(&dCB[i]) + d * passes);
          store(&M[i], m);
          store(&dM[i], d * m);
        }
        // From tokens before t to those from t on.
        V pairs[CHUNK / LANES] = {};
        for (int t = CHUNK - 1; t >= 0; t--) {
          V before = {};
          for (int w = 0; w < CHUNK / LANES; w++) {
            pairs[w] += load(&dM[t * CHUNK + w * LANES]);
            before += at + w * LANES < t ? pairs[w] : V{};
          }
          across[t] = sum(before);
        }
        product(UPPER, CHUNK, p, CHUNK, M, 1, CHUNK, G, p, dX, p);
        // The state after the chunk: what came into it.
        take(B, n, CHUNK, n, last, 1, part);
        product(FULL, CHUNK, p, n, part, n, 1, dstate, p, dX, p, true);
        take(X, p, CHUNK, p, last, 1, X);
        transpose(dstate, n, p, turned);
        product(FULL, CHUNK, n, p, X, p, 1, turned, n, part, n);
        float entered = reach[CHUNK - 1] * dot(dstate, E, n * p);
        for (int t = 0; t < CHUNK; t++) {
          across[t] += entered;
          entered += dot(&part[t * n], &B[t * n], n);
        }
        for (long i = 0; i < CHUNK * n; i += LANES) store(&dB[i], load(&dB[i]) + load(&part[i]));
        for (long l = 0; l < given; l++) {
          V direct = {}, skipped = {};
          for (long j = 0; j < p; j += LANES) {
            V d = load(&dX[l * p + j]), in = load(&x[(r * CHUNK + l) * p + j]), out = load(&G[l * p + j]);
            direct += d * in;
            skipped += out * in;
            store(&dX[l * p + j], d * steps[l * heads] + out * D[h]);
          }
          grad_step[(first + l) * heads + h] = sum(direct);
          grad_D[b * heads + h] += sum(skipped);
        }
        // The state before the chunk: who heard of it.
        take(G, p, CHUNK, p, reach, 1, G);
        transpose(E, n, p, turned);
        product(FULL, CHUNK, n, p, G, p, 1, turned, n, part, n);
        float heard = 0;
        for (int t = CHUNK - 1; t >= 0; t--) {
          heard += dot(&part[t * n], &C[t * n], n);
          if (t < given) grad_exponent[(first + t) * heads + h] = across[t] + heard;
        }
        for (long i = 0; i < CHUNK * n; i += LANES) store(&dC[i], load(&dC[i]) + load(&part[i]));
        for (long i = 0; i < n * p; i += LANES) store(dstate + i, load(dstate + i) * reach[CHUNK - 1]);
        product(FULL, n, p, CHUNK, C, 1, n, G, p, dstate, p, true);
      }
      product(UPPER, CHUNK, n, CHUNK, dCB, 1, CHUNK, C, n, dB, n, true);
      product(LOWER, CHUNK, n, CHUNK, dCB, CHUNK, 1, B, n, dC, n, true);
      by_rows(given, each, p, [&](long l, long j, long at, long) {
        store(grad_xBC + (first + l) * width + columns + j, load(&dXs[at]));
      });
      for (long l = 0; l < given; l++) {
        float* to = grad_xBC + (first + l) * width + inner + g * n;
        std::copy(&dB[l * n], &dB[l * n] + n, to);
        std::copy(&dC[l * n], &dC[l * n] + n, to + groups * n);
      }
    }
  });
}

// Causal attention inside each document [starts[i], starts[i + 1]): out [tokens, heads, d] of q [tokens, heads, d], k and v
// [tokens, groups, d] with rows so far apart. stats [heads, tokens, 2]: a query's largest score, and 1 / the sum of exp(score - it).
void attention_forward(long documents, const int* starts, long heads, long groups, long d, float scale, const float* q, long q_stride,
                       const float* k, long k_stride, const float* v, long v_stride, float* stats, float* out, int threads) {
  const long tokens = starts[documents], each = heads / groups;
  parallel(documents * groups, threads, [=](long task) {
    const long start = starts[task / groups], length = starts[task / groups + 1] - start, g = task % groups;
    const long padded = (length + ROWS - 1) / ROWS * ROWS;
    Scratch scratch;
    auto [K, T] = scratch.take<2>(padded * d);
    float* O = scratch.take(CHUNK * d);
    copy_rows(k + start * k_stride + g * d, k_stride, length, d, K, d);
    copy_rows(v + start * v_stride + g * d, v_stride, length, d, T, d);
    Queries block(scratch, padded, d);
    for (long h = g * each; h < (g + 1) * each; h++)
      for (block.first = 0; block.first < length; block.first += CHUNK) {
        block.given = std::min<long>(CHUNK, length - block.first);
        block.keys = std::min(padded, block.first + CHUNK);
        const long token = start + block.first;
        block.score(q + token * q_stride + h * d, q_stride, K, scale);
        float* stat = stats + (h * tokens + token) * 2;
        for (int w = 0; w < block.W; w++) {
          V most = -INFINITY - V{}, total = {};
          for (long j = 0; j < block.keys; j++) {
            V s = block.at(j, w, -INFINITY);
            most = s > most ? s : most;
          }
          for (long j = 0; j < block.keys; j++) {
            store(&block.scores[j * CHUNK + w * LANES], exp(load(&block.scores[j * CHUNK + w * LANES]) - most));
            V e = block.at(j, w, 0);
            store(&block.scores[j * CHUNK + w * LANES], e);
            total += e;
          }
          for (long i = 0; i < LANES && w * LANES + i < block.given; i++) {
            stat[(w * LANES + i) * 2] = most[i];
            stat[(w * LANES + i) * 2 + 1] = 1 / total[i];
          }
        }
        product(FULL, CHUNK, d, block.keys, block.scores, 1, CHUNK, T, d, O, d);
        for (long i = 0; i < block.given; i++)
          for (long j = 0; j < d; j += LANES) store(out + ((token + i) * heads + h) * d + j, load(&O[i * d + j]) * stat[i * 2 + 1]);
      }
  });
}

void attention_backward(long documents, const int* starts, long heads, long groups, long d, float scale, const float* q, long q_stride,
                        const float* k, long k_stride, const float* v, long v_stride, const float* stats, const float* grad,
                        float* grad_q, float* grad_k, float* grad_v, int threads) {
  const long tokens = starts[documents], each = heads / groups;
  parallel(documents * groups, threads, [=](long task) {
    const long start = starts[task / groups], length = starts[task / groups + 1] - start, g = task % groups;
    const long padded = (length + ROWS - 1) / ROWS * ROWS;
    Scratch scratch;
    auto [K, T, dK, dT] = scratch.take<4>(padded * d);
    auto [G, Gt, dQ] = scratch.take<3>(CHUNK * d);
    float* dP = scratch.take(padded * CHUNK);
    copy_rows(k + start * k_stride + g * d, k_stride, length, d, K, d);
    copy_rows(v + start * v_stride + g * d, v_stride, length, d, T, d);
    Queries block(scratch, padded, d);
    for (long h = g * each; h < (g + 1) * each; h++)
      for (block.first = 0; block.first < length; block.first += CHUNK) {
        block.given = std::min<long>(CHUNK, length - block.first);
        block.keys = std::min(padded, block.first + CHUNK);
        const long token = start + block.first;
        block.score(q + token * q_stride + h * d, q_stride, K, scale);
        take(grad + (token * heads + h) * d, heads * d, block.given, d, nullptr, 0, G);
        transpose(G, CHUNK, d, Gt);
        product(FULL, block.keys, CHUNK, d, T, d, 1, Gt, CHUNK, dP, CHUNK);
        float most[CHUNK] = {}, scaled[CHUNK] = {};
        for (long i = 0; i < block.given; i++) {
          most[i] = stats[(h * tokens + token + i) * 2];
          scaled[i] = stats[(h * tokens + token + i) * 2 + 1];
        }
        for (int w = 0; w < block.W; w++) {
          V mean = {};
          for (long j = 0; j < block.keys; j++) {
            float* at = &block.scores[j * CHUNK + w * LANES];
            store(at, exp(load(at) - load(most + w * LANES)) * load(scaled + w * LANES));
            V p = block.at(j, w, 0);
            store(at, p);
            mean += p * load(&dP[j * CHUNK + w * LANES]);
          }
          for (long j = 0; j < block.keys; j++) {
            float* at = &dP[j * CHUNK + w * LANES];
            store(at, load(&block.scores[j * CHUNK + w * LANES]) * (load(at) - mean));
          }
        }
        product(FULL, block.keys, d, CHUNK, block.scores, CHUNK, 1, G, d, dT, d, true);
        product(FULL, block.keys, d, CHUNK, dP, CHUNK, 1, block.rows, d, dK, d, true);
        product(FULL, CHUNK, d, block.keys, dP, 1, CHUNK, K, d, dQ, d);
        for (long i = 0; i < block.given; i++)
          for (long j = 0; j < d; j += LANES) store(grad_q + ((token + i) * heads + h) * d + j, load(&dQ[i * d + j]) * scale);
      }
    copy_rows(dK, d, length, d, grad_k + (start * groups + g) * d, groups * d);
    copy_rows(dT, d, length, d, grad_v + (start * groups + g) * d, groups * d);
  });
}
}
