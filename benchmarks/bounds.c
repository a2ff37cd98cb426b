/* What the processor can do at most: bytes read a second, float32 multiply-adds a second, int8 weights a second
   that are read and multiplied with a vector.
   cc -O3 -march=native -pthread bounds.c && ./a.out THREADS MEGABYTES -> JSON */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define CHAINS 12
#define REPEATS 5
#define ROUNDS 20000000L

typedef float vec __attribute__((vector_size(WIDTH * 4)));
typedef long long words __attribute__((vector_size(WIDTH * 4)));

static int threads;
static size_t bytes;
static char *memory;
static volatile long long sink;
static volatile float fsink;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void *fill(void *argument) {
  size_t part = bytes / threads;
  memset(memory + part * (size_t)argument, 1, part);
  return NULL;
}

static void *read_all(void *argument) {
  size_t count = bytes / threads / sizeof(words);
  const words *data = (const words *)memory + count * (size_t)argument;
  words a = {0}, b = {0}, c = {0}, d = {0};
  for (size_t i = 0; i + 4 <= count; i += 4) {
    a += data[i];
    b += data[i + 1];
    c += data[i + 2];
    d += data[i + 3];
  }
  a += b + c + d;
  sink += a[0];
  return NULL;
}

/* One row of int8 weights times a vector of small unsigned integers. */
#define COLUMNS 1024
#if defined(__AVX512VNNI__)
static int dot(const char *row, const unsigned char *vector) {
  __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int i = 0; i < COLUMNS; i += 256)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      sums[j] = _mm512_dpbusd_epi32(sums[j], _mm512_loadu_si512(vector + i + 64 * j),
                                    _mm512_loadu_si512(row + i + 64 * j));
  return _mm512_reduce_add_epi32(
      _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3])));
}
#elif defined(__AVX2__)
static int dot(const char *row, const unsigned char *vector) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int i = 0; i < COLUMNS; i += 128)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      __m256i weights = _mm256_loadu_si256((const __m256i *)(row + i + 32 * j));
      __m256i values = _mm256_loadu_si256((const __m256i *)(vector + i + 32 * j));
      sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(_mm256_maddubs_epi16(values, weights), ones));
    }
  sums[0] = _mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), _mm256_add_epi32(sums[2], sums[3]));
  int parts[8], sum = 0;
  _mm256_storeu_si256((__m256i *)parts, sums[0]);
  for (int i = 0; i < 8; ++i) sum += parts[i];
  return sum;
}
#else
static int dot(const char *row, const unsigned char *vector) {
  int sum = 0;
  for (int i = 0; i < COLUMNS; ++i) sum += row[i] * vector[i];
  return sum;
}
#endif

static void *int8_gemv(void *argument) {
  size_t rows = bytes / threads / COLUMNS;
  const char *row = memory + rows * COLUMNS * (size_t)argument;
  unsigned char vector[COLUMNS];
  long long sum = 0;
  memset(vector, 3, sizeof vector);
  for (size_t i = 0; i < rows; ++i) sum += dot(row + i * COLUMNS, vector);
  sink += sum;
  return NULL;
}

static void *multiply_add(void *argument) {
  vec x[CHAINS], factor, term;
  for (int k = 0; k < WIDTH; ++k) {
    factor[k] = 0.999f;
    term[k] = 0.001f * (float)((size_t)argument + 1);
  }
  for (int j = 0; j < CHAINS; ++j) x[j] = term * (float)j;
  for (long i = 0; i < ROUNDS; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < CHAINS; ++j) x[j] = x[j] * factor + term;
  }
  for (int j = 1; j < CHAINS; ++j) x[0] += x[j];
  fsink += x[0][0];
  return NULL;
}

static double seconds(void *(*body)(void *)) {
  pthread_t id[256];
  double begin = now();
  for (long i = 0; i < threads; ++i) pthread_create(&id[i], NULL, body, (void *)i);
  for (int i = 0; i < threads; ++i) pthread_join(id[i], NULL);
  return now() - begin;
}

static double best(void *(*body)(void *)) {
  double least = 1e9;
  for (int i = 0; i < REPEATS; ++i) {
    double taken = seconds(body);
    if (taken < least) least = taken;
  }
  return least;
}

int main(int count, char **arguments) {
  threads = count > 1 ? atoi(arguments[1]) : 1;
  if (threads < 1 || threads > 256) return 2;
  bytes = (size_t)(count > 2 ? atoi(arguments[2]) : 1024) << 20;
  if (posix_memalign((void **)&memory, 2 << 20, bytes)) return 1;
  madvise(memory, bytes, MADV_HUGEPAGE);
  seconds(fill);
  double read = bytes / best(read_all) / 1e9;
  double fma = 2.0 * WIDTH * CHAINS * ROUNDS * threads / best(multiply_add) / 1e9;
  double int8 = bytes / best(int8_gemv) / 1e9;
  printf("{\"read_gb_s\": %.2f, \"fma_gflop_s\": %.1f, \"int8_gb_s\": %.2f}\n", read, fma, int8);
  return 0;
}
